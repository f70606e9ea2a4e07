"""The layout of a run record, against which one from elsewhere is checked before anything reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ec_hf.data.typed import typed

__all__ = ["checked_record"]


class _Settings(TypedDict):
    objective: str | None
    seed: int


class _Point(TypedDict):
    index: int
    kind: str
    channels: int
    height: int
    width: int


class _Side(TypedDict):
    images: int
    held_out: bool


class _Cost(TypedDict):
    steps: int
    forget_images_seen: int
    retain_images_seen: int
    minutes: float
    peak_memory_mb: int


class _Whole(TypedDict):
    method: str | None
    settings: _Settings
    points: list[_Point]
    layer_weights: list[float]
    processes: int


class _Parts(TypedDict, total=False):
    uses: str | None
    data: dict[str, dict[str, Any]]
    date: str | None
    base_model: str | None
    base_model_revision: str | None
    base_model_license: dict[str, str | None]
    command: str | None
    versions: dict[str, str | None]
    evaluated: dict[str, Any]
    pilot: dict[str, Any]
    finish: str


def checked_record(record: Mapping[str, Any], where: str = "the run record") -> dict[str, Any]:
    """A run record whose keys and types are those that a run writes.

    A record without settings is that of a push, which notes its `finish` also where no run left a record.

    Args:
        record: what was read; keys beyond the known ones are kept as they are.
        where: what the record is called in messages.

    Raises:
        ValueError: a key is missing, or a value has another type; the message names its place.
    """
    checked: dict[str, Any] = typed(_Parts, record, where)
    if "settings" in record:
        typed(_Whole, record, where)
        if len(record["points"]) != len(record["layer_weights"]):
            raise ValueError(f"{where} has {len(record['points'])} points and {len(record['layer_weights'])} weights")
    if record.get("cost"):
        typed(_Cost, record["cost"], f"{where}.cost")
    for side in ("forget", "retain"):
        if side in record.get("evaluated", {}):
            typed(_Side, record["evaluated"][side], f"{where}.evaluated.{side}")
    return checked
