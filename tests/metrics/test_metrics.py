from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ec_hf.metrics import BatchedCKA, CKAStream, LinearCKA, cka_floor, half_sample_cka, linear_cka, split_half_cka

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
        pairs = (k * m).sum() + k.sum() * m.sum() / (n - 1) / (n - 2)
        return pairs - 2 / (n - 2) * k.sum(0) @ m.sum(0)

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
@settings(max_examples=80)
def test_any_shapes_and_any_batch_cuts_equal_the_definition(rows, widths, cuts, debiased, seed):
    x, y = related(rows, *widths, seed)
    expected = pytest.approx(gram_cka(x, y, debiased), abs=1e-9)
    assert linear_cka(x, y, debiased) == expected
    assert streamed(x, y, [min(cut, rows) for cut in cuts]).compute(debiased) == expected


@given(shards=st.lists(st.integers(0, 12), min_size=2, max_size=4), debiased=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=40)
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


def three_models(rows, seed=0):
    x, y = related(rows, 6, 9, seed)
    return {"original": x, "ours": y, "retrained": x[:, :4] + y[:, :4]}


PAIRS = [("ours", "original"), ("retrained", "original"), ("ours", "retrained")]


@given(cuts=st.lists(st.integers(0, 40), max_size=4), debiased=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_one_stream_over_several_models_equals_the_definition_for_each_pair(cuts, debiased, seed):
    models = three_models(40, seed)
    first, second = CKAStream(PAIRS), CKAStream(PAIRS)
    parts = np.split(np.arange(40), sorted(cuts))
    for part in parts:
        (first if len(part) > 15 else second).update({name: x[part] + 3 for name, x in models.items()})
    first.merge(second)
    assert first.rows == 40
    for pair in PAIRS:
        expected = pytest.approx(gram_cka(*(models[name] for name in pair), debiased), abs=1e-9)
        assert first.compute(*pair, debiased) == expected
        assert first.compute(*pair[::-1], debiased) == expected


def test_a_stream_keeps_one_matrix_a_model_and_one_a_pair_however_many_images_come():
    stream, models = CKAStream(PAIRS), three_models(50)
    sizes = []
    for _ in range(3):
        stream.update(models)
        sizes.append(sum(gram.numel() for gram in stream._gram.values()))
    widths = {name: x.shape[1] + 2 for name, x in models.items()}
    assert set(sizes) == {sum(w * w for w in widths.values()) + sum(widths[x] * widths[y] for x, y in PAIRS)}


def test_what_does_not_fit_a_stream_is_refused_and_leaves_its_sums_alone():
    stream, models = CKAStream(PAIRS), three_models(20)
    stream.update(models)
    value = stream.compute("ours", "original")
    with pytest.raises(ValueError, match=r"named \['ours'\]: expected \['original', 'ours', 'retrained'\]"):
        stream.update({"ours": models["ours"]})
    with pytest.raises(ValueError, match="ours has 20 rows and original has 9"):
        stream.update({**models, "original": models["original"][:9]})
    with pytest.raises(ValueError, match="retrained holds NaN"):
        stream.update({**models, "retrained": np.full((20, 4), np.nan)})
    with pytest.raises(ValueError, match=r"The pair \('original', 'original'\) is not kept"):
        stream.compute("original", "original")
    with pytest.raises(ValueError, match="Cannot merge the pairs"):
        stream.merge(CKAStream(PAIRS[:1]))
    with pytest.raises(ValueError, match="pairs is empty"):
        CKAStream([])
    assert (stream.rows, stream.compute("ours", "original")) == (20, value)


def test_many_wide_features_with_a_large_mean_stream_to_the_exact_value():
    rng = np.random.default_rng(0)
    rows, width = 1500, 96
    shared, mixing = rng.normal(size=(rows, 8)), rng.normal(size=(2, 8, width))
    x, y = (10 + shared @ mixing[i] + 2 * rng.normal(size=(rows, width)) for i in (0, 1))
    x, y = x.astype(np.float32), y.astype(np.float32)
    metric = streamed(x, y, range(0, rows, 128))
    assert metric.compute() == pytest.approx(gram_cka(x.astype(float), y.astype(float), True), abs=1e-9)


def uuef_cka(x, y, size):
    parts = [slice(start, start + size) for start in range(0, len(x), size)]
    return np.mean([gram_cka(x[part], y[part], False) for part in parts])


@given(rows=st.integers(4, 40), size=st.integers(2, 45), seed=st.integers(0, 99), cut=st.integers(0, 40))
@settings(max_examples=40)
def test_the_way_of_uuef_is_the_mean_of_biased_values_of_batches_in_order(rows, size, seed, cut):
    x, y = related(rows, 5, 7, seed)
    if rows % size == 1:
        with pytest.raises(ValueError, match="at least 2 rows, got 1"):
            linear_cka(x, y, mode="uuef", batch_size=size)
        return
    expected = pytest.approx(uuef_cka(x, y, size), abs=1e-9)
    assert linear_cka(x, y, mode="uuef", batch_size=size) == expected
    stream = BatchedCKA(size)
    for part in np.split(np.arange(rows), [min(cut, rows)]):
        stream.update(x[part], y[part])
    assert stream.compute() == expected


def test_the_way_of_uuef_refuses_what_has_no_value():
    with pytest.raises(ValueError, match="got 0"):
        BatchedCKA().compute()
    with pytest.raises(ValueError, match="batch_size=1"):
        BatchedCKA(1)
    with pytest.raises(ValueError, match="do not tell the 4 rows apart"):
        linear_cka(np.ones((8, 2)), B, mode="uuef", batch_size=4)
    with pytest.raises(ValueError, match='expected "exact" or "uuef"'):
        linear_cka(A, B, mode="batched")


def test_the_floor_shows_the_bias_of_each_mode():
    x, y = np.random.default_rng(0).normal(size=(2, 512, 256))
    assert abs(cka_floor(x, y)) < 0.05
    assert cka_floor(x, y, mode="uuef", batch_size=128) == pytest.approx(1 / (1 + 128 / 256), abs=0.01)
    assert cka_floor(x, y, debiased=False) < cka_floor(x, y, mode="uuef", batch_size=128)
    assert cka_floor(x) == cka_floor(x, x) != cka_floor(x, seed=1)


def test_halves_of_redundant_channels_agree_and_those_of_unrelated_channels_do_not():
    rng = np.random.default_rng(0)
    redundant = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 64)) + 0.1 * rng.normal(size=(300, 64))
    assert split_half_cka(redundant) > 0.95
    assert abs(split_half_cka(rng.normal(size=(300, 64)))) < 0.05
    assert split_half_cka(redundant, seed=1) != split_half_cka(redundant)
    with pytest.raises(ValueError, match="1 channel"):
        split_half_cka(redundant[:, :1])


