"""Low-rank adapters (LoRA): what a few numbers beside each weight can bring back, the weights themselves frozen.

They are written out here, in a parametrisation of a few lines, so that they fit convolutions as they fit linear
layers, of transformers and timm alike, need no other package, and equal the model to the bit before the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["RANK", "LowRank", "add_adapters"]

RANK = 4
ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRank(nn.Module):
    """A weight plus the product of two thin matrices, `W + B A` (Hu et al. 2021, arXiv 2106.09685); B is 0 at first.

    Args:
        weight: `(out, ...)`, its other dimensions count as one.
        rank: rows of A and columns of B.
        generator: of the random numbers of A.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        start = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        self.down = nn.Parameter(start.to(weight))
        self.up = nn.Parameter(torch.zeros(outputs, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, as large as the weight."""
        return weight + (self.up @ self.down).view_as(weight)


def add_adapters(model: nn.Module, *, rank: int = RANK, seed: int = 0) -> list[nn.Parameter]:
    """Freezes a model and gives each linear layer and convolution an adapter; the model is changed in place.

    Args:
        model: the model.
        rank: of the adapters.
        seed: seed of their random numbers.

    Returns:
        The parameters of the adapters.

    Raises:
        ValueError: the model has no such layer.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    layers = [each for each in model.modules() if isinstance(each, ADAPTED) and each.weight.is_floating_point()]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer or convolution that an adapter fits")
    added: list[nn.Parameter] = []
    for layer in layers:
        adapter = LowRank(layer.weight, rank, generator)
        parametrize.register_parametrization(layer, "weight", adapter)
        added += adapter.parameters()
    return added
