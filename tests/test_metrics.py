from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ec_hf.metrics import LinearCKA, linear_cka

torch.set_num_threads(1)

# reference values computed once by an independent NumPy program
A = np.array([[np.sin(6 * i + j + 1) for j in range(6)] for i in range(8)])
B = np.array([[np.cos(1.7 * (5 * i + j)) for j in range(5)] for i in range(8)])
GOLDEN = {False: 0.0591063304, True: -0.2173943677}


def gram_cka(x, y, debiased):
    """CKA written down from its definition, on n x n Gram matrices."""
    n = len(x)

    def hsic(k, m):
        if not debiased:
            centring = np.eye(n) - 1 / n
            return np.trace(k @ centring @ m @ centring)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        pairs = np.trace(k @ m) + k.sum() * m.sum() / (n - 1) / (n - 2)
        return pairs - 2 / (n - 2) * (k @ m).sum()

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def related(rows, p, q, seed=0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, 3))
    return [shared @ rng.normal(size=(3, width)) + rng.normal(size=(rows, width)) for width in (p, q)]


def streamed(x, y, cuts=()):
    metric = LinearCKA()
    for rows in np.split(np.arange(len(x)), sorted(cuts)):
        metric.update(x[rows], y[rows])
    return metric


@pytest.mark.parametrize("debiased", [False, True])
def test_golden_values(debiased):
    assert linear_cka(A, B, debiased) == pytest.approx(GOLDEN[debiased], abs=1e-10)
    assert linear_cka(A, A, debiased) == pytest.approx(1, abs=1e-12)


