"""Contrastive unlearning as a host objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ec_hf.losses.contrast import check_contrast, global_contrast
from ec_hf.objectives.base import Step
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["Contrastive"]


@dataclass
class Contrastive(PlusRetain):
    """A contrast at the penultimate features plus λ times the cross-entropy on retain.

    Published settings: CSUL's code "csul", τ 0.7, 3 · contrast + 1 · cross-entropy at a learning rate of 1e-3. With
    SGD that is λ 1/3 at 3e-3, as the contrast has weight 1 here. SGD 0.9, batch 64, one pass over the forget set with
    four retain batches for each forget batch; here each of these steps has a new forget batch, so four passes. UUEF's
    code "uuef", τ 1, λ 1, learning rate 1e-3. The defaults here are this project's choice by measurement.

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
    published: ClassVar = sgd(
        3e-3,
        forget_epochs=4,
        per_device_train_batch_size=64,
        batch_norm="retain",
        objective_kwargs={"form": "csul", "temperature": 0.7, "detach_retain": False, "retain_weight": 1 / 3},
    )
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
