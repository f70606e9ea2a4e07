"""From one dataset and a request to its forget and retain parts.

Splitting reads label, id and filter columns as Arrow data and takes rows by index: no image is ever read.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict

from ec_hf.data.columns import class_names_of, find_label_column, is_text, one_split, read_column, shown
from ec_hf.data.requests import ForgetRequest

__all__ = ["four_splits", "shared_rows", "split"]

OFFSET_BITS = {pa.string(): 32, pa.binary(): 32, pa.large_string(): 64, pa.large_binary(): 64}


def split(
    dataset: Dataset,
    request: ForgetRequest,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
    allow_empty: bool = False,
) -> DatasetDict:
    """Cut a dataset into the rows to forget and the rows to retain.

    Rows that are copies of a forgotten row are forgotten with it: those at the same place in memory (as after
    `concatenate_datasets([a, a])` or `select([0, 0])`), and with `id_column` those that carry the same id. A null
    matches nothing.

    Args:
        dataset: one split, with or without an indices mapping (`select`, `shuffle`, ...); its format is kept.
        request: what to forget. Classes are label ids (int) or names (str); text such as "3" that is no known name
            is read as an id. Row indices are positions in this very dataset: pass `request.without_rows()` for others.
        label_column: the column of the labels; found by `find_label_column` when the request names classes.
        id_column: integer or text column that tells which rows are the same image, patient, ...
        allow_empty: for test splits. Either part may be empty, and classes and ids may have no row here.

    Returns:
        `DatasetDict` with the parts "forget" and "retain", each in the dataset's order.

    Raises:
        TypeError: `dataset` is not one map-style split, or values do not fit their column's type.
        ValueError: the dataset has no such class, id, row or column, or a part would be empty.

    Example:
        >>> images = Dataset.from_dict({"patient": [17, 17, 4], "label": [0, 1, 0]})
        >>> split(images, ForgetRequest(ids={"patient": [17]})).num_rows
        {'forget': 2, 'retain': 1}
    """
    mask = forget_mask(dataset, request, label_column, id_column, allow_empty)
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

    The forgotten test images are those that the request names too, such as all images of a forgotten class. Row
    indices mean nothing in the test set, so a request of rows alone leaves all of it to retain.

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
    for_test = request.without_rows()
    unseen: Mapping[str, Dataset] = {"forget": test.select([]), "retain": test}
    if for_test is not None:
        unseen = split(test, for_test, label_column=label_column, allow_empty=True)
    return {
        "forget_train": seen["forget"],
        "retain_train": seen["retain"],
        "forget_test": unseen["forget"],
        "retain_test": unseen["retain"],
    }


def shared_rows(first: Dataset, second: Dataset, *, id_column: str | None = None) -> int:
    """The number of rows of `second` that are also in `first`.

    With `id_column`, rows with the same id are the same. Without it, rows are the same when a column of both datasets
    holds them at the same address in memory, as after `select`, `shuffle`, `train_test_split`, `with_transform` and
    `concatenate_datasets`. Copies (`map`, `cast` of labels, a second load from disk, another process) have other
    addresses, and what is no `datasets.Dataset` has none: these count as 0, so 0 is no proof of disjoint images.
    """
    if not isinstance(first, Dataset) or not isinstance(second, Dataset):
        return 0
    if id_column is None:
        return int(_shares_memory(first, second).sum())
    of_first, of_second = id_values(first, id_column), id_values(second, id_column)
    if of_first.type != of_second.type:
        raise TypeError(
            f"id_column {id_column!r} holds {of_first.type} in one dataset and {of_second.type} in the other"
        )
    return int(_is_in(of_second, of_first.unique()).sum())


def id_values(dataset: Dataset, id_column: str) -> pa.ChunkedArray:
    """The ids of all rows, in the dataset's order."""
    column = read_column(dataset, id_column)
    if not (pa.types.is_integer(column.type) or is_text(column.type)):
        raise TypeError(f"id_column {id_column!r} holds {column.type}; ids must be integers or text: cast the column")
    return column


def _is_in(column: pa.ChunkedArray | pa.Array, values: pa.Array) -> np.ndarray:
    return pc.is_in(column, value_set=values, skip_nulls=True).to_numpy(zero_copy_only=False)


