"""CoUn as a host objective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ec_hf.distributed import gather_with_grad, rank_generator, rank_offset
from ec_hf.losses.contrast import similarity
from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.checks import not_negative, positive

__all__ = ["CoUn", "augment", "nt_xent"]


@dataclass
class CoUn(Objective):
    """Cross-entropy and a contrast of two views on retain: what is forgotten moves as its neighbours do.

        loss = CE(retain) + λ · NT-Xent(f(x), f(x'))   at the penultimate features

    x is the retain image as it comes, x' the same one flipped and shifted at random. The forget set plays no part.

    Published settings: τ about 0.1, λ set for each data set.

    Args:
        temperature: τ > 0.
        contrast_weight: λ ≥ 0.
        flip: whether a view may be mirrored; not for digits, letters or signs.

    Raises:
        ValueError: a setting out of range.
    """

    temperature: float = 0.1
    contrast_weight: float = 1.0
    flip: bool = True

    name = "coun"
    uses = "retain"
    source = "CoUn, arXiv 2509.16391"

    def __post_init__(self) -> None:
        positive(self, "temperature")
        not_negative(self, "contrast_weight")

    def extra_pixels(self, forget: Tensor, retain: Tensor) -> Tensor:
        """The second view of the retain images."""
        return augment(retain, rank_generator(), flip=self.flip)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "nt_xent"."""
        assert step.extra is not None  # the trainer gives it, by `extra_pixels`
        contrast = nt_xent(step.retain.features, step.extra.features, self.temperature)
        return {
            "retain_ce": cross_entropy(step.retain.logits, step.retain.labels),
            "nt_xent": self.contrast_weight * contrast,
        }


def augment(images: Tensor, generator: torch.Generator, *, flip: bool = True) -> Tensor:
    """A second view of images (n, channels, height, width): shifted by up to an eighth, and half mirrored.

    Zeros move in at the edges, which is the mean colour of normalised images.
    """
    rows, _, height, width = images.shape
    margins = max(1, height // 8), max(1, width // 8)
    tops, lefts = (torch.randint(2 * margin + 1, (rows,), generator=generator).tolist() for margin in margins)
    padded = F.pad(images, (margins[1], margins[1], margins[0], margins[0]))
    views = torch.stack(
        [each[:, top : top + height, left : left + width] for each, top, left in zip(padded, tops, lefts, strict=True)]
    )
    mirrored = torch.randint(2, (rows, 1, 1, 1), generator=generator).bool().to(images.device)
    return torch.where(mirrored, views.flip(-1), views) if flip else views


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrast of two views of each row: each is to be told by its other view among the views of all rows.

        loss = mean over the 2n views z of −log [ exp(⟨z, z'⟩ / τ) / Σ_{a ≠ z} exp(⟨z, a⟩ / τ) ]   z of length 1

    Under several processes the sum runs over the views of all of them, and the mean over processes is the loss of
    one that holds the whole batch.

    Source: SimCLR, arXiv 2002.05709.

    Args:
        first: (n, width) features.
        second: (n, width) features of the other views, in the same order.
        temperature: τ > 0.

    Returns:
        Scalar, in float32 or in float64.
    """
    views = torch.cat([gather_with_grad(first), gather_with_grad(second)])
    of_first = rank_offset(len(first)) + torch.arange(len(first), device=first.device)
    of_second = of_first + len(views) // 2
    anchors, partners = torch.cat([of_first, of_second]), torch.cat([of_second, of_first])
    scores = similarity(views[anchors], views) / temperature
    return cross_entropy(scores.masked_fill(F.one_hot(anchors, len(views)).bool(), -math.inf), partners)
