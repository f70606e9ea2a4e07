"""The area under the curve of a recovery attack: one number for what an attack brings back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from ec_hf.metrics.arrays import numbers, shares

__all__ = ["UNITS", "Unit", "area_weights", "attack_area"]

Unit = Literal["steps", "images a class", "bits", "sparsity"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""What an attack is made stronger by: steps of training, images to learn from, fewer bits, more weights set to 0."""


def area_weights(x: Sequence[float], unit: Unit) -> np.ndarray:
    """Weight of each point of a curve in its area: the trapezoid rule, divided by the length of the axis.

    The axis is `log(1 + x)` for steps and images, so that the first ten weigh as much as the next hundred; `log x` for
    bits, so that each halving weighs the same; and x itself for sparsity. A curve of one point has its value as area.

    Args:
        x: strengths of the attack from weak to strong: bits descend, all others ascend.
        unit: what x counts.

    Returns:
        `(points,)` weights, whose sum is 1.

    Raises:
        ValueError: no point, an unknown unit, or an x that is out of order or range.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}: expected one of {list(UNITS)}.")
    values = numbers(list(x), "x")
    least = 1 if unit == "bits" else 0
    way = -1 if unit == "bits" else 1
    if not len(values) or values.min() < least or not (way * np.diff(values) > 0).all():
        order = "descending" if unit == "bits" else "ascending"
        raise ValueError(f"x={list(x)}: expected one or more {unit} in {order} order, none below {least}.")
    if len(values) == 1:
        return np.ones(1)
    place = values if unit == "sparsity" else np.log(values) if unit == "bits" else np.log1p(values)
    widths = np.abs(np.diff(place))
    return (np.append(widths, 0) + np.insert(widths, 0, 0)) / (2 * widths.sum())


def attack_area(x: Sequence[float], accuracy: Sequence[float], unit: Unit) -> float:
    """Area under the curve of an attack, the mean of forget accuracy over the strengths of the attack.

    From 0 (nothing comes back) to 1 (all is back at once). Compare areas of equal x and settings: that of an unlearned
    model less that of a retrained one is the area between their curves.

    Args:
        x: strengths of the attack from weak to strong, as for `area_weights`.
        accuracy: forget accuracy at each of them.
        unit: what x counts.

    Raises:
        ValueError: as `area_weights`, not as many accuracies as strengths, or one outside 0..1.
    """
    weights, values = area_weights(x, unit), shares(list(accuracy), "accuracy")
    if len(weights) != len(values):
        raise ValueError(f"there are {len(weights)} strengths and {len(values)} accuracies: expected one for each.")
    return float(weights @ values)
