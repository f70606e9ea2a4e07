"""Nearest neighbours in feature space: which classes frozen features still keep together."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ec_hf.metrics.arrays import Array, matrix
from ec_hf.metrics.linear_probe import checked_split

__all__ = ["knn", "knn_hits", "nearest"]

CHUNK = 1024  # queries at a time, so that memory does not grow with their number


def nearest(bank_x: Array, query_x: Array, k: int, exclude_self: bool = False) -> np.ndarray:
    """Rows of the bank that are nearest to each query by cosine similarity, nearest first.

    Args:
        bank_x: Features `(n, p)`; a row of zeros has similarity 0 to all.
        query_x: Features `(m, p)`.
        k: How many neighbours.
        exclude_self: The queries are the rows of the bank in order (m = n); none is its own neighbour.

    Returns:
        Indices into the bank `(m, k)`.

    Raises:
        ValueError: Features of different widths, fewer than k rows to choose among, or `exclude_self` with m != n.
    """
    bank, query = matrix(bank_x, "bank_x").float(), matrix(query_x, "query_x").float()
    if bank.shape[1] != query.shape[1]:
        raise ValueError(
            f"bank_x is {bank.shape[1]} wide and query_x {query.shape[1]}: expected features of one layer."
        )
    if exclude_self and len(bank) != len(query):
        raise ValueError(f"exclude_self: the {len(query)} queries are not the {len(bank)} rows of the bank.")
    if not 1 <= k <= len(bank) - exclude_self:
        raise ValueError(f"k={k}: there are {len(bank) - exclude_self} rows to choose among.")
    bank = torch.nn.functional.normalize(bank, dim=1, eps=1e-30)
    query = torch.nn.functional.normalize(query.to(bank.device), dim=1, eps=1e-30)
    found = []
    for start in range(0, len(query), CHUNK):
        similarity = query[start : start + CHUNK] @ bank.T
        if exclude_self:
            similarity.diagonal(start).fill_(-torch.inf)
        found.append(similarity.topk(k, dim=1).indices.cpu())
    return torch.cat(found).numpy() if found else np.empty((0, k), np.int64)


def knn(
    bank_x: Array,
    bank_y: Array,
    query_x: Array,
    query_y: Array,
    k: int = 5,
    classes: Iterable[int] | None = None,
) -> float:
    """Accuracy of the vote among the k nearest rows of the bank by cosine similarity, on the queries of some classes.

    As in UUEF (arXiv 2503.06991, its repository's `main_knn.py`): k = 5, cosine, every neighbour one vote; as in
    scikit-learn's `KNeighborsClassifier`, the smallest label id wins a tie. UUEF votes on logits; pooled features of
    the last layer ("penultimate") say more about the representation. Both are just arrays here.

    Args:
        bank_x: Features `(n, p)`, of all classes.
        bank_y: Label ids `(n,)`.
        query_x: Features `(m, p)`.
        query_y: Label ids `(m,)`.
        k: Number of neighbours.
        classes: Label ids of the queries that count (the forgotten ones); all if left out.

    Raises:
        ValueError: Shapes that do not fit, a bank of fewer than k rows, no query of `classes`, or one that the bank
            lacks.
    """
    return float(knn_hits(bank_x, bank_y, query_x, query_y, k, classes).mean())


def knn_hits(
    bank_x: Array,
    bank_y: Array,
    query_x: Array,
    query_y: Array,
    k: int = 5,
    classes: Iterable[int] | None = None,
) -> np.ndarray:
    """Which of the queries that count the vote gets right, as booleans in their order.

    Args:
        bank_x: Features `(n, p)`, of all classes.
        bank_y: Label ids `(n,)`.
        query_x: Features `(m, p)`.
        query_y: Label ids `(m,)`.
        k: Number of neighbours.
        classes: Label ids of the queries that count; all if left out.

    Raises:
        ValueError: As `knn`.
    """
    bank, query, bank_labels, query_labels, counted = checked_split(
        bank_x, bank_y, query_x, query_y, classes, ("bank", "query")
    )
    present, codes = np.unique(bank_labels, return_inverse=True)
    neighbours = codes[nearest(bank, query[torch.from_numpy(counted).to(query.device)], k)]
    votes = np.zeros((len(counted), len(present)), np.int64)
    np.add.at(votes, (np.arange(len(counted))[:, None], neighbours), 1)
    return present[votes.argmax(1)] == query_labels[counted]
