"""Gradient ascent as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Step
from ec_hf.objectives.checks import positive
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["GradientAscent"]


@dataclass
class GradientAscent(PlusRetain):
    """Cross-entropy on the forget set, climbed instead of descended.

        loss = −mean_i min( CE(p(x_i), y_i), bound )

    Published settings: no bound, no retain data; SGD 0.9/5e-4, batch 256, learning rate 1e-4 (CIFAR, 5 epochs over
    the forget set) or 5e-6 (ImageNet, 8 epochs). It is very sensitive to the learning rate: search 1e-5 to 1e-1.

    Args:
        bound: stop climbing for a sample once its cross-entropy is this high; without it the loss has no lower end,
            and too many steps wreck the model. log(number of classes) is where the model knows nothing of the label.
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "GA+R".

    Raises:
        ValueError: a setting out of range.
    """

    bound: float | None = None

    name = "gradient_ascent"
    uses = "forget"
    published: ClassVar = sgd(
        1e-4,
        weight_decay=5e-4,
        forget_epochs=5,
        per_device_train_batch_size=256,
        objective_kwargs={"bound": None, "retain_weight": 0.0},
    )
    source = "Warnecke et al., arXiv 2108.11577; as in the code of arXiv 2304.04934"

    def __post_init__(self) -> None:
        if self.bound is not None:
            positive(self, "bound")
        super().__post_init__()

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "ascent"."""
        loss = cross_entropy(step.forget.logits, step.forget.labels, reduction="none")
        return {"ascent": -(loss if self.bound is None else loss.clamp(max=self.bound)).mean()}
