"""From one dataset and a request to its forget and retain parts.

Splitting reads label, id and filter columns as Arrow data and takes rows by index: no image is ever read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image

from ec_hf.requests import ForgetRequest

__all__ = [
    "find_image_column",
    "find_label_column",
    "four_splits",
    "label_ids",
    "manifest",
    "read_column",
    "shared_rows",
    "split",
]

LABEL_COLUMNS = ("label", "labels")
IMAGE_COLUMNS = ("image", "img")
OFFSET_BITS = {pa.string(): 32, pa.binary(): 32, pa.large_string(): 64, pa.large_binary(): 64}


def find_label_column(dataset: Dataset, label_column: str | None = None) -> str:
    """The label column: the one named, else the only column that is a `ClassLabel` or is called label(s).

    Raises:
        ValueError: when the column is not there, or when none or several could be meant.
    """
    features = _one_split(dataset).features
    found = [name for name in features if isinstance(features[name], ClassLabel) or name in LABEL_COLUMNS]
    return _choose(dataset, label_column, found, "label_column")


def find_image_column(dataset: Dataset, image_column: str | None = None) -> str:
    """The image column: the one named, else `pixel_values`, else the only `Image` column, else image or img.

    Raises:
        ValueError: when the column is not there, or when none or several could be meant.
    """
    features = _one_split(dataset).features
    found = [name for name in features if name == "pixel_values"]
    found = found or [name for name in features if isinstance(features[name], Image)]
    found = found or [name for name in features if name in IMAGE_COLUMNS]
    return _choose(dataset, image_column, found, "image_column")


def split(
    dataset: Dataset,
    request: ForgetRequest,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
    allow_empty: bool = False,
) -> DatasetDict:
    """Cuts a dataset into the rows to forget and the rows to retain.

    Rows that are copies of a forgotten row are forgotten with it: those at the same place in memory (as after
    `concatenate_datasets([a, a])` or `select([0, 0])`), and with `id_column` those that carry the same id. A null
    matches nothing.

    Args:
        dataset: one split, with or without an indices mapping (`select`, `shuffle`, ...); its format is kept.
        request: what to forget. Classes are label ids (int) or names (str); text such as "3" that is no known name
            is read as an id. Row indices are positions in this very dataset: pass `request.without_rows()` for others.
        label_column: where labels stand; found by `find_label_column` when the request names classes.
        id_column: integer or text column that tells which rows are the same image, patient, ...
        allow_empty: for test splits. Either part may be empty, and classes and ids may have no row here.

    Returns:
        `DatasetDict` with the parts "forget" and "retain", each in the dataset's order.

    Raises:
        TypeError: when `dataset` is not one map-style split, or values do not fit their column's type.
        ValueError: for unknown classes, ids, rows or columns, and for an empty part.
    """
    mask = _forget_mask(dataset, request, label_column, id_column, allow_empty)
    forget, retain = dataset.select(np.flatnonzero(mask)), dataset.select(np.flatnonzero(~mask))
    if not allow_empty and not len(forget):
        raise ValueError(f"no row to forget of {len(dataset)}: the request matches nothing. {request.summary()}")
    if not allow_empty and not len(retain):
        raise ValueError(f"no row is left to retain of {len(dataset)}: narrow the request. {request.summary()}")
    return DatasetDict(forget=forget, retain=retain)


def four_splits(
    train: Dataset,
    test: Dataset,
    request: ForgetRequest,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
) -> dict[str, Dataset]:
    """What a request makes of a training and a test set: forget_train, retain_train, forget_test, retain_test.

    The forgotten test images are those that the request would name too: of the forgotten classes, say. Row indices
    mean nothing there, so that a request of rows alone leaves the whole test set to retain.

    Args:
        train: the set that the model was trained on; the request must name rows of it.
        test: held-out images of the same form; forget_test may be empty.
        request: what is forgotten.
        label_column: as for `split`.
        id_column: as for `split`.

    Raises:
        TypeError: as `split`.
        ValueError: as `split`.
    """
    seen = split(train, request, label_column=label_column, id_column=id_column)
    elsewhere = request.without_rows()
    unseen: Mapping[str, Dataset] = {"forget": test.select([]), "retain": test}
    if elsewhere is not None:
        unseen = split(test, elsewhere, label_column=label_column, allow_empty=True)
    parts = {"train": seen, "test": unseen}
    return {f"{part}_{name}": halves[part] for name, halves in parts.items() for part in ("forget", "retain")}


def manifest(
    dataset: Dataset,
    request: ForgetRequest,
    parts: Mapping[str, Dataset],
    *,
    label_column: str | None = None,
    id_column: str | None = None,
    name: str | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    r"""Record of a split that can be checked later without the images, as JSON types.

    `forget_rows_sha256` hashes the ids of all forgotten rows: their values of `id_column`, or without one their row
    indices in `dataset`. The ids are sorted (numbers by value, text by code point, nulls last), a repeated id stays
    repeated, and each is written as one JSON value and a newline, in UTF-8: rows 3 and 7 hash `b"3\n7\n"`, ids
    "a" and "b" hash `b'"a"\n"b"\n'`.

    Args:
        dataset: the dataset that was split.
        request: the request it was split by.
        parts: what `split` returned.
        label_column: where labels stand; found by `find_label_column` when not given.
        id_column: as given to `split`.
        name: the dataset's name, such as its Hub id; taken from its info when not given.
        history: manifests of the requests that the model met before (`ec_hf.history.earlier_manifests`).

    Raises:
        ValueError: when `parts` is not what the request makes of `dataset`.
    """
    mask = _forget_mask(dataset, request, label_column, id_column, allow_empty=True)
    sizes = {part: len(parts[part]) for part in ("forget", "retain")}
    expected = {"forget": int(mask.sum()), "retain": int((~mask).sum())}
    if sizes != expected:
        raise ValueError(f"the parts hold {sizes} rows but this request makes {expected} of this dataset: split anew")
    ids = pa.array(np.flatnonzero(mask)) if id_column is None else _ids(dataset, id_column).filter(pa.array(mask))
    return {
        "schema_version": 1,
        "dataset": {
            "name": name or dataset.info.dataset_name or dataset.info.builder_name,
            "fingerprint": dataset._fingerprint,
            "rows": len(dataset),
        },
        "request": {"hash": request.content_hash, "summary": request.summary(), "content": request.to_dict()},
        "parts": {
            part: {"rows": size, "per_class": _per_class(parts[part], find_label_column(dataset, label_column))}
            for part, size in sizes.items()
        },
        "forget_rows_sha256": _sorted_ids_sha256(ids),
        **({"history": [dict(earlier) for earlier in history]} if history else {}),
    }


def shared_rows(first: Dataset, second: Dataset, *, id_column: str | None = None) -> int:
    """How many rows of `second` also stand in `first`.

    With `id_column`, rows with the same id are the same. Without, rows are the same when a column of both holds
    them at the same place in memory, which survives `select`, `shuffle`, `train_test_split`, `with_transform` and
    `concatenate_datasets`. A copy (`map`, `cast` of labels, a second load from disk, another process) has no such
    mark, nor has anything that is not a `datasets.Dataset`: those count as 0, so 0 is no proof of disjoint images.
    """
    if not isinstance(first, Dataset) or not isinstance(second, Dataset):
        return 0
    if id_column is None:
        return int(_stands_in(first, second).sum())
    ours, theirs = _ids(first, id_column), _ids(second, id_column)
    if ours.type != theirs.type:
        raise TypeError(f"id_column {id_column!r} holds {ours.type} in one dataset and {theirs.type} in the other")
    return int(_is_in(theirs, ours.unique()).sum())


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
    names = _class_names(dataset, label_column)
    model = {int(key): name for key, name in id2label.items()}
    labels = read_column(dataset, label_column).unique().to_pylist()
    if any(label is None or (isinstance(label, int) and label < 0) for label in labels):
        raise ValueError(f"{label_column!r} has rows without a label (null or below 0): filter them out first")
    sides = f"the dataset's {shown(names.values())} and the model's {shown(model.values())}"
    is_text = _is_text(dataset.data.column(label_column).type)
    if is_text or isinstance(dataset.features[label_column], ClassLabel):
        for fold in (str, str.casefold):
            ids, count = {fold(name): key for key, name in model.items()}, Counter(map(fold, model.values()))
            missing = [name for name in names.values() if count[fold(name)] != 1]
            if not missing and len({fold(name) for name in names.values()}) == len(names):
                mapping = {value: ids[fold(name)] for value, name in names.items()}
                return None if all(value == key for value, key in mapping.items()) else mapping
        generic = all(name == f"LABEL_{key}" for key, name in model.items())
        if is_text or (not generic and len(missing) < len(names)):
            raise ValueError(
                f"the class names {shown(missing)} stand for no single label of the model; {sides} do not fit: "
                "set the names in model.config.id2label and label2id, or rename the dataset's classes"
            )
        if not generic and len(names) != len(model):
            raise ValueError(f"{sides} share no class: is this the model for this dataset?")
    if any(value not in model for value in names):
        raise ValueError(f"label ids beyond the model's {len(model)} labels: {sides} do not fit")
    return None


def _one_split(dataset: Any) -> Dataset:
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
    return found[0] if named is None else _known(dataset, named)


def _known(dataset: Dataset, column: str) -> str:
    if column not in _one_split(dataset).column_names:
        raise ValueError(f"the dataset has no column {column!r}; its columns are {dataset.column_names}")
    return column


def read_column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """A column in the dataset's own order: `dataset.data` knows nothing of the indices mapping."""
    column = dataset.data.column(_known(dataset, name))
    return column if dataset._indices is None else column.take(dataset._indices.column(0))


