"""Where an unlearned model stands between the original and retrained ones, on simulated hits."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from ec_hf.auditing.report import STATUSES
from ec_hf.metrics import membership_auc
from ec_hf.metrics.membership import placements
from ec_hf.metrics.position import Standing, area_covariance, mean_covariance, place
from ec_hf.metrics.training_noise import NO_NOISE, Noise, noise_between, noise_on_retained, pooled, scaled

HARMLESS = {"as retrained", "unclear", "blind"}
LAYERS = 15


def hits_of(rng, levels, *, images=300, classes=5, layers=LAYERS, noise=0.02, of_class=0.03):
    """Hits `(images, models, layers)` about some levels: harder and easier images, models that differ by training."""
    models, labels = len(levels), np.arange(images) % classes
    hard = rng.standard_normal((images, 1, 1)) + rng.standard_normal((images, models, 1)) / 2**0.5
    hard = (hard + rng.standard_normal((images, models, layers)) / 2**0.5) / 2**0.5
    shift = rng.standard_normal((models, 1)) * 0.6**0.5 + rng.standard_normal((models, layers)) * 0.4**0.5
    by_class = rng.standard_normal((classes, models, 1)) * 0.6**0.5
    by_class = by_class + rng.standard_normal((classes, models, layers)) * 0.4**0.5
    chance = np.array(levels)[:, None] + noise * shift + of_class * by_class[labels]
    return (norm.cdf(hard) < chance).astype(float), labels


def statuses(rng, levels, *, images=300, classes=5, same=None, **training):
    """Statuses of 30 signals, of two kinds at 15 layers, where `levels` are of original, unlearned and retrained."""
    found = []
    for _ in range(2):
        hits, _ = hits_of(rng, levels, images=images, classes=classes, **training)
        if same is not None:
            hits[:, 1] = hits[:, same]
        values, covariances = hits.mean(axis=0).T, np.stack([mean_covariance(hits[..., k]) for k in range(LAYERS)])
        if len(levels) > 3:
            noise = noise_between(values[:, 2:], covariances[:, 2:, 2:])
        else:
            kept, labels = hits_of(rng, [0.8, 0.8], images=1000, classes=20, **training)
            noise = pooled([noise_on_retained(*kept[..., k].T, labels, classes) for k in range(LAYERS)])
        for own, covariance in zip(values, covariances, strict=True):
            found.append(place(own, covariance, images, alpha=0.05 / 30, noise=noise, shares=True).status)
    return found


@pytest.mark.parametrize("retrained", [1, 3])
@pytest.mark.parametrize("levels", [(0.9, 0.5), (0.362, 0.262), (0.95, 0.02), (0.5, 0.5)])
def test_a_retrained_model_is_hardly_ever_called_anything_else(levels, retrained):
    original, target = levels
    rng = np.random.default_rng(0)
    draws = [set(statuses(rng, [original, target, *[target] * retrained])) for _ in range(40)]
    assert sum(draw <= HARMLESS for draw in draws) >= 38


@pytest.mark.parametrize("retrained", [1, 3])
def test_the_original_is_never_called_retrained(retrained):
    rng = np.random.default_rng(1)
    for original, target in ((0.9, 0.5), (0.36, 0.26), (0.95, 0.02), (0.5, 0.5)):
        for _ in range(10):
            levels = [original, original, *[target] * retrained]
            assert set(statuses(rng, levels, same=0)) <= {"untouched", "blind"}
    assert "blind" not in statuses(rng, [0.9, 0.9, *[0.3] * retrained], same=0)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
    st.integers(2, 400),
    st.floats(0, 0.1),
    st.floats(1, 50),
    st.floats(1e-4, 0.2),
    st.integers(0, 2**32 - 1),
)
def test_a_copy_of_the_original_is_untouched_or_the_signal_is_blind(levels, images, deviation, freedom, alpha, seed):
    hits = (np.random.default_rng(seed).random((images, len(levels))) < levels).astype(float)
    hits = np.insert(hits, 1, hits[:, 0], axis=1)
    noise = Noise(deviation**2, freedom)
    found = place(hits.mean(0), mean_covariance(hits), images, alpha=alpha, noise=noise, shares=True)
    assert found.status in ("untouched", "blind")
    assert found.position in (None, 0)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=5), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_the_status_follows_from_the_interval_which_holds_the_position(levels, images, seed):
    hits = (np.random.default_rng(seed).random((images, len(levels))) < levels).astype(float)
    found = place(hits.mean(0), mean_covariance(hits), images, shares=True)
    if found.position is None:
        assert found.low is found.high is None
        assert found.status in ("blind", "over-erased")
        return
    assert found.low - 1e-9 <= found.position <= found.high + 1e-9
    assert (found.low > 1) == (found.status == "over-erased")
    assert (found.high < 1) == (found.status in ("untouched", "under-erased"))
    assert (found.low <= 0) == (found.status in ("untouched", "unclear"))


@pytest.mark.parametrize("levels", [(0.362, 0.370, 0.262), (0.95, 0.05, 0.0), (0.80, 0.33, 0.55)])
def test_more_images_tell_more(levels):
    values, widths = np.array(levels), []
    for images in (300, 3000, 30000):
        found = place(values, np.diag(values * (1 - values)) / images, images, shares=True)
        widths.append(np.inf if found.position is None else found.high - found.low)
    assert widths[0] > widths[1] > widths[2]


def test_a_hundred_drawn_classes_that_probe_and_neighbours_still_read_are_not_forgotten():
    found = Counter()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        draw = Counter()
        for levels in ((0.362, 0.370, 0.262), (0.292, 0.278, 0.206)):
            draw.update(statuses(rng, levels, images=500, classes=100, noise=0.003, of_class=0.02))
        assert min(draw, key=STATUSES.index) in ("untouched", "under-erased")
        assert not draw["over-erased"]
        found += draw
    assert found["untouched"] + found["under-erased"] > found["unclear"]


def test_training_images_that_are_still_known_by_their_loss_are_not_forgotten():
    areas, images = (0.58, 0.57, 0.50), 2000
    rng = np.random.default_rng(0)
    shift = 2**0.5 * norm.ppf(areas)
    shared = rng.standard_normal((2, images, 1))
    members, others = 0.8**0.5 * shared + 0.2**0.5 * rng.standard_normal((2, images, 3))
    sides = [placements(a, b) for a, b in zip((members + shift).T, others.T, strict=True)]
    inside, outside = (np.stack(side, axis=1) for side in zip(*sides, strict=True))
    assert inside.mean(0) == pytest.approx(areas, abs=0.02)
    found = place(inside.mean(0), area_covariance(inside, outside), images, alpha=0.05 / 30, shares=True)
    assert found.status in ("untouched", "under-erased")


def test_a_network_whose_neighbours_fell_below_those_of_the_retrained_one_is_over_erased():
    for seed in range(10):
        found = statuses(np.random.default_rng(seed), (0.80, 0.33, 0.55), noise=0.01, of_class=0.02)
        assert set(found) <= {"over-erased", "as retrained"}
        assert found.count("over-erased") > 20


def test_a_model_below_both_is_over_erased_where_the_two_cannot_be_told_apart():
    values = np.array([0.60, 0.20, 0.61])
    found = place(values, np.diag(values * (1 - values)) / 300, 300, shares=True)
    assert (found.position, found.status) == (None, "over-erased")


def test_what_retrained_models_know_better_tells_nothing_of_forgetting():
    values = np.array([0.40, 0.45, 0.80])
    assert place(values, np.diag(values * (1 - values)) / 3000, 3000, shares=True).status == "blind"


@pytest.mark.parametrize(("images", "blind"), [(1, True), (2, True), (5, True), (100, False)])
def test_a_few_images_are_no_proof_even_where_all_are_right(images, blind):
    found = place(np.array([1.0, 0.0, 0.0]), np.zeros((3, 3)), images, alpha=0.05 / 30, shares=True)
    assert found.status == ("blind" if blind else "as retrained")


def test_noise_of_training_makes_intervals_wider_and_in_the_end_blind():
    values, covariance = np.array([0.9, 0.7, 0.5]), np.eye(3) * 1e-5
    found = [place(values, covariance, 300, noise=Noise(tau**2, 20)) for tau in (0.0, 0.02, 0.08, 0.3)]
    assert [each.status for each in found] == ["under-erased", "under-erased", "as retrained", "blind"]
    assert found[0].high < found[1].high < found[2].high


@pytest.mark.parametrize(
    ("similarity", "status"),
    [(1.0, "untouched"), (0.97, "under-erased"), (0.88, "as retrained"), (0.8, "as retrained"), (0.6, "over-erased")],
)
def test_what_another_training_alone_moves_is_no_part_of_what_must_be_erased(similarity, status):
    # Retrained models are .9 like each other, and .8 like the original: forgetting alone would leave .9.
    values = np.array([1.0, similarity, 0.8, 0.8, 0.1])
    found = place(values, np.eye(5) * 1e-5, 300, allowance=True)
    assert found.status == status
    assert (found.position == 1) == (status == "as retrained")


def test_similarity_is_blind_where_the_original_is_as_near_as_another_training():
    assert place(np.array([1.0, 0.99, 0.8, 0.2]), np.eye(4) * 1e-5, 300, allowance=True).status == "blind"


def test_the_variance_of_areas_is_that_of_redrawn_images():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 200), rng.normal(0, 1, 200)
    inside, outside = placements(a, b)
    assert inside.mean() == pytest.approx(membership_auc(a, b))
    assert outside.mean() == pytest.approx(membership_auc(a, b))
    drawn = [membership_auc(rng.choice(a, 200), rng.choice(b, 200)) for _ in range(800)]
    spread = area_covariance(inside[:, None], outside[:, None])[0, 0] ** 0.5
    assert spread == pytest.approx(np.std(drawn), rel=0.1)


def test_the_noise_of_training_is_found_from_several_models_and_from_retained_images():
    rng = np.random.default_rng(0)
    from_models, from_images = [], []
    for _ in range(60):
        hits, _ = hits_of(rng, [0.5] * 3, noise=0.05, of_class=0.0, images=2000)
        covariances = np.stack([mean_covariance(hits[..., k]) for k in range(LAYERS)])
        from_models.append(noise_between(hits.mean(axis=0).T, covariances).variance)
        kept, labels = hits_of(rng, [0.5] * 2, noise=0.05, of_class=0.0, images=2000, classes=20)
        from_images.append(noise_on_retained(*kept[..., 0].T, labels, 5).variance)
    assert np.mean(from_models) == pytest.approx(0.05**2, rel=0.3)
    assert np.mean(from_images) == pytest.approx(0.05**2, rel=0.4)


def test_a_few_classes_show_more_noise_of_training_than_many():
    rng = np.random.default_rng(0)
    kept, labels = hits_of(rng, [0.5] * 2, noise=0.0, of_class=0.1, images=4000, classes=40)
    few, many = (noise_on_retained(*kept[..., 0].T, labels, classes).variance for classes in (1, 20))
    assert few > 4 * many
    assert few == pytest.approx(0.1**2, rel=0.6)


def test_noise_that_a_measurement_does_not_show_is_that_of_the_others_in_proportion():
    found = scaled([Noise(0.01, 4), Noise(0.03, 6)], [1.0, 1.0], 0.5)
    assert found == Noise(pytest.approx(0.005), 4)
    assert scaled([], [], 0.5) is None
    assert NO_NOISE.variance == 0


@pytest.mark.parametrize(
    ("values", "covariance", "message"),
    [
        ([0.5, 0.5], np.eye(2), "do not fit"),
        ([0.5, 0.5, 0.5], np.eye(2), "do not fit"),
        ([0.5, np.nan, 0.5], np.eye(3), "finite"),
    ],
)
def test_values_that_place_nothing_are_refused(values, covariance, message):
    with pytest.raises(ValueError, match=message):
        place(np.array(values), covariance, 10)


def test_the_statuses_are_those_of_the_report():
    assert get_args(Standing) == STATUSES


def test_golden_effect_is_the_difference_in_standard_errors():
    found = place(np.array([0.9, 0.7, 0.5]), np.diag([4e-4, 1e-4, 4e-4]), 1000, noise=Noise(4e-4, 10))
    # variances: 4e-4 of the original, 4e-4 of the retrained model, and of one more training 4e-4 * (1 + 1)
    assert found.effect == pytest.approx(0.4 / 0.04)
    closer = place(
        np.array([0.9, 0.7, 0.5, 0.1]), np.diag([4e-4, 1e-4, 4e-4, 0]), 1000, noise=Noise(4e-4, 10), allowance=True
    )
    assert closer.effect == pytest.approx(0.3 / 0.04)
    assert place(np.array([0.9, 0.7, 0.9]), np.diag([4e-4, 1e-4, 4e-4]), 1000).effect == pytest.approx(0)
