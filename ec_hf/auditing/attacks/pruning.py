"""Small weights set to 0, which undoes unlearning that hides in them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.base import Attack, AttackImages, Outcome
from ec_hf.auditing.attacks.fitting import hits_on, logits_of
from ec_hf.auditing.subjects import Subject

__all__ = ["Pruning", "pruned"]

PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SPARSITIES = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Pruning(Attack):
    """Sets more and more of the smallest weights to 0; nothing is learnt."""

    unit: Literal["sparsity"] = "sparsity"
    level: Literal["quick", "full"] = "quick"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        tests, hits = images.tests(subject.collator), []
        for sparsity in SPARSITIES:
            sparse = pruned(subject.model, sparsity)
            hits.append(hits_on(logits_of(sparse), tests, sparse))
        return Outcome(SPARSITIES, np.stack(hits), self.unit, {"pruned": "smallest magnitudes over all layers"})


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
    layers = [module for module in model.modules() if isinstance(module, PRUNED)]
    weights = [layer.weight for layer in layers if layer.weight.is_floating_point()]
    sizes = torch.cat([weight.abs().flatten().float() for weight in weights]) if weights else torch.empty(0)
    removed = int(sparsity * len(sizes))
    if removed:
        smallest = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        smallest[sizes.argsort(stable=True)[:removed]] = True
        for weight, gone in zip(weights, smallest.split([weight.numel() for weight in weights]), strict=True):
            weight.masked_fill_(gone.view_as(weight), 0)
    return model
