"""Batch-norm statistics that no forget image can enter: a running mean is a place where forgotten data can stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ec_hf.distributed import gather_with_grad


@contextmanager
def clean_statistics(
    model: nn.Module, num_forget: int, num_rows: int | None = None, *, update: bool
) -> Iterator[None]:
    """Run a forward over ``[forget ; retain ; extra]`` with batch-norm statistics of the retain part alone.

    Args:
        model: the model; its batch-norm layers are put into eval mode, their affine parameters train on.
        num_forget: number of forget images at the head of the batch.
        num_rows: number of forget and retain images together; rows after these, which an objective added and may have
            made from forget images, do not enter the statistics either.
        update: False normalises by the running statistics and leaves them as they are. True does what training does,
            with the retain images of all processes as the batch: their mean and variance normalise all images and
            enter the running statistics. A layer whose weights are frozen keeps its statistics too.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.eval()
    hook = partial(_normalise_by_retain, retain=slice(num_forget, num_rows))
    follow = [layer for layer in layers if update and layer.track_running_stats and not _frozen(layer)]
    handles = [layer.register_forward_pre_hook(hook) for layer in follow]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _frozen(layer: nn.Module) -> bool:
    weights = list(layer.parameters())
    return bool(weights) and not any(each.requires_grad for each in weights)


def _normalise_by_retain(layer: Any, args: tuple[Tensor, ...], *, retain: slice) -> Tensor:
    """An input that the layer, in eval mode, normalises to what the retain statistics would make of `args[0]`.

    A change of the input rather than of the layer, because subclasses add an activation to the forward.
    """
    shape = (1, -1, *[1] * (args[0].dim() - 2))
    features = args[0] if args[0].dtype == torch.float64 else args[0].float()
    features = features - layer.running_mean.view(shape).clone()  # near 0, where sums of squares are exact
    values = features[retain].transpose(0, 1).flatten(1)
    count = values.new_tensor([values.shape[1]])
    sums = gather_with_grad(torch.cat([count, values.sum(dim=1), values.square().sum(dim=1)])[None]).sum(dim=0)
    total, (first, second) = sums[0].detach(), sums[1:].chunk(2)
    mean = first / total
    variance = (second / total - mean.square()).clamp(min=0)
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)
        rate = layer.momentum if layer.momentum is not None else 1 / layer.num_batches_tracked.item()
        layer.running_mean.add_(mean.to(layer.running_mean.dtype), alpha=rate)
        unbiased = variance * total / (total - 1).clamp(min=1)
        layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), rate)
    scale = ((layer.running_var + layer.eps) / (variance + layer.eps)).sqrt()
    mean, scale, shift = (statistic.view(shape) for statistic in (mean, scale, layer.running_mean))
    return ((features - mean) * scale + shift).to(args[0].dtype)
