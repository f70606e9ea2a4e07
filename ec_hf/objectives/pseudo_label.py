"""Pseudo-labels as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ec_hf.losses.distillation import cross_entropy, hide_classes
from ec_hf.objectives.base import Step
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["PseudoLabel"]


@dataclass
class PseudoLabel(PlusRetain):
    """Cross-entropy on the forget set with the class as label that the original model thinks best of those that stay.

        loss = mean_i CE(p(x_i), argmax_{c ∉ forgotten} g₀(x_i)_c)

    Forgotten are the classes of the forget set where it is whole classes, the sample's own label otherwise. It is
    DELETE with a hard label.

    Published settings: no retain data; with UUEF's distillation family SGD 0.9/5e-4, learning rate 7e-6, batch 128, 15
    epochs over the forget set (ImageNet).

    Args:
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "PL+R".

    Raises:
        ValueError: a setting out of range.
    """

    name = "pseudo_label"
    uses = "forget"
    needs_teacher = True
    published: ClassVar = sgd(
        7e-6,
        weight_decay=5e-4,
        forget_epochs=15,
        per_device_train_batch_size=128,
        objective_kwargs={"retain_weight": 0.0},
    )
    source = "PL in the code of Are We Truly Forgetting?, arXiv 2503.06991"

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "pseudo_label"."""
        best = hide_classes(step.teacher_logits("forget"), step.forget.labels, step.forget_classes).argmax(dim=1)
        return {"pseudo_label": cross_entropy(step.forget.logits, best)}
