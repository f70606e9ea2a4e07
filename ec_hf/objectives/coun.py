"""CoUn as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ec_hf.distributed import gather_with_grad, rank_generator, rank_offset
from ec_hf.losses.contrast import similarity
from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.checks import not_negative, positive

__all__ = ["CoUn", "augment", "contrast_of_views"]


@dataclass
class CoUn(Objective):
    """Cross-entropy and a contrast of two views on retain: what is forgotten moves as its neighbours do.

        loss = CE(retain) + λ · (InfoNCE(f(x), f(x')) + InfoNCE(f(x'), f(x)))   at the penultimate features

    x is the retain image as it comes, x' the same one flipped and shifted at random. The forget set plays no part. The
    contrast is that of the paper's listing (appendix B.2): an image is told from the *other* views alone, n of them,
    and both directions are summed.

    Published settings: τ in (0, 0.3], λ in [0.1, 6], set for each data set; the defaults are this project's choice.
    The authors' views are crops and changes of colour too.

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
    published: ClassVar = {"objective_kwargs": {"temperature": 0.1, "contrast_weight": 1.0}}

    def __post_init__(self) -> None:
        positive(self, "temperature")
        not_negative(self, "contrast_weight")

    def extra_pixels(self, forget: Tensor, retain: Tensor) -> Tensor:
        """The second view of the retain images."""
        return augment(retain, rank_generator(), flip=self.flip)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "views"."""
        assert step.extra is not None  # the trainer gives it, by `extra_pixels`
        contrast = contrast_of_views(step.retain.features, step.extra.features, self.temperature)
        return {
            "retain_ce": cross_entropy(step.retain.logits, step.retain.labels),
            "views": self.contrast_weight * contrast,
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


def contrast_of_views(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrast of two views of each row: each is to be told by its other view among the other views of all rows.

        loss = Σ over both directions of mean_i −log [ exp(⟨z_i, z'_i⟩ / τ) / Σ_a exp(⟨z_i, z'_a⟩ / τ) ],   ‖z‖ = 1

    Under several processes the sum runs over the views of all of them, and the mean over processes is the loss of
    one that holds the whole batch.

    Source: the listing of CoUn, arXiv 2509.16391, appendix B.2. SimCLR's (arXiv 2002.05709) also tells a view from
    the others of its own kind, and averages over the directions: its gradient is about half as large.

    Args:
        first: (n, width) features.
        second: (n, width) features of the other views, in the same order.
        temperature: τ > 0.

    Returns:
        Scalar, in float32 or in float64.
    """
    all_first, all_second = gather_with_grad(first), gather_with_grad(second)
    own = rank_offset(len(first)) + torch.arange(len(first), device=first.device)
    directions = ((all_first[own], all_second), (all_second[own], all_first))
    return torch.stack([cross_entropy(similarity(z, others) / temperature, own) for z, others in directions]).sum()
