"""A peak learning rate by a range test, for networks of which nobody says at what rate they were trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STEPS", "batch_for", "rate_of", "tried_rates"]

LOWEST, HIGHEST = 1e-5, 1e-1
STEPS, LEAST_BATCH, CLASSES_AN_IMAGE = 100, 8, 16
"""Many small steps tell more than few large ones, but with many classes too small a step tells nothing: with 345
classes steps of 8 images found a rate at which the run came back less far (`recipes/results/README.md`)."""
SMOOTHING = 0.9
TOO_FAR = 1.5
"""Times the least loss at which the test has seen enough."""
BELOW_LEAST = 4
BELOW_LEAST_ANEW = 2
"""How far below the rate of the least loss, at which steps already do harm, the peak of a schedule is best: less far
for new weights than for trained ones (`recipes/benchmarks/learning_rate.py`)."""


def batch_for(classes: int, most: int) -> int:
    """Images a step of a range test.

    Args:
        classes: number of classes of the model.
        most: images a step of the run.
    """
    return min(max(LEAST_BATCH, classes // CLASSES_AN_IMAGE), max(most, LEAST_BATCH))


def tried_rates(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: Callable[[float], torch.optim.Optimizer],
    steps: int = STEPS,
) -> list[tuple[float, float]]:
    """Train at a rate that rises at each step, and put the model back.

    Args:
        model: a classifier; weights, buffers and mode are as before when this returns.
        batches: images (n, channels, height, width) and labels (n,), at most `steps` of them are used.
        optimizer: makes the optimiser of the model's parameters at a rate.
        steps: steps from the lowest to the highest rate.

    Returns:
        (rate, smoothed cross-entropy) of each step, up to where the loss has risen far above its least or is no
        number.

    Source: the range test of *Cyclical Learning Rates for Training Neural Networks* (arXiv 1506.01186, section 3.3).
    """
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    was_training = model.training
    model.train()
    trained, tried = optimizer(LOWEST), []
    total, least = 0.0, math.inf
    try:
        for step, (pixel_values, labels) in enumerate(batches):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
            for group in trained.param_groups:
                group["lr"] = rate
            loss = F.cross_entropy(model(pixel_values=pixel_values).logits.float(), labels)
            trained.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            trained.step()
            total = SMOOTHING * total + (1 - SMOOTHING) * loss.item()
            smooth = total / (1 - SMOOTHING ** (step + 1))
            tried.append((rate, smooth))
            least = min(least, smooth)
            if math.isnan(smooth) or (step > steps // 4 and smooth > TOO_FAR * least) or step + 1 == steps:
                break
    finally:
        model.zero_grad(set_to_none=True)
        model.load_state_dict(before)
        model.train(was_training)
    return tried


def rate_of(tried: Sequence[tuple[float, float]], *, new_weights: bool = False) -> float:
    """A quarter of the rate at which the loss was least, to two digits; with new weights a half of it.

    Args:
        tried: what `tried_rates` gave.
        new_weights: whether a part of the network had random weights.

    Raises:
        ValueError: the loss was never a number.
    """
    told = [(loss, rate) for rate, loss in tried if math.isfinite(loss)]
    if not told:
        raise ValueError("learning_rate: the loss was no number at any rate that was tried. Name a learning_rate.")
    return float(f"{min(told)[1] / (BELOW_LEAST_ANEW if new_weights else BELOW_LEAST):.1e}")
