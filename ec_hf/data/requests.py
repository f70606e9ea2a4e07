"""What must be forgotten, as a value: it goes to JSON and back, has a stable hash and reads as a sentence."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["ForgetRequest"]

CLAUSES = ("in", "equals", "between")


@dataclass(frozen=True, eq=False)
class ForgetRequest:
    """Names the rows of a dataset that must be forgotten; a row is forgotten when any part names it.

    Each part is sorted and loses its duplicates, so that two requests that name the same things are equal and have the
    same hash. The number 3 and the text "3" are different entries. Sequences, arrays and sets are accepted.

    Args:
        classes: class names (str) or label ids (int).
        rows: row indices, counted from 0, of the dataset that the request is applied to.
        ids: column -> values; every row that carries one of the values is forgotten.
        where: column filters, each `{"column": c, "in": [...]}`, `{"column": c, "equals": v}` or
            `{"column": c, "between": [low, high]}` (both ends included).

    Raises:
        TypeError: a part or an entry has the wrong type.
        ValueError: the request is empty, has an unknown key, or has a filter that cannot be read.

    Example:
        >>> request = ForgetRequest(classes=["cat", "dog"]) | ForgetRequest(ids={"patient": [17]})
        >>> request.summary()
        "Forget the classes 'cat', 'dog'; every row whose 'patient' is the named value."
    """

    classes: Sequence[int | str] = ()
    rows: Sequence[int] = ()
    ids: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    where: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        rows = _entries("rows", self.rows, (int,))
        if rows and rows[0] < 0:
            raise ValueError(f"rows holds {rows[0]}: rows are counted from 0")
        if not isinstance(self.ids, Mapping):
            raise TypeError(f"ids must map a column to its values, as in {{'image_id': [3, 7]}}, got {self.ids!r}")
        ids = {column: _entries(f"ids[{column!r}]", values, (int, str)) for column, values in self.ids.items()}
        if bad := [column for column in ids if not isinstance(column, str) or not ids[column]]:
            raise ValueError(f"ids[{bad[0]!r}] must map a column name to at least one value, got {self.ids[bad[0]]!r}")
        clauses = [_clause(clause) for clause in _listed("where", self.where)]
        normal = {
            "classes": _entries("classes", self.classes, (int, str)),
            "rows": rows,
            "ids": MappingProxyType(dict(sorted(ids.items()))),  # what is hashed cannot change
            "where": tuple(MappingProxyType(clause) for _, clause in sorted({_json(c): c for c in clauses}.items())),
        }
        if not any(normal.values()):
            raise ValueError("the request is empty: name at least one of classes, rows, ids, where")
        for name, value in normal.items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForgetRequest) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForgetRequest.from_dict, (self.to_dict(),)

    def __or__(self, other: ForgetRequest) -> ForgetRequest:
        """The union: forgets what either request forgets."""
        if not isinstance(other, ForgetRequest):
            return NotImplemented
        columns = {*self.ids, *other.ids}
        return ForgetRequest(
            classes=(*self.classes, *other.classes),
            rows=(*self.rows, *other.rows),
            ids={column: (*self.ids.get(column, ()), *other.ids.get(column, ())) for column in columns},
            where=(*self.where, *other.where),
        )

    def without_rows(self) -> ForgetRequest | None:
        """The request without its rows, for another dataset, such as the test split; None if it names only rows."""
        return replace(self, rows=()) if self.classes or self.ids or self.where else None

    @cached_property
    def content_hash(self) -> str:
        """Sha256 (hex) of `to_dict()` as JSON: keys sorted, no spaces, ASCII escapes.

        It depends neither on the order nor on duplicates of the entries, nor on the process or the Python version.
        """
        return hashlib.sha256(_json(self.to_dict()).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The parts that are not empty, as JSON types."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: _to_json_types(value) for name, value in parts.items() if value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ForgetRequest:
        """Build a request from `to_dict()` or from hand-written JSON.

        Raises:
            TypeError: `data` is no mapping, or a part has the wrong type.
            ValueError: `data` has unknown keys, or the constructor refuses a part.
        """
        known = [part.name for part in fields(cls)]
        if not isinstance(data, Mapping):
            raise TypeError(f"a forget request is an object with the keys {known}, got {type(data).__name__}")
        if unknown := [key for key in data if key not in known]:
            raise ValueError(f"unknown keys in the forget request: {unknown}; the keys are {known}")
        return cls(**data)

    def save(self, path: str | Path) -> None:
        """Write the request as JSON to a new file; a file that holds this very request is left as it is.

        Raises:
            FileExistsError: the file holds anything else.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with beside.open("x", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(beside, path)  # whole or not at all, and two processes cannot both make the file
        except FileExistsError:
            if not _holds(path, self):
                raise FileExistsError(
                    f"{path} already holds something other than this request; choose another path or delete it first"
                ) from None
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> ForgetRequest:
        """Read a request from a JSON file.

        Raises:
            ValueError: the file holds no JSON, or no valid request; the message names the file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_dict(json.loads(text, object_pairs_hook=_without_duplicates))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no forget request: {error}") from error

    def summary(self) -> str:
        """One sentence for people. Values of `ids` are counted, never shown: they may name persons."""
        parts = []
        if self.classes:
            parts.append(f"the {'class' if len(self.classes) == 1 else 'classes'} {_few(self.classes, 10)}")
        if self.rows:
            parts.append(f"the {'row' if len(self.rows) == 1 else 'rows'} {_few(self.rows, 5)}")
        for column, values in self.ids.items():
            named = "the named value" if len(values) == 1 else f"one of {len(values)} named values"
            parts.append(f"every row whose {column!r} is {named}")
        parts.extend(f"every row whose {_clause_text(clause)}" for clause in self.where)
        return f"Forget {'; '.join(parts)}."


def _listed(name: str, values: Any) -> Iterable[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list, got {values!r}; write [{values!r}]")
    return values


def _scalar(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)  # JSON writers differ on 3.0 and 3; the hash must not
    if type(value) not in kinds:
        raise TypeError(f"{name} takes {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} holds {value}, which JSON cannot carry: give a finite number")
    return value


def _entries(name: str, values: Any, kinds: tuple[type, ...]) -> tuple[Any, ...]:
    scalars = (_scalar(name, value, kinds) for value in _listed(name, values))
    # By type first: True, 1 and "1" are different entries, and text does not compare with numbers.
    return tuple(value for _, value in sorted({(type(value).__name__, value) for value in scalars}))


def _clause(clause: Any) -> dict[str, Any]:
    if not isinstance(clause, Mapping):
        raise TypeError(f"a where filter is an object such as {{'column': 'age', 'between': [0, 9]}}, got {clause!r}")
    column, keys = clause.get("column"), [key for key in clause if key != "column"]
    if not isinstance(column, str) or len(keys) != 1 or keys[0] not in CLAUSES:
        raise ValueError(f"a where filter has the key 'column' and one of {CLAUSES}, got {dict(clause)!r}")
    key, name, kinds = keys[0], f"where {column!r} {keys[0]}", (bool, int, float, str)
    if key == "equals":
        return {"column": column, key: _scalar(name, clause[key], kinds)}
    if key == "in":
        values = _entries(name, clause[key], kinds)
        if not values:
            raise ValueError(f"{name} is an empty list: name at least one value")
        return {"column": column, key: values}
    bounds = tuple(_scalar(name, bound, (int, float, str)) for bound in _listed(name, clause[key]))
    if len(bounds) != 2 or isinstance(bounds[0], str) != isinstance(bounds[1], str) or bounds[0] > bounds[1]:
        raise ValueError(f"{name} needs [low, high] with low <= high, both numbers or both text, got {list(bounds)}")
    return {"column": column, key: bounds}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _to_json_types(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_json_types(entry) for key, entry in value.items()}
    return [_to_json_types(entry) for entry in value] if isinstance(value, tuple) else value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The entries of a JSON object, of which a parser would keep the last one of each key without a word."""
    keys = [key for key, _ in pairs]
    if double := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"the key {double[0]!r} stands twice in one object")
    return dict(pairs)


def _holds(path: Path, request: ForgetRequest) -> bool:
    try:
        return ForgetRequest.load(path) == request
    except (OSError, ValueError):
        return False


def _few(values: Sequence[Any], limit: int) -> str:
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"


def _clause_text(clause: Mapping[str, Any]) -> str:
    if "between" in clause:
        low, high = clause["between"]
        return f"{clause['column']!r} lies between {low!r} and {high!r}"
    if "equals" in clause:
        return f"{clause['column']!r} is {clause['equals']!r}"
    return f"{clause['column']!r} is one of {_few(clause['in'], 5)}"
