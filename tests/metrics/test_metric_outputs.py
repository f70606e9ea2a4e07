"""Accuracy, confidence, entropy, loss image by image, and membership inference on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC

from ec_hf.metrics import (
    class_matched,
    confidence,
    entropy,
    hits,
    loss,
    masked_hits,
    membership_auc,
    membership_svc,
    modified_entropy,
    true_probability,
)

P = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])
LABELS = np.array([0, 1, 1])
SETS = {"features": ["correctness", "confidence", "entropy", "m_entropy", "prob"]}


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda x: x.tolist()])
def test_values_by_hand(kind):
    logits, labels = kind(np.log(P) + 5), kind(LABELS)
    assert hits(logits, labels).tolist() == [True, False, True]
    assert masked_hits(logits, labels, [2]).tolist() == [True, False, True]  # a tie of 0 and 1: the smaller id
    assert masked_hits(logits, labels, [0, 1]).tolist() == [False, False, False]
    np.testing.assert_allclose(confidence(logits), [0.7, 0.5, 0.8])
    np.testing.assert_allclose(true_probability(logits, labels), [0.7, 0.25, 0.8])
    np.testing.assert_allclose(loss(logits, labels), -np.log([0.7, 0.25, 0.8]))
    np.testing.assert_allclose(entropy(logits), -(P * np.log(P)).sum(1))
    by_hand = -0.3 * math.log(0.7) - 0.2 * math.log(0.8) - 0.1 * math.log(0.9)
    assert modified_entropy(logits, labels)[0] == pytest.approx(by_hand)


def test_masking_shows_what_hiding_a_logit_achieves_without_erasing():
    logits, labels = np.array([[3.0, 2, 1], [3, 2, 1], [0, 5, 1]]), np.array([0, 1, 1])
    assert hits(logits, labels).tolist() == [True, False, True]
    assert masked_hits(logits, labels, {0}).tolist() == [False, True, True]
    assert logits[0, 0] == 3  # the logits given stay as they are
    assert (masked_hits(logits, labels, []) == hits(logits, labels)).all()
    for forgotten in ([0, 1, 2], [3]):
        with pytest.raises(ValueError, match="label ids from 0 to 2, and at least one left"):
            masked_hits(logits, labels, forgotten)


@given(
    logits=st.lists(st.tuples(*[st.floats(-800, 800)] * 4), min_size=1, max_size=8),
    label=st.integers(0, 3),
)
@settings(max_examples=100)
def test_values_stay_in_range_however_sure_the_model_is(logits, label):
    labels = [label] * len(logits)
    for values, high in (
        (confidence(logits), 1 + 1e-12),
        (entropy(logits), math.log(4) + 1e-12),
        (loss(logits, labels), 1600 + math.log(4)),
        (true_probability(logits, labels), 1),
        (modified_entropy(logits, labels), np.inf),
    ):
        assert np.isfinite(values).all() and (values >= 0).all() and (values <= high).all()


def test_chance_is_that_of_equal_logits():
    logits, labels = np.zeros((4, 8)), np.arange(4)
    np.testing.assert_allclose(confidence(logits), 1 / 8)
    np.testing.assert_allclose(entropy(logits), math.log(8))
    np.testing.assert_allclose(loss(logits, labels), math.log(8))


def test_outputs_that_do_not_fit_are_refused():
    logits = np.log(P)
    with pytest.raises(ValueError, match="the logits have 3 classes"):
        loss(logits, [0, 1, 3])
    with pytest.raises(ValueError, match="the logits have 3 classes"):
        hits(logits, [0, 1, -1])
    with pytest.raises(ValueError, match="expected one label id for each of 3"):
        hits(logits, [0, 1])
    with pytest.raises(ValueError, match="expected integer label ids"):
        hits(logits, [True, False, True])
    with pytest.raises(ValueError, match="at least one image"):
        confidence(np.empty((0, 3)))
    with pytest.raises(ValueError, match="holds NaN"):
        entropy([[1.0, math.nan]])
    with pytest.raises(ValueError, match="at least 2 classes"):
        modified_entropy([[1.0]], [0])


@given(
    members=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    others=st.lists(st.integers(-3, 3), min_size=1, max_size=20),
)
@settings(max_examples=60)
def test_the_area_agrees_with_scikit_learn_and_turns_with_the_sign(members, others):
    truth = [1] * len(members) + [0] * len(others)
    area = membership_auc(members, others)
    assert area == pytest.approx(roc_auc_score(truth, members + others))
    assert membership_auc(others, members) == pytest.approx(1 - area)
    assert membership_auc(members, others, higher_is_member=False) == pytest.approx(1 - area)


def test_a_low_loss_on_training_images_gives_them_away():
    assert membership_auc([0.1, 0.2], [1.0, 2.0], higher_is_member=False) == 1
    assert membership_auc([0.9, 0.9], [0.9]) == 0.5
    with pytest.raises(ValueError, match="nonmember_scores has shape"):
        membership_auc([1.0], [])
    with pytest.raises(ValueError, match="member_scores holds NaN"):
        membership_auc([math.nan], [1.0])


@given(
    members=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    others=st.lists(st.integers(0, 4), min_size=1, max_size=30),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_matched_sides_have_as_many_of_each_class_and_as_many_as_can_be(members, others, seed):
    counts = np.array([np.bincount(side, minlength=5) for side in (members, others)])
    if not counts.min(0).any():
        with pytest.raises(ValueError, match="share no class"):
            class_matched(members, others, seed)
        return
    rows = class_matched(members, others, seed)
    for side, picked in zip((members, others), rows, strict=True):
        assert len(set(picked)) == len(picked) and (np.sort(picked) == picked).all()
        np.testing.assert_array_equal(np.bincount(np.array(side)[picked], minlength=5), counts.min(0))
    for again, picked in zip(class_matched(members, others, seed), rows, strict=True):
        np.testing.assert_array_equal(again, picked)


def test_without_matching_the_classes_alone_look_like_membership():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 2, 400), rng.integers(0, 8, 400)
    scores = [1 / (1 + labels) + 0.01 * rng.normal(size=400) for labels in (members, others)]  # of the class only
    assert membership_auc(*scores) > 0.8
    rows = class_matched(members, others)
    assert membership_auc(scores[0][rows[0]], scores[1][rows[1]]) == pytest.approx(0.5, abs=0.1)


def softmax(logits):
    return np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def outputs(rows, sure, seed):
    """Probabilities and labels of a model that is right to a degree."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, rows)
    return softmax(rng.normal(size=(rows, 4)) + sure * np.eye(4)[labels]), labels


