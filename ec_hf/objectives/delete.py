"""DELETE as a host objective."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ec_hf.losses import delete_kl, retain_cross_entropy
from ec_hf.objectives import Objective, Step

__all__ = ["Delete"]


@dataclass
class Delete(Objective):
    """Distillation on the forget set from the original model, blind to what must be forgotten.

    Published settings: mask "sample", no retain data, so `retain_weight` 0; SGD with momentum 0.9, no weight decay.

    Args:
        mask: "classes" hides every forgotten class from the teacher where the forget set is whole classes, and the
            sample's own label otherwise; "sample" always hides the sample's own label only.
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "DELETE+R".

    Raises:
        ValueError: a setting out of range.
    """

    mask: str = "classes"
    retain_weight: float = 0.0

    name = "delete"
    uses = "forget"
    needs_teacher = True
    source = "DELETE, CVPR 2025"

    def __post_init__(self) -> None:
        if self.mask not in ("classes", "sample"):
            raise ValueError(f"mask must be 'classes' or 'sample', got {self.mask!r}")
        if not self.retain_weight >= 0:
            raise ValueError(f"retain_weight must be 0 or more, got {self.retain_weight}")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Component "delete", and "retain_ce" where it has a weight."""
        classes = step.forget_classes if self.mask == "classes" else None
        losses = {"delete": delete_kl(step.forget.logits, step.teacher_logits("forget"), step.forget.labels, classes)}
        if self.retain_weight:
            losses["retain_ce"] = self.retain_weight * retain_cross_entropy(step.retain.logits, step.retain.labels)
        return losses