def _ids(dataset: Dataset, id_column: str) -> pa.ChunkedArray:
    column = read_column(dataset, id_column)
    if not (pa.types.is_integer(column.type) or _is_text(column.type)):
        raise TypeError(f"id_column {id_column!r} holds {column.type}; ids must be integers or text: cast the column")
    return column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_in(column: pa.ChunkedArray | pa.Array, values: pa.Array) -> np.ndarray:
    return pc.is_in(column, value_set=values, skip_nulls=True).to_numpy(zero_copy_only=False)


def _forget_mask(
    dataset: Dataset, request: ForgetRequest, label_column: str | None, id_column: str | None, allow_empty: bool
) -> np.ndarray:
    mask = np.zeros(len(_one_split(dataset)), dtype=bool)
    if request.classes:
        label_column = find_label_column(dataset, label_column)
        values = _label_values(dataset, label_column, request.classes, allow_empty)
        mask |= _named(dataset, label_column, values, allow_empty)
    if request.rows:
        if (last := request.rows[-1]) >= len(dataset):
            raise ValueError(
                f"row {last} is outside the dataset of {len(dataset)} rows: rows are positions in the dataset that "
                "the request was written for; use request.without_rows() for another one"
            )
        mask[np.asarray(request.rows)] = True
    for column, ids in request.ids.items():
        mask |= _named(dataset, column, ids, allow_empty)
    for clause in request.where:
        mask |= _matches(read_column(dataset, clause["column"]), clause)
    mask |= _stands_in(dataset.select(np.flatnonzero(mask)), dataset)
    if id_column is not None:
        ids = _ids(dataset, id_column)
        mask |= _is_in(ids, ids.filter(pa.array(mask)).unique())
    return mask


