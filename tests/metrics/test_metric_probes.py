"""Linear probe and nearest neighbours, held against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ec_hf.metrics import knn, knn_hits, linear_probe, nearest, probe_hits


def blobs(rows, width, classes=5, apart=0.6, seed=0):
    """Overlapping classes in features whose spectrum falls, as a network's does; training and test half."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 2 * rows)
    hidden = apart * rng.normal(size=(classes, 16))[labels] + rng.normal(size=(2 * rows, 16))
    scale = 1 / np.arange(1, 17)[:, None]
    features = hidden @ (scale * rng.normal(size=(16, width))) + 0.1 * rng.normal(size=(2 * rows, width)) + 3
    return features[:rows], labels[:rows], features[rows:], labels[rows:]


def sklearn_probe(train_x, train_y, test_x, c):
    scaler = StandardScaler().fit(train_x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaler.transform(train_x), train_y)
    return probe.predict(scaler.transform(test_x))


@pytest.mark.parametrize("c", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(400, 24), (60, 150), (300, 300)])
def test_the_probe_agrees_with_logistic_regression(rows, width, c):
    train_x, train_y, test_x, test_y = blobs(rows, width)
    right = sklearn_probe(train_x, train_y, test_x, c) == test_y
    assert (probe_hits(train_x, train_y, test_x, test_y, c=c, max_iterations=500) == right).mean() > 0.99
    of_forgotten = right[np.isin(test_y, (1, 3))].mean()
    assert linear_probe(train_x, train_y, test_x, test_y, [1, 3], c=c) == pytest.approx(of_forgotten, abs=0.02)


@pytest.mark.parametrize("c", [0.001, 0.01, 0.1])
def test_the_probe_of_two_classes_is_logistic_regression_at_twice_the_c(c):
    train_x, train_y, test_x, test_y = blobs(200, 24, classes=2, apart=0.3)
    hits = probe_hits(train_x, train_y, test_x, test_y, c=c, max_iterations=500)
    assert (hits == (sklearn_probe(train_x, train_y, test_x, 2 * c) == test_y)).all()


@pytest.mark.parametrize("apart", [0.3, 0.8, 2.0])
def test_the_probe_is_within_half_a_point_of_the_converged_one(apart):
    data = blobs(1500, 64, classes=10, apart=apart)
    converged = linear_probe(*data, max_iterations=2000)
    assert linear_probe(*data) == pytest.approx(converged, abs=0.005)


def test_the_probe_reads_any_label_ids_tensors_and_half_precision():
    train_x, train_y, test_x, test_y = blobs(200, 12)
    expected = probe_hits(train_x, train_y, test_x, test_y)
    ids = np.array([7, 100, 3, 42, 9])
    given = (torch.tensor(train_x).half(), torch.tensor(ids[train_y]), torch.tensor(test_x).half(), ids[test_y])
    assert (probe_hits(*given) == expected).mean() > 0.98
    assert len(probe_hits(*given, classes=[7, 42])) == np.isin(test_y, (0, 3)).sum()
    assert linear_probe(10 * train_x - 5, train_y, 10 * test_x - 5, test_y) == pytest.approx(expected.mean(), abs=0.01)


def test_constant_features_and_constant_channels_leave_a_defined_accuracy():
    train_x, train_y, test_x, test_y = blobs(100, 6)
    majority = (test_y == np.bincount(train_y).argmax()).mean()
    assert linear_probe(np.full_like(train_x, 0.1), train_y, np.full_like(test_x, 0.1), test_y) == majority
    # one channel that is constant in training and not in the test changes nothing
    wider = [np.hstack([x, np.full((100, 1), value)]) for x, value in ((train_x, 2.0), (test_x, 1e9))]
    assert linear_probe(wider[0], train_y, wider[1], test_y) == linear_probe(train_x, train_y, test_x, test_y)


def test_a_class_that_was_never_seen_is_a_miss_unless_it_was_asked_for():
    train_x, train_y, test_x, test_y = blobs(100, 6)
    seen = train_y != 4
    for hits, name in ((probe_hits, "train_y"), (knn_hits, "bank_y")):
        assert not hits(train_x[seen], train_y[seen], test_x, test_y)[test_y == 4].any()
        with pytest.raises(ValueError, match=rf"{name} lacks the classes \[4\]"):
            hits(train_x[seen], train_y[seen], test_x, test_y, classes=[4])


