"""What objectives share that have a loss for forgetting and may add cross-entropy on retain to it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.checks import not_negative

__all__ = ["PlusRetain"]


@dataclass
class PlusRetain(Objective):
    """A method's own loss plus λ times the cross-entropy on retain.

    Methods that were published with the forget set alone (`uses = "forget"`) have λ 0; with more they are "+R". EC
    brings a cross-entropy on retain of its own, but through its heads and never through the model's own classifier:
    under EC, too, λ is what keeps that one.

    Args:
        retain_weight: λ ≥ 0.

    Raises:
        ValueError: a setting out of range.
    """

    retain_weight: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        not_negative(self, "retain_weight")

    @abstractmethod
    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """The components of the method's own loss."""

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """The components of `forget_losses`, and "retain_ce" where it has a weight."""
        losses = self.forget_losses(step)
        if self.retain_weight:
            losses["retain_ce"] = self.retain_weight * cross_entropy(step.retain.logits, step.retain.labels)
        return losses
