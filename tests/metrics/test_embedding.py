from __future__ import annotations

import json

import numpy as np
import pytest

from ec_hf.metrics.embedding import embedding, nearest_classes


def blobs(classes=12, per_class=20, width=8, seed=0):
    """Class k lies around (10 k, 0, 0, ...)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    features = rng.standard_normal((len(labels), width))
    features[:, 0] += 10 * labels
    return features, labels


def test_nearest_classes_lie_around_any_forgotten_one():
    features, labels = blobs()
    assert nearest_classes(features, labels, [6], 4) in ([5, 7, 4, 8], [7, 5, 4, 8], [5, 7, 8, 4], [7, 5, 8, 4])
    assert set(nearest_classes(features, labels, [0, 11], 2)) == {1, 10}
    assert nearest_classes(features, labels, [99]) == []


def test_all_models_show_the_same_images_and_the_same_seed_the_same_picture():
    features, labels = blobs()
    models = {"original": features, "unlearned": np.roll(features, 1, axis=1)}
    result = embedding(models, labels, [0], per_class=8)
    assert set(result["labels"]) == set(range(10)), "the forget class and the nine nearest retain classes"
    assert {len(points) for points in result["points"].values()} == {80} == {len(result["labels"])}
    assert embedding(models, labels, [0], per_class=8) == result == json.loads(json.dumps(result, allow_nan=False))


def test_classes_that_lie_apart_stay_apart():
    features, labels = blobs(classes=3)
    result = embedding({"original": features}, labels, [1])
    points, labels = np.array(result["points"]["original"]), np.array(result["labels"])
    centres = np.stack([points[labels == k].mean(axis=0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres[None], axis=-1).argmin(axis=1)
    assert (nearest == labels).all()


@pytest.mark.parametrize("width", [1, 8])
def test_features_that_are_all_alike_give_finite_points(width):
    result = embedding({"original": np.ones((12, width))}, np.arange(12) % 3, [1])
    assert np.isfinite(result["points"]["original"]).all()


def test_wrong_inputs_are_named():
    features, labels = blobs()
    with pytest.raises(ValueError, match="no image of the forget classes \\[99\\]"):
        embedding({"original": features}, labels, [99])
    with pytest.raises(ValueError, match="'unlearned': 10"):
        embedding({"original": features, "unlearned": features[:10]}, labels, [0])
    with pytest.raises(ValueError, match="too few"):
        embedding({"original": features[:3]}, labels[:3], [0])