def _named(dataset: Dataset, name: str, values: Sequence[Any], allow_empty: bool) -> np.ndarray:
    """Rows that hold one of the values, each of which must have a row unless `allow_empty`."""
    column = read_column(dataset, name)
    wanted = _as_column_type(values, column.type, name)
    mask = _is_in(column, wanted)
    absent = wanted.filter(pa.array(~_is_in(wanted, column.filter(pa.array(mask)).unique()))).to_pylist()
    if absent and not allow_empty:
        raise ValueError(
            f"{len(absent)} of the {len(values)} values named for {name!r} have no row in the dataset: "
            f"{shown(absent)}; take them out of the request, or pass allow_empty=True for a test split"
        )
    return mask


def _matches(column: pa.ChunkedArray, clause: Mapping[str, Any]) -> np.ndarray:
    if "between" not in clause:
        values = clause["in"] if "in" in clause else (clause["equals"],)
        return _is_in(column, _as_column_type(values, column.type, clause["column"]))
    low, high = _as_column_type(clause["between"], column.type, clause["column"])
    inside = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
    return inside.fill_null(False).to_numpy()


def _as_column_type(values: Sequence[Any], kind: pa.DataType, name: str) -> pa.Array:
    accepted = {
        pa.types.is_boolean: (bool,),
        pa.types.is_integer: (int,),
        pa.types.is_floating: (int, float),
        _is_text: (str,),
        pa.types.is_temporal: (str,),  # ISO 8601
    }
    python = next((types for is_kind, types in accepted.items() if is_kind(kind)), ())
    try:
        if bad := [value for value in values if type(value) not in python]:
            raise TypeError(f"{bad[0]!r} is {type(bad[0]).__name__}")
        return pa.array(values).cast(kind)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        expected = " or ".join(t.__name__ for t in python) or "no value: such a column cannot be matched"
        raise TypeError(f"column {name!r} holds {kind}, which takes {expected}, but {error}") from error


