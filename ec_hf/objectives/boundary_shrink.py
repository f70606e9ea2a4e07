"""Boundary shrink as a host objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ec_hf.losses.distillation import cross_entropy, hide_classes
from ec_hf.objectives.base import Setting, Step
from ec_hf.objectives.checks import not_negative, prepared
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["BoundaryShrink", "nearest_wrong_labels"]


@dataclass
class BoundaryShrink(PlusRetain):
    """Cross-entropy on the forget set with the nearest wrong class as label, so that the class's region closes.

        loss = mean_i CE(p(x_i), n_i),   n_i = argmax_{c ≠ y_i} g₀(x_i + ε · sign ∇_x CE(p₀(x_i), y_i))_c

    The step in x is one FGSM step on the frozen original model. It is taken on pixels from 0 to 1, as published: the
    normalisation of the image processor is undone, and what comes out is clamped to that range and rounded to 256
    values before it is normalised again. Where the step does not leave the class, the published code trains on the
    true label; here the best of the other classes is taken always, since a true label teaches what shall be forgotten.

    Published settings: ε 0.1, no retain data; SGD 0.9, learning rate 1e-5, batch 64, 10 epochs over the forget set
    (CIFAR-10); others took 1e-6 to 1e-5.

    Args:
        epsilon: ε ≥ 0, on pixels from 0 to 1; 0 takes the runner-up class of the image itself.
        image_mean: mean of each channel by which pixels were normalised; the image processor's if left out.
        image_std: its standard deviation, likewise.
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "BS+R".

    Raises:
        ValueError: a setting out of range.
    """

    epsilon: float = 0.1
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    _range: tuple[Sequence[float], Sequence[float]] | None = field(default=None, init=False, repr=False, compare=False)

    name = "boundary_shrink"
    uses = "forget"
    needs_teacher = True
    source = "Boundary Unlearning, CVPR 2023, arXiv 2303.11570"
    published: ClassVar = sgd(
        1e-5, forget_epochs=10, per_device_train_batch_size=64, objective_kwargs={"epsilon": 0.1, "retain_weight": 0.0}
    )

    def __post_init__(self) -> None:
        not_negative(self, "epsilon")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("image_mean and image_std go together: give both, or leave both to the image processor")
        super().__post_init__()

    def prepare(self, setting: Setting) -> None:
        """See how pixels were normalised.

        Raises:
            ValueError: neither the settings nor an image processor says it.
        """
        if self.image_mean is not None and self.image_std is not None:
            self._range = self.image_mean, self.image_std
        elif setting.normalisation is None and self.epsilon:
            raise ValueError(
                "objective 'boundary_shrink' takes its step on pixels from 0 to 1, and no image processor says how "
                'they were normalised: set objective_kwargs={"image_mean": [...], "image_std": [...]}'
            )
        else:
            self._range = setting.normalisation or ((0.0,), (1.0,))

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "boundary_shrink"."""
        assert step.teacher is not None  # the trainer gives one, by `needs_teacher`
        forget = step.forget
        mean, std = prepared(self, self._range)
        nearest = nearest_wrong_labels(step.teacher, forget.pixel_values, forget.labels, self.epsilon, mean, std)
        return {"boundary_shrink": cross_entropy(forget.logits, nearest)}


def nearest_wrong_labels(
    teacher: Callable[[Tensor], Tensor],
    pixel_values: Tensor,
    labels: Tensor,
    epsilon: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Each image's most likely wrong class (n,) after one FGSM step away from its label.

    Args:
        teacher: gives logits of pixel values.
        pixel_values: (n, channels, height, width), normalised.
        labels: (n,) int64.
        epsilon: length of the step on pixels from 0 to 1; without one the images stay as they are.
        mean: of each channel, or one for all.
        std: likewise.
    """
    images = pixel_values.detach().clone().requires_grad_()
    # The sum: a mean would shrink each image's gradient with the batch, and in half precision to zero.
    (gradient,) = torch.autograd.grad(cross_entropy(teacher(images), labels, reduction="sum"), images)
    with torch.no_grad():
        if epsilon:
            centre, scale = (images.new_tensor(list(each)).view(1, -1, 1, 1) for each in (mean, std))
            stepped = (images * scale + centre + epsilon * gradient.sign()).clamp(0, 1)
            images = ((stepped * 255).round() / 255 - centre) / scale
        return hide_classes(teacher(images), labels).argmax(dim=1)
