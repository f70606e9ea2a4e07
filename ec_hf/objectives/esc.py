"""ESC as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ec_hf.models.finish import logit_layers
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.projection import layer_inputs, remove_directions

__all__ = ["Esc"]


@dataclass
class Esc(Objective):
    """The leading directions of the forget set's penultimate features, taken out in front of the classifier.

        W ← W (I − Q Qᵀ),   Q the leading eigenvectors of Σ_i f_i f_iᵀ over forget

    f is what the classifier reads. As published a projection of f stands before the classifier; as that is linear,
    its weight takes it in, and what is left is a plain checkpoint with the same logits. Its hidden states are those
    of the original: ESC removes nothing from the network below the classifier.

    Published settings: 1.5 % of the width, rounded down: 7 directions of 512 in a ResNet-18, 11 of 768 in a ViT-B. The
    variant that learns a mask over the directions (ESC-T) is left out.

    Args:
        share: directions to take out, as a share of the width, above 0 and below 1; one at least.

    Raises:
        ValueError: a setting out of range.
    """

    share: float = 0.015

    name = "esc"
    uses = "forget"
    trains = False
    published: ClassVar = {"objective_kwargs": {"share": 0.015}}
    source = "ESC: Erasing Space Concept for Knowledge Deletion, CVPR 2025"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {self.share}")

    def prepare(self, setting: Setting) -> None:
        """Edit the classifier.

        Raises:
            ValueError: no linear layer gives the model's logits.
        """
        layers = [layer for layer in logit_layers(setting.model) if layer.weight.requires_grad]
        if not layers:
            raise ValueError("objective 'esc' edits the classifier alone, and that is frozen: let its weight move")
        moments: dict = {}
        for batch in setting.forget():
            for layer, features in layer_inputs(setting.model, layers, batch["pixel_values"]).items():
                moments[layer] = moments.get(layer, 0) + features.T @ features
        for layer, moment in moments.items():
            count = max(1, int(self.share * len(moment)))
            remove_directions(layer, torch.linalg.eigh(moment).eigenvectors[:, -count:])

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """No loss."""
        return {}
