"""What one pass over the images leaves: figures of each image, features of a few, CKA over all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["BySplit", "CKAByLayer", "Collected", "Shadows"]

CKAByLayer = dict[str, tuple[float | None, str | None]]
"""Layer -> CKA over all images, or None and the reason why there is none."""


@dataclass(frozen=True)
class Collected:
    """What the models showed on one split.

    Attributes:
        labels: `(n,)` label ids, in the order of the split.
        kept: `(m,)` ascending rows of the split whose features were kept.
        outputs: model -> figure of `ec_hf.auditing.per_image` -> `(n,)`, one entry an image.
        features: model -> layer -> `(m, width)` float32, of the kept rows.
        cka: metric -> (model, reference) -> layer of the model -> value, or None and the reason.
    """

    labels: np.ndarray
    kept: np.ndarray
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    features: Mapping[str, Mapping[str, np.ndarray]]
    cka: Mapping[str, Mapping[tuple[str, str], CKAByLayer]]

    @property
    def kept_labels(self) -> np.ndarray:
        """`(m,)` label ids of the kept rows."""
        return self.labels[self.kept]


BySplit = Mapping[str, Collected]
"""What was collected of each split."""


@dataclass(frozen=True)
class Shadows:
    """How sure shadow models are of the label, as `ec_hf.metrics.logit_confidence`.

    Attributes:
        outside: `(2n, K)` of K models that were trained without the forgotten images, on 2n
            images: n forgotten images, then n held-out ones.
        inside: `(n, J)` of J models that were trained with the forgotten images, on these alone.
    """

    outside: np.ndarray
    inside: np.ndarray
