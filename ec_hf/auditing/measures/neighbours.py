"""What lies near what in the deepest features: nearest images of a few forgotten ones, and a t-SNE picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ec_hf.auditing.collected import BySplit
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Retrieval
from ec_hf.metrics import nearest
from ec_hf.metrics.embedding import embedding

__all__ = ["retrievals", "tsne_picture"]

QUERIES, RETRIEVED, PICTURED = 3, 8, 30
LEAST_PICTURED = 8
TEST_SPLITS = ("forget_test", "retain_test")


def retrievals(collected: BySplit, question: Question, deepest: Mapping[str, str]) -> list[Retrieval]:
    """The nearest kept test images of a few forgotten ones, the same for all models.

    Without whole classes there is no forgotten test image to ask about.

    Args:
        collected: what the pass collected.
        question: what is asked.
        deepest: model -> its deepest layer.
    """
    labels, features = _test_images(collected, deepest)
    given = np.concatenate([question.test_rows[split][collected[split].kept] for split in TEST_SPLITS])
    forgotten = collected["forget_test"].kept_labels
    queries = [row for k in question.whole_classes for row in np.flatnonzero(forgotten == k)[:1]][:QUERIES]
    if not queries or len(labels) < 2:
        return []
    count, results = min(RETRIEVED, len(labels) - 1), []
    for model, points in features.items():
        for query, near in zip(queries, nearest(points, points[queries], count + 1), strict=True):
            others = near[near != query][:count]
            results.append(
                Retrieval(
                    model, int(given[query]), int(labels[query]), given[others].tolist(), labels[others].tolist()
                )
            )
    return results


def tsne_picture(collected: BySplit, question: Question, deepest: Mapping[str, str]) -> dict[str, Any]:
    """The t-SNE picture of the deepest features of the kept test images; empty where there is nothing to draw.

    Args:
        collected: what the pass collected.
        question: what is asked.
        deepest: model -> its deepest layer.
    """
    labels, features = _test_images(collected, {name: deepest[name] for name in question.trained if name in deepest})
    present = [k for k in question.whole_classes if (labels == k).any()]
    if not present or not features or len(labels) < LEAST_PICTURED:
        return {}
    return embedding(features, labels, present, question.seed, per_class=PICTURED)


def _test_images(collected: BySplit, deepest: Mapping[str, str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Label ids of the kept test images, and by model their features in its deepest layer, where all are finite."""
    labels = np.concatenate([collected[split].kept_labels for split in TEST_SPLITS])
    filled = [split for split in TEST_SPLITS if len(collected[split].kept)]
    features = {
        model: np.concatenate([collected[split].features[model][layer] for split in filled])
        for model, layer in deepest.items()
        if filled
    }
    return labels, {model: points for model, points in features.items() if np.isfinite(points).all()}
