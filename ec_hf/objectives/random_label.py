"""Random labels as a host objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ec_hf.distributed import rank_generator
from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Step
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["RandomLabel", "random_labels"]


@dataclass
class RandomLabel(PlusRetain):
    """Cross-entropy on the forget set with random labels, plus λ times the cross-entropy on retain.

        loss = mean_i CE(p(x_i), r_i) + λ · CE(retain),   r_i drawn afresh at every step

    Published settings: SalUn's code draws r uniformly over all classes, so that 1 in C is the true label, and trains
    on both sets (SGD 0.9/5e-4, batch 256, learning rate 5e-3 to 0.1, 10 epochs); "amnesiac" unlearning draws among the
    wrong classes (learning rate 1e-4, 3 epochs); UUEF's ImageNet code uses the forget set alone, so λ 0 (5e-6).

    Args:
        wrong: draw among the C − 1 wrong classes instead of among all C.
        retain_weight: λ ≥ 0.

    Raises:
        ValueError: a setting out of range.
    """

    wrong: bool = False
    retain_weight: float = field(default=1.0, kw_only=True)

    name = "random_label"
    published: ClassVar = sgd(
        5e-3,
        weight_decay=5e-4,
        num_train_epochs=10,
        per_device_train_batch_size=256,
        batch_norm="retain",
        objective_kwargs={"wrong": False, "retain_weight": 1.0},
    )
    source = "Golatkar et al., arXiv 1911.04933; as in SalUn, arXiv 2310.12508"

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "random_label"."""
        logits, labels = step.forget.logits, step.forget.labels
        return {"random_label": cross_entropy(logits, random_labels(labels, logits.shape[1], wrong=self.wrong))}


def random_labels(labels: Tensor, classes: int, *, wrong: bool) -> Tensor:
    """Labels (n,) drawn uniformly among all classes, or among all but each row's own, for this process alone."""
    drawn = torch.randint(classes - wrong, labels.shape, generator=rank_generator()).to(labels.device)
    return drawn + (drawn >= labels) if wrong else drawn
