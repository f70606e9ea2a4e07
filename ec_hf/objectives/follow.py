"""Following a pilot as a host objective: forget images get the answers of a model that no longer knows them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ec_hf.data.columns import shown
from ec_hf.files import HEADS
from ec_hf.losses.distillation import cross_entropy, distillation
from ec_hf.models.wrapping import saved_state
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import not_negative, prepared

__all__ = ["Follow"]


@dataclass
class Follow(Objective):
    """The original learns to answer on forget images as its pilot does, and keeps its weights for the rest.

        loss = λ · CE(retain) + τ · mean_i KL( p_pilot(x_i) ‖ p(x_i) ),  i in forget

    The pilot is a rewound model (`Rewind`), which never saw the forget images with its new part: what it says of them
    is an estimate of what a retrained model would say. Rewinding costs retain accuracy, and following does not. It is
    for rows: of whole classes the hidden layers keep what they knew (`recipes/results/README.md`). `ec_hf.erase` makes
    the pilot and then follows it (`ECConfig.pilot`).

    Source: the loss is that of *Can Bad Teaching Induce Forgetting?* (arXiv 2205.08096) on the forget set, with a
    pilot in place of a network that knows nothing.

    Args:
        pilot: Hub id or folder of the pilot; it must be named, unless `ec_hf.erase` makes it (`ECConfig.pilot`).
        retain_weight: λ ≥ 0.
        forget_weight: τ ≥ 0.

    Raises:
        ValueError: a weight below 0.
    """

    pilot: str | Path | None = None
    retain_weight: float = 1.0
    forget_weight: float = 1.0
    _pilot: Any = field(default=None, init=False, repr=False, compare=False)

    name = "follow"
    source = "Bad Teaching (arXiv 2205.08096), with a rewound model as the teacher of the forget set"

    def __post_init__(self) -> None:
        not_negative(self, "retain_weight", "forget_weight")

    def check(self, forget_classes: int, whole_classes: bool) -> None:
        """Refuse to follow nobody.

        Raises:
            ValueError: there is no pilot.
        """
        if self.pilot is None:
            raise ValueError(
                "objective 'follow' needs a pilot: objective_kwargs={'pilot': FOLDER}, of a model that 'rewind' made "
                "from the same original. ec_hf.erase(..., pilot=True) makes one and follows it."
            )

    def prepare(self, setting: Setting) -> None:
        """Load the pilot's weights into a copy of the model.

        Raises:
            OSError: there is no such model.
            ValueError: it is another network.
        """
        theirs, pilot = saved_state(setting.model, str(self.pilot)), copy.deepcopy(setting.model)
        own = {name: value for name, value in pilot.state_dict().items() if not name.startswith(f"{HEADS}.")}
        if other := [
            name
            for name in {**own, **theirs}
            if name not in own or name not in theirs or own[name].shape != theirs[name].shape
        ]:
            raise ValueError(f"pilot={str(self.pilot)!r} is no rewind of this model: it differs in {shown(other)}")
        pilot.load_state_dict(theirs, strict=False)  # heads may ride on the model
        self._pilot = pilot.eval().requires_grad_(False)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "follow_kl"."""
        with torch.no_grad():
            wanted = prepared(self, self._pilot)(pixel_values=step.forget.pixel_values).logits
        return {
            "retain_ce": self.retain_weight * cross_entropy(step.retain.logits, step.retain.labels),
            "follow_kl": self.forget_weight * distillation(step.forget.logits, wanted),
        }
