"""What is kept of each image's output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from ec_hf.metrics import confidence, entropy, hits, loss, masked_hits
from ec_hf.metrics.distances import per_image

__all__ = ["distances", "outputs_of"]


def outputs_of(logits: np.ndarray, labels: np.ndarray, masked: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """What is kept of each image's output, `(n,)` each: prediction, hit, confidence, entropy, loss.

    See `ec_hf.metrics.outputs`. `hit_masked` is the hit when the logits of the `masked` label ids are left out; it is
    missing without such ids. Images whose logits are not finite have NaN.
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
    return {"prediction": logits.argmax(1)} | {key: np.where(finite, each, np.nan) for key, each in figures.items()}


def distances(logits: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """How far each image's output is from the retrained model's, `(n,)` each; see `ec_hf.metrics.distances`."""
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(target).all(axis=1)
    p, q = (softmax(np.where(finite[:, None], each, 0.0).astype(np.float64), axis=1) for each in (logits, target))
    return {key: np.where(finite, each, np.nan) for key, each in per_image(p, q).items()}
