"""Random rows of each class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["drawn_of_each_class", "held_out_rows", "stratified_rows"]


def drawn_of_each_class(labels: np.ndarray, counts: ArrayLike, seed: int) -> np.ndarray:
    """Marks rows that are drawn at random: so many of each class, or all of a class that has no more.

    Args:
        labels: `(n,)` label ids.
        counts: rows to draw of each class, the same for all or `(classes,)` in ascending order of the label ids that
            are there.
        seed: seed of the random draw.

    Returns:
        `(n,)` booleans.
    """
    _, codes, present = np.unique(labels, return_inverse=True, return_counts=True)
    by_class = np.lexsort((np.random.default_rng(seed).random(len(labels)), codes))
    place_in_class = np.arange(len(labels)) - np.repeat(present.cumsum() - present, present)
    drawn = np.zeros(len(labels), dtype=bool)
    drawn[by_class] = place_in_class < np.repeat(np.broadcast_to(counts, present.shape), present)
    return drawn


def held_out_rows(labels: np.ndarray, test_size: float, seed: int) -> np.ndarray:
    """Marks a random share of the rows of each class: rounded, but at least one and never all where there are two.

    Args:
        labels: `(n,)` label ids.
        test_size: share of each class.
        seed: seed of the random draw.

    Returns:
        `(n,)` booleans.

    Raises:
        ValueError: for a share outside 0..1.
    """
    if not 0 < test_size < 1:
        raise ValueError(f"test_size is a share between 0 and 1, got {test_size}")
    _, present = np.unique(labels, return_counts=True)
    share = np.clip(np.rint(present * test_size).astype(int), present > 1, present - 1)
    return drawn_of_each_class(labels, share, seed)


def stratified_rows(labels: np.ndarray, quota: int | Mapping[int, int], seed: int) -> np.ndarray:
    """Ascending rows of which no class has more than its quota, drawn at random.

    Args:
        labels: `(n,)` label ids.
        quota: rows of a class, the same for all or by label id.
        seed: seed of the random draw.
    """
    counts = quota if isinstance(quota, int) else [quota.get(int(label), 0) for label in np.unique(labels)]
    return np.flatnonzero(drawn_of_each_class(labels, np.asarray(counts, dtype=int), seed))
