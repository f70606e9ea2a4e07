"""Random rows of each class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["stratified_rows"]


def stratified_rows(labels: np.ndarray, quota: int | Mapping[int, int], seed: int) -> np.ndarray:
    """Ascending rows of which no class has more than its quota, drawn at random.

    Args:
        labels: `(n,)` label ids.
        quota: rows a class, the same for all or by label id.
        seed: seed of the random draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = [quota if isinstance(quota, int) else quota.get(int(k), 0) for k in classes]
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[place < np.repeat(np.asarray(wanted, dtype=int), counts)])
