"""How deep in a network each of its parameters and buffers stands, for any family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ec_hf.models.points import hidden_state_kwargs

__all__ = ["blocks_of_weights"]


def blocks_of_weights(model: nn.Module, pixel_values: Tensor) -> tuple[dict[str, int], int]:
    """The block of each parameter and buffer: the first hidden state that depends on it.

    Block 0 makes the first hidden state (patch embedding or stem), block k what lies between the hidden states k - 1
    and k, and the last block what lies behind the deepest hidden state: final norm, pooling, classifier. A buffer
    stands where the parameters of its module do, or those of the nearest module around it.

    Args:
        model: a classifier that returns hidden states; it is left as it is.
        pixel_values: (n, channels, height, width) images, one is enough.

    Returns:
        Name -> block, for all parameters that the logits depend on and their buffers; and the number of blocks.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: each.requires_grad for name, each in parameters.items()}
    was_training = model.training
    model.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            output = model(pixel_values=pixel_values, **hidden_state_kwargs(model))
            blocks: dict[str, int] = {}
            for block, state in enumerate([*output.hidden_states, output.logits]):
                for name in _reached(state, parameters):
                    blocks.setdefault(name, block)
    finally:
        model.train(was_training)
        for name, each in parameters.items():
            each.requires_grad_(wanted[name])
    around = {name: _around(name, blocks) for name, _ in model.named_buffers()}
    buffers = {name: place for name, place in around.items() if place is not None}
    return blocks | buffers, len(output.hidden_states) + 1


def _reached(state: Any, parameters: Mapping[str, Tensor]) -> list[str]:
    states = state if isinstance(state, (tuple, list)) else [state]
    total = torch.stack([each.float().sum() for each in states if each.requires_grad] or [torch.zeros(())]).sum()
    if not total.requires_grad:  # a first hidden state may be the image itself
        return []
    slopes = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
    return [name for name, slope in zip(parameters, slopes, strict=True) if slope is not None]


def _around(name: str, blocks: Mapping[str, int]) -> int | None:
    """The block of the parameters that are nearest to a buffer in the tree of modules."""
    prefix = name
    while prefix:
        prefix = prefix.rpartition(".")[0]
        near = [block for each, block in blocks.items() if each.startswith(f"{prefix}." if prefix else "")]
        if near:
            return min(near)
    return None
