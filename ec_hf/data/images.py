"""Whether the stored images of a dataset can be read at all."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from ec_hf.files import first_line

__all__ = ["DECODING_ERRORS", "require_readable", "told", "unreadable"]

AT_ONCE = 256
DECODING_ERRORS = (OSError, SyntaxError, PILImage.DecompressionBombError)
"""What PIL raises for files that are no image, or cut short, or far too large."""


def unreadable(
    dataset: Any, image_column: str | None = None, *, rows: Sequence[int] | None = None, limit: int = 5
) -> dict[int, str]:
    """Rows whose stored image cannot be decoded, and why, by row number.

    Args:
        dataset: one split; what is no `datasets.Dataset`, or has no `Image` column, has nothing to decode.
        image_column: the column; all `Image` columns if left out.
        rows: the rows to look at; all if left out.
        limit: so many rows at most are told.
    """
    if not isinstance(dataset, Dataset):
        return {}
    columns = [
        name
        for name, feature in dataset.features.items()
        if isinstance(feature, Image) and image_column in (None, name)
    ]
    rows = range(len(dataset)) if rows is None else rows
    found: dict[int, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for column in columns:
            stored = dataset.with_format(None).select_columns([column]).cast_column(column, Image(decode=False))
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                wrong = pool.map(_why_unreadable, stored[list(part)][column])
                found |= {row: why for row, why in zip(part, wrong, strict=True) if why}
                if len(found) >= limit:
                    return dict(list(found.items())[:limit])
    return found


def require_readable(
    parts: Mapping[str, Any], image_column: str | None = None, *, process: int = 0, processes: int = 1
) -> None:
    """Decode every stored image of several datasets once.

    Args:
        parts: the datasets by name.
        image_column: as for `unreadable`.
        process: number of this process, which looks at its share of the rows.
        processes: number of processes.

    Raises:
        ValueError: some image cannot be decoded; the message names the dataset, the rows and the reasons.
    """
    bad = {
        name: found
        for name, part in parts.items()
        if (found := unreadable(part, image_column, rows=range(process, _length(part), processes)))
    }
    if bad:
        listed = "; ".join(f"{name} row {row}: {why}" for name, found in bad.items() for row, why in found.items())
        raise ValueError(f"images that cannot be read: {listed}. Take these rows out, or mend their files.")


def told(error: Exception) -> str:
    """What a decoder's error means, in words; those of PIL name an object in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image file, or its head is damaged"
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename}"
    return first_line(error)


def _why_unreadable(stored: Mapping[str, Any] | None) -> str | None:
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        return "it holds no image"
    try:
        with PILImage.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])) as image:
            image.load()
    except Exception as error:  # PIL's decoders raise errors of many kinds
        return told(error)
    return None


def _length(part: Any) -> int:
    return len(part) if isinstance(part, Dataset) else 0
