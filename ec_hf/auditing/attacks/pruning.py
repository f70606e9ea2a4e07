"""Small weights set to 0, which undoes unlearning that hides in them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.base import Attack, AttackImages, Outcome
from ec_hf.auditing.attacks.weights import hits_of_changed, weighted_layers
from ec_hf.auditing.subjects import Subject

__all__ = ["Pruning", "pruned"]

SPARSITIES = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Pruning(Attack):
    """Sets more and more of the smallest weights to 0; nothing is learnt."""

    unit: Literal["sparsity"] = "sparsity"
    level: Literal["quick", "full"] = "quick"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        hits = hits_of_changed(subject, images, SPARSITIES, pruned)
        return Outcome(SPARSITIES, hits, self.unit, {"pruned": "smallest magnitudes over all layers"})


@torch.no_grad()
def pruned(model: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    """A copy in which the smallest weights are 0, by magnitude over all linear and convolution layers together.

    Biases, norms and embeddings stay (Han et al. 2015, arXiv 1506.02626, without training afterwards).

    Args:
        model: any model; it stays as it is.
        sparsity: share of the weights of these layers that is set to 0, from 0 to below 1.

    Raises:
        ValueError: for a share outside 0..1.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity}: expected a share from 0 to below 1")
    model = copy.deepcopy(model)
    weights: list[Any] = [layer.weight for layer in weighted_layers(model)]
    sizes = torch.cat([weight.abs().flatten().float() for weight in weights]) if weights else torch.empty(0)
    removed = int(sparsity * len(sizes))
    if removed:
        smallest = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        smallest[sizes.argsort(stable=True)[:removed]] = True
        for weight, gone in zip(weights, smallest.split([weight.numel() for weight in weights]), strict=True):
            weight.masked_fill_(gone.view_as(weight), 0)
    return model
