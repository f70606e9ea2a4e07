"""How well classes stand apart, held against the definition and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from ec_hf.metrics import relative_separability, separability


def classes_apart(apart, images=30, width=8, seed=0):
    """Images of as many classes as there are distances, each so far from the middle in a direction of its own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(apart)), images)
    features = rng.normal(size=(len(labels), width))
    features[np.arange(len(labels)), labels] += np.asarray(apart)[labels]
    return features, labels


def test_it_is_the_area_under_the_curve_of_telling_images_of_the_same_class():
    x, y = classes_apart([0.5, 1.0, 2.0], images=12)
    x[5] = x[4]  # equal similarities count half
    centred = x - x.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    for row, found in enumerate(separability(x, y)):
        others = np.arange(len(y)) != row
        area = roc_auc_score(y[others] == y[row], np.round(centred[others] @ centred[row], 12))
        assert found == pytest.approx(area, abs=1e-9)


def test_classes_at_random_are_at_a_half_and_classes_apart_at_one():
    assert separability(*classes_apart([0.0] * 4, images=60)).mean() == pytest.approx(0.5, abs=0.02)
    assert separability(*classes_apart([60.0] * 4)).min() == 1.0


def test_an_image_alone_in_its_class_tells_nothing():
    found = separability([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], [0, 0, 1])
    assert np.isfinite(found[:2]).all() and math.isnan(found[2])


def test_forgotten_classes_are_told_as_well_less_well_or_not_at_all():
    as_well = relative_separability(*classes_apart([2.0] * 4), [0, 1])
    less = relative_separability(*classes_apart([0.7, 0.7, 2.0, 2.0]), [0, 1])
    x, y = classes_apart([2.0] * 4, images=100)
    anywhere = np.where(np.arange(len(y)) % 2, y, 4 + np.arange(len(y)) // 2 % 2)  # half of all have one of two names
    not_at_all = relative_separability(x, anywhere, [4, 5])
    assert abs(as_well.value - 1) < 3 * as_well.error
    assert 0.1 < less.value < 0.8
    assert abs(not_at_all.value) < 0.1


def test_the_error_is_as_large_as_the_values_of_other_images_differ():
    found = [relative_separability(*classes_apart([1.0] * 6, seed=seed), [0, 1]) for seed in range(40)]
    spread = np.std([each.value for each in found])
    assert 0.4 < np.mean([each.error for each in found]) / spread < 1.6


def test_where_there_is_nothing_to_compare_it_is_nan():
    x, y = classes_apart([1.0, 1.0])
    assert math.isnan(relative_separability(x, y, []).value)
    assert math.isnan(relative_separability(torch.from_numpy(x), y, [0, 1]).value)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one label id for each"):
        separability(np.ones((3, 2)), [0, 1])
    with pytest.raises(ValueError, match="NaN"):
        separability(np.full((2, 2), np.nan), [0, 0])
