from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from ec_hf.data.pairing import PairedBatchSampler, PairedDataset, PairedRows


def numbered():
    """Ten rows that know their position."""
    return Dataset.from_dict({"row": list(range(10)), "label": [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]})


# --- paired dataset ----------------------------------------------------------------------------------------------


def noisy(batch):
    """A transform that draws from all three generators."""
    draws = [(torch.rand(()).item(), np.random.rand(), random.random()) for _ in batch["row"]]
    return {"row": batch["row"], "draw": draws}


def global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_pairs_keep_the_order_asked_for_and_mark_forget_rows():
    paired = PairedDataset(numbered().select(range(4)), numbered().select(range(4, 10)))
    assert len(paired) == 10
    examples = paired.__getitems__([9, 0, np.int64(4), 3, 0])
    assert [example["row"] for example in examples] == [9, 0, 4, 3, 0]
    assert [example["is_forget"] for example in examples] == [False, True, False, True, True]
    assert paired[3]["is_forget"] is True
    assert [example["row"] for example in paired] == list(range(10))


def test_halves_without_batched_fetching_work():
    paired = PairedDataset([{"row": 0}], [{"row": 1}, {"row": 2}])
    assert paired.__getitems__([2, 0]) == [
        {"row": 2, "is_forget": False, "paired_row": 2},
        {"row": 0, "is_forget": True, "paired_row": 0},
    ]


def test_random_transforms_depend_on_seed_and_indices_alone():
    data = numbered().with_transform(noisy)
    paired = PairedDataset(data.select(range(4)), data.select(range(4, 10)), seed=3)
    first, second = paired.__getitems__([0, 5, 6]), paired.__getitems__([1, 7])
    torch.rand(3), np.random.rand(), random.random()
    again = PairedDataset(data.select(range(4)), data.select(range(4, 10)), seed=3)
    assert again.__getitems__([1, 7]) == second
    assert again.__getitems__([0, 5, 6]) == first
    assert first[0]["draw"] != first[1]["draw"] != second[0]["draw"]
    assert PairedDataset(paired.forget, paired.retain, seed=4).__getitems__([0, 5, 6]) != first


def test_fetching_leaves_no_trace_in_any_random_state(monkeypatch):
    def refuse(*_):
        raise AssertionError("the GPUs' state was set")

    def broken(batch):
        noisy(batch)
        raise RuntimeError("transform")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = global_states()
    PairedDataset(numbered().with_transform(noisy), numbered().with_transform(noisy)).__getitems__([0, 12])
    with pytest.raises(RuntimeError, match="transform"):
        PairedDataset(numbered().with_transform(broken), numbered())[0]
    assert global_states() == before


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_both_halves_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"index {index} is outside the 10 rows"):
        PairedDataset(numbered().select(range(4)), numbered().select(range(4, 10)))[index]


def test_halves_that_give_no_dicts_are_refused():
    with pytest.raises(TypeError, match="dicts"):
        PairedDataset([(0, 1)], [(0, 1)])[0]


# --- paired sampler ----------------------------------------------------------------------------------------------

SAMPLERS = st.fixed_dictionaries(
    {
        "num_forget_rows": st.integers(1, 40),
        "num_retain_rows": st.integers(1, 60),
        "forget_batch_size": st.integers(1, 8),
        "retain_batch_size": st.integers(1, 8),
        "seed": st.integers(0, 2**32),
        "num_processes": st.integers(1, 4),
    }
)


