"""Rewinding as a host objective: the deep part starts anew and is recovered without what must be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ec_hf.data.columns import shown
from ec_hf.losses.distillation import cross_entropy, distillation, hide
from ec_hf.models.depth import blocks_of_weights
from ec_hf.models.loading import load_with_new_head, new_like
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import not_negative, share

__all__ = ["Rewind"]

FROM_NEW_WEIGHTS = {"depth": 0.5, "alpha": 1.0, "teacher_weight": 2.0}
FROM_A_BASE = {"depth": 1.0, "alpha": 0.9, "teacher_weight": 1.0}
"""Chosen on MNIST-5k, and on two requests to a fine-tuned EfficientNet; other cases: `recipes/results/README.md`."""


@dataclass
class Rewind(Objective):
    """The deep blocks start anew, and retain images alone bring the model back.

        θ_b ← (1 − α) · θ_b + α · new_b  for the deepest blocks b, once, before training
        loss = λ · CE(retain) + τ · mean_i KL( q_i ‖ p(x_i) ),  i in retain,
        q_i = softmax of the original model's logits with −∞ at the forgotten classes

    What the deep blocks knew of the forget set goes with their weights, and nothing brings it back: the loss sees no
    forget image, and the teacher does not name the forgotten classes. Blocks are the spans between hidden states
    (`ec_hf.models.depth`); the classifier is the last. What the blocks below the cut hold is left to EC at supervision
    points there.

    Batch norm follows the retain images, whatever `batch_norm` says, and no forget target stops the run, as the model
    must come back to its accuracy first. The learning rate is that of a training, not of a fine-tuning; where none is
    given, a range test finds it (`ec_hf.training.learning_rate`). Held-out images were in the original's training and
    are new to the rewound part: `ec_hf.erase` widens `retain_floor` by how much better the original is on them than on
    test images; an `ECTrainer` knows no test images, so set it there.

    Source: re-initialised last layers as in EU-k (arXiv 2201.06640), α as in UNDO (arXiv 2506.06278), the blind
    teacher as in DELETE (arXiv 2503.23751), here on retain images.

    Args:
        depth: share of the blocks, counted from the output, that start anew, 1 for all; None for ½, and 1 with a base.
        alpha: α, from 0 for the original weights to 1 for new ones; None for 1, and 0.9 with a base, which keeps a
            part of what fine-tuning made. The classifier is new in any case.
        base: Hub id or folder of the checkpoint that the original was fine-tuned from; blocks are then set back to its
            weights, and only what it lacks is new. None for new weights, from which a pretrained network does not
            come back in a fifth of its fine-tuning.
        retain_weight: λ ≥ 0.
        teacher_weight: τ ≥ 0; None for 2, and 1 with a base. Without whole classes to hide the teacher is the original
            as it is.

    Raises:
        ValueError: a setting out of range.
    """

    depth: float = None  # type: ignore[assignment] # None until `__post_init__`, as two others
    alpha: float = None  # type: ignore[assignment]
    base: str | None = None
    retain_weight: float = 1.0
    teacher_weight: float = None  # type: ignore[assignment]

    name = "rewind"
    uses = "retain"
    renews = True
    renews_classifier: ClassVar[bool] = True
    source = "EU-k (arXiv 2201.06640), UNDO (arXiv 2506.06278) and DELETE (arXiv 2503.23751), put together"

    def __post_init__(self) -> None:
        for name, value in (FROM_NEW_WEIGHTS if self.base is None else FROM_A_BASE).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        share(self, "depth", "alpha")
        not_negative(self, "retain_weight", "teacher_weight")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override] # a setting decides it
        """Whether the original is asked during training."""
        return self.teacher_weight > 0

    @property
    def has_new_weights(self) -> bool:
        """Not beside a base, whose weights are fine-tuned."""
        return self.base is None

    def prepare(self, setting: Setting) -> None:
        """Set the deep blocks back."""
        images = next(iter(setting.retain()))["pixel_values"][:1]
        blocks, count = blocks_of_weights(setting.model, images)
        shares = {name: self.share_of_new(block, count) for name, block in blocks.items()}
        mix(setting.model, new_weights(setting.model, self.base), shares)

    def share_of_new(self, block: int, count: int) -> float:
        """How much of a block's weights is new; the classifier's block is number `count` - 1."""
        if block == count - 1 and self.renews_classifier:
            return 1.0
        return self.alpha if block >= self.cut(count) else 0.0

    def cut(self, count: int) -> int:
        """Number of the first block that starts anew, of `count` blocks."""
        return round((1 - self.depth) * count)

    def leaves_to_ec(self, state: int, states: int) -> bool:
        """Below the cut."""
        return state < self.cut(states + 1)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "blind_teacher", where they have a weight."""
        losses = {}
        if self.retain_weight:
            losses["retain_ce"] = self.retain_weight * cross_entropy(step.retain.logits, step.retain.labels)
        if self.teacher_weight:
            target = hide(step.teacher_logits("retain"), step.forget_classes or ())
            losses["blind_teacher"] = self.teacher_weight * distillation(step.retain.logits, target)
        return losses


def new_weights(model: Any, base: str | None = None) -> dict[str, Tensor]:
    """Weights and buffers of a new model of the same configuration, or of a base checkpoint with a new classifier.

    Args:
        model: a classifier.
        base: Hub id or folder, or None.

    Raises:
        ValueError: the base is another network.
    """
    if base is None:
        return new_like(model).state_dict()
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    theirs = load_with_new_head(base, names)[0].state_dict()
    own = model.state_dict()
    if other := [name for name, value in own.items() if name not in theirs or theirs[name].shape != value.shape]:
        raise ValueError(
            f"base={base!r} is no checkpoint that the model was fine-tuned from: {shown(other)} have another name or "
            "shape there"
        )
    return theirs


def mix(model: Any, new: dict[str, Tensor], shares: dict[str, float]) -> None:
    """Put (1 − share) · own + share · new in place of a model's own weights and buffers; frozen ones stay.

    Args:
        model: a classifier, changed in place.
        new: tensors of the same names and shapes.
        shares: name -> share of the new tensor, from 0 to 1; names that are left out stay.
    """
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    with torch.no_grad():
        for name, own in model.state_dict().items():
            if not (portion := shares.get(name, 0.0)) or name in frozen:
                continue
            value = new[name].to(own)
            own.copy_(torch.lerp(own, value, portion) if own.is_floating_point() else value)
