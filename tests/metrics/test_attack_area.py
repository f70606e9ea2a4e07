from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ec_hf.metrics import attack_area, relearning_area
from ec_hf.metrics.attack_area import area_weights


def test_golden_areas_of_each_unit():
    assert attack_area([8, 4], [0.2, 0.6], "bits") == pytest.approx(0.4)
    assert attack_area([16, 8, 2], [0, 0.5, 1], "bits") == pytest.approx((0.25 + 2 * 0.75) / 3), "halvings weigh alike"
    assert attack_area([0.0, 0.25, 1.0], [0, 1, 1], "sparsity") == pytest.approx(0.125 + 0.75)
    x, y = [0, 1, 3, 7], [0, 0.2, 0.6, 1]
    assert attack_area(x, y, "steps") == pytest.approx(relearning_area(x, y)) == pytest.approx(1.3 / 3)
    assert attack_area([1, 3], [0.2, 0.8], "images a class") == pytest.approx(0.5)
    assert attack_area([5], [0.3], "images a class") == 0.3, "a single point is its own mean"


@given(st.lists(st.integers(0, 200), min_size=1, max_size=8, unique=True))
def test_weights_are_shares_of_the_axis(x):
    weights = area_weights(sorted(x), "steps")
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()


def test_an_area_is_the_mean_of_the_areas_of_the_images():
    hits = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 1]])
    x = [0, 4, 64]
    alone = [attack_area(x, hits[:, k].astype(float), "steps") for k in range(3)]
    assert attack_area(x, hits.mean(axis=1), "steps") == pytest.approx(np.mean(alone))


@pytest.mark.parametrize(
    ("x", "unit"),
    [([], "steps"), ([2, 1], "steps"), ([1, 1], "steps"), ([-1, 1], "sparsity"), ([4, 8], "bits"), ([4, 0.5], "bits")],
)
def test_strengths_out_of_order_are_refused(x, unit):
    with pytest.raises(ValueError):
        area_weights(x, unit)


def test_unknown_units_and_missing_points_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        area_weights([1], "minutes")
    with pytest.raises(ValueError, match="2 strengths and 1 accuracies"):
        attack_area([1, 2], [0.5], "steps")
