"""Paired batches of a streamed retain set."""

from __future__ import annotations

import json
from itertools import chain, islice

import pytest
import torch
from datasets import Dataset, Image, load_dataset
from helpers.models import make_images, make_model, make_processor
from torch.utils.data import DataLoader

from ec_hf import Eraser, ForgetRequest, split
from ec_hf.data.streaming import PairedStream
from ec_hf.models.inputs import ImageCollator

PARTS = split(make_images(200), ForgetRequest(classes=["bee"]))
SIZES = {"forget_batch_size": 4, "retain_batch_size": 8}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """160 retain rows in four Parquet files, each with a number that tells it from the others."""
    folder = tmp_path_factory.mktemp("shards")
    retain = PARTS["retain"].add_column("number", list(range(160)))
    for shard in range(4):
        retain.select(range(shard * 40, shard * 40 + 40)).to_parquet(str(folder / f"{shard}.parquet"))
    return sorted(map(str, folder.glob("*.parquet")))


def stream(shards, **kwargs):
    retain = load_dataset("parquet", data_files=shards, split="train", streaming=True)
    return PairedStream(PARTS["forget"], retain, **{**SIZES, "block_size": 24, **kwargs})


def numbers(batches):
    return [[row["number"] for row in batch if not row["is_forget"]] for batch in batches]


def test_a_pass_shows_each_retain_row_once_and_the_next_one_in_another_order(shards):
    found = numbers(islice(stream(shards), 40))
    first, second = (list(chain(*found[k : k + 20])) for k in (0, 20))
    assert sorted(first) == sorted(second) == list(range(160))
    assert first != second and first != list(range(160))


def test_forget_rows_come_first_and_none_twice_before_all_were_there(shards):
    batches = list(islice(stream(shards), 10))
    assert all([row["is_forget"] for row in batch] == [True] * 4 + [False] * 8 for batch in batches)
    seen = [row["image"].tobytes() for batch in batches for row in batch[:4]]
    assert len(set(seen)) == len(PARTS["forget"]) == 40


def test_processes_share_the_rows_without_overlap(shards):
    own = [list(chain(*numbers(islice(stream(shards, process=k, processes=2), 10)))) for k in (0, 1)]
    assert len(own[0]) == len(own[1]) == 80
    assert sorted(own[0] + own[1]) == list(range(160))


@pytest.mark.parametrize("stopped", [1, 4, 7, 21, 33])
def test_a_run_goes_on_where_it_was_from_a_state_of_json_values(shards, stopped):
    whole = list(islice(stream(shards), 45))
    first = stream(shards)
    list(islice(first, stopped))
    resumed = stream(shards)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = list(islice(resumed, 45 - stopped))
    assert numbers(rest) == numbers(whole[stopped:])
    assert [[row["label"] for row in batch] for batch in rest] == [
        [row["label"] for row in batch] for batch in whole[stopped:]
    ]


def test_an_eraser_takes_its_batches(shards):
    eraser = Eraser(make_model("ViT"), forget_classes=[1])
    eraser.heads_fitted = True
    loader = DataLoader(stream(shards), batch_size=None, collate_fn=ImageCollator(make_processor()))
    with eraser.attached():
        eraser.model.train()
        for batch in islice(loader, 2):
            assert batch["num_forget"] == 4 and batch["pixel_values"].shape == (12, 3, 32, 32)
            eraser(batch).total.backward()


def test_what_cannot_work_is_refused(shards):
    with pytest.raises(TypeError, match="give a datasets"):
        PairedStream(PARTS["forget"], PARTS["retain"], **SIZES)
    with pytest.raises(ValueError, match="holds no batch of 8"):
        stream(shards, block_size=4)
    with pytest.raises(ValueError, match="fewer than 100 retain rows"):
        next(iter(stream(shards, retain_batch_size=100, block_size=100, process=0, processes=2)))
    with pytest.raises(ValueError, match="2 workers would each bring the same forget rows"):
        next(iter(DataLoader(stream(shards), batch_size=None, num_workers=2)))


def test_a_damaged_image_is_told_by_its_block_and_only_when_its_turn_comes(tmp_path):
    rows = PARTS["retain"].cast_column("image", Image(decode=False)).to_list()
    rows[20]["image"]["bytes"] = b"no image"
    Dataset.from_list(rows, features=PARTS["retain"].features).to_parquet(str(tmp_path / "0.parquet"))
    batches = iter(stream([str(tmp_path / "0.parquet")], block_size=16))
    assert len([next(batches), next(batches)]) == 2, "the first block is whole"
    with pytest.raises(ValueError, match="It is in block 1, of 16 rows"):
        list(islice(batches, 2))


def test_random_transforms_draw_the_same_after_a_resume(shards):
    def noisy(row):
        return {"pixel_values": torch.rand(3, 4, 4).tolist(), "label": row["label"]}

    def of(state=None):
        retain = load_dataset("parquet", data_files=shards, split="train", streaming=True).map(noisy)
        found = PairedStream(PARTS["forget"], retain, **SIZES, block_size=24)
        if state is not None:
            found.load_state_dict(state)
        return found

    first = of()
    whole = [[row.get("pixel_values") for row in batch] for batch in islice(first, 6)]
    first = of()
    list(islice(first, 4))
    torch.manual_seed(7)
    rest = [[row.get("pixel_values") for row in batch] for batch in islice(of(first.state_dict()), 2)]
    assert rest == whole[4:] and whole[4] != whole[5]