@pytest.mark.parametrize(("function", "one", "other"), [(linear_probe, "train", "test"), (knn, "bank", "query")])
def test_what_no_probe_can_be_made_of_is_refused(function, one, other):
    train_x, train_y, test_x, test_y = blobs(30, 4)
    with pytest.raises(ValueError, match=f"{one}_x is 4 wide, {other}_x 3"):
        function(train_x, train_y, test_x[:, :3], test_y)
    with pytest.raises(ValueError, match=rf"{one}_y has shape \(29,\)"):
        function(train_x, train_y[1:], test_x, test_y)
    with pytest.raises(ValueError, match=rf"{other}_y has dtype torch\.float64"):
        function(train_x, train_y, test_x, test_y.astype(float))
    with pytest.raises(ValueError, match=f"{one}_x has no rows"):
        function(train_x[:0], train_y[:0], test_x, test_y)
    with pytest.raises(ValueError, match=f"{other}_y has no row at all"):
        function(train_x, train_y, test_x[:0], test_y[:0])
    with pytest.raises(ValueError, match=r"no row of the classes \[2\]"):
        function(train_x, train_y, test_x[test_y != 2], test_y[test_y != 2], classes=[2])
    with pytest.raises(ValueError, match=f"{other}_x holds NaN"):
        function(train_x, train_y, np.full_like(test_x, np.nan), test_y)


def test_a_probe_of_one_class_or_without_a_penalty_is_refused():
    train_x, train_y, test_x, test_y = blobs(30, 4)
    with pytest.raises(ValueError, match="only class"):
        linear_probe(train_x, np.full_like(train_y, 2), test_x, test_y)
    with pytest.raises(ValueError, match="c=0"):
        linear_probe(train_x, train_y, test_x, test_y, c=0)


@given(rows=st.integers(5, 60), k=st.integers(1, 5), classes=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_the_vote_of_neighbours_agrees_with_scikit_learn_ties_included(rows, k, classes, seed):
    bank_x, bank_y, query_x, query_y = blobs(rows, 4, classes, seed=seed)
    reference = KNeighborsClassifier(k, metric="cosine").fit(bank_x, 3 * bank_y)
    expected = reference.predict(query_x) == 3 * query_y
    assert (knn_hits(bank_x, 3 * bank_y, query_x, 3 * query_y, k) == expected).all()
    np.testing.assert_array_equal(nearest(bank_x, query_x, k), reference.kneighbors(query_x, return_distance=False))


def test_neighbours_of_the_bank_itself_leave_each_row_out():
    bank = blobs(3000, 5)[0]  # more queries than are compared at a time
    found = nearest(bank, bank, 3, exclude_self=True)
    assert (nearest(bank, bank, 1)[:, 0] == np.arange(len(bank))).all()
    assert not (found == np.arange(len(bank))[:, None]).any()
    np.testing.assert_array_equal(found[:200], nearest(bank, bank[:200], 4)[:, 1:])


def test_neighbours_go_by_angle_and_a_row_of_zeros_is_near_to_none():
    bank = torch.tensor([[100.0, 1.0], [0.1, 0.1], [0.0, 0.0], [-1.0, 0.0]])
    assert nearest(bank, [[1.0, 1.0]], 4).tolist() == [[1, 0, 2, 3]]
    assert nearest(bank, np.empty((0, 2)), 2).shape == (0, 2)
    assert knn(bank, [0, 1, 2, 3], [[2.0, 0.0]], [0], k=1) == 1


def test_neighbours_that_are_not_there_are_refused():
    bank = np.eye(4)
    with pytest.raises(ValueError, match="k=5: there are 4 rows"):
        knn(bank, np.arange(4), bank, np.arange(4))
    with pytest.raises(ValueError, match="k=4: there are 3 rows"):
        nearest(bank, bank, 4, exclude_self=True)
    with pytest.raises(ValueError, match="the 2 queries are not the 4 rows"):
        nearest(bank, bank[:2], 1, exclude_self=True)
    with pytest.raises(ValueError, match="bank_x is 4 wide"):
        nearest(bank, bank[:, :2], 1)
