from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ec_hf.data.sampling import drawn_of_each_class, held_out_rows, stratified_rows

LABELS = st.lists(st.integers(-3, 6), max_size=60).map(lambda values: np.array(values, dtype=int))
SEEDS = st.integers(0, 9)


@given(labels=LABELS, quota=st.integers(0, 8), seed=SEEDS)
def test_each_class_gives_its_quota_or_all_it_has(labels, quota, seed):
    rows = stratified_rows(labels, quota, seed)
    assert (np.diff(rows) > 0).all()
    for label in np.unique(labels):
        assert (labels[rows] == label).sum() == min(quota, (labels == label).sum())


@given(labels=LABELS, quotas=st.dictionaries(st.integers(-3, 6), st.integers(0, 8)), seed=SEEDS)
def test_a_class_without_a_quota_of_its_own_gives_none(labels, quotas, seed):
    rows = stratified_rows(labels, quotas, seed)
    for label in np.unique(labels):
        assert (labels[rows] == label).sum() == min(quotas.get(int(label), 0), (labels == label).sum())


@given(labels=LABELS, share=st.floats(0.01, 0.99), seed=SEEDS)
def test_at_least_one_row_of_a_class_of_two_is_held_out_and_never_all(labels, share, seed):
    held_out = held_out_rows(labels, share, seed)
    for label in np.unique(labels):
        count, drawn = (labels == label).sum(), held_out[labels == label].sum()
        assert drawn == 0 if count == 1 else 1 <= drawn < count
        assert abs(drawn - share * count) <= 1


@given(labels=LABELS, count=st.integers(0, 8), seed=SEEDS)
def test_a_larger_draw_holds_the_smaller_one(labels, count, seed):
    fewer, more = (drawn_of_each_class(labels, count + extra, seed) for extra in (0, 1))
    assert not (fewer & ~more).any()


def test_every_row_of_a_class_is_drawn_as_often_as_another():
    labels = np.repeat([4, 9], [5, 20])
    times = sum(drawn_of_each_class(labels, [2, 4], seed).astype(int) for seed in range(2000))
    np.testing.assert_allclose(times / 2000, np.repeat([0.4, 0.2], [5, 20]), atol=0.05)


def test_the_rows_that_are_held_out_never_change():
    """Originals that were trained and figures that were measured rest on these very rows."""
    digits = hashlib.sha256(held_out_rows(np.arange(5000) // 500, 0.2, 0).tobytes()).hexdigest()
    uneven = hashlib.sha256(held_out_rows(np.arange(1000) ** 2 % 37, 0.3, 5).tobytes()).hexdigest()
    assert (digits[:16], uneven[:16]) == ("ba4a6a88ea86eb77", "60c984c18c848175")
