"""A hash that recognises the same set of images when a run is resumed, on this machine or on another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from datasets import Dataset

__all__ = ["fingerprint"]

SAMPLE = 64


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


def _bytes_of(value: Any) -> bytes:
    """A stored value as bytes; of an image its own bytes, else the name of its file."""
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        return value["bytes"] or PurePath(value["path"] or "").name.encode()
    return repr(value).encode()