def forget_mask(
    dataset: Dataset,
    request: ForgetRequest,
    label_column: str | None,
    id_column: str | None,
    allow_empty: bool = False,
) -> np.ndarray:
    """True for the rows that `split` puts into the forget part; arguments and errors are those of `split`."""
    mask = np.zeros(len(one_split(dataset)), dtype=bool)
    if request.classes:
        label_column = find_label_column(dataset, label_column)
        values = _label_values(dataset, label_column, request.classes, allow_empty)
        mask |= _rows_with(dataset, label_column, values, allow_empty)
    if request.rows:
        if (last := request.rows[-1]) >= len(dataset):
            raise ValueError(
                f"row {last} is outside the dataset of {len(dataset)} rows: rows are positions in the dataset that "
                "the request was written for; use request.without_rows() for another one"
            )
        mask[np.asarray(request.rows)] = True
    for column, ids in request.ids.items():
        mask |= _rows_with(dataset, column, ids, allow_empty)
    for clause in request.where:
        mask |= _rows_that_match(read_column(dataset, clause["column"]), clause)
    mask |= _shares_memory(dataset.select(np.flatnonzero(mask)), dataset)
    if id_column is not None:
        ids = id_values(dataset, id_column)
        mask |= _is_in(ids, ids.filter(pa.array(mask)).unique())
    return mask


def _rows_with(dataset: Dataset, name: str, values: Sequence[Any], allow_empty: bool) -> np.ndarray:
    """True for rows that hold one of the values; every value must have a row unless `allow_empty`."""
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


def _rows_that_match(column: pa.ChunkedArray, clause: Mapping[str, Any]) -> np.ndarray:
    """True for rows whose value fits one filter of `ForgetRequest.where`."""
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
        is_text: (str,),
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


def _label_values(dataset: Dataset, label_column: str, classes: Sequence[int | str], allow_empty: bool) -> list[Any]:
    names = class_names_of(dataset, label_column)
    by_name = {name: value for value, name in names.items()}
    kind = dataset.data.column(label_column).type
    may_be_absent = allow_empty and not isinstance(dataset.features[label_column], ClassLabel)
    values = []
    for entry in classes:
        value = by_name.get(entry, entry)  # type: ignore[arg-type]
        if isinstance(value, str) and value.isdecimal() and not is_text(kind):
            value = int(value)
        if value not in names and not (may_be_absent and isinstance(value, str) == is_text(kind)):
            close = difflib.get_close_matches(str(entry), by_name, n=3, cutoff=0.5)
            hint = f"close matches: {close}" if close else f"such as {shown(by_name, 20)}"
            stored = "" if isinstance(dataset.features[label_column], ClassLabel) else f" as {kind}"
            raise ValueError(f"unknown class {entry!r}: {label_column!r} holds {len(names)} classes{stored}; {hint}")
        values.append(value)
    return values


def _shares_memory(first: Dataset, second: Dataset) -> np.ndarray:
    """True for rows of `second` that a column holds at the same address as a row of `first`."""
    shared = np.zeros(len(second), dtype=bool)
    for name in {*first.column_names} & {*second.column_names}:
        of_first, of_second = _addresses(first, name), _addresses(second, name)
        if of_first is not None and of_second is not None:
            shared |= _is_in(pa.array(of_second), pa.array(of_first))
    return shared


def _addresses(dataset: Dataset, name: str) -> np.ndarray | None:
    """The address, in bits, of each row's slot in the column's Arrow buffer; None for a type without such slots."""
    addresses = [np.empty(0, dtype=np.int64)]
    for chunk in dataset.data.column(name).chunks:
        while pa.types.is_struct(chunk.type):  # an image: the slot that points to its bytes, not the bytes
            chunk = chunk.field(0)
        bits = chunk.type.bit_width if pa.types.is_primitive(chunk.type) else OFFSET_BITS.get(chunk.type)
        if bits is None:
            return None
        if len(chunk):
            slots = np.arange(chunk.offset, chunk.offset + len(chunk), dtype=np.int64)
            addresses.append(8 * chunk.buffers()[1].address + bits * slots)
    by_slot = np.concatenate(addresses)
    return by_slot if dataset._indices is None else by_slot[dataset._indices.column(0).to_numpy()]
