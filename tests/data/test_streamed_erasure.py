"""What a request makes of a dataset that is streamed."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from helpers.models import make_images

from ec_hf import ForgetRequest
from ec_hf.data import streamed_erasure
from ec_hf.data.erasure import ErasureData
from ec_hf.data.fingerprint import image_hashes
from ec_hf.data.sources import load_images, stream_images
from ec_hf.data.streamed_erasure import StreamedErasure, index_of

HOW = {"share": 0.1, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 training rows in three Parquet files, of which one is a copy of a bee, and 50 test rows."""
    folder = tmp_path_factory.mktemp("data")
    train = make_images(299)
    bee = train.filter(lambda row: row["label"] == 1).select([0])
    copy = bee.map(lambda row: {"label": 3}, features=train.features)
    train = concatenate_datasets([train, copy])
    train = train.add_column("person", (np.arange(300) // 10).tolist())
    for shard in range(3):
        train.select(range(100 * shard, 100 * shard + 100)).to_parquet(str(folder / f"train-{shard}.parquet"))
    make_images(50, seed=1).add_column("person", [100] * 50).to_parquet(str(folder / "test-0.parquet"))
    return folder


def both(folder, out, request):
    """The data streamed, and loaded as ever."""
    streams = stream_images(folder)
    rows = index_of(streams)
    index = ErasureData.of(rows, request, **HOW)
    return StreamedErasure.of_streams(streams, rows, index, out), ErasureData.of(load_images(folder), request, **HOW)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    assert image_hashes(ours) == image_hashes(theirs) and list(ours["label"]) == list(theirs["label"])


@pytest.mark.parametrize("request_", [ForgetRequest(classes=["bee"]), ForgetRequest(ids={"person": [3, 7]})])
def test_streams_are_divided_as_a_dataset_in_memory(folder, tmp_path, monkeypatch, request_):
    monkeypatch.setattr(streamed_erasure, "AUDITED", 30)
    streamed, loaded = both(folder, tmp_path / "kept", request_)
    for name in ("forget_train", "forget_test", "retain_test"):
        same(streamed.splits[name], loaded.splits[name])
    assert len(streamed.splits["retain_train"]) == 30
    assert image_hashes(streamed.splits["retain_train"]) < image_hashes(loaded.splits["retain_train"])
    same(streamed.held_out.train["forget"], loaded.held_out.train["forget"])
    assert streamed.held_out.evaluated.keys() == loaded.held_out.evaluated.keys()
    for name, part in loaded.held_out.evaluated.items():
        same(streamed.held_out.evaluated[name], part)
    assert streamed.retain_rows == len(loaded.held_out.train["retain"])
    assert streamed.manifest("x")["parts"] == loaded.manifest("x")["parts"]
    assert streamed.manifest("x")["forget_rows_sha256"] == loaded.manifest("x")["forget_rows_sha256"]
    assert "given 30, drawn at random" in streamed.notes[-1]
    assert streamed.train[0]["image"].size == loaded.train[0]["image"].size


def test_the_stream_holds_the_retain_set_without_copies_of_what_is_forgotten(folder, tmp_path):
    streamed, loaded = both(folder, tmp_path / "kept", ForgetRequest(classes=["bee"]))
    rows = Dataset.from_list(list(streamed.held_out.train["retain"]), features=loaded.train.features)
    kept = loaded.held_out.train["retain"]
    copies = image_hashes(kept) & image_hashes(loaded.splits["forget_train"])
    assert len(copies) == 1, "the image that stands under another class too"
    assert image_hashes(rows) == image_hashes(kept) - copies
    assert not image_hashes(rows) & image_hashes(streamed.held_out.evaluated["retain"])


def test_what_was_stored_goes_away_at_the_end(folder, tmp_path):
    streamed, _ = both(folder, tmp_path / "kept", ForgetRequest(classes=["bee"]))
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"train.arrow", "test.arrow"}
    streamed.release()
    assert not (tmp_path / "kept").exists() and streamed.train[0]["image"].size == (32, 32)


def test_what_cannot_be_streamed_is_refused(folder, tmp_path):
    make_images(20).to_parquet(str(tmp_path / "train-0.parquet"))
    rows = index_of(stream_images(tmp_path))
    with pytest.raises(ValueError, match="no labelled test split, and of a stream none is held out"):
        streamed_erasure.check_test_split(rows, "label")
    with pytest.raises(ValueError, match="not read into memory anyway"):
        stream_images("mnist5k")
    with pytest.raises(ValueError, match="no column of images among"):
        index_of({"train": make_images(5).remove_columns("image").to_iterable_dataset()})
    with pytest.raises(FileNotFoundError, match="no dataset 'no/such'"):
        stream_images("no/such")
