"""LiRA: is an image's confidence that of models which trained on it, or that of models which did not?"""

from __future__ import annotations

import numpy as np

from ec_hf.metrics.arrays import Array, matrix, numbers

__all__ = ["lira_scores", "logit_confidence"]

OWN_VARIANCE = 64
"""With so many shadow models each image has a variance of its own; with fewer all images share one (§VI of LiRA)."""
LEAST = 1e-6
"""Least standard deviation, for shadow models that agree to the last digit."""


def logit_confidence(losses: Array) -> np.ndarray:
    """`log(p / (1 - p))` of the probability p of the label, which is nearly normal over trainings.

    From the loss `-log p`, where p itself would be rounded to 1. It is at most 36, where the loss is as small as the
    numbers' precision.

    Args:
        losses: `(n,)` cross-entropies in nats.

    Raises:
        ValueError: A loss that is negative or not finite.
    """
    losses = numbers(losses, "losses")
    if losses.min() < -1e-6:
        raise ValueError(f"losses holds {losses.min()}: expected cross-entropies, which are 0 or above.")
    losses = np.maximum(losses, np.finfo(np.float64).eps)
    return -losses - np.log(-np.expm1(-losses))


def lira_scores(
    target: Array, outside: Array, inside: Array | None = None, members: Array | None = None
) -> np.ndarray:
    """How much more each image looks like one that a model was trained on; higher is more of a member.

    The parametric test of LiRA (Carlini et al. 2022, arXiv 2112.03570, §V and §VI). With `outside` alone the offline
    test `(φ - μ_out) / σ_out`, one-sided; with `inside` too the likelihood ratio
    `log N(φ; μ_in, σ_in²) - log N(φ; μ_out, σ_out²)`. Means are those of each image; variances are those of each image
    where there are 64 models or more, else the mean over all images.

    Where only some images, the `members`, were ever trained on by the models of `inside`, an in-mean of their own on
    one side alone would tell the sides apart. What training on an image does is then read from the members, as a
    straight line from μ_out to φ_in with the variance around it, and applied to all images alike.

    Args:
        target: `(n,)` φ of the model under attack, see `logit_confidence`.
        outside: `(n, K)` φ of K models that did not train on the images, at least two.
        inside: `(n, J)` φ of J models that trained on the images, at least two; or `(m, J)`, at least one, of the
            members alone.
        members: `(m,)` rows that the models of `inside` trained on, at least four; None if all.

    Raises:
        ValueError: Shapes that do not fit, too few models, or values that are not finite.
    """
    target = numbers(target, "target")
    out = _table(outside, "outside", len(target), least=2)
    mean, spread = out.mean(axis=1), _spread(out)
    if inside is None:
        return (target - mean) / spread
    if members is None:
        own = _table(inside, "inside", len(target), least=2)
        return _log_normal(target, own.mean(axis=1), _spread(own)) - _log_normal(target, mean, spread)
    rows = np.asarray(members, dtype=int)
    if len(rows) < 4:
        raise ValueError(
            f"members holds {len(rows)} rows: expected at least four, to read from them what training does."
        )
    own = _table(inside, "inside", len(rows), least=1)
    slope, start = _line(mean[rows], own.mean(axis=1))
    deviation = own - (start + slope * mean[rows])[:, None]
    around = max(float((deviation**2).sum() / (own.size - 2)) ** 0.5, LEAST)
    return _log_normal(target, start + slope * mean, around) - _log_normal(target, mean, spread)


def _table(values: Array, name: str, count: int, least: int) -> np.ndarray:
    table = matrix(values, name).double().cpu().numpy()
    if len(table) != count or table.shape[1] < least or not np.isfinite(table).all():
        raise ValueError(
            f"{name} has shape {table.shape}: expected {count} rows and {least} or more models, all values finite."
        )
    return table


def _spread(table: np.ndarray) -> np.ndarray | float:
    variances = table.var(axis=1, ddof=1)
    return np.maximum(np.sqrt(variances if table.shape[1] >= OWN_VARIANCE else variances.mean()), LEAST)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and start of the straight line nearest to y; the slope is 1 where all x are equal."""
    across = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / across if across > 0 else 1.0
    return slope, float(y.mean() - slope * x.mean())


def _log_normal(x: np.ndarray, mean: np.ndarray, spread: np.ndarray | float) -> np.ndarray:
    """Log density, but for a constant."""
    return -np.log(spread) - ((x - mean) / spread) ** 2 / 2
