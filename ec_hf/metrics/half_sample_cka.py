"""Interval of the debiased linear CKA over images, from half-samples of a stored sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ec_hf.metrics.arrays import Array, rows, same_rows

__all__ = ["half_sample_cka"]


def half_sample_cka(
    x: Array,
    y: Array,
    *,
    value: float | None = None,
    images: int | None = None,
    level: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the debiased CKA: how far it would move with other images of the same kind.

    A bootstrap draws images twice, and an image is like itself: that biases every statistic of pairs. Halves drawn
    without replacement have no such pairs, and a half of n images varies about the value of all n as much as n images
    vary about the truth (the jackknife that leaves out n / 2; Shao & Wu 1989). Both halves of each cut
    are used. The Gram matrices are made once; a half then costs a few matrix-vector products.

    Args:
        x: Features `(n, p)` of a sample of images: at least 16; 256 to 512 are enough.
        y: Features `(n, q)` of the same images.
        value: The value that the interval is to lie about, if it was computed over more images than these.
        images: Over how many images; the interval narrows by sqrt(n / images).
        level: Share of the halves inside.
        resamples: Number of halves.
        seed: Of the cuts.

    Returns:
        Low and high end; never above 1, and around `value`.

    Raises:
        ValueError: Fewer than 16 images, not as many of y, or features whose CKA is undefined in some halves.
    """
    x, y = rows(x, "x"), rows(y, "y")
    same_rows(x, y)
    n = len(x)
    if n < 16:
        raise ValueError(f"x has {n} rows: halves of fewer than 16 images say nothing; give more, or no interval.")
    k, m = (_gram(features) for features in (x, y))
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n, (resamples + 1) // 2, generator=generator, dtype=torch.float64).argsort(0)
    first = (order < n // 2).to(k)
    halves = torch.cat([first, 1 - first, torch.ones_like(first[:, :1])], dim=1)  # the last column: all images
    km, kk, mm = (_hsic(a, b, halves) for a, b in ((k, m), (k, k), (m, m)))
    if not (kk.min() > 0 and mm.min() > 0):
        raise ValueError(
            "The CKA is undefined in some halves of the sample: the features hardly tell its images apart. Give more "
            "varied images, or no interval."
        )
    cka = (km / (kk * mm).sqrt()).cpu()
    halved = cka[:-1]
    value = cka[-1].item() if value is None else value
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = ((halved - halved.mean()).quantile(ends) * (n / (images or n)) ** 0.5).tolist()
    return value + min(low, 0), min(value + max(high, 0), max(value, 1.0))


def _gram(features: Tensor) -> Tensor:
    """Scalar products about the mean, the diagonal zero."""
    features = features - features.mean(0)
    return (features @ features.T).fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor, subsets: Tensor) -> Tensor:
    """HSIC_1 (up to a factor that cancels in CKA) of each subset, given as 0/1 columns `(n, subsets)`."""
    size = subsets.sum(0)
    ks, ms = (subsets * (gram @ subsets) for gram in (k, m))
    pairs = (subsets * ((k * m) @ subsets)).sum(0)
    return pairs + ks.sum(0) * ms.sum(0) / ((size - 1) * (size - 2)) - 2 / (size - 2) * (ks * ms).sum(0)
