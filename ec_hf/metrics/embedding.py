"""t-SNE of pooled features: a picture of what the deepest layer holds apart, not a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["embedding", "nearest_classes"]

PERPLEXITY = 30  # as usual in the field; stated, because the picture depends on it


def nearest_classes(features: Any, labels: Any, forget_classes: Sequence[int], count: int = 9) -> list[int]:
    """The retain classes whose mean lies nearest (Euclidean) to the mean of any forget class, nearest first.

    Args:
        features: `(n, p)` array of floats.
        labels: `(n,)` label ids.
        forget_classes: label ids of the forgotten classes; those without a row count for nothing.
        count: at most so many classes.
    """
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels)
    means = {int(k): features[labels == k].mean(axis=0) for k in np.unique(labels)}
    forgotten = [means[k] for k in forget_classes if k in means]
    distance = {
        k: min(np.linalg.norm(mean - other) for other in forgotten)
        for k, mean in means.items()
        if k not in forget_classes and forgotten
    }
    return sorted(distance, key=lambda k: (distance[k], k))[:count]


def embedding(
    features: Mapping[str, Any],
    labels: Any,
    forget_classes: Sequence[int],
    seed: int = 0,
    *,
    classes: int = 9,
    per_class: int = 50,
) -> dict[str, Any]:
    """t-SNE (van der Maaten and Hinton 2008) of the same images for each model: forget classes among their neighbours.

    The neighbours are the retain classes nearest to the forgotten ones in the original model, so that all models show
    the same images. Perplexity is 30, or a third of the images where those are few.

    Args:
        features: model -> `(n, p)` floats (arrays or tensors on the CPU), rows of the same images in the same order;
            the neighbours are taken from "original", or the first model where there is none.
        labels: `(n,)` label ids.
        forget_classes: label ids of the forgotten classes.
        seed: seed of the images that are drawn, and of t-SNE.
        classes: how many retain classes.
        per_class: at most so many images of each class, drawn at random.

    Returns:
        {"labels": label ids of the images, "points": {model: [[x, y], ...]}}, as `AuditReport.embedding` holds them.

    Raises:
        ValueError: no image of a forgotten class, fewer than four images in all, or models with other numbers of rows.
    """
    from sklearn.manifold import TSNE  # costs a second, and not every audit draws pictures

    rows = {name: np.asarray(each, dtype=np.float32) for name, each in features.items()}
    labels = np.asarray(labels)
    if wrong := {name: len(each) for name, each in rows.items() if len(each) != len(labels)}:
        raise ValueError(
            f"embedding: {len(labels)} labels, but {wrong} rows of features; all models need the same images"
        )
    if not np.isin(labels, list(forget_classes)).any():
        raise ValueError(f"embedding: no image of the forget classes {list(forget_classes)} among the {len(labels)}")
    shown = [
        *forget_classes,
        *nearest_classes(rows.get("original", next(iter(rows.values()))), labels, forget_classes, classes),
    ]
    rng = np.random.default_rng(seed)
    drawn = np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:per_class] for k in shown]))
    if len(drawn) < 4:
        raise ValueError(f"embedding: {len(drawn)} images are too few for t-SNE; it needs four or more")
    points = {}
    for name, each in rows.items():
        spread = each.shape[1] > 1 and np.ptp(each[drawn], axis=0).any()  # features that are all alike have no axes
        tsne = TSNE(
            perplexity=min(PERPLEXITY, (len(drawn) - 1) / 3), init="pca" if spread else "random", random_state=seed
        )
        points[name] = np.round(tsne.fit_transform(each[drawn]), 3).tolist()
    return {"labels": labels[drawn].tolist(), "points": points}
