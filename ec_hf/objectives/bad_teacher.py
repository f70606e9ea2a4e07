"""The incompetent teacher as a host objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ec_hf.losses.distillation import distillation
from ec_hf.models.loading import new_like
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import not_negative, positive, prepared

__all__ = ["BadTeacher"]


@dataclass
class BadTeacher(Objective):
    """Distillation from a network that knows nothing on the forget set, and from the original model on retain.

        loss = T² · mean_i KL(p_b(x_i) ‖ p(x_i)) over forget + λ · T² · mean_j KL(p₀(x_j) ‖ p(x_j)) over retain

    p_b is a randomly initialised network of the same configuration. The mean is over rows; that of the published code
    is over rows and classes, which makes its gradient C times smaller (Adam does not mind, SGD does).

    Published settings: T 1, λ 1, Adam, learning rate 1e-4, one epoch over forget and 30 % of retain.

    Args:
        temperature: T > 0.
        retain_weight: λ ≥ 0.

    Raises:
        ValueError: a setting out of range.
    """

    temperature: float = 1.0
    retain_weight: float = 1.0
    _bad: Any = field(default=None, init=False, repr=False, compare=False)

    name = "bad_teacher"
    needs_teacher = True
    source = "Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096"

    def __post_init__(self) -> None:
        positive(self, "temperature")
        not_negative(self, "retain_weight")

    def prepare(self, setting: Setting) -> None:
        """Build the incompetent teacher from the model's configuration, drawn from the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(setting.seed)  # torch.manual_seed would also set every GPU's state
            bad = new_like(setting.model)
        self._bad = bad.eval().requires_grad_(False).to(setting.model.device)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "forget_kl", and "retain_kl" where it has a weight."""
        with torch.no_grad():
            incompetent = prepared(self, self._bad)(pixel_values=step.forget.pixel_values).logits
        losses = {"forget_kl": distillation(step.forget.logits, incompetent, self.temperature)}
        if self.retain_weight:
            kept = distillation(step.retain.logits, step.teacher_logits("retain"), self.temperature)
            losses["retain_kl"] = self.retain_weight * kept
        return losses
