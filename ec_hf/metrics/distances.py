"""How far a model's outputs are from those of another one, as a rule the retrained model."""

from __future__ import annotations

import numpy as np

from ec_hf.metrics.arrays import Array, probabilities

__all__ = ["activation_distance", "agreement", "js_divergence", "per_image"]


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
    return _mean("js_divergence", p, q)


def activation_distance(p: Array, q: Array) -> float:
    """Euclidean distance of the probability vectors, mean over images; from 0 to sqrt(2).

    Golatkar et al. 2021 (arXiv 2012.13431).

    Args:
        p: Probabilities `(n, c)`.
        q: Probabilities `(n, c)` of the same images.

    Raises:
        ValueError: Other shapes, or rows that are no probabilities.
    """
    return _mean("activation_distance", p, q)


def agreement(p: Array, q: Array) -> float:
    """Share of images on which both predict the same class.

    Args:
        p: Probabilities `(n, c)`.
        q: Probabilities `(n, c)` of the same images.

    Raises:
        ValueError: Other shapes, or rows that are no probabilities.
    """
    return _mean("agreement", p, q)


def per_image(p: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
    """All three by name, `(n,)` each, of probabilities `(n, c)` in float64 that are not checked."""
    mean = (p + q) / 2
    terms = [x * np.log(np.where(x > 0, x / np.where(mean > 0, mean, 1), 1)) for x in (p, q)]
    return {
        "js_divergence": np.clip((terms[0] + terms[1]).sum(1) / 2, 0, np.log(2)),
        "activation_distance": np.linalg.norm(p - q, axis=1),
        "agreement": p.argmax(1) == q.argmax(1),
    }


def _mean(name: str, p: Array, q: Array) -> float:
    p, q = probabilities(p, "p"), probabilities(q, "q")
    if p.shape != q.shape:
        raise ValueError(f"p has shape {p.shape} and q {q.shape}: expected the same images and classes.")
    return float(per_image(p, q)[name].mean())
