"""How far a model's outputs are from those of another one, as a rule the retrained model."""

from __future__ import annotations

import numpy as np

from ec_hf.metrics.arrays import Array, probabilities

__all__ = ["activation_distance", "agreement", "js_divergence"]


def js_divergence(p: Array, q: Array) -> float:
    """Jensen-Shannon divergence in nats, mean over images: `½ KL(p ‖ m) + ½ KL(q ‖ m)` with `m = (p + q) / 2`.

    0 for equal distributions, ln 2 for disjoint ones. ZRF is 1 minus this, to a model of random weights; the code of
    Chundawat et al. 2023 (arXiv 2205.08096) swaps the arguments and divides by the number of classes as well.

    Args:
        p: Probabilities `(n, c)`.
        q: Probabilities `(n, c)` of the same images.

    Raises:
        ValueError: Other shapes, or rows that are no probabilities.
    """
    p, q = _pair(p, q)
    mean = (p + q) / 2
    terms = [x * np.log(np.where(x > 0, x / np.where(mean > 0, mean, 1), 1)) for x in (p, q)]
    return float(np.clip(sum(terms).sum(1).mean() / 2, 0, np.log(2)))


def activation_distance(p: Array, q: Array) -> float:
    """Euclidean distance of the probability vectors, mean over images; from 0 to sqrt(2).

    Golatkar et al. 2021 (arXiv 2012.13431); see `js_divergence` for arguments and errors.
    """
    p, q = _pair(p, q)
    return float(np.linalg.norm(p - q, axis=1).mean())


def agreement(p: Array, q: Array) -> float:
    """Share of images on which both predict the same class; see `js_divergence` for arguments and errors."""
    p, q = _pair(p, q)
    return float((p.argmax(1) == q.argmax(1)).mean())


def _pair(p: Array, q: Array) -> tuple[np.ndarray, np.ndarray]:
    p, q = probabilities(p, "p"), probabilities(q, "q")
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q {q.shape}: expected the same images and classes.")
    return p, q
