"""What a model's logits say, image by image: the mean over a split is the metric, see `bootstrap_mean`."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from ec_hf.metrics.arrays import Array, checked_labels, matrix

__all__ = ["confidence", "entropy", "hits", "loss", "masked_hits", "modified_entropy", "true_probability"]


def hits(logits: Array, labels: Array) -> np.ndarray:
    """Whether the largest logit is the label's; booleans `(n,)`. Chance: 1 / c.

    Args:
        logits: `(n, c)`.
        labels: Label ids `(n,)`.
    """
    scores, labels = _scores(logits, labels)
    return scores.argmax(1) == labels


def masked_hits(logits: Array, labels: Array, forgotten: Collection[int]) -> np.ndarray:
    """`hits` with the logits of the forgotten classes left out of the choice.

    A forgotten class is never hit: masking makes forget accuracy zero without erasing anything, which is why it is
    shown beside the accuracy of the model as it is. Chance on the other classes: 1 / (c - forgotten).

    Args:
        logits: `(n, c)`.
        labels: Label ids `(n,)`.
        forgotten: Label ids whose logits are masked; at least one other must be left.
    """
    scores, labels = _scores(logits, labels)
    columns = sorted(set(forgotten))
    if not set(columns) < set(range(scores.shape[1])):
        raise ValueError(
            f"forgotten={columns}: expected label ids from 0 to {scores.shape[1] - 1}, and at least one left over."
        )
    scores[:, columns] = -np.inf
    return scores.argmax(1) == labels


def confidence(logits: Array) -> np.ndarray:
    """Probability of the predicted class, `(n,)`. Chance: 1 / c, its least value.

    Args:
        logits: `(n, c)`.
    """
    return np.exp(_log_softmax(_logits(logits)).max(1))


def entropy(logits: Array) -> np.ndarray:
    """Entropy of the predicted distribution in nats, `(n,)`. Chance: ln c, its largest value.

    Args:
        logits: `(n, c)`.
    """
    log_p = _log_softmax(_logits(logits))
    return np.maximum(-(np.exp(log_p) * log_p).sum(1), 0)


def loss(logits: Array, labels: Array) -> np.ndarray:
    """Cross-entropy in nats, `(n,)`: -log of the probability of the label. Chance: ln c.

    Args:
        logits: `(n, c)`.
        labels: Label ids `(n,)`.
    """
    scores, labels = _scores(logits, labels)
    return np.maximum(-_log_softmax(scores)[np.arange(len(labels)), labels], 0)


def true_probability(logits: Array, labels: Array) -> np.ndarray:
    """Probability of the label, `(n,)`: what the literature of membership inference calls confidence.

    Args:
        logits: `(n, c)`.
        labels: Label ids `(n,)`.
    """
    return np.exp(-loss(logits, labels))


def modified_entropy(logits: Array, labels: Array) -> np.ndarray:
    """Modified entropy, `(n,)`: low where the model is sure and right, high where it is sure and wrong.

    `-(1 - p_y) log p_y - Σ_{i ≠ y} p_i log(1 - p_i)` (Song & Mittal 2021, USENIX Security, arXiv 2003.10595). The copy
    that unlearning repositories pass around takes log p_i in the sum and indexes whole columns; this is the paper's.

    Args:
        logits: `(n, c)`.
        labels: Label ids `(n,)`.
    """
    scores, labels = _scores(logits, labels)
    log_p = _log_softmax(scores)
    if scores.shape[1] < 2:
        raise ValueError("logits has 1 column: the modified entropy needs at least 2 classes.")
    images, top = np.arange(len(labels)), log_p.argmax(1)
    others = log_p.copy()
    others[images, top] = -np.inf
    log_rest = np.log1p(-np.exp(others))
    log_rest[images, top] = torch.from_numpy(others).logsumexp(1).numpy()  # exact where p is nearly 1
    terms = -np.exp(log_p) * log_rest
    terms[images, labels] = -np.exp(log_rest[images, labels]) * log_p[images, labels]
    return terms.sum(1)


def _logits(logits: Array) -> np.ndarray:
    array = matrix(logits, "logits").cpu().numpy()
    if not array.size:
        raise ValueError(f"logits has shape {array.shape}: expected at least one image and one class.")
    return array


def _scores(logits: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the logits, and the label ids that must be among their columns."""
    scores = _logits(logits).copy()
    ids = checked_labels(labels, "labels", len(scores))
    if ids.min() < 0 or ids.max() >= scores.shape[1]:
        raise ValueError(f"labels go from {ids.min()} to {ids.max()}: the logits have {scores.shape[1]} classes.")
    return scores, ids


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    return torch.from_numpy(scores).log_softmax(1).numpy()