@given(
    rows=st.integers(5, 40),
    widths=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    debiased=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_any_shapes_and_any_batch_cuts_equal_the_definition(rows, widths, cuts, debiased, seed):
    x, y = related(rows, *widths, seed)
    expected = pytest.approx(gram_cka(x, y, debiased), abs=1e-9)
    assert linear_cka(x, y, debiased) == expected
    assert streamed(x, y, [min(cut, rows) for cut in cuts]).compute(debiased) == expected


@given(shards=st.lists(st.integers(0, 12), min_size=2, max_size=4), debiased=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_merged_shards_equal_one_pass_however_far_apart_they_lie(shards, debiased, seed):
    x, y = related(sum(shards) + 5, 4, 6, seed)
    bounds = np.cumsum(shards)
    far = np.repeat(np.arange(len(shards) + 1), np.diff([0, *bounds, len(x)]))[:, None]  # each shard has its own mean
    x, y = x + 3 * far, y - far
    total = LinearCKA()
    for rows in np.split(np.arange(len(x)), bounds):
        total.merge(streamed(x[rows], y[rows], [len(rows) // 2]))
    assert total.rows == len(x)
    assert total.compute(debiased) == pytest.approx(gram_cka(x, y, debiased), abs=1e-9)


def test_merging_leaves_the_other_as_it_is_and_both_go_on():
    x, y = related(40, 4, 5)
    first, second = streamed(x[:10], y[:10]), streamed(x[10:30] + 5, y[10:30])
    before = second.compute()
    copy = LinearCKA()
    copy.merge(second)
    copy.update(x[30:], y[30:])
    first.merge(pickle.loads(pickle.dumps(second)))  # as it comes from another process
    first.update(x[30:], y[30:])
    x[10:30] += 5
    assert first.compute() == pytest.approx(gram_cka(x, y, True), abs=1e-12)
    assert copy.compute() == pytest.approx(gram_cka(x[10:], y[10:], True), abs=1e-12)
    assert (second.rows, second.compute()) == (20, before)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_mean_of_a_thousand_changes_nothing(debiased):
    x, y = related(200, 8, 8)
    expected = linear_cka(x, y, debiased)
    assert linear_cka(x + 1e3, y - 1e3, debiased) == pytest.approx(expected, abs=1e-11)
    # the first batch is far from the mean of all: its mean is only a first guess of the shift
    order = np.argsort(x[:, 0])
    assert streamed(1e3 + x[order], y[order], range(4, 200, 4)).compute(debiased) == pytest.approx(expected, abs=1e-11)


def test_turning_and_scaling_the_features_changes_nothing_but_mixing_the_rows_does():
    x, y = related(100, 6, 6)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6))).Q
    assert linear_cka(x, 7 * x @ turn) == pytest.approx(1, abs=1e-12)
    assert linear_cka(-0.1 * x @ turn, y) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert linear_cka(x, x[::-1].copy()) < 0.3


def test_unrelated_wide_features_score_zero_only_when_debiased():
    x, y = np.random.default_rng(0).normal(size=(2, 128, 2048))
    assert linear_cka(x, y, debiased=False) == pytest.approx(1 / (1 + 128 / 2048), abs=0.01)
    assert abs(linear_cka(x, y)) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_features_are_summed_in_float64(dtype):
    x, y = (torch.from_numpy(100 * features).to(dtype).requires_grad_() for features in related(500, 16, 8))
    metric = streamed(x, y, range(0, 500, 50))
    assert metric.compute() == pytest.approx(gram_cka(*(f.detach().double().numpy() for f in (x, y)), True), abs=1e-12)


def test_compute_in_the_middle_does_not_disturb_what_follows():
    x, y = related(30, 4, 4)
    metric = streamed(x[:20], y[:20])
    assert metric.compute() == pytest.approx(linear_cka(x[:20], y[:20]), abs=1e-12)
    metric.update(x[20:], y[20:])
    assert metric.compute() == pytest.approx(linear_cka(x, y), abs=1e-12)


def test_too_few_rows_are_refused():
    x, y = related(3, 4, 4)
    with pytest.raises(ValueError, match="at least 4 rows, got 3"):
        linear_cka(x, y)
    assert 0 < linear_cka(x, y, debiased=False) <= 1
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        linear_cka(x[:1], y[:1], debiased=False)
    with pytest.raises(ValueError, match="at least 4 rows, got 0"):
        LinearCKA().compute()


@pytest.mark.parametrize("constant", [np.zeros((8, 3)), np.full((8, 3), 0.1), np.full((8, 3), 1e6 / 3, np.float32)])
@pytest.mark.parametrize("debiased", [False, True])
def test_constant_features_are_refused_by_name(constant, debiased):
    with pytest.raises(ValueError, match="features x do not tell the 8 rows apart"):
        linear_cka(constant, B, debiased)
    with pytest.raises(ValueError, match="features y do not tell the 8 rows apart"):
        streamed(B, constant, [3]).compute(debiased)


def test_features_that_single_out_one_row_are_refused_when_debiased():
    with pytest.raises(ValueError, match="all but one equal"):
        linear_cka(np.eye(8)[:, :1], B)
    assert linear_cka(np.eye(8)[:, :1], B, debiased=False) > 0


def test_features_that_hardly_vary_about_a_large_mean_still_count():
    x, y = related(50, 4, 4)
    assert linear_cka(1 + 1e-6 * x, y) == pytest.approx(linear_cka(x, y), abs=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_leave_the_sums_alone(value):
    metric = streamed(A, B)
    with pytest.raises(ValueError, match="y holds NaN or infinite values"):
        metric.update(A, np.where(B > 0.9, value, B))
    assert metric.compute() == pytest.approx(GOLDEN[True], abs=1e-10)


def test_shapes_that_do_not_fit_are_refused():
    metric = streamed(A, B)
    with pytest.raises(ValueError, match=r"x has shape \(8, 2, 3\): expected \(rows, width\)"):
        metric.update(A.reshape(8, 2, 3), B)
    with pytest.raises(ValueError, match="x has 4 rows and y has 8"):
        metric.update(A[:4], B)
    with pytest.raises(ValueError, match="use one stream a layer"):
        metric.update(A, A)
    with pytest.raises(ValueError, match="Cannot merge features"):
        metric.merge(streamed(B, A))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sums_stay_on_the_gpu_and_merge_with_those_on_the_cpu():
    x, y = (torch.from_numpy(features) for features in related(40, 4, 5))
    metric = LinearCKA()
    metric.update(x[:20].cuda(), y[:20])
    metric.merge(streamed(x[20:], y[20:]))
    assert metric.compute() == pytest.approx(linear_cka(x, y), abs=1e-12)
