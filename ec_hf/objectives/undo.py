"""UNDO: noise over all weights, then distillation from a model that does not name the forgotten classes."""

from __future__ import annotations

from dataclasses import dataclass

from ec_hf.objectives.rewind import Rewind

__all__ = ["Undo"]


@dataclass
class Undo(Rewind):
    """All weights move part of the way to new ones, and the blind original teaches them on retain images.

        θ ← (1 − α) · θ + α · new,  once, before training
        loss = τ · mean_i KL( q_i ‖ p(x_i) ),  i in retain
        q_i = softmax of the original model's logits with −∞ at the forgotten classes

    The paper's teacher is a model that was made to suppress what must be forgotten, by any method; here the original
    with its forgotten logits hidden. The paper multiplies new weights by β = 0.1, for language models; here they have
    the size that the architecture starts with.

    Source: *Distillation Robustifies Unlearning* (arXiv 2506.06278), algorithm 1.

    Args:
        alpha: α, the paper's 0.2 to 0.8: more is more robust and takes longer to come back.
        retain_weight: weight of cross-entropy on retain images, which the paper does not have.
        teacher_weight: τ > 0.

    Raises:
        ValueError: a setting out of range.
    """

    depth: float = 1.0
    alpha: float = 0.6
    retain_weight: float = 0.0
    teacher_weight: float = 1.0

    name = "undo"
    source = "UNDO (arXiv 2506.06278)"
    renews_classifier = False

    def leaves_to_ec(self, state: int, states: int) -> bool:
        """Everywhere: each layer keeps a part of what it knew."""
        return True
