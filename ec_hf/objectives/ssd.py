"""Selective synaptic dampening as a host objective."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import positive

__all__ = ["Ssd", "importance"]

CHUNK = 2**28
"""Gradient entries held at a time: 1 GB in float32."""


@dataclass
class Ssd(Objective):
    """Weights that matter much more to the forget set than to all data shrink.

        θ ← θ · min(1, λ · I_D / I_F)   where I_F > α · I_D,   I(set) = mean_i (∂ CE(p(x_i), y_i) / ∂θ)²

    I_D is taken over forget and retain together, I_F over forget. The squares are those of each image's gradient, so
    that the result depends neither on the order nor on the size of batches, as it does in the published code, which
    squares the mean gradients of batches (arXiv 2510.26714 on that).

    Published settings: α 10, λ 1 for classes; α 5 for ViT; α 50, λ 0.1 for faces. They belong to batch means. With
    those of images I_F / I_D is at most all images over forget images, 10 for one class of ten: α must lie well below
    that. Search it.

    Args:
        alpha: α > 0, how much more important to forget than to all data a weight must be.
        dampening: λ > 0.
        every: k, the means are over each k-th image of a set, in the order of its rows, since each image takes a
            backward pass of its own. Published: all of them.

    Raises:
        ValueError: a setting out of range.
    """

    alpha: float = 10.0
    dampening: float = 1.0
    every: int = 1

    name = "ssd"
    trains = False
    source = "Selective Synaptic Dampening, AAAI 2024, arXiv 2308.07707"

    def __post_init__(self) -> None:
        positive(self, "alpha", "dampening")
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every must be a whole number from 1, got {self.every}")

    def prepare(self, setting: Setting) -> None:
        """Shrink the weights.

        Raises:
            ValueError: no weight matters that much more to the forget set.
        """
        parameters = dict(setting.model.named_parameters())
        of_forget = importance(setting.model, setting.forget(self.every))
        of_all = importance(setting.model, chain(setting.forget(self.every), setting.retain(self.every)))
        ratios = [(forget / of_all[name]).nan_to_num(0.0).max().item() for name, forget in of_forget.items()]
        if max(ratios) <= self.alpha:
            raise ValueError(
                f"objective 'ssd': no weight matters {self.alpha:g} times as much to the forget set as to all data, "
                f"the largest ratio is {max(ratios):.3g}: set objective_kwargs={{'alpha': ...}} well below that"
            )
        with torch.no_grad():
            for name, forget in of_forget.items():
                if not parameters[name].requires_grad:
                    continue
                factor = (self.dampening * of_all[name] / forget).clamp(max=1)
                parameters[name].mul_(torch.where(forget > self.alpha * of_all[name], factor, 1.0))

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """No loss."""
        return {}


def importance(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean over images of the squared gradient of the cross-entropy: the diagonal of the empirical Fisher matrix.

    Args:
        model: in eval mode.
        batches: dicts of ``pixel_values`` and ``labels``.

    Returns:
        A tensor of the parameter's shape by the name of each.
    """
    parameters = {name: each.detach() for name, each in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, weights, (), {"pixel_values": image[None]}).logits
        return F.cross_entropy(logits, label[None])

    gradients = vmap(grad(loss), (None, 0, 0))
    rows = max(1, CHUNK // sum(each.numel() for each in parameters.values()))
    sums = {name: torch.zeros_like(each) for name, each in parameters.items()}
    images = 0
    for batch in batches:
        images += len(batch["labels"])
        chunks = zip(batch["pixel_values"].split(rows), batch["labels"].split(rows), strict=True)
        for pixel_values, labels in chunks:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # attention goes image by image
                found = gradients(parameters, pixel_values, labels)
            for name, each in found.items():
                sums[name] += each.square().sum(dim=0)
    return {name: total / images for name, total in sums.items()}
