"""Weights of the supervision points by depth, and of the host objective beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["LAYER_WEIGHTS", "PointWeights", "layer_weights"]

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


@dataclass(frozen=True)
class PointWeights:
    """What multiplies the host objective, and what multiplies EC's terms at each supervision point.

    Attributes:
        host: weight of the host objective.
        points: weight of EC's terms at each point, shallowest first; 0 leaves a point out.
        host_is_last_point: the host objective is the loss of the last point, so EC's terms there have the weight 0.
    """

    host: float
    points: tuple[float, ...]
    host_is_last_point: bool = False

    @classmethod
    def of(
        cls, schedule: str | Sequence[float], ec_weight: float, count: int, *, host_is_last_point: bool = False
    ) -> PointWeights:
        """The weights that settings stand for.

        Args:
            schedule: as for `layer_weights`.
            ec_weight: ω, which multiplies EC's terms at every point, and never the host objective.
            count: number of supervision points; without any, the host objective is alone and has the weight 1.
            host_is_last_point: the host objective takes the place of EC at the last point, and has its weight.

        Raises:
            ValueError: as `layer_weights`.
        """
        weights = layer_weights(schedule, count) if count else []
        if not host_is_last_point:
            return cls(1.0, tuple(ec_weight * weight for weight in weights))
        return cls(weights[-1], (*(ec_weight * weight for weight in weights[:-1]), 0.0), host_is_last_point=True)

    @property
    def by_point(self) -> tuple[float, ...]:
        """The weight of whatever stands at each point: EC's terms, or the host objective in their place."""
        return (*self.points[:-1], self.host) if self.host_is_last_point else self.points
