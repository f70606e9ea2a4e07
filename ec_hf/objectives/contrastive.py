"""Contrastive unlearning as a host objective."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ec_hf.losses.contrast import check_contrast, global_contrast
from ec_hf.objectives.base import Step
from ec_hf.objectives.plus_retain import PlusRetain

__all__ = ["Contrastive"]


@dataclass
class Contrastive(PlusRetain):
    """A contrast at the penultimate features plus λ times the cross-entropy on retain.

    Published settings: CSUL's code "csul", τ 0.7, contrast and cross-entropy 3 : 1, so λ 1/3, SGD 0.9, learning rate
    1e-3, four retain batches for each forget batch; UUEF's code "uuef", τ 1, λ 1, the same learning rate. The defaults
    here are this project's choice by measurement.

    Args:
        form: a name of `ec_hf.losses.contrast.CONTRASTS`.
        temperature: τ > 0.
        detach_retain: whether the contrast moves forget features alone; published: both.
        retain_weight: λ ≥ 0.

    Raises:
        ValueError: a setting out of range.
    """

    form: str = "supcon"
    temperature: float = 0.1
    detach_retain: bool = False
    retain_weight: float = field(default=1.0, kw_only=True)

    name = "contrastive"
    covers_last_point = True
    source = "Contrastive Unlearning, arXiv 2401.10458"
    conflict = "the last point: EC leaves it to this objective, so that it is not pulled twice"

    def __post_init__(self) -> None:
        check_contrast(self.form, temperature=self.temperature)
        super().__post_init__()

    def check(self, forget_classes: int, whole_classes: bool) -> None:
        """Refuse `uuef` for one class."""
        check_contrast(self.form, forget_classes)

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "contrast"; logs "fallbacks", the share of anchors without a partner."""
        forget, retain = step.forget, step.retain
        pulled_to = retain.features.detach() if self.detach_retain else retain.features
        contrast = global_contrast(
            self.form, forget.features, pulled_to, forget.labels, retain.labels, self.temperature
        )
        step.log["fallbacks"] = contrast.fallbacks / len(forget.labels)
        return {"contrast": contrast.loss}
