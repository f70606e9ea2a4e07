"""The incompetent teacher as a host objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ec_hf.losses.distillation import distillation
from ec_hf.models.loading import new_like
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import not_negative, positive, prepared, share
from ec_hf.objectives.published import adam

__all__ = ["BadTeacher"]


@dataclass
class BadTeacher(Objective):
    """Distillation from a network that knows nothing on the forget set, and from the original model on retain.

        loss = T² · mean_i KL(p_b(x_i) ‖ p(x_i)) over forget + λ · T² · mean_j KL(p₀(x_j) ‖ p(x_j)) over retain

    p_b is a randomly initialised network of the same configuration. The published loss is one mean over the rows of a
    batch that is drawn from all of forget and a share of retain, which has as many rows of each as there are: as
    halves of a batch that is λ = share · |retain| / |forget|, 2.7 for one class of CIFAR-10 and 30 for one of
    CIFAR-100. What differs by a factor is left: the published mean is over rows and classes, C times smaller, and the
    sum here is 1 + λ times as large (Adam does not mind, SGD does). T² is 1 as published.

    Published settings: T 1, Adam, learning rate 1e-4, batch 256, one epoch over forget and 30 % of retain.

    Args:
        temperature: T > 0.
        retain_weight: λ ≥ 0; None for the published one.
        retain_share: share of the retain set, from 0 to 1, that the published λ is of.

    Raises:
        ValueError: a setting out of range.
    """

    temperature: float = 1.0
    retain_weight: float | None = None
    retain_share: float = 0.3
    _bad: Any = field(default=None, init=False, repr=False, compare=False)
    _weight: float | None = field(default=None, init=False, repr=False, compare=False)

    name = "bad_teacher"
    needs_teacher = True
    source = "Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096"
    published: ClassVar = adam(
        1e-4,
        num_train_epochs=0.3,
        per_device_train_batch_size=256,
        objective_kwargs={"temperature": 1.0, "retain_weight": None, "retain_share": 0.3},
    )

    def __post_init__(self) -> None:
        positive(self, "temperature")
        share(self, "retain_share")
        if self.retain_weight is not None:
            not_negative(self, "retain_weight")

    def prepare(self, setting: Setting) -> None:
        """Build the incompetent teacher from the model's configuration, drawn from the run's seed, and find λ."""
        self._weight = self.retain_weight
        if self._weight is None:
            self._weight = self.retain_share * setting.count("retain") / setting.count("forget")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(setting.seed)  # torch.manual_seed would also set every GPU's state
            bad = new_like(setting.model)
        self._bad = bad.eval().requires_grad_(False).to(setting.model.device)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "forget_kl", and "retain_kl" where it has a weight."""
        with torch.no_grad():
            incompetent = prepared(self, self._bad)(pixel_values=step.forget.pixel_values).logits
        losses = {"forget_kl": distillation(step.forget.logits, incompetent, self.temperature)}
        if weight := prepared(self, self._weight):
            kept = distillation(step.retain.logits, step.teacher_logits("retain"), self.temperature)
            losses["retain_kl"] = weight * kept
        return losses
