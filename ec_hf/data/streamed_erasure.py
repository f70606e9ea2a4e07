"""`StreamedErasure`: what a request makes of a dataset that is streamed, of which few images are ever stored."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, IterableDataset, Value
from datasets.arrow_writer import ArrowWriter

from ec_hf.data.columns import read_column
from ec_hf.data.erasure import ErasureData
from ec_hf.data.sources import has_test_split

__all__ = ["StreamedErasure", "check_test_split", "index_of"]

ROW = "row_of_stream"
AT_ONCE = 10_000
AUDITED = 5000
"""Retain training images that an audit is given of a stream."""


def index_of(streams: Mapping[str, IterableDataset]) -> dict[str, Dataset]:
    """All columns of streamed splits but the images, in memory, with the number of each row.

    A request is resolved in these as in any dataset. Each stream is read once.

    Raises:
        ValueError: a split has no column of images.
    """
    return {name: _index(stream) for name, stream in streams.items()}


def _index(stream: IterableDataset) -> Dataset:
    images = _image_columns(stream)
    table = pa.concat_tables(stream.remove_columns(images).with_format("arrow").iter(batch_size=AT_ONCE))
    kept = Features({name: feature for name, feature in stream.features.items() if name not in images})
    return Dataset(table.append_column(ROW, pa.array(np.arange(len(table))))).cast(
        Features({**kept, ROW: Value("int64")})
    )


@dataclass(frozen=True)
class StreamedErasure(ErasureData):
    """The images of an erasure whose retain set is streamed.

    What training and audit must have at hand is stored in a folder and read from there: forget set, held-out images,
    what earlier requests named, test set, and in `splits` a sample of the retain set. The retain set that is trained
    on, ``held_out.train["retain"]``, stays a stream, without the other stored images and whatever is the same to the
    byte.

    Attributes:
        index: the same of the rows without images.
        stored: numbers of the training rows that are stored, in order.
        folder: where this process has stored images until `release`; None where another one has.
    """

    index: ErasureData
    stored: np.ndarray
    folder: Path | None

    @classmethod
    def of_streams(
        cls,
        streams: Mapping[str, IterableDataset],
        rows: Mapping[str, Dataset],
        index: ErasureData,
        folder: Path,
        *,
        write: bool = True,
        seed: int = 0,
    ) -> StreamedErasure:
        """Store what must be at hand, for which the streams are read once more.

        Args:
            streams: by split name.
            rows: `index_of` these.
            index: what the request makes of the rows.
            folder: where images are stored, as they are.
            write: whether this process stores them; if not, another one has done so.
            seed: of the sample of the retain set.

        Raises:
            ValueError: there is no test split.
        """
        check_test_split(rows, index.columns["label_column"])
        name, of_test = (next(each for each in rows if rows[each] is part) for part in (index.train, index.test))
        numbers = {part: _numbers(of_part) for part, of_part in index.splits.items()}
        kept = _numbers(index.held_out.train["retain"])
        gone = np.setdiff1d(np.arange(len(index.train)), kept)
        drawn = np.random.default_rng(seed).permutation(numbers["retain_train"])[:AUDITED]
        numbers["retain_train"] = np.sort(drawn)
        stored = np.union1d(gone, drawn)
        train = _stored(streams[name], stored, folder / "train.arrow", write)
        test = _stored(streams[of_test], np.arange(len(index.test)), folder / "test.arrow", write)

        def at_hand(numbers: np.ndarray) -> Dataset:
            return train.select(np.searchsorted(stored, numbers))

        forget = at_hand(_numbers(index.held_out.train["forget"]))
        retain = _without(streams[name], at_hand(gone))
        labels = index.held_out.train["retain"].select_columns(index.columns["label_column"])
        retain.labels = labels  # of all rows, which a stream does not tell
        held_out = replace(
            index.held_out,
            train={"forget": forget, "retain": retain},
            evaluated={side: at_hand(_numbers(part)) for side, part in index.held_out.evaluated.items()},
        )
        told = (
            f"The retain set was streamed: of its {len(index.splits['retain_train']):,} training images the audit was "
            f"given {len(drawn):,}, drawn at random."
        )
        own: dict[str, Any] = {"train": train, "test": test, "held_out": held_out, "notes": [*index.notes, told]}
        own["splits"] = {
            part: at_hand(of_part) if part.endswith("train") else test.select(of_part)
            for part, of_part in numbers.items()
        }
        return cls(**{**vars(index), **own}, index=index, stored=stored, folder=folder if write else None)

    @property
    def retain_rows(self) -> int:
        """Rows of the retain set that is trained on."""
        return len(self.index.held_out.train["retain"])

    def release(self) -> None:
        """Take the stored images away; those that are open can be read until the process ends."""
        if self.folder is not None:
            shutil.rmtree(self.folder)

    def summary(self) -> str:
        """As `ErasureData`, of all rows."""
        return self.index.summary()

    def manifest(self, name: str | None = None) -> dict[str, Any]:
        """As `ErasureData`, of all rows."""
        return self.index.manifest(name)

    def earlier_sets(self) -> dict[str, Dataset]:
        """As `ErasureData`: what earlier requests named is stored, as none of it is retained."""
        return {
            name: self.train.select(np.searchsorted(self.stored, _numbers(part)))
            for name, part in self.index.earlier_sets().items()
        }


def check_test_split(rows: Mapping[str, Dataset], label_column: str) -> None:
    """Refuse splits without labelled test images, since a stream holds none out.

    Raises:
        ValueError: there are none.
    """
    if not has_test_split(rows, label_column):
        raise ValueError(
            "streaming: the data has no labelled test split, and of a stream none is held out. Give the test images "
            "as a split named test or validation, or leave streaming out."
        )


def _image_columns(stream: IterableDataset) -> list[str]:
    found = [name for name, feature in (stream.features or {}).items() if isinstance(feature, Image)]
    if not found:
        raise ValueError(
            f"streaming: no column of images among {list(stream.features or ())}. Stream Parquet files, whose columns "
            "are known."
        )
    return found


def _numbers(part: Dataset) -> np.ndarray:
    """Numbers of a part's rows in the stream that they come from."""
    return read_column(part, ROW).to_numpy()


