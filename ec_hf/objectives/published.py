"""Training settings that published runs share, for `Objective.published`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["adam", "sgd"]

PLAIN = {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "forget_target": -1.0}
"""The learning rate stays as it is, gradients are not clipped, and the run goes on to its end."""


def sgd(learning_rate: float, *, momentum: float = 0.9, weight_decay: float = 0.0, **rest: Any) -> Mapping[str, Any]:
    """Settings of a run with stochastic gradient descent, `rest` what else it sets."""
    heavy = {"optim_args": f"momentum={momentum}"} if momentum else {}
    return {
        **PLAIN,
        "optim": "sgd",
        **heavy,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        **rest,
    }


def adam(learning_rate: float, **rest: Any) -> Mapping[str, Any]:
    """Settings of a run with Adam, which is AdamW without weight decay."""
    return {**PLAIN, "optim": "adamw_torch", "learning_rate": learning_rate, "weight_decay": 0.0, **rest}
