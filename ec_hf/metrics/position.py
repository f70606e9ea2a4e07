"""Where a measurement puts an unlearned model: at 0 as the original, at 1 as a model that was retrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from ec_hf.metrics.training_noise import NO_NOISE, Noise

__all__ = ["Place", "Standing", "area_covariance", "mean_covariance", "place"]

Standing = Literal["untouched", "under-erased", "unclear", "over-erased", "as retrained", "blind"]


@dataclass(frozen=True)
class Place:
    """A position with its interval, and what follows from them.

    Attributes:
        position: 0 as the original, 1 as retrained, above 1 over-erased; None where the measurement is blind.
        low: lower end of the interval.
        high: upper end of it.
        status: "untouched" (1 lies above the interval, and 0 inside or above), "under-erased" (between 0 and 1, both
            outside), "unclear" (both inside), "as retrained" (1 inside and 0 outside), "over-erased" (1 lies below
            it), or "blind" (the original cannot be told from retrained models). A blind measurement has no position,
            but a model that lies below the original and the retrained models alike is over-erased all the same.
        effect: how far the original is above the retrained models, in standard errors over images and trainings;
            with an allowance, above the nearer end of the stretch. None for a single image, or without any error.
    """

    position: float | None
    low: float | None
    high: float | None
    status: Standing
    effect: float | None = None


def place(
    values: np.ndarray,
    covariance: np.ndarray,
    count: int,
    *,
    alpha: float = 0.05,
    noise: Noise = NO_NOISE,
    shares: bool = False,
    allowance: bool = False,
) -> Place:
    """Position `(o - u) / (o - r)` of an unlearned model, by Fieller's interval of a ratio.

    Of each p it is asked whether `(o - u) - p (o - r)` could be 0; the interval is all p where it could. Nothing is
    divided by a difference that may be 0: where `o - r` could be 0 or is negative, the interval has no end and the
    measurement is blind. The variance is that of the images, with o, u and r on the same images, and that of
    training: an unlearned model is compared as one more draw of retraining, so r has `noise * (1 + 1 / K)` on top. At
    p = 1 this is the prediction interval of one more retrained model. A model that equals the original is always
    "untouched" or "blind", as its test at p = 1 is the very test of `o - r`.

    The quantile is Student's, with Satterthwaite's degrees of freedom of the two variances. Shares of images get as
    many pseudo-images as the squared quantile, half of them hits, as in Wilson's interval: ten images that are all
    right are no proof of a variance of 0. With an allowance the target is a stretch: see there.

    Args:
        values: `(2 + K,)` of the original, of the unlearned model and of K retrained ones; higher is more knowledge.
            With an allowance, `(3 + K,)`.
        covariance: of the values, as other images would move them.
        count: number of images.
        alpha: share of intervals that may miss the truth; of m measurements of one model, give `alpha / m` to each.
        noise: variance between models that were trained in the same way, in squared units of the values.
        shares: whether the values are means over the images of numbers from 0 to 1.
        allowance: whether the last value is how far the original would move towards retrained models by another
            training alone. Everything from r to r + allowance is then as retrained.

    Raises:
        ValueError: no retrained model, values that are not finite, or a covariance of another shape.
    """
    values, covariance = np.asarray(values, dtype=np.float64), np.array(covariance, dtype=np.float64)
    retrained = np.zeros(len(values), dtype=bool)
    retrained[2 : len(values) - allowance] = True
    models = int(retrained.sum())
    if models < 1 or covariance.shape != (len(values), len(values)):
        raise ValueError(f"{len(values)} values and a covariance of shape {covariance.shape}: they do not fit.")
    if not (np.isfinite(values).all() and np.isfinite(covariance).all()):
        raise ValueError("values and covariance must be finite.")
    if count < 2:
        return Place(None, None, None, "blind")
    original, unlearned = np.eye(len(values))[:2]
    far = retrained / models
    between = noise.variance * (1 + 1 / models)
    quantile = max(
        _quantile((end - far) @ covariance @ (end - far), between, count, noise.freedom, alpha)
        for end in (original, unlearned)
    )
    covariance[np.diag_indices(len(values))] += retrained * between * models
    if shares:
        covariance[np.diag_indices(2 + models)] += (quantile / (2 * count)) ** 2
    near = far.copy()
    near[2 + models :] = 1
    effect = _effect(original - near, values, covariance)
    to_near = _ratio(original - unlearned, original - near, values, covariance, quantile)
    to_far = _ratio(original - unlearned, original - far, values, covariance, quantile)
    if to_near is None or to_far is None:
        below = all(_above(end - unlearned, values, covariance, quantile) for end in (original, far))
        return Place(None, None, None, "over-erased" if below else "blind", effect)
    position, low, high = (a if a < 1 else max(1.0, b) for a, b in zip(to_near, to_far, strict=True))
    return Place(position, low, high, _standing(low, high), effect)


def mean_covariance(figures: np.ndarray) -> np.ndarray:
    """Covariance of the means over images, the limit of the paired bootstrap for many draws.

    Args:
        figures: `(n, models)`, one number an image and model, all models on the same images.
    """
    n, models = figures.shape
    return np.zeros((models, models)) if n < 2 else np.atleast_2d(np.cov(figures, rowvar=False)) / n


def area_covariance(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Covariance of the areas under ROC curves of several models on the same images (DeLong et al. 1988).

    Args:
        members: `(n, models)`, share of the others that each member beats; see `ec_hf.metrics.membership.placements`.
        others: `(m, models)`, share of the members that beat each of the others.
    """
    return mean_covariance(members) + mean_covariance(others)


def _quantile(of_images: float, between: float, count: int, freedom: float, alpha: float) -> float:
    """Student's two-sided quantile for the sum of both variances."""
    total = of_images + between
    doubt = between**2 / freedom + of_images**2 / (count - 1)
    return float(stdtrit(max(total**2 / doubt, 1.0) if doubt else count - 1, 1 - alpha / 2))


def _ratio(
    above: np.ndarray, below: np.ndarray, values: np.ndarray, covariance: np.ndarray, quantile: float
) -> tuple[float, float, float] | None:
    """The ratio of two contrasts and its interval; None where the lower one is not above 0."""
    if not _above(below, values, covariance, quantile):
        return None
    a, b = above @ values, below @ values
    x, y, z = (
        first @ values * (second @ values) - quantile**2 * (first @ covariance @ second)
        for first, second in ((below, below), (above, below), (above, above))
    )
    half = max(y**2 - x * z, 0.0) ** 0.5
    return float(a / b), float((y - half) / x), float((y + half) / x)


def _effect(contrast: np.ndarray, values: np.ndarray, covariance: np.ndarray) -> float | None:
    """A contrast of the values in its standard errors."""
    error = max(float(contrast @ covariance @ contrast), 0.0) ** 0.5
    return float(contrast @ values) / error if error > 0 else None


def _above(contrast: np.ndarray, values: np.ndarray, covariance: np.ndarray, quantile: float) -> bool:
    """Whether a contrast of the values is above 0 beyond chance."""
    return bool(contrast @ values > quantile * max(contrast @ covariance @ contrast, 0.0) ** 0.5)


def _standing(low: float, high: float) -> Standing:
    if high < 1:
        return "under-erased" if low > 0 else "untouched"
    if low > 1:
        return "over-erased"
    return "as retrained" if low > 0 else "unclear"
