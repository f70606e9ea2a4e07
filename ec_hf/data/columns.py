"""Columns of a dataset: which holds the labels, which the images, and what the labels are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, Image

__all__ = ["find_image_column", "find_label_column", "label_ids", "matched_by_order", "read_column"]

LABEL_COLUMNS = ("label", "labels")
IMAGE_COLUMNS = ("image", "img")


def find_label_column(dataset: Dataset, label_column: str | None = None) -> str:
    """The label column: the one named, else the only column that is a `ClassLabel` or is called label(s).

    Raises:
        ValueError: the dataset has no such column, or none or several columns could be meant.
    """
    features = one_split(dataset).features
    candidates = [name for name in features if isinstance(features[name], ClassLabel) or name in LABEL_COLUMNS]
    return _choose(dataset, label_column, candidates, "label_column")


def find_image_column(dataset: Dataset, image_column: str | None = None) -> str:
    """The image column: the one named, else `pixel_values`, else the only `Image` column, else image or img.

    Raises:
        ValueError: the dataset has no such column, or none or several columns could be meant.
    """
    features = one_split(dataset).features
    candidates = (
        [name for name in features if name == "pixel_values"]
        or [name for name in features if isinstance(features[name], Image)]
        or [name for name in features if name in IMAGE_COLUMNS]
    )
    return _choose(dataset, image_column, candidates, "image_column")


def label_ids(dataset: Dataset, label_column: str, id2label: Mapping[Any, str]) -> dict[int | str, int] | None:
    """A mapping from the dataset's label values to the model's label ids; None when they are the same already.

    Class names (of a `ClassLabel`, or text labels) are matched when the model knows all of them, or at least all that
    a row has, exactly or but for upper and lower case. Label ids are taken as they are when the labels are plain
    integers, when the model has no real names (LABEL_0, ...), or when dataset and model share no name but have as many
    classes, as these are then two vocabularies for the same ids.

    Args:
        dataset: one split.
        label_column: its label column.
        id2label: `model.config.id2label`; its keys may be text, as JSON has them.

    Raises:
        TypeError: the labels are neither `ClassLabel`, integers nor text.
        ValueError: a row has no label, or the names of dataset and model do not fit; the message shows both.
    """
    names = class_names_of(dataset, label_column)
    model_names = {int(key): name for key, name in id2label.items()}
    labels = read_column(dataset, label_column).unique().to_pylist()
    if any(label is None or (isinstance(label, int) and label < 0) for label in labels):
        raise ValueError(f"{label_column!r} has rows without a label (null or below 0): filter them out first")
    both = f"the dataset's {shown(names.values())} and the model's {shown(model_names.values())}"
    text = is_text(dataset.data.column(label_column).type)
    if text or isinstance(dataset.features[label_column], ClassLabel):
        mapping, missing = _match_names(names, model_names)
        if mapping is not None:
            return None if all(value == model_id for value, model_id in mapping.items()) else mapping
        # A class without a row needs no label: a model that forgot it may have dropped its own.
        mapping, _ = _match_names({value: names[value] for value in labels}, model_names)
        if mapping:
            return mapping
        generic = all(name == f"LABEL_{key}" for key, name in model_names.items())
        if text or (not generic and len(missing) < len(names)):
            raise ValueError(
                f"the class names {shown(missing)} stand for no single label of the model; {both} do not fit: "
                "set the names in model.config.id2label and label2id, or rename the dataset's classes"
            )
        if not generic and len(names) != len(model_names):
            raise ValueError(f"{both} share no class: is this the model for this dataset?")
    if any(value not in model_names for value in names):
        raise ValueError(f"label ids beyond the model's {len(model_names)} labels: {both} do not fit")
    return None


def matched_by_order(dataset: Dataset, label_column: str, id2label: Mapping[Any, str]) -> dict[str, str]:
    """The names of model and data that go together by their order alone; empty where the names tell.

    Args:
        dataset: one split.
        label_column: its label column; of plain integers the result is empty.
        id2label: `model.config.id2label`.
    """
    names, model_names = class_names_of(dataset, label_column), {int(key): name for key, name in id2label.items()}
    named = isinstance(dataset.features[label_column], ClassLabel)
    if not named or label_ids(dataset, label_column, id2label) or _match_names(names, model_names)[0]:
        return {}
    return {model_names[value]: name for value, name in names.items() if value in model_names}


def _match_names(
    names: Mapping[Any, str], model_names: Mapping[int, str]
) -> tuple[dict[int | str, int] | None, list[str]]:
    """Label value -> model id by class name, exactly or else in any case; or None, and the names without a match."""
    for fold in (str, str.casefold):
        ids = {fold(name): model_id for model_id, name in model_names.items()}
        count = Counter(map(fold, model_names.values()))
        missing = [name for name in names.values() if count[fold(name)] != 1]
        if not missing and len({fold(name) for name in names.values()}) == len(names):
            return {value: ids[fold(name)] for value, name in names.items()}, []
    return None, missing


def one_split(dataset: Any) -> Dataset:
    """The dataset itself, if it is one map-style split."""
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"expected a datasets.Dataset, got {type(dataset).__name__}: pass one split, such as dataset['train'], "
            "loaded without streaming"
        )
    return dataset


def _choose(dataset: Dataset, named: str | None, candidates: list[str], argument: str) -> str:
    if named is not None:
        return known_column(dataset, named)
    if len(candidates) != 1:
        what = f"several columns could be meant, {candidates}" if candidates else "none was found"
        raise ValueError(f"{argument}: {what}; name one of the columns {dataset.column_names}")
    return candidates[0]


def known_column(dataset: Dataset, column: str) -> str:
    """The name itself, if the dataset has such a column."""
    if column not in one_split(dataset).column_names:
        raise ValueError(f"the dataset has no column {column!r}; its columns are {dataset.column_names}")
    return column


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column in the dataset's order; `dataset.data` alone ignores what `select` and `shuffle` did."""
    column = dataset.data.column(known_column(dataset, name))
    return column if dataset._indices is None else column.take(dataset._indices.column(0))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def class_names_of(dataset: Dataset, label_column: str) -> dict[Any, str]:
    """Label value -> class name: all of a `ClassLabel`; of integers or text, those that the column holds."""
    column = read_column(dataset, label_column)
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    if not (pa.types.is_integer(column.type) or is_text(column.type)):
        raise TypeError(f"label column {label_column!r} holds {feature}; labels are ClassLabel, integers or text")
    return {value: str(value) for value in sorted(column.unique().drop_null().to_pylist())}


def shown(values: Any, limit: int = 5) -> str:
    """The first of some values and their number, for a message."""
    first = ", ".join(repr(value) for value in list(values)[:limit])
    return f"[{first}{', ...' if len(values) > limit else ''}] ({len(values)})"
