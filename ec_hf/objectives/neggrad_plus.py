"""NegGrad+ as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.checks import share
from ec_hf.objectives.published import sgd

__all__ = ["NegGradPlus"]


@dataclass
class NegGradPlus(Objective):
    """Descent on retain and ascent on the forget set in one step.

        loss = α · CE(retain) − (1 − α) · CE(forget)

    Each half is averaged over its own rows, so the sizes of the two batches do not move the balance. The ascent has
    no lower end: a small α wrecks the model.

    The authors' small-scale notebook adds to the retain term the squared distance of the weights to the original's,
    weighed by the weight decay of the original's training; that is left out, as their other loop leaves it out.

    Published settings: α 0.95, SGD without momentum, learning rate 0.01, 10 epochs over retain (small-scale CIFAR);
    copies of the code in other repositories call it with 0.99 to 0.9999.

    Args:
        alpha: α, from 0 to 1.

    Raises:
        ValueError: a setting out of range.
    """

    alpha: float = 0.95

    name = "neggrad_plus"
    published: ClassVar = sgd(0.01, momentum=0.0, num_train_epochs=10, objective_kwargs={"alpha": 0.95})
    source = "NegGrad+ in Towards Unbounded Machine Unlearning (SCRUB), NeurIPS 2023, arXiv 2302.09880"

    def __post_init__(self) -> None:
        share(self, "alpha")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "ascent"."""
        return {
            "retain_ce": self.alpha * cross_entropy(step.retain.logits, step.retain.labels),
            "ascent": -(1 - self.alpha) * cross_entropy(step.forget.logits, step.forget.labels),
        }
