"""Fine-tuning on retain as a host objective."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.published import sgd

__all__ = ["Finetune"]


class Finetune(Objective):
    """Cross-entropy on retain and nothing else, from the original model: the simplest baseline.

    Published settings: SGD 0.9/5e-4, learning rate 0.01, 10 epochs over retain (CIFAR); 1e-4, 40 epochs (ImageNet).
    """

    name = "finetune"
    uses = "retain"
    source = "fine-tuning (FT) baseline"
    published: ClassVar = sgd(
        0.01, weight_decay=5e-4, num_train_epochs=10, per_device_train_batch_size=256, batch_norm="retain"
    )

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Component "retain_ce"."""
        return {"retain_ce": cross_entropy(step.retain.logits, step.retain.labels)}
