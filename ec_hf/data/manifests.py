"""Forget manifests: the record of a request that can be checked later, and those of earlier requests."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from huggingface_hub.errors import LocalEntryNotFoundError

from ec_hf.data.columns import class_names_of, find_label_column, read_column
from ec_hf.data.documents import checked_manifest
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.splitting import forget_mask, id_values
from ec_hf.files import MANIFEST, RECORD, find_file, read_json

__all__ = ["earlier_manifests", "earlier_requests", "manifest", "whole_class_count", "whole_class_names"]


def manifest(
    dataset: Dataset,
    request: ForgetRequest,
    parts: Mapping[str, Dataset],
    *,
    label_column: str | None = None,
    id_column: str | None = None,
    name: str | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    earlier: Sequence[ForgetRequest] = (),
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
        label_column: the column of the labels; None to find it by `find_label_column`.
        id_column: as given to `split`.
        name: the dataset's name, such as its Hub id; taken from its info when not given.
        history: manifests of the requests that the model met before (`ec_hf.data.manifests.earlier_manifests`).
        earlier: these requests themselves, where the part "retain" is without what they name.

    Raises:
        ValueError: `parts` is not what the request makes of `dataset`.
    """
    mask = forget_mask(dataset, request, label_column, id_column, allow_empty=True)
    ever = reduce(
        or_, (forget_mask(dataset, each, label_column, id_column, allow_empty=True) for each in earlier), mask
    )
    sizes = {part: len(parts[part]) for part in ("forget", "retain")}
    expected = {"forget": int(mask.sum()), "retain": int((~ever).sum())}
    if sizes != expected:
        raise ValueError(f"the parts hold {sizes} rows but this request makes {expected} of this dataset: split anew")
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
        "forget_rows_sha256": _forget_rows_sha256(dataset, mask, id_column),
        **({"history": [dict(earlier) for earlier in history]} if history else {}),
    }


def earlier_manifests(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> list[dict[str, Any]]:
    """The manifests of all requests that a model has met, oldest first: the `history` of its next one.

    Args:
        name_or_path: local folder or Hub id of the model that a new request is applied to.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Returns:
        Manifests without a `history` of their own, the last one with the `date` of its run if there is a record of it;
        none for a model that never unlearned.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its manifest cannot be read.
    """
    try:
        path = find_file(name_or_path, MANIFEST, revision=revision, token=token)
    except FileNotFoundError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        path = None
        warnings.warn(
            f"without a connection to the Hub it is not known what {str(name_or_path)!r} was made to forget before: "
            "the history starts with this request",
            stacklevel=2,
        )
    if path is None:
        return []
    try:
        last = checked_manifest(read_json(path))
        earlier = last.pop("history", [])
        record = find_file(name_or_path, RECORD, revision=revision, token=token)
        if record and (date := read_json(record).get("date")):
            last["date"] = date
        return [*earlier, last]
    except ValueError as error:
        raise ValueError(f"{path} is no forget manifest: {error}") from error


def whole_class_names(document: Mapping[str, Any]) -> list[str]:
    """Names of the classes that have no row left to retain; empty where the manifest names no classes."""
    forget, retain = (document["parts"][part].get("per_class") or {} for part in ("forget", "retain"))
    return [name for name in forget if name not in retain]


def whole_class_count(document: Mapping[str, Any]) -> int | None:
    """How many classes have no row left to retain; None where the manifest does not tell."""
    forget, retain = document["parts"]["forget"], document["parts"]["retain"]
    if "per_class" in forget and "per_class" in retain:
        return len(whole_class_names(document))
    return forget.get("whole_classes")


def earlier_requests(
    history: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
) -> tuple[dict[str, ForgetRequest], list[str]]:
    """The earlier requests themselves: what they name belongs in no retain set, and an audit looks at it again.

    A request is given only if it names the same rows as then, which `forget_rows_sha256` of its manifest proves.

    Args:
        history: manifests, as from `earlier_manifests`.
        dataset: the training set, the same one for all requests.
        label_column: as for `split`.
        id_column: as for `split`; it must be the one of that time, as the hash is made of its values.

    Returns:
        Requests by name ("request 1" is the oldest), and a sentence on each request that is not given.
    """
    requests, notes = {}, []
    for number, document in enumerate(history, start=1):
        name = f"request {number}"
        told = "content" in document["request"] or bool(whole_class_names(document))
        request = _request_for_same_rows(document, dataset, label_column, id_column) if told else None
        if request:
            requests[name] = request
            continue
        if told:
            why = "what its manifest tells does not name the same rows in this data set"
        else:
            why = f"its published manifest (detail {document.get('detail')!r}) does not say what it named"
        notes.append(
            f"The earlier {name} ({document['request']['hash'][:12]}) cannot be checked again: {why}. Rows that it "
            "named count as retained and may be learnt again, unless the new request names them too."
        )
    return requests, notes


def _request_for_same_rows(
    document: Mapping[str, Any], dataset: Dataset, label_column: str | None, id_column: str | None
) -> ForgetRequest | None:
    """The request of a manifest, or that of the classes it names; None unless it forgets the same rows as then."""
    content = document["request"].get("content") or {"classes": whole_class_names(document)}
    try:
        request = ForgetRequest.from_dict(content)
        mask = forget_mask(dataset, request, label_column, id_column)
    except (TypeError, ValueError):  # no request, or one of classes and rows that the dataset does not have
        return None
    return request if _forget_rows_sha256(dataset, mask, id_column) == document["forget_rows_sha256"] else None


def _per_class(part: Dataset, label_column: str) -> dict[str, int]:
    names = class_names_of(part, label_column)
    counts = {entry["values"]: entry["counts"] for entry in read_column(part, label_column).value_counts().to_pylist()}
    in_order = sorted(counts, key=lambda value: (value is None, value))
    return {names.get(value, str(value)): counts[value] for value in in_order}


def _forget_rows_sha256(dataset: Dataset, mask: np.ndarray, id_column: str | None, block: int = 65536) -> str:
    """The hash that `manifest` describes; ids become text a block at a time, as there may be millions."""
    rows = pa.array(np.flatnonzero(mask))
    ids = rows if id_column is None else id_values(dataset, id_column).filter(pa.array(mask))
    ids, digest = ids.take(pc.sort_indices(ids)), hashlib.sha256()
    for start in range(0, len(ids), block):
        lines = (json.dumps(value, ensure_ascii=False) + "\n" for value in ids.slice(start, block).to_pylist())
        digest.update("".join(lines).encode())
    return digest.hexdigest()