def _class_names(dataset: Dataset, label_column: str) -> dict[Any, str]:
    """Label value -> class name: those of the `ClassLabel`, or those present among integers or text."""
    column = read_column(dataset, label_column)
    feature = dataset.features[label_column]
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    if not (pa.types.is_integer(column.type) or _is_text(column.type)):
        raise TypeError(f"label column {label_column!r} holds {feature}; labels are ClassLabel, integers or text")
    return {value: str(value) for value in sorted(column.unique().drop_null().to_pylist())}


def _label_values(dataset: Dataset, label_column: str, classes: Sequence[int | str], allow_empty: bool) -> list[Any]:
    names = _class_names(dataset, label_column)
    by_name = {name: value for value, name in names.items()}
    kind = dataset.data.column(label_column).type
    may_be_absent = allow_empty and not isinstance(dataset.features[label_column], ClassLabel)
    values = []
    for entry in classes:
        value = by_name.get(entry, entry)  # type: ignore[arg-type]
        if isinstance(value, str) and value.isdecimal() and not _is_text(kind):
            value = int(value)
        if value not in names and not (may_be_absent and isinstance(value, str) == _is_text(kind)):
            close = difflib.get_close_matches(str(entry), by_name, n=3, cutoff=0.5)
            hint = f"close matches: {close}" if close else f"such as {shown(by_name)}"
            raise ValueError(f"unknown class {entry!r}: {label_column!r} holds {len(names)} classes as {kind}; {hint}")
        values.append(value)
    return values


def _stands_in(first: Dataset, second: Dataset) -> np.ndarray:
    """For each row of `second`: does a column that both have hold it at the same place in memory as in `first`?"""
    shared = np.zeros(len(second), dtype=bool)
    for name in {*first.column_names} & {*second.column_names}:
        ours, theirs = _places(first, name), _places(second, name)
        if ours is not None and theirs is not None:
            shared |= _is_in(pa.array(theirs), pa.array(ours))
    return shared


def _places(dataset: Dataset, name: str) -> np.ndarray | None:
    """The address, in bits, of each row's slot in the column's Arrow buffer; None for types without one."""
    places = [np.empty(0, dtype=np.int64)]
    for chunk in dataset.data.column(name).chunks:
        while pa.types.is_struct(chunk.type):  # an image: the slot that points to its bytes, not the bytes
            chunk = chunk.field(0)
        bits = chunk.type.bit_width if pa.types.is_primitive(chunk.type) else OFFSET_BITS.get(chunk.type)
        if bits is None:
            return None
        if len(chunk):
            slots = np.arange(chunk.offset, chunk.offset + len(chunk), dtype=np.int64)
            places.append(8 * chunk.buffers()[1].address + bits * slots)
    rows = np.concatenate(places)
    return rows if dataset._indices is None else rows[dataset._indices.column(0).to_numpy()]


def _per_class(part: Dataset, label_column: str) -> dict[str, int]:
    names = _class_names(part, label_column)
    counts = {entry["values"]: entry["counts"] for entry in read_column(part, label_column).value_counts().to_pylist()}
    in_order = sorted(counts, key=lambda value: (value is None, value))
    return {names.get(value, str(value)): counts[value] for value in in_order}


def _sorted_ids_sha256(ids: pa.ChunkedArray | pa.Array, block: int = 65536) -> str:
    ids, digest = ids.take(pc.sort_indices(ids)), hashlib.sha256()
    for start in range(0, len(ids), block):
        lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in ids.slice(start, block).to_pylist())
        digest.update("".join(lines).encode())
    return digest.hexdigest()


def shown(values: Any, limit: int = 5) -> str:
    shown = ", ".join(repr(value) for value in list(values)[:limit])
    return f"[{shown}{', ...' if len(values) > limit else ''}] ({len(values)})"
