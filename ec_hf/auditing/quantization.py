"""Weights rounded as by quantisation, which undoes unlearning that moved them by less than a step."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = ["quantized"]

ROUNDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def quantized(model: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """A copy whose weights are rounded as by quantisation; it computes in the old dtype and runs anywhere.

    Rounded are the weights of all linear and convolution layers, to whole multiples of `max |w| / (2^(bits-1) - 1)`
    for each output channel (symmetric, no calibration data). Biases, norms, embeddings and activations stay.
    Unlearning that moved weights by less than half such a step is undone (Zhang et al. 2024, arXiv 2410.16454).

    Args:
        model: any model; it stays as it is.
        bits: of a weight, from 2 to 16.

    Raises:
        ValueError: for bits outside 2..16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits}: expected 2 to 16")
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ROUNDED) and module.weight.is_floating_point():
            weight = module.weight.data
            step = weight.float().abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
            step = step.clamp_min(torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.dim() - 1))
            weight.copy_((weight.float() / step).round() * step)
    return model