@pytest.mark.parametrize("features", SETS["features"])
def test_the_svc_attack_agrees_with_scikit_learn_under_both_signs(features):
    sides = [outputs(rows, sure, seed) for seed, (rows, sure) in enumerate([(150, 4), (120, 1), (90, 1)])]
    found = membership_svc(*sides, features=features, limit=10_000)
    assert found["efficacy"] + found["member_share"] == pytest.approx(1)

    def seen(p, labels):
        of_label = p[np.arange(len(p)), labels]
        return {
            "correctness": p.argmax(1) == labels,
            "confidence": of_label,
            "entropy": -(p * np.log(p)).sum(1),
            "m_entropy": -(p * np.log(1 - p)).sum(1)
            + of_label * np.log(1 - of_label)
            - (1 - of_label) * np.log(of_label),
            "prob": p,
        }[features].reshape(len(p), -1)

    rng = np.random.default_rng(0)
    members, others = (seen(*side)[rng.permutation(len(side[0]))[:120]] for side in sides[:2])
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(np.vstack([members, others]), [1] * 120 + [0] * 120)
    assert found["member_share"] == pytest.approx(attack.predict(seen(*sides[2])).mean(), abs=1e-9)


def test_images_like_the_members_count_as_members_and_the_shadow_sides_are_cut_to_equal_size():
    members, others = outputs(3000, 4, 0), outputs(500, 1, 1)
    assert membership_svc(members, others, outputs(200, 4, 2))["member_share"] > 0.7
    assert membership_svc(members, others, outputs(200, 1, 3))["efficacy"] > 0.6
    small = membership_svc(members, others, outputs(200, 1, 3), limit=50)
    assert small != membership_svc(members, others, outputs(200, 1, 3), limit=50, seed=1)


def test_probabilities_of_zero_and_unfit_input_to_the_svc_attack():
    sure = np.eye(4)[[0, 1, 2, 3]], np.array([0, 1, 2, 0])
    for features in SETS["features"]:
        share = membership_svc(outputs(20, 2, 0), outputs(20, 1, 1), sure, features)["member_share"]
        assert 0 <= share <= 1
    with pytest.raises(ValueError, match="expected one of correctness"):
        membership_svc(sure, sure, sure, "loss")
    with pytest.raises(ValueError, match="the rows of target are no probabilities"):
        membership_svc(sure, sure, (np.eye(4) * 3, sure[1]))
    with pytest.raises(ValueError, match=r"nonmembers has shape \(0, 4\)"):
        membership_svc(sure, (np.empty((0, 4)), np.empty(0, int)), sure)
    with pytest.raises(ValueError, match="labels of members"):
        membership_svc((sure[0], sure[1][:2]), sure, sure)
