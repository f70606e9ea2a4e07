"""JSON values that a stranger wrote, checked against the types that they should have."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

__all__ = ["typed"]


def typed(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as an instance of a type; of a number for a float field, that number as a float.

    Args:
        kind: a dataclass, a `TypedDict` (keys beyond its own are kept as they are), or str, int, float, bool, Any,
            None, and `list`, `dict`, `Literal` and unions of these.
        value: what `json.loads` gave.
        where: what the value is called in messages.

    Raises:
        ValueError: the value, or one inside it, has another type, is not finite or is beyond the range of its type; a
            key is missing or unknown. The message names its place.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) or is_typeddict(kind):
        return _object(kind, value, where)
    if origin is list and isinstance(value, list):
        return [typed(get_args(kind)[0], entry, f"{where}[{number}]") for number, entry in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {key: typed(get_args(kind)[1], entry, f"{where}[{_short(key)}]") for key, entry in value.items()}
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, where)
    if origin is Literal:
        fits = isinstance(value, str) and value in get_args(kind)
    elif kind is float:
        return _number(value, where)
    else:
        fits = type(value) is (type(None) if kind is None else kind)
    if not fits:
        raise ValueError(f"{where} is {_short(value)}: expected {_name(kind)}")
    return value


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_short(value)}: expected an object")
    hints = get_type_hints(kind)
    required = kind.__required_keys__ if is_typeddict(kind) else _required(kind)
    if missing := sorted(required - set(value)):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    unknown = {key: entry for key, entry in value.items() if key not in hints}
    if unknown and not is_typeddict(kind):
        raise ValueError(f"unknown keys in {where}: {', '.join(map(_short, sorted(unknown)[:5]))}")
    known = {key: typed(hints[key], entry, f"{where}.{key}") for key, entry in value.items() if key in hints}
    return {**unknown, **known} if is_typeddict(kind) else kind(**known)


def _required(kind: Any) -> set[str]:
    return {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value of one of several types; where it may only be missing, the message is that of the one type."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return typed(kind, value, where)
        except ValueError:
            continue
    return typed(others[-1], value, where)


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{where} is {_short(value)}: expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where} is {_short(value)}: expected a finite number")
    return number


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    words = {str: "a text", int: "a whole number", bool: "true or false", None: "null", type(None): "null"}
    return words.get(kind) or {list: "a list", dict: "an object"}.get(get_origin(kind), getattr(kind, "__name__", "?"))


def _short(value: Any, limit: int = 60) -> str:
    """The value for a message, cut to one short line; whole numbers of a thousand digits cannot be written out."""
    if isinstance(value, int) and abs(value) >= 10**limit:
        return "a number of many digits"
    if isinstance(value, (list, Mapping)):
        return f"a{' list' if isinstance(value, list) else 'n object'} of {len(value)}"
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[:limit]}..."