@given(sizes=SAMPLERS, epoch=st.integers(0, 5))
def test_batches_are_forget_then_retain_and_cover_an_epoch(sizes, epoch):
    sampler = PairedBatchSampler(**sizes)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    forget_rows, forget_size = sizes["num_forget_rows"], sizes["forget_batch_size"]
    retain_rows, retain_size = sizes["num_retain_rows"], sizes["retain_batch_size"]
    processes = sizes["num_processes"]
    assert len(batches) == len(sampler) == max(retain_rows // (processes * retain_size), 1) * processes
    assert {len(batch) for batch in batches} == {sampler.batch_size} == {forget_size + retain_size}
    assert all(type(index) is int for batch in batches for index in batch)

    forget = [batch[:forget_size] for batch in batches]
    retain = [batch[forget_size:] for batch in batches]
    assert all(0 <= index < forget_rows for batch in forget for index in batch)
    assert all(forget_rows <= index < forget_rows + retain_rows for batch in retain for index in batch)

    seen = Counter(index for batch in retain for index in batch)
    if retain_rows >= processes * retain_size:
        assert set(seen.values()) == {1}
        assert retain_rows - len(seen) < processes * retain_size
    else:
        assert len(seen) == retain_rows
        assert max(seen.values()) - min(seen.values()) <= 1

    for batch in forget:
        assert len({*batch}) == min(forget_size, forget_rows)
    if forget_rows >= processes * forget_size:  # every pass takes every row once
        stream = [index for batch in forget for index in batch]
        for start in range(0, len(stream), forget_rows):
            one_pass = stream[start : start + forget_rows]
            assert len({*one_pass}) == len(one_pass)


@given(sizes=SAMPLERS, epoch=st.integers(0, 5))
def test_processes_together_see_the_batch_of_a_single_process(sizes, epoch):
    processes, forget_size = sizes["num_processes"], sizes["forget_batch_size"]
    one = {
        **sizes,
        "forget_batch_size": forget_size * processes,
        "retain_batch_size": sizes["retain_batch_size"] * processes,
        "num_processes": 1,
    }
    many, single = PairedBatchSampler(**sizes), PairedBatchSampler(**one)
    many.set_epoch(epoch)
    single.set_epoch(epoch)
    shards = [list(BatchSamplerShard(many, processes, rank)) for rank in range(processes)]
    assert {len(shard) for shard in shards} == {len(single)}
    for whole, *deals in zip(single, *shards, strict=True):
        forget = [index for deal in deals for index in deal[:forget_size]]
        retain = [index for deal in deals for index in deal[forget_size:]]
        assert forget + retain == whole
        if sizes["num_forget_rows"] >= forget_size * processes:
            assert len({*forget}) == len(forget)


def test_order_depends_on_seed_and_epoch_alone():
    def batches(epoch, **changes):
        sizes = {"forget_batch_size": 4, "retain_batch_size": 5, "seed": 1, **changes}
        sampler = PairedBatchSampler(20, 50, **sizes)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = batches(0)
    torch.manual_seed(1)
    assert batches(0) == first
    for other in (batches(1), batches(0, seed=2)):
        assert [batch[:4] for batch in other] != [batch[:4] for batch in first]
        assert [batch[4:] for batch in other] != [batch[4:] for batch in first]
    sampler = PairedBatchSampler(20, 50, forget_batch_size=4, retain_batch_size=5, seed=1)
    assert list(sampler) == list(sampler) == first


def test_forget_order_is_fresh_at_each_pass():
    sampler = PairedBatchSampler(10, 50, forget_batch_size=5, retain_batch_size=5)
    stream = [index for batch in sampler for index in batch[:5]]
    passes = [tuple(stream[start : start + 10]) for start in range(0, 50, 10)]
    assert all(sorted(one_pass) == list(range(10)) for one_pass in passes)
    assert len({*passes}) == 5


def test_accelerate_deals_the_batches_and_resumes_in_the_middle_of_an_epoch():
    paired = PairedDataset(numbered().select(range(4)), concatenate_datasets([numbered()] * 2).select(range(4, 20)))
    sampler = PairedBatchSampler(4, 16, forget_batch_size=2, retain_batch_size=2, num_processes=2)
    sampler.set_epoch(3)
    whole = [[paired.__getitems__(batch) for batch in islice(sampler, rank, None, 2)] for rank in range(2)]
    for rank in range(2):
        loader = torch.utils.data.DataLoader(paired, batch_sampler=sampler, collate_fn=list)
        dealt = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        assert list(dealt) == whole[rank]
        resumed = skip_first_batches(dealt, 1)
        sampler.set_epoch(3)
        assert list(resumed) == whole[rank][1:]


@pytest.mark.parametrize("position", range(5))
def test_sampler_refuses_sizes_below_one(position):
    sizes = [4, 4, 2, 2, 1]
    sizes[position] = 0
    names = ["num_forget_rows", "num_retain_rows", "forget_batch_size", "retain_batch_size", "num_processes"]
    with pytest.raises(ValueError, match=f"{names[position]} must be at least 1, got 0"):
        PairedBatchSampler(**dict(zip(names, sizes, strict=True)))


# --- forget rows beside the batches of any loader ------------------------------------------------------------------


def rows_of(batch):
    return [(example["row"], example["is_forget"]) for example in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_any_loader_gets_as_many_forget_rows_ahead_of_its_retain_rows(workers):
    paired = PairedRows(numbered().select(range(4)), numbered().select(range(4, 10)))
    loader = torch.utils.data.DataLoader(paired, batch_size=4, collate_fn=rows_of, num_workers=workers)
    first, last = list(loader)
    assert len(paired) == 6
    assert [row for row, is_forget in first if not is_forget] == [4, 5, 6, 7]
    assert sorted(row for row, is_forget in first if is_forget) == [0, 1, 2, 3], "none twice"
    assert [is_forget for _, is_forget in (*first, *last)] == [True] * 4 + [False] * 4 + [True] * 2 + [False] * 2
    assert list(torch.utils.data.DataLoader(paired, batch_size=4, collate_fn=rows_of)) == [first, last]


def test_the_forget_rows_of_a_batch_depend_on_the_seed_and_its_retain_rows():
    def drawn(seed, rows):
        paired = PairedRows(numbered().select(range(8)), numbered().select(range(8, 10)), seed=seed)
        return [example["row"] for example in paired.__getitems__(rows)][: len(rows)]

    assert drawn(0, [0, 1]) == drawn(0, [np.int64(0), 1])
    assert len({tuple(drawn(seed, rows)) for seed in range(3) for rows in ([0, 1], [1, 0])}) > 3


def test_paired_rows_are_read_as_whole_batches_of_rows_that_are_there():
    paired = PairedRows(numbered().select([0]), numbered().select(range(1, 4)))
    assert [row for row, _ in rows_of(paired.__getitems__([2, 0, 1]))] == [0, 0, 0, 3, 1, 2]
    with pytest.raises(TypeError, match="whole batches"):
        paired[0]
    with pytest.raises(IndexError, match="3 is outside the 3 rows"):
        paired.__getitems__([3])
