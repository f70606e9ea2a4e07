"""Fine-tuning on retain as a host objective."""

from __future__ import annotations

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step

__all__ = ["Finetune"]


class Finetune(Objective):
    """Cross-entropy on retain and nothing else, from the original model: the simplest baseline.

    Published settings: SGD 0.9/5e-4, learning rate 0.01, 10 epochs over retain (CIFAR); 1e-4, 40 epochs (ImageNet).
    """

    name = "finetune"
    uses = "retain"
    source = "fine-tuning (FT) baseline"

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Component "retain_ce"."""
        return {"retain_ce": cross_entropy(step.retain.logits, step.retain.labels)}
