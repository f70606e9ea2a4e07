"""Boundary shrink as a host objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ec_hf.losses.distillation import cross_entropy, hide_classes
from ec_hf.objectives.base import Step
from ec_hf.objectives.checks import not_negative
from ec_hf.objectives.plus_retain import PlusRetain

__all__ = ["BoundaryShrink", "nearest_wrong_labels"]


@dataclass
class BoundaryShrink(PlusRetain):
    """Cross-entropy on the forget set with the nearest wrong class as label, so that the class's region closes.

        loss = mean_i CE(p(x_i), n_i),   n_i = argmax_{c ≠ y_i} g₀(x_i + ε · sign ∇_x CE(p₀(x_i), y_i))_c

    The step in x is one FGSM step on the frozen original model. Where it does not leave the class, the published code
    trains on the true label; here the best of the other classes is taken always.

    Published settings: ε 0.1 in the model's (normalised) input, no retain data; SGD 0.9, learning rate 1e-6 to 1e-5
    on CIFAR, 10 epochs over the forget set.

    Args:
        epsilon: ε ≥ 0, in units of the model's pixel values; 0 takes the runner-up class of the image itself.
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "BS+R".

    Raises:
        ValueError: a setting out of range.
    """

    epsilon: float = 0.1

    name = "boundary_shrink"
    uses = "forget"
    needs_teacher = True
    source = "Boundary Unlearning, CVPR 2023, arXiv 2303.11570"

    def __post_init__(self) -> None:
        not_negative(self, "epsilon")
        super().__post_init__()

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "boundary_shrink"."""
        assert step.teacher is not None  # the trainer gives one, by `needs_teacher`
        forget = step.forget
        nearest = nearest_wrong_labels(step.teacher, forget.pixel_values, forget.labels, self.epsilon)
        return {"boundary_shrink": cross_entropy(forget.logits, nearest)}


def nearest_wrong_labels(
    teacher: Callable[[Tensor], Tensor], pixel_values: Tensor, labels: Tensor, epsilon: float
) -> Tensor:
    """Each image's most likely wrong class (n,) after one FGSM step of length `epsilon` away from its label."""
    images = pixel_values.detach().clone().requires_grad_()
    # The sum: a mean would shrink each image's gradient with the batch, and in half precision to zero.
    (gradient,) = torch.autograd.grad(cross_entropy(teacher(images), labels, reduction="sum"), images)
    with torch.no_grad():
        return hide_classes(teacher(images + epsilon * gradient.sign()), labels).argmax(dim=1)
