"""Selective synaptic dampening as a host objective."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from transformers.utils import logging

from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import positive, whole

__all__ = ["Ssd", "chosen_alpha", "importance"]

logger = logging.get_logger(__name__)
TIE = 1e-5
"""Ratios that differ by this share are one and the same: float32 and the order of sums."""
CHUNK = 2**28
"""Gradient entries held at a time: 1 GB in float32."""


@dataclass
class Ssd(Objective):
    """Weights that matter much more to the forget set than to all data shrink.

        θ ← θ · min(1, λ · I_D / I_F)   where I_F > α · I_D,   I(set) = mean_i (∂ CE(p(x_i), y_i) / ∂θ)²

    I_D is taken over forget and retain together, I_F over forget. The squares are those of each image's gradient, so
    that the result depends neither on the order nor on the size of batches, as it does in the published code, which
    squares the mean gradients of batches (arXiv 2510.26714 on that).

    Without an α it is chosen as the authors' follow-up does (ASSD, arXiv 2402.10098; read in the code of arXiv
    2406.09173), from the data and their sizes alone:

        α = the p-th percentile of I_F / I_D over all weights,   p = 100 − ln(1 + 100 · |F| / |D|)

    so of one class of ten 2.4 % of the weights shrink. Weights that no image moves, 0 / 0, are left out; so are frozen
    ones, which the authors do not have. Where more weights than that are moved by forget images alone, I_F / I_D is
    the same for all of them, and the percentile is that largest value: the authors' code would change nothing, and
    here all of them shrink.

    Published settings: α 10, λ 1 for classes; α 5 for ViT; α 50, λ 0.1 for faces; since the follow-up α as above. The
    fixed ones belong to batch means. With those of images I_F / I_D is at most all images over forget images, 10 for
    one class of ten: a fixed α must lie well below that.

    Args:
        alpha: α > 0, how much more important to forget than to all data a weight must be; None to choose it.
        dampening: λ > 0.
        every: k, the means are over each k-th image of a set, in the order of its rows, since each image takes a
            backward pass of its own. Published: all of them.

    Attributes:
        chosen: the α that `prepare` took.

    Raises:
        ValueError: a setting out of range.
    """

    alpha: float | None = None
    dampening: float = 1.0
    every: int = 1
    chosen: float | None = field(default=None, init=False, repr=False, compare=False)

    name = "ssd"
    trains = False
    source = "Selective Synaptic Dampening, AAAI 2024, arXiv 2308.07707"
    published: ClassVar = {"objective_kwargs": {"alpha": None, "dampening": 1.0, "every": 1}}

    def __post_init__(self) -> None:
        positive(self, "dampening", *(["alpha"] if self.alpha is not None else []))
        whole(self, "every")

    def prepare(self, setting: Setting) -> None:
        """Shrink the weights.

        Raises:
            ValueError: no weight matters that much more to the forget set.
        """
        trained = {name: each for name, each in setting.model.named_parameters() if each.requires_grad}
        of_forget = importance(setting.model, setting.forget(self.every))
        of_all = importance(setting.model, chain(setting.forget(self.every), setting.retain(self.every)))
        ratios = torch.cat([(of_forget[name] / of_all[name]).flatten().cpu() for name in trained])
        ratios = ratios[ratios.isfinite()]
        if not len(ratios):
            raise ValueError("objective 'ssd': no trainable weight has a gradient on these images")
        alpha = self.alpha
        if alpha is None:
            alpha = chosen_alpha(ratios, setting.count("forget"), setting.count("retain"))
        largest = ratios.max().item()
        if largest <= alpha:
            raise ValueError(
                f"objective 'ssd': no weight matters {alpha:g} times as much to the forget set as to all data, "
                f"the largest ratio is {largest:.3g}: set objective_kwargs={{'alpha': ...}} well below that"
            )
        self.chosen = alpha
        logger.info(f"ssd: {(ratios > alpha).float().mean():.2%} of the weights shrink, alpha {alpha:.4g}")
        with torch.no_grad():
            for name, parameter in trained.items():
                factor = (self.dampening * of_all[name] / of_forget[name]).clamp(max=1)
                parameter.mul_(torch.where(of_forget[name] > alpha * of_all[name], factor, 1.0))

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """No loss."""
        return {}


def chosen_alpha(ratios: Tensor, forget_images: int, retain_images: int) -> float:
    """The percentile of I_F / I_D that ASSD takes for α, interpolated between two weights, below the largest of all.

    Args:
        ratios: (weights,), finite.
        forget_images: |F|.
        retain_images: |D| − |F|.
    """
    percentile = 100 - math.log1p(100 * forget_images / (forget_images + retain_images))
    below_ties = float(ratios.max()) * (1 - TIE)
    return min(float(np.percentile(ratios.numpy(), percentile)), below_ties)


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
