"""Weights of the supervision points by depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["LAYER_WEIGHTS", "layer_weights"]

LAYER_WEIGHTS: dict[str, Callable[[int], list[float]]] = {
    "uniform": lambda count: [1.0] * count,
    "deeper": lambda count: [2 * k / (count + 1) for k in range(1, count + 1)],
    "earlier": lambda count: [2 * k / (count + 1) for k in range(count, 0, -1)],
}
"""Named schedules of weights over supervision points, shallowest first, each of mean 1."""


def layer_weights(schedule: str | Sequence[float], count: int) -> list[float]:
    """Weights of the supervision points, shallowest first.

    Args:
        schedule: "uniform"; "deeper", growing linearly as 1/L … 1; "earlier", its reverse; these are scaled to a mean
            of 1, so that a schedule moves the weight and does not change how much there is. Or the weights
            themselves, taken as they are.
        count: number of supervision points, L.

    Raises:
        ValueError: unknown schedule, or a list of another length, with a negative or non-finite entry, or all zero.
    """
    if isinstance(schedule, str):
        if schedule not in LAYER_WEIGHTS:
            raise ValueError(
                f"unknown layer weight schedule {schedule!r}: choose one of {', '.join(LAYER_WEIGHTS)}, "
                f"or give a list of {count} numbers"
            )
        return LAYER_WEIGHTS[schedule](count)
    weights = [float(weight) for weight in schedule]
    if len(weights) != count:
        raise ValueError(
            f"layer weights must hold one number for each of the {count} supervision points, shallowest first; "
            f"got {len(weights)}: {weights}"
        )
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(
            f"layer weights must be finite, not negative and not all zero, got {weights}; "
            "a weight of 0 leaves a point out"
        )
    return weights
