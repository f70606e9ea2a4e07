"""Batch-norm statistics that no forget image can enter: a running mean is a place where forgotten data can stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def clean_statistics(model: nn.Module, num_forget: int, *, update: bool) -> Iterator[None]:
    """Run a forward over ``[forget ; retain]`` with batch norm using its running statistics, as in evaluation.

    Args:
        model: the model; its batch-norm layers are put into eval mode, their affine parameters train on.
        num_forget: number of forget images at the head of the batch.
        update: whether the running statistics follow the retain part of the batch (of all processes together).
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
    follow = partial(_follow_retain, num_forget=num_forget)
    handles = [layer.register_forward_pre_hook(follow) for layer in layers if update and layer.track_running_stats]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _follow_retain(layer: Any, args: tuple[Tensor, ...], *, num_forget: int) -> None:
    retain: Any = args[0][num_forget:].detach().float().transpose(0, 1).flatten(1)
    count = retain.new_tensor([retain.shape[1]])
    sums = torch.cat([count, retain.sum(dim=1), retain.square().sum(dim=1)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    total, (first, second) = sums[0], sums[1:].chunk(2)
    mean = first / total
    variance = (second / total - mean.square()).clamp(min=0) * total / (total - 1).clamp(min=1)
    layer.num_batches_tracked.add_(1)
    rate = layer.momentum if layer.momentum is not None else 1 / layer.num_batches_tracked.item()
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), rate)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), rate)
