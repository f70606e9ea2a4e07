"""What is kept of the output of each image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from ec_hf.metrics import confidence, entropy, hits, loss, masked_hits
from ec_hf.metrics.distances import per_image

__all__ = ["distances_to", "mean_distances_to", "output_figures"]


def output_figures(logits: np.ndarray, labels: np.ndarray, masked: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Prediction, hit, confidence, entropy and loss of each image, `(n,)` each; see `ec_hf.metrics.outputs`.

    Images whose logits are not finite have NaN, except for the prediction.

    Args:
        logits: `(n, classes)`.
        labels: `(n,)` label ids.
        masked: label ids whose logits are left out for `hit_masked`, which is missing without such ids.
    """
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0.0)
    figures = {
        "hit": hits(logits, labels),
        "confidence": confidence(logits),
        "entropy": entropy(logits),
        "loss": loss(logits, labels),
    }
    if 0 < len(masked) < logits.shape[1]:
        figures["hit_masked"] = masked_hits(logits, labels, masked)
    figures = {key: np.where(finite, values, np.nan) for key, values in figures.items()}
    return {"prediction": logits.argmax(1), **figures}


def distances_to(target: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """How far the output of each image is from a target, `(n,)` each; see `ec_hf.metrics.distances`.

    Args:
        target: logits `(n, classes)` of the retrained model.
        logits: those of another model.
    """
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(target).all(axis=1)
    p, q = (softmax(np.where(finite[:, None], x, 0.0).astype(np.float64), axis=1) for x in (logits, target))
    return {key: np.where(finite, values, np.nan) for key, values in per_image(p, q).items()}


def mean_distances_to(targets: Sequence[np.ndarray], logits: np.ndarray) -> dict[str, np.ndarray]:
    """How far the output of each image is from several targets in the mean, `(n,)` each.

    Args:
        targets: logits `(n, classes)` of retrained models, at least one.
        logits: those of another model.
    """
    first, *others = (distances_to(target, logits) for target in targets)
    return {key: np.mean([first[key], *(each[key] for each in others)], axis=0) for key in first} if others else first
