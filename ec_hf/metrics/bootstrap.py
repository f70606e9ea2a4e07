"""Interval of a mean over images."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from ec_hf.metrics.arrays import Array, numbers

__all__ = ["bootstrap_mean"]

FEW = 1000  # up to so many values are resampled; beyond, the limit of the resampling is computed


def bootstrap_mean(values: Array, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Interval of the mean of one value an image, as other images of the same kind would give it.

    - Hits and misses (all values 0 or 1): Wilson's score interval. Resampling would give a width of 0 where all are
      misses, which forget accuracy is meant to be.
    - Up to 1000 other values: the percentile bootstrap.
    - More: its limit for many resamples, the normal quantiles with the correction for skewness (Cornish-Fisher),
      which costs one pass over the values.

    Args:
        values: `(n,)`, numbers or booleans.
        level: Share of the intervals that hold the true mean.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap samples.

    Returns:
        Low and high end. Both are the mean where there is one value, or all are equal and neither 0 nor 1.

    Raises:
        ValueError: No values, or one that is not finite; a level outside 0..1.
    """
    values = numbers(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share between 0 and 1.")
    n, mean = len(values), float(values.mean())
    z = NormalDist().inv_cdf((1 + level) / 2)
    if np.isin(values, (0, 1)).all():
        centre, half = (mean + z**2 / (2 * n)), z * (mean * (1 - mean) / n + z**2 / (4 * n**2)) ** 0.5
        low, high = ((centre + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
        return min(max(low, 0.0), mean), max(min(high, 1.0), mean)
    deviation = values - mean
    spread = float(np.sqrt((deviation**2).mean()))
    if n == 1 or spread <= 1e-12 * np.abs(values).max():
        return mean, mean
    if n <= FEW:
        means = values[np.random.default_rng(seed).integers(n, size=(resamples, n))].mean(1)
        low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
        return float(low), float(high)
    skew = float((deviation**3).mean()) / spread**3
    low, high = (mean + spread / n**0.5 * (sign * z + skew * (z**2 - 1) / (6 * n**0.5)) for sign in (-1, 1))
    return low, high
