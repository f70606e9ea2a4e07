"""Checks of an objective's settings, made when it is built, and of what its `prepare` leaves behind."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeVar

from ec_hf.objectives.base import Objective

__all__ = ["not_negative", "positive", "prepared", "share", "whole"]

Value = TypeVar("Value")


def not_negative(objective: Objective, *names: str) -> None:
    """Refuse settings below 0, infinite or NaN."""
    _refuse(objective, names, lambda value: 0 <= value < math.inf, "0 or more")


def positive(objective: Objective, *names: str) -> None:
    """Refuse settings of 0 or below, infinite or NaN."""
    _refuse(objective, names, lambda value: 0 < value < math.inf, "a positive number")


def share(objective: Objective, *names: str) -> None:
    """Refuse settings outside 0 to 1."""
    _refuse(objective, names, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def whole(objective: Objective, *names: str) -> None:
    """Refuse settings that are no whole number from 1 on."""
    _refuse(objective, names, lambda value: isinstance(value, int) and value >= 1, "a whole number from 1")


def prepared(objective: Objective, value: Value | None) -> Value:
    """What `prepare` has left behind.

    Raises:
        RuntimeError: it was not called.
    """
    if value is None:
        raise RuntimeError(f"objective {objective.name!r}: call its prepare(setting) once before the first step")
    return value


def _refuse(objective: Objective, names: tuple[str, ...], allowed: Any, expected: str) -> None:
    for name in names:
        value = getattr(objective, name)
        if isinstance(value, bool) or not isinstance(value, Real) or not allowed(value):
            raise ValueError(f"{name} must be {expected}, got {value!r}")