def _stored(stream: IterableDataset, numbers: np.ndarray, path: Path, write: bool) -> Dataset:
    """Some rows of a stream, in its order, with images as they are there; in a file, not in memory."""
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        last = int(numbers[-1]) + 1 if len(numbers) else 0
        wanted = set(numbers.tolist())
        with ArrowWriter(path=str(path), features=stream.features) as writer:
            for number, row in enumerate(islice(stream.decode(False), last)):
                if number in wanted:
                    writer.write(row)
            writer.finalize()
    return Dataset.from_file(str(path))


def _without(stream: IterableDataset, images: Dataset) -> IterableDataset:
    """The stream without some images, which are known by their bytes wherever they stand."""
    columns = _image_columns(stream)
    as_stored = images.with_format(None).select_columns(columns)
    for column in columns:
        as_stored = as_stored.cast_column(column, Image(decode=False))
    gone = _NotAmong(tuple(columns), frozenset(_hash(row, columns) for row in as_stored))
    return stream.decode(False).filter(gone).cast(stream.features)


@dataclass(frozen=True)
class _NotAmong:
    """Whether the images of a row are none of some others."""

    columns: tuple[str, ...]
    hashes: frozenset[bytes]

    def __call__(self, row: Mapping[str, Any]) -> bool:
        return _hash(row, self.columns) not in self.hashes


def _hash(row: Mapping[str, Any], columns: Sequence[str]) -> bytes:
    """Of the bytes of a row's images, and of the path of one that has none."""
    stored = [row[name] or {"bytes": None, "path": None} for name in columns]
    content = b"".join(each["bytes"] or (each["path"] or "").encode() for each in stored)
    return hashlib.blake2b(content, digest_size=16).digest()
