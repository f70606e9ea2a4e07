"""Boundary expand as a host objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Setting, Step
from ec_hf.objectives.checks import prepared
from ec_hf.objectives.plus_retain import PlusRetain
from ec_hf.objectives.published import sgd

__all__ = ["BoundaryExpand"]


@dataclass
class BoundaryExpand(PlusRetain):
    """Cross-entropy on the forget set with a class as label that the model does not have.

        loss = mean_i CE( softmax[g(x_i), ⟨w, f_i⟩], C ),   g the model's C logits, f_i what its classifier reads

    The row w of the extra class C is drawn as the published code does (Xavier normal, no bias), and it lives here:
    the model never has it, so there is nothing to cut off at the end. It stays as drawn, where the published code
    trains it along at a learning rate of 1e-5, so that a resume and every process have the same one.

    Published settings: no retain data; SGD 0.9, learning rate 1e-5, batch 64, 10 epochs over the forget set
    (CIFAR-10); others took 1e-6 to 1e-5.

    Args:
        retain_weight: weight ≥ 0 of the cross-entropy on retain; above 0 the method is "BE+R".

    Raises:
        ValueError: a setting out of range.
    """

    _row: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    name = "boundary_expand"
    uses = "forget"
    source = "Boundary Unlearning, CVPR 2023, arXiv 2303.11570"
    published: ClassVar = sgd(
        1e-5, forget_epochs=10, per_device_train_batch_size=64, objective_kwargs={"retain_weight": 0.0}
    )

    def prepare(self, setting: Setting) -> None:
        """Draw the row of the extra class from the run's seed."""
        with torch.no_grad():
            width = setting.features(next(iter(setting.forget()))["pixel_values"][:1]).shape[1]
        scale = math.sqrt(2 / (width + setting.model.config.num_labels + 1))
        self._row = scale * torch.randn(width, generator=torch.Generator().manual_seed(setting.seed))

    def forget_losses(self, step: Step) -> dict[str, Tensor]:
        """Component "boundary_expand"."""
        logits, features = step.forget.logits, step.forget.features
        extra = (features * prepared(self, self._row).to(features)).sum(dim=1, keepdim=True)
        widened = torch.cat([logits, extra.to(logits)], dim=1)
        return {"boundary_expand": cross_entropy(widened, torch.full_like(step.forget.labels, logits.shape[1]))}
