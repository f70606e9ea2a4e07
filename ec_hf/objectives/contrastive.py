"""Contrastive unlearning as a host objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ec_hf.losses import check_contrast, global_contrast, retain_cross_entropy
from ec_hf.objectives import Objective, Step

__all__ = ["Contrastive"]


@dataclass
class Contrastive(Objective):
    """A contrast at the last point's features plus λ times the cross-entropy on retain.

    Published settings: CSUL's code "csul", τ 0.7, contrast and cross-entropy 3 : 1, so λ 1/3; UUEF's code "uuef", τ 1,
    λ 1. The defaults here are this project's choice by measurement.

    Args:
        form: a name of `ec_hf.losses.CONTRASTS`.
        temperature: τ > 0.
        retain_weight: λ ≥ 0.

    Raises:
        ValueError: a setting out of range.
    """

    form: str = "supcon"
    temperature: float = 0.1
    retain_weight: float = 1.0

    name = "contrastive"
    covers_last_point = True
    source = "Contrastive Unlearning, arXiv 2401.10458"

    def __post_init__(self) -> None:
        check_contrast(self.form, temperature=self.temperature)
        if not self.retain_weight >= 0:
            raise ValueError(f"retain_weight must be 0 or more, got {self.retain_weight}")

    def check(self, forget_classes: int) -> None:
        """Refuse `uuef` for one class."""
        check_contrast(self.form, forget_classes)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "contrast" and "retain_ce"; logs "fallbacks", the share of anchors without a partner."""
        forget, retain = step.forget, step.retain
        contrast = global_contrast(
            self.form, forget.features, retain.features, forget.labels, retain.labels, self.temperature
        )
        step.log["fallbacks"] = contrast.fallbacks / len(forget.labels)
        return {
            "contrast": contrast.loss,
            "retain_ce": self.retain_weight * retain_cross_entropy(retain.logits, retain.labels),
        }
