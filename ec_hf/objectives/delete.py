"""DELETE as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ec_hf.losses.distillation import delete_kl
from ec_hf.objectives.base import Step
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["Delete"]


@dataclass
class Delete(PlusRetain):
    """Distillation on the forget set from the original model, blind to what must be forgotten.

        loss = mean_i KL( q_i ‖ p(x_i) ),   q_i = softmax of the original model's logits with −∞ at what is masked

    Published settings: mask "sample", no retain data, so `retain_weight` 0; SGD 0.9 without weight decay, learning
    rate 5e-5 to 1e-4, 20 epochs over the forget set.

    Args:
        mask: "classes" hides every forgotten class from the teacher where the forget set is whole classes, and the
            sample's own label otherwise; "sample" always hides the sample's own label only, from where its probability
            may flow to another class that must be forgotten.
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "DELETE+R".

    Raises:
        ValueError: a setting out of range.
    """

    mask: str = "classes"

    name = "delete"
    uses = "forget"
    needs_teacher = True
    source = "DELETE, CVPR 2025, arXiv 2503.23751"
    published: ClassVar = sgd(
        1e-4,
        forget_epochs=20,
        per_device_train_batch_size=128,
        objective_kwargs={"mask": "sample", "retain_weight": 0.0},
    )

    def __post_init__(self) -> None:
        if self.mask not in ("classes", "sample"):
            raise ValueError(f"mask must be 'classes' or 'sample', got {self.mask!r}")
        super().__post_init__()

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "delete"."""
        classes = step.forget_classes if self.mask == "classes" else None
        return {"delete": delete_kl(step.forget.logits, step.teacher_logits("forget"), step.forget.labels, classes)}
