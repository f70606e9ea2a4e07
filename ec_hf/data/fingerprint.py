"""A hash that recognises the same set of images when a run is resumed, on this machine or on another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from datasets import Dataset, Image

__all__ = ["fingerprint", "image_hashes"]

SAMPLE = 64
BATCH = 1000


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
