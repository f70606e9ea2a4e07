"""A hash that recognises the same set of images when a run is resumed, on this machine or on another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

from ec_hf.data.columns import read_column

__all__ = ["fingerprint", "image_hashes", "same_images"]

SAMPLE = 64
BATCH = 1000
CANDIDATES = 4096


def fingerprint(dataset: Any) -> str | None:
    """A hash of the number of rows, and of up to 64 of them spread over the set; None for what is no `Dataset`.

    `datasets` has a fingerprint of its own, which is another one for the same images after a transform that it cannot
    hash. This one reads what is stored: encoded images and labels. No image is decoded, and a path counts by its last
    part, so that a set may lie elsewhere.
    """
    if not isinstance(dataset, Dataset):
        return None
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(int))
    stored = dataset.with_format("arrow")[rows.tolist()]  # as it lies there, whatever the set's own format makes of it
    digest = hashlib.sha256(str(len(dataset)).encode())
    for name in sorted(stored.column_names):
        for value in stored.column(name).to_pylist():
            digest.update(f"{name}\n".encode() + _bytes_of(value))
    return digest.hexdigest()[:16]


def image_hashes(dataset: Dataset, image_column: str | None = None, *, most: int = 10_000) -> set[bytes]:
    """Hashes of the images of a dataset as they are stored.

    The same image has the same hash wherever it stands. No image is decoded; images that lie in files count by path.

    Args:
        dataset: of data that is no encoded image, such as `pixel_values`, there are no hashes.
        image_column: the column of the images; all such columns if left out.
        most: of a larger dataset so many rows, spread over it.
    """
    names = [
        name for name, kind in dataset.features.items() if isinstance(kind, Image) and image_column in (None, name)
    ]
    if not names or not len(dataset):
        return set()
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int))
    stored = dataset.with_format("arrow")
    found: set[bytes] = set()
    for start in range(0, len(rows), BATCH):
        table = stored[rows[start : start + BATCH].tolist()]
        for images in zip(*(table.column(name).to_pylist() for name in names), strict=True):
            content = b"".join((each["bytes"] or (each["path"] or "").encode()) if each else b"" for each in images)
            found.add(hashlib.blake2b(content, digest_size=16).digest())
    return found


def _bytes_of(value: Any) -> bytes:
    """A stored value as bytes; of an image its own bytes, else the name of its file."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["bytes"] or PurePath(value["path"] or "").name.encode()
    return repr(value).encode()


def same_images(first: Any, second: Any) -> tuple[int, int]:
    """How many of a sample of one set's images stand in another set too, byte for byte, wherever both were loaded.

    Of the other set only images of the same length in bytes are read, and of these 4,096 at most.

    Args:
        first: the set of which up to 64 images are looked at.
        second: the set in which they are looked for.

    Returns:
        Number of images found, and number looked for; both 0 where the sets do not store encoded images.
    """
    columns = [_encoded(each) for each in (first, second)]
    if columns[0] is None or columns[1] is None:
        return 0, 0
    rows = np.unique(np.linspace(0, len(first) - 1, min(SAMPLE, len(first))).astype(int))
    sample = [value for value in columns[0].take(pa.array(rows)).to_pylist() if value]
    alike = pc.is_in(pc.binary_length(columns[1]), value_set=pa.array({len(value) for value in sample}, pa.int32()))
    candidates = np.flatnonzero(alike.to_numpy())[:CANDIDATES]
    there = {hashlib.sha256(value).digest() for value in columns[1].take(pa.array(candidates)).to_pylist() if value}
    return sum(hashlib.sha256(value).digest() in there for value in sample), len(sample)


def _encoded(dataset: Any) -> pa.ChunkedArray | None:
    """The column of encoded images in the order of the rows; None where the set has none."""
    if not isinstance(dataset, Dataset):
        return None
    name = next((name for name, feature in dataset.features.items() if isinstance(feature, Image)), None)
    if name is None:
        return None
    column = read_column(dataset, name)
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else None
