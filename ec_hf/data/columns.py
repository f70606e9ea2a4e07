"""Columns of a dataset: which holds the labels, which the images, and what the labels are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Image

__all__ = ["find_image_column", "find_label_column", "label_ids", "read_column"]

LABEL_COLUMNS = ("label", "labels")
IMAGE_COLUMNS = ("image", "img")


def find_label_column(dataset: Dataset, label_column: str | None = None) -> str:
    """The label column: the one named, else the only column that is a `ClassLabel` or is called label(s).

    Raises:
        ValueError: when the column is not there, or when none or several could be meant.
    """
    features = one_split(dataset).features
    found = [name for name in features if isinstance(features[name], ClassLabel) or name in LABEL_COLUMNS]
    return _choose(dataset, label_column, found, "label_column")


def find_image_column(dataset: Dataset, image_column: str | None = None) -> str:
    """The image column: the one named, else `pixel_values`, else the only `Image` column, else image or img.

    Raises:
        ValueError: when the column is not there, or when none or several could be meant.
    """
    features = one_split(dataset).features
    found = [name for name in features if name == "pixel_values"]
    found = found or [name for name in features if isinstance(features[name], Image)]
    found = found or [name for name in features if name in IMAGE_COLUMNS]
    return _choose(dataset, image_column, found, "image_column")


def label_ids(dataset: Dataset, label_column: str, id2label: Mapping[Any, str]) -> dict[int | str, int] | None:
    """Maps the dataset's label values to the model's label ids; None when they are the same already.

    Class names (of a `ClassLabel`, or text labels) go by name when the model knows all of them, exactly or but for
    upper and lower case. Label ids are taken as they are when the labels are plain integers, when the model has no
    real names (LABEL_0, ...), or when no name at all is shared and both sides have as many classes: two vocabularies
    for the same ids.

    Args:
        dataset: one split.
        label_column: its label column.
        id2label: `model.config.id2label`; its keys may be text, as JSON has them.

    Raises:
        TypeError: for labels that are neither `ClassLabel`, integers nor text.
        ValueError: for rows without a label, and when the two sides do not fit; the message shows both.
    """
    names = class_names_of(dataset, label_column)
    model = {int(key): name for key, name in id2label.items()}
    labels = read_column(dataset, label_column).unique().to_pylist()
    if any(label is None or (isinstance(label, int) and label < 0) for label in labels):
        raise ValueError(f"{label_column!r} has rows without a label (null or below 0): filter them out first")
    sides = f"the dataset's {shown(names.values())} and the model's {shown(model.values())}"
    text = is_text(dataset.data.column(label_column).type)
    if text or isinstance(dataset.features[label_column], ClassLabel):
        for fold in (str, str.casefold):
            ids, count = {fold(name): key for key, name in model.items()}, Counter(map(fold, model.values()))
            missing = [name for name in names.values() if count[fold(name)] != 1]
            if not missing and len({fold(name) for name in names.values()}) == len(names):
                mapping = {value: ids[fold(name)] for value, name in names.items()}
                return None if all(value == key for value, key in mapping.items()) else mapping
        generic = all(name == f"LABEL_{key}" for key, name in model.items())
        if text or (not generic and len(missing) < len(names)):
            raise ValueError(
                f"the class names {shown(missing)} stand for no single label of the model; {sides} do not fit: "
                "set the names in model.config.id2label and label2id, or rename the dataset's classes"
            )
        if not generic and len(names) != len(model):
            raise ValueError(f"{sides} share no class: is this the model for this dataset?")
    if any(value not in model for value in names):
        raise ValueError(f"label ids beyond the model's {len(model)} labels: {sides} do not fit")
    return None


def one_split(dataset: Any) -> Dataset:
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"expected a datasets.Dataset, got {type(dataset).__name__}: pass one split, such as dataset['train'], "
            "loaded without streaming"
        )
    return dataset


def _choose(dataset: Dataset, named: str | None, found: list[str], argument: str) -> str:
    if named is None and len(found) != 1:
        what = f"several columns could be meant, {found}" if found else "none was found"
        raise ValueError(f"{argument}: {what}; name one of the columns {dataset.column_names}")
    return found[0] if named is None else known_column(dataset, named)


def known_column(dataset: Dataset, column: str) -> str:
    if column not in one_split(dataset).column_names:
        raise ValueError(f"the dataset has no column {column!r}; its columns are {dataset.column_names}")
    return column


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column in the dataset's own order: `dataset.data` knows nothing of the indices mapping."""
    column = dataset.data.column(known_column(dataset, name))
    return column if dataset._indices is None else column.take(dataset._indices.column(0))


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def class_names_of(dataset: Dataset, label_column: str) -> dict[Any, str]:
    """Label value -> class name: those of the `ClassLabel`, or those present among integers or text."""
    column = read_column(dataset, label_column)
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    if not (pa.types.is_integer(column.type) or is_text(column.type)):
        raise TypeError(f"label column {label_column!r} holds {feature}; labels are ClassLabel, integers or text")
    return {value: str(value) for value in sorted(column.unique().drop_null().to_pylist())}


def shown(values: Any, limit: int = 5) -> str:
    shown = ", ".join(repr(value) for value in list(values)[:limit])
    return f"[{shown}{', ...' if len(values) > limit else ''}] ({len(values)})"
