"""Distances, summary scores, information, intervals, and the table that says how to read them all."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, entropy

from ec_hf.metrics import (
    METRICS,
    activation_distance,
    agreement,
    aus,
    avg_gap,
    bootstrap_mean,
    h_mean,
    idi,
    infonce,
    js_divergence,
    probe_advantage,
    relearning_area,
    tug_of_war,
)

KEYS = {
    "accuracy",
    "accuracy_masked",
    "accuracy_int8",
    "accuracy_matched",
    "confidence",
    "entropy",
    "linear_cka",
    "linear_cka_uuef",
    "cka_floor",
    "split_half_cka",
    "linear_probe",
    "knn",
    "knn_downstream",
    "mia_loss",
    "mia_lira",
    "mia_lira_tpr",
    "mia_population",
    "mia_population_tpr",
    "residual_knowledge",
    "mia_confidence",
    "mia_svc_efficacy",
    "mia_svc_member",
    "idi",
    "infonce",
    "probe_advantage",
    "attack_area",
    "js_divergence",
    "activation_distance",
    "agreement",
    "h_mean",
    "tug_of_war",
    "avg_gap",
    "aus",
}
TEACHER = torch.tensor([[2, 1, 0.5, -1], [0.3, 0.2, 3, 0.1]], dtype=torch.float64).softmax(1)
STUDENT = torch.tensor([[1, 1, 1, 1], [0, 1, 2, 3]], dtype=torch.float64).softmax(1)


# distances


def test_golden_divergence_whichever_comes_first():
    assert js_divergence(TEACHER, STUDENT) == pytest.approx(0.1728244105, abs=1e-10)
    assert js_divergence(STUDENT.numpy(), TEACHER.numpy()) == pytest.approx(0.1728244105, abs=1e-10)


@given(seed=st.integers(0, 99), rows=st.integers(1, 6), classes=st.integers(2, 6), sure=st.floats(0, 100))
@example(seed=0, rows=2, classes=2, sure=2.9e-12)  # SciPy's jensenshannon gives NaN here
@settings(max_examples=60)
def test_distances_agree_with_scipy_and_numpy_and_keep_their_range(seed, rows, classes, sure):
    p, q = torch.from_numpy(sure * np.random.default_rng(seed).normal(size=(2, rows, classes))).softmax(2).numpy()
    expected = np.mean(entropy((p + q) / 2, axis=1) - (entropy(p, axis=1) + entropy(q, axis=1)) / 2)
    assert js_divergence(p, q) == pytest.approx(expected, abs=1e-9)
    assert 0 <= js_divergence(p, q) <= math.log(2)
    assert activation_distance(p, q) == pytest.approx(np.sqrt(((p - q) ** 2).sum(1)).mean())
    assert agreement(p, q) == np.mean(p.argmax(1) == q.argmax(1))


def test_ends_of_the_distances():
    one, other = np.eye(4)[[0, 1]], np.eye(4)[[2, 3]]
    assert (js_divergence(one, one), activation_distance(one, one), agreement(one, one)) == (0, 0, 1)
    assert js_divergence(one, other) == pytest.approx(math.log(2))
    assert activation_distance(one, other) == pytest.approx(METRICS["activation_distance"].high)
    assert agreement(one, other) == 0


@pytest.mark.parametrize("distance", [js_divergence, activation_distance, agreement])
def test_logits_and_other_images_are_refused(distance):
    with pytest.raises(ValueError, match="the rows of q are no probabilities"):
        distance(TEACHER, 2 * STUDENT)
    with pytest.raises(ValueError, match="the rows of p are no probabilities"):
        distance([[1.5, -0.5]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"p has shape \(2, 4\) and q \(1, 4\)"):
        distance(TEACHER, STUDENT[:1])
    with pytest.raises(ValueError, match="at least one row"):
        distance(TEACHER[:0], STUDENT[:0])


def test_rounded_probabilities_are_taken():
    assert js_divergence(TEACHER.half(), STUDENT.bfloat16()) == pytest.approx(0.1728, abs=0.005)


# summary scores


def test_golden_scores():
    assert tug_of_war([0.03, 0.99, 0.92], [0, 1, 0.94]) == pytest.approx(0.941094)
    assert aus(0.7755, 0.77, 0.02) == pytest.approx(0.975)
    assert aus(0.7755, 0.77, 0.75, random_forgetting=True) == pytest.approx(0.9945 / 1.02)
    assert avg_gap([0.03, 0.99, 0.92], [0, 1, 0.94]) == pytest.approx(0.02)
    assert h_mean(0.9, 0.1, 0.7) == pytest.approx(2 * 0.9 * 0.6 / 1.5)


share = st.floats(0, 1)


@given(a=share, b=share, c=share)
@settings(max_examples=60)
def test_scores_are_numbers_in_their_range_for_any_accuracies(a, b, c):
    for key, value in {
        "h_mean": h_mean(a, b, c),
        "tug_of_war": tug_of_war([a, b], [c, a]),
        "avg_gap": avg_gap([a, b], [c, a]),
        "aus": aus(a, b, c),
    }.items():
        assert METRICS[key].low <= value <= METRICS[key].high + 1e-12


def test_scores_of_models_that_forget_or_keep_nothing():
    assert h_mean(0.9, 0.7, 0.7) == h_mean(0.9, 0.8, 0.7) == h_mean(0, 0.1, 0.7) == h_mean(0, 0, 0) == 0
    assert tug_of_war([0.3, 0.4], [0.3, 0.4]) == 1
    assert aus(0.5, 0.5, 0) == 1


@pytest.mark.parametrize(
    "score",
    [
        lambda x: h_mean(x, 0.1, 0.5),
        lambda x: h_mean(0.5, x, 0.5),
        lambda x: aus(0.5, 0.5, x),
        lambda x: aus(x, 0.5, 0),
        lambda x: tug_of_war([x], [0.5]),
        lambda x: avg_gap([0.5], [x]),
        lambda x: relearning_area([0, 1], [0, x]),
        lambda x: probe_advantage([x], [0.1], [0.9]),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 97.5, math.nan])
def test_percentages_and_what_is_no_share_are_refused(score, value):
    with pytest.raises(ValueError, match=r"expected shares from 0 to 1|holds NaN"):
        score(value)


def test_gaps_between_other_measures_are_refused():
    for score in (tug_of_war, avg_gap):
        with pytest.raises(ValueError, match="unlearned has 2 values and retrained 1"):
            score([0.1, 0.2], [0.1])
        with pytest.raises(ValueError, match="at least one value"):
            score([], [])


def test_the_relearning_area_weighs_early_steps_and_ends_at_0_and_1():
    steps = [0, 1, 3, 7]  # equal distances on the axis log(1 + step)
    assert relearning_area(steps, [0, 0, 0, 0]) == 0
    assert relearning_area(steps, [1, 1, 1, 1]) == pytest.approx(1)
    assert relearning_area(steps, [0, 0.2, 0.6, 1]) == pytest.approx((0.1 + 0.4 + 0.8) / 3)
    assert relearning_area([0, 1, 100], [0, 1, 1]) > relearning_area([0, 50, 100], [0, 1, 1])


@pytest.mark.parametrize("steps", [[0], [1, 2], [0, 2, 2], [0, 3, 1]])
def test_steps_that_make_no_curve_are_refused(steps):
    with pytest.raises(ValueError, match="ascending from 0"):
        relearning_area(steps, [0.5] * len(steps))
    with pytest.raises(ValueError, match="2 steps and 3 accuracies"):
        relearning_area([0, 1], [0.1, 0.2, 0.3])


# information


def layer(apart, rows=300, seed=0):
    rng = np.random.default_rng(seed)
    is_forget = np.arange(rows) % 3 == 0
    return rng.normal(size=(rows, 8)) + apart * is_forget[:, None] * np.eye(8)[0], is_forget


def test_information_is_bounded_by_ln_2_and_0_and_rises_with_separation():
    none, some, much = (infonce(*layer(apart), trials=3) for apart in (0, 1.5, 20))
    assert none < 0.05
    assert none < some < much
    assert 0.6 < much <= math.log(2)


def test_information_of_two_gaussians_is_bounded_by_the_true_value_up_to_noise():
    apart = 2.0
    z = np.random.default_rng(0).normal(size=200_000)
    truth = math.log(2) - np.mean(np.logaddexp(0, -apart * (z + apart / 2)))  # one side; the other is its mirror
    features, is_forget = layer(apart, 3000)
    assert truth - 0.1 < infonce(features, is_forget, trials=3) < truth + 0.05


def test_information_depends_on_the_seed_alone_and_leaves_the_random_state():
    features, is_forget = layer(1)
    state = torch.get_rng_state()
    value = infonce(features, torch.tensor(is_forget), trials=2, steps=30)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert infonce(torch.tensor(features), is_forget.astype(int), trials=2, steps=30) == value
    assert infonce(features, is_forget, trials=2, steps=30, seed=1) != value


def test_information_of_too_little_is_refused_and_of_constant_features_is_none():
    features, is_forget = layer(1, 40)
    assert infonce(np.ones_like(features), is_forget, trials=1) == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match="7 images of each value of Y"):
        infonce(features[:21], is_forget[:21])
    with pytest.raises(ValueError, match="one boolean for each of 40"):
        infonce(features, np.arange(40))


def test_ratios_between_floor_and_original():
    for ratio in (idi, probe_advantage):
        floor, original = [0.1, 0.2], [0.5, 0.6]
        assert ratio(floor, floor, original) == 0
        assert ratio(original, floor, original) == 1
        assert ratio([0.3, 0.4], floor, original) == pytest.approx(0.5)
        assert ratio([0.0, 0.1], floor, original) < 0
        with pytest.raises(ValueError, match=r"only 0\.020"):
            ratio(floor, floor, [0.11, 0.21])
        with pytest.raises(ValueError, match=r"only -0\.800"):
            ratio(floor, original, floor)
        with pytest.raises(ValueError, match="2, 1 and 2 layers"):
            ratio(floor, [0.1], original)


# intervals


@pytest.mark.parametrize("size", [30, 900, 5000])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_intervals_agree_with_the_bootstrap_of_scipy(kind, size):
    values = getattr(np.random.default_rng(0), kind)(size=size)
    low, high = bootstrap_mean(values, resamples=4000)
    expected = bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", batch=200, rng=np.random.default_rng(1)
    ).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.06 * width)
    assert high == pytest.approx(expected.high, abs=0.06 * width)


@pytest.mark.parametrize(("share", "count"), [(0.02, 100), (0.5, 40), (0.9, 200)])
def test_intervals_of_accuracies_hold_the_truth_about_as_often_as_they_say(share, count):
    rng = np.random.default_rng(0)
    held = [low <= share <= high for low, high in (bootstrap_mean(rng.random(count) < share) for _ in range(400))]
    assert 0.9 < np.mean(held) <= 1


def test_no_hit_at_all_still_has_an_interval():
    assert bootstrap_mean(np.zeros(100)) == pytest.approx((0, 0.037), abs=1e-3)
    assert bootstrap_mean([True] * 100) == pytest.approx((0.963, 1), abs=1e-3)
    assert bootstrap_mean([1]) == pytest.approx((0.207, 1), abs=1e-3)


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    repeats=st.sampled_from([1, 40]),
    level=st.floats(0.01, 0.99),
)
@settings(max_examples=60)
def test_intervals_are_numbers_about_the_mean_for_any_values(values, repeats, level):
    values = np.tile(values, repeats)
    low, high = bootstrap_mean(values, level=0.95, resamples=200)
    slack = 1e-9 * (1 + np.abs(values).max())
    if not np.isin(values, (0, 1)).all() and len(values) <= 1000:
        assert values.min() - slack <= low <= high <= values.max() + slack
    assert math.isfinite(low) and math.isfinite(high)
    low, high = bootstrap_mean(values, level=level, resamples=50)
    assert low <= high


def test_one_value_and_equal_values_have_no_width_and_none_is_refused():
    assert bootstrap_mean([0.3]) == (0.3, 0.3)
    assert bootstrap_mean(np.full(2000, 0.1)) == pytest.approx((0.1, 0.1))
    drawn = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(drawn) == bootstrap_mean(drawn) != bootstrap_mean(drawn, seed=1)
    for values in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match=r"values has shape|values holds NaN"):
            bootstrap_mean(values)
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_mean([1, 2], level=95)


# the table


def test_the_table_has_every_metric_in_words():
    assert set(METRICS) == KEYS
    for metric in METRICS.values():
        assert metric.title and metric.chance and metric.formula and metric.source
        assert metric.low is None or metric.high is None or metric.low < metric.high
        for split in (None, "forget_train", "forget_test", "retain_train", "retain_test", "downstream"):
            for reference in (None, "original", "retrained"):
                assert metric.better(split, reference) in ("lower", "higher", "nearer the retrained model")


def test_direction_depends_on_split_and_reference():
    assert METRICS["accuracy"].better("forget_test") == "lower"
    assert METRICS["accuracy"].better("retain_test") == METRICS["knn_downstream"].better("downstream") == "higher"
    assert METRICS["linear_cka"].better("forget_test", "original") == "lower"
    assert METRICS["linear_cka"].better("retain_test", "original") == "higher"
    assert METRICS["linear_cka"].better("forget_test", "retrained") == "higher"
    assert METRICS["js_divergence"].better("forget_test", "retrained") == "lower"
    assert METRICS["mia_loss"].better("forget_train") == "nearer the retrained model"


@pytest.mark.launch
def test_importing_the_metrics_loads_neither_scikit_learn_nor_evaluate():
    code = (
        "import sys, ec_hf.metrics; print([name for name in ('sklearn', 'evaluate', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