def test_half_sample_values_are_those_of_the_definition():
    x, y = related(40, 5, 6)
    low, high = half_sample_cka(x, y, resamples=4, level=0.999999)
    order = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).argsort(0).numpy()
    values = [gram_cka(x[mask], y[mask], True) for half in (order < 20).T for mask in (half, ~half)]
    value, spread = gram_cka(x, y, True), np.array(values) - np.mean(values)
    assert low == pytest.approx(value + spread.min(), abs=1e-4)
    assert high == pytest.approx(value + spread.max(), abs=1e-4)


def test_half_sample_intervals_hold_the_true_value_about_as_often_as_they_say():
    mixing = np.random.default_rng(1).normal(size=(2, 3, 8))

    def draw(rows, seed):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(rows, 3)) * (1, 1, 1.5)
        return [shared @ mixing[i] + rng.normal(size=(rows, 8)) for i in (0, 1)]

    truth = linear_cka(*draw(100_000, 0))
    held = [low <= truth <= high for low, high in (half_sample_cka(*draw(120, seed)) for seed in range(1, 201))]
    assert 0.88 <= np.mean(held) <= 0.99


def test_half_sample_intervals_lie_about_the_value_of_all_images_and_narrow_with_their_number():
    x, y = related(200, 6, 6)
    low, high = half_sample_cka(x, y)
    assert low < linear_cka(x, y) < high <= 1
    wide, narrow = half_sample_cka(x, y, value=0.5), half_sample_cka(x, y, value=0.5, images=800)
    assert narrow[1] - narrow[0] == pytest.approx((wide[1] - wide[0]) / 2)
    assert half_sample_cka(x, x) == pytest.approx((1, 1), abs=1e-6)
    assert half_sample_cka(1e3 + 1e-3 * x, 1e6 * y) == pytest.approx((low, high), abs=1e-4)
    assert half_sample_cka(x, y, seed=1) != (low, high)


def test_half_sample_intervals_of_too_little_are_refused():
    x, y = related(15, 4, 4)
    with pytest.raises(ValueError, match="fewer than 16 images"):
        half_sample_cka(x, y)
    x, y = related(30, 4, 4)
    for constant in (np.zeros((30, 2)), np.full((30, 2), 0.1), np.full((30, 3), 1e6 / 3, np.float32)):
        with pytest.raises(ValueError, match="undefined in some halves"):
            half_sample_cka(constant, y)
    with pytest.raises(ValueError, match="undefined in some halves"):
        half_sample_cka(np.eye(30)[:, :2], y)
    with pytest.raises(ValueError, match="x has 30 rows and y has 20"):
        half_sample_cka(x, y[:20])
