"""What closed forms share that take directions out of the input of linear layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["layer_inputs", "linear_layers", "remove_directions"]

Layer = nn.Linear | nn.Conv2d


def linear_layers(model: nn.Module) -> list[Layer]:
    """The linear layers and ungrouped convolutions of a model, which mix all their input channels."""
    return [
        each
        for each in model.modules()
        if isinstance(each, nn.Linear) or (isinstance(each, nn.Conv2d) and each.groups == 1)
    ]


@torch.no_grad()
def layer_inputs(model: Any, layers: Iterable[Layer], pixel_values: Tensor) -> dict[Layer, Tensor]:
    """The mean input of each layer over tokens or positions, (images, channels), in order of execution.

    They are float64 and in main memory, since not every device has that type. Layers that do not run, or whose input
    is not made of the images, are left out.
    """
    found: dict[Layer, Tensor] = {}
    images = len(pixel_values)

    def keep(layer: Any, args: tuple[Tensor, ...]) -> None:
        values = args[0]
        if len(values) % images:
            return
        if isinstance(layer, nn.Conv2d):
            values = values.flatten(2).mean(dim=2)
        else:  # windows of an image stand one after the other
            values = values.reshape(images, -1, values.shape[-1]).mean(dim=1)
        found[layer] = values.cpu().double()

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        model(pixel_values=pixel_values)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def remove_directions(layer: Layer, basis: Tensor, strength: float = 1.0) -> None:
    """Make a layer blind to directions of its input: W ← W (I − strength · Q Qᵀ), in place.

    Args:
        layer: its weight is (outputs, channels), or (outputs, channels, height, width), where each position is edited.
        basis: Q, (channels, directions), with orthonormal columns.
        strength: 1 takes the directions out, less than 1 dampens them.
    """
    weight = layer.weight.cpu().double()
    seen = torch.einsum("oc...,cd->od...", weight, basis)
    layer.weight.copy_(weight - strength * torch.einsum("od...,cd->oc...", seen, basis))
