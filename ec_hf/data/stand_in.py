"""Datasets of labels alone, which stand in for images that are not at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

__all__ = ["blanked", "stand_in"]


def stand_in(
    rows: Mapping[str, int],
    classes: int | Sequence[str],
    image_shape: tuple[int, int, int],
    label_column: str = "label",
) -> DatasetDict:
    """Splits of so many rows, as many of each class as can be, with a blank image wherever one is looked at.

    Requests split it, images are held out of it and batches are drawn from it as from the dataset itself.

    Args:
        rows: number of rows by split.
        classes: number of classes, or their names.
        image_shape: (channels, height, width) of the blank `pixel_values`.
        label_column: what the column of the labels is called.
    """
    names = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
    features = Features({label_column: ClassLabel(names=names)})
    return blanked(
        {
            name: Dataset.from_dict({label_column: np.arange(count) % len(names)}, features=features)
            for name, count in rows.items()
            if count
        },
        image_shape,
    )


def blanked(splits: Mapping[str, Dataset], image_shape: tuple[int, int, int]) -> DatasetDict:
    """The splits of a dataset with blank images in place of their own, which are never read.

    Args:
        splits: datasets by split name.
        image_shape: as for `stand_in`.
    """
    kept = {name: part.with_format(None).remove_columns(_images_of(part)) for name, part in splits.items()}
    return DatasetDict({name: part.with_transform(_Blank(image_shape)) for name, part in kept.items()})


def _images_of(dataset: Dataset) -> list[str]:
    return [name for name, kind in dataset.features.items() if isinstance(kind, Image) or name == "pixel_values"]


class _Blank:
    """Adds a blank image to each row."""

    repeatable = True  # as the images that it stands in for; see `PairedTrainer.shows_same_images`

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        blank = np.zeros(self.shape, dtype=np.float32)
        return {"pixel_values": [blank] * len(next(iter(rows.values()))), **rows}
