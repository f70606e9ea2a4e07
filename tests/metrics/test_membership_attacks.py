"""LiRA, the population attack, and shares of members and of hits that go with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ec_hf.metrics import (
    lira_scores,
    logit_confidence,
    membership_auc,
    membership_tpr,
    population_scores,
    share_by_class_mix,
)

LN2 = math.log(2)


def test_golden_logit_of_the_confidence():
    assert logit_confidence([LN2, -math.log(0.9), -math.log(0.1)]) == pytest.approx([0, math.log(9), -math.log(9)])
    assert logit_confidence([0.0])[0] == pytest.approx(36.04, abs=0.01)
    assert np.isfinite(logit_confidence([0.0, 1e-300, 800.0])).all()
    with pytest.raises(ValueError, match=r"losses holds -1\.0"):
        logit_confidence([-1.0])


def test_golden_offline_test_is_the_distance_in_standard_deviations():
    # means 1 and 2, variance 2 of both
    assert lira_scores([2, 2], [[0, 2], [1, 3]]) == pytest.approx([1 / math.sqrt(2), 0])


def test_golden_likelihood_ratio_of_in_and_out_models():
    # in: means 4 and 2, mean variance (2 + 0) / 2 = 1; out: means 1 and 2, variance 2
    found = lira_scores([2, 2], [[0, 2], [1, 3]], [[3, 5], [2, 2]])
    assert found == pytest.approx([-2 - (-LN2 / 2 - 1 / 4), 0 - (-LN2 / 2)])


def test_golden_likelihood_ratio_with_in_models_of_the_members_alone():
    outside = [[-1, 1], [0, 2], [1, 3], [2, 4], [3, 5]]
    inside = [[0, 2], [2, 4], [4, 6], [6, 8]]  # on the line 1 + 2 μ_out, all deviations ±1: variance 8 / (8 - 2)
    found = lira_scores([9, 9, 9, 9, 9], outside, inside, members=[0, 1, 2, 3])
    assert found[4] == pytest.approx(-math.log(8 / 6) / 2 - (-LN2 / 2 - 25 / 4))
    assert found[3] == pytest.approx(-math.log(8 / 6) / 2 - 4 / (2 * 8 / 6) - (-LN2 / 2 - 36 / 4))


def test_with_many_models_each_image_has_its_own_variance():
    draw = np.random.default_rng(0)
    outside = draw.normal(size=(2, 64)) * [[1], [10]]
    quiet, wide = lira_scores(outside.mean(axis=1) + 1, outside)
    assert quiet > 5 * wide > 0
    few = lira_scores(outside[:, :63].mean(axis=1) + 1, outside[:, :63])
    assert few[0] == pytest.approx(few[1])


@pytest.mark.parametrize("online", [False, True])
def test_a_member_is_told_by_what_shadow_models_show_and_a_model_that_never_saw_it_is_not(online):
    draw = np.random.default_rng(1)
    hard = draw.normal(2, 3, size=1000)  # how easy each image is, which hides membership from a single threshold
    members = np.arange(500)

    def trained(*rows):
        confidence = hard + draw.normal(size=1000)
        confidence[list(rows)] += 2
        return confidence

    outside = np.stack([trained() for _ in range(8)], axis=1)
    inside = np.stack([trained(*members)[members] for _ in range(4)], axis=1) if online else None
    areas = {}
    for name, target in (("saw", trained(*members)), ("never", trained())):
        scores = lira_scores(target, outside, inside, members if online else None)
        areas[name] = membership_auc(scores[:500], scores[500:])
        areas[f"{name}, by confidence"] = membership_auc(target[:500], target[500:])
    assert areas["saw"] > 0.85 > 0.75 > areas["saw, by confidence"]
    assert areas["never"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("outside", "inside", "members", "message"),
    [
        ([[1], [2]], None, None, r"outside has shape \(2, 1\): expected 2 rows and 2 or more models"),
        ([[1, 2]], None, None, "expected 2 rows"),
        ([[1, 2], [1, 3]], [[1], [2]], None, r"inside has shape \(2, 1\)"),
        ([[1, 2], [1, 3]], [[1], [2]], [0, 1], "members holds 2 rows: expected at least four"),
    ],
)
def test_too_few_shadow_models_or_rows_are_refused(outside, inside, members, message):
    with pytest.raises(ValueError, match=message):
        lira_scores([0, 0], outside, inside, members)


def test_golden_share_of_members_at_few_false_alarms():
    assert membership_tpr([98.5, 99.5, 50], range(100)) == pytest.approx(2 / 3)  # one of the others may be above
    assert membership_tpr([98.5, 99.5, 50], range(100), 0.0) == pytest.approx(1 / 3)
    assert membership_tpr([3, 3], [3] * 500) == 0
    assert membership_tpr(range(1000), range(1000)) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="false_positives=1"):
        membership_tpr([1], [1], 1)


def test_golden_scores_by_the_population_of_each_class():
    population, of_class = [0, 1, 0.5, 1, 3], [0, 0, 0, 1, 1]
    assert population_scores([0.5, 2.0], [0, 1], population, of_class) == pytest.approx([1.5 / 3, 1 / 2])
    within = population_scores(population, of_class, population, of_class, within=True)
    assert within == pytest.approx([1, 0, 0.5, 1, 0])


def test_a_class_without_unseen_images_is_refused():
    with pytest.raises(ValueError, match="too few images of class 2"):
        population_scores([0.5], [2], [1.0], [0])
    with pytest.raises(ValueError, match="too few images of class 0"):
        population_scores([1.0], [0], [1.0], [0], within=True)


def test_thresholds_for_each_class_do_not_take_easy_classes_for_members():
    draw = np.random.default_rng(0)
    easy, hard = draw.exponential(0.1, 400), draw.exponential(3.0, 400)
    losses, labels = np.concatenate([easy[:200], hard[:20]]), np.repeat([0, 1], [200, 20])
    population, of_class = np.concatenate([easy[200:300], hard[200:400]]), np.repeat([0, 1], [100, 200])
    scores = population_scores(losses, labels, population, of_class)
    within = population_scores(population, of_class, population, of_class, within=True)
    assert membership_auc(scores, within) == pytest.approx(0.5, abs=0.06)
    assert membership_auc(losses, population, higher_is_member=False) > 0.7


def test_golden_share_of_hits_by_the_class_mix_of_others():
    # class 0 weighs 3/4 and has 1 of 2 right, class 1 weighs 1/4 and has all of 4 right; class 9 is nowhere
    share, low, high = share_by_class_mix([1, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 9])
    assert share == pytest.approx(0.75 * 0.5 + 0.25)
    n, z = 1 / (9 / 16 / 2 + 1 / 16 / 4), 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    with pytest.raises(ValueError, match="share no class"):
        share_by_class_mix([1], [0], [1])
