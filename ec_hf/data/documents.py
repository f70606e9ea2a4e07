"""The layout of a forget manifest, against which one from elsewhere is checked before anything reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ec_hf.data.typed import typed

__all__ = ["checked_manifest"]


class _Rows(TypedDict):
    rows: int


class _Part(_Rows, total=False):
    per_class: dict[str, int]
    classes: int
    whole_classes: int


class _Parts(TypedDict):
    forget: _Part
    retain: _Part


class _Dataset(_Rows):
    fingerprint: str


class _NamedDataset(_Dataset, total=False):
    name: str | None


class _Hash(TypedDict):
    hash: str


class _Content(TypedDict, total=False):
    classes: list[int | str]
    rows: list[int]
    ids: dict[str, list[int | str]]
    where: list[dict[str, Any]]


class _Request(_Hash, total=False):
    summary: str
    content: _Content


class _Core(TypedDict):
    dataset: _NamedDataset
    request: _Request
    parts: _Parts
    forget_rows_sha256: str


class _Manifest(_Core, total=False):
    detail: str
    date: str
    history: list[dict[str, Any]]


def checked_manifest(document: Mapping[str, Any], where: str = "the forget manifest") -> dict[str, Any]:
    """A forget manifest whose keys and types are those that `ec_hf.data.manifests.manifest` writes.

    Args:
        document: what was read; keys beyond the known ones are kept as they are.
        where: what the document is called in messages.

    Raises:
        ValueError: a key is missing, or a value has another type; the message names its place.
    """
    manifest: dict[str, Any] = typed(_Manifest, document, where)
    for number, earlier in enumerate(manifest.get("history", []), start=1):
        if "history" in typed(_Manifest, earlier, f"{where}, request {number} of its history"):
            raise ValueError(f"{where}: request {number} of its history has a history of its own")
    return manifest
