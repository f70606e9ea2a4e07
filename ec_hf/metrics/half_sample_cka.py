"""Interval of the debiased linear CKA over images, from half-samples of a stored sample."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ec_hf.metrics.arrays import Array, matrix, same_rows

__all__ = ["half_sample_cka", "half_sample_values"]


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
        seed: Seed of the half samples.

    Returns:
        Low and high end; never above 1, and around `value`.

    Raises:
        ValueError: Fewer than 16 images, not as many of y, or features whose CKA is undefined in some halves.
    """
    drawn, whole = half_sample_values(x, y, resamples=resamples, seed=seed)
    value = whole if value is None else value
    n, halved = len(x), torch.from_numpy(drawn)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = ((halved - halved.mean()).quantile(ends) * (n / (images or n)) ** 0.5).tolist()
    return value + min(low, 0), min(value + max(high, 0), max(value, 1.0))


def half_sample_values(x: Array, y: Array, *, resamples: int = 200, seed: int = 0) -> tuple[np.ndarray, float]:
    """Debiased CKA in random halves of the images, and in all of them; see `half_sample_cka`.

    The same seed and number of images give the same halves, so that values of several pairs of models can be compared
    half by half.

    Args:
        x: As for `half_sample_cka`, like the others.
        y: Features of the same images.
        resamples: Number of halves.
        seed: Seed of the half samples.

    Returns:
        `(resamples,)`, rounded up to even; and the value of all images.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_rows(x, y)
    n = len(x)
    if n < 16:
        raise ValueError(f"x has {n} rows: halves of fewer than 16 images say nothing; give more, or no interval.")
    order = torch.rand(n, (resamples + 1) // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = (order.argsort(0) < n // 2).to(x.device, torch.float32)
    subsets = torch.cat([half, 1 - half, torch.ones_like(half[:, :1])], dim=1)  # the last column: all images
    size = subsets.sum(0)

    def within(matrix: Tensor) -> Tensor:  # row sums of each subset's part of a symmetric matrix, (n, subsets)
        of_half, total = matrix @ half, matrix.sum(1, keepdim=True)
        return subsets * torch.cat([of_half, total - of_half, total], dim=1)

    k, m = _gram(x), _gram(y.to(x.device))
    ks, ms = within(k), within(m)

    def hsic(product: Tensor, a: Tensor, b: Tensor) -> Tensor:  # HSIC_1 up to a factor that cancels in CKA
        pairs = within(product).sum(0) + a.sum(0) * b.sum(0) / ((size - 1) * (size - 2))
        return pairs - 2 / (size - 2) * (a * b).sum(0)

    km, kk, mm = hsic(k * m, ks, ms), hsic(k * k, ks, ks), hsic(m * m, ms, ms)
    if (torch.minimum(kk, mm) <= 1e-7 * size**2).any():  # rounding alone, of rows of length 1
        raise ValueError(
            "The CKA is undefined in some halves of the sample: the features hardly tell its images apart. Give more "
            "varied images, or no interval."
        )
    cka = (km.double() / (kk.double() * mm.double()).sqrt()).cpu().numpy()
    return cka[:-1], float(cka[-1])


def _gram(features: Tensor) -> Tensor:
    """Scalar products about the mean, the diagonal zero, in float32: far more exact than the interval is wide."""
    mean = features.mean(0)
    features = features - mean
    spread = features.square().sum(1).mean()
    if spread <= 1e-24 * mean.square().sum():  # rounding of the mean
        return features.new_zeros(len(features), len(features), dtype=torch.float32)
    features = (features / spread.sqrt()).float()
    return (features @ features.T).fill_diagonal_(0)
