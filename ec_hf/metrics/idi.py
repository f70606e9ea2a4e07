"""Information that features hold about who was forgotten: IDI, and a relative of it that needs no retrained model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ec_hf.metrics.arrays import Array, as_tensor, matrix, numbers, shares

__all__ = ["idi", "infonce", "probe_advantage"]

LEAST_SPAN = 0.05  # of the original above the floor: below it, a ratio to it is noise


def infonce(
    features: Array,
    is_forget: Array,
    *,
    trials: int = 5,
    steps: int = 200,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    limit: int = 1000,
    seed: int = 0,
) -> float:
    r"""InfoNCE lower bound of `I(Z; Y)` in nats, between one layer's features Z and Y = whether an image is to forget.

        I(Z; Y) ≥ E[ log exp f(z_i)·g(y_i) / (1/n Σ_j exp f(z_i)·g(y_j)) ]

    with a trained critic f and one trained vector g(y) for either value of Y (Jeon et al. 2024, arXiv 2405.17878;
    the bound: van den Oord et al. 2018, arXiv 1807.03748). There f is a copy of the layers above Z. Here it is a
    small MLP (128 hidden units, 32 outputs) on pooled, standardised features: cheaper by far, the same for every
    architecture, and blind to what only the upper layers could decode; compare values of this function with each other
    only. Both values of Y are drawn equally often, so the bound ends at H(Y) = ln 2.

    In each trial a random half of the images trains the critic, a quarter tells when to stop and the last quarter
    gives the value: on images that the critic was trained on the bound would not hold. The mean of the trials is
    returned, and 0 where it is negative, for a negative lower bound says nothing.

    Args:
        features: `(n, p)`, pooled.
        is_forget: `(n,)` booleans or 0/1.
        trials: Critics, each with its own draw of images, split and start.
        steps: Most steps of Adam.
        batch_size: Images a step.
        learning_rate: Learning rate of Adam.
        limit: Images of each value of Y that are used, at most; as many of the one as of the other.
        seed: Seed of all random draws.

    Raises:
        ValueError: Fewer than 8 images of either value of Y, or shapes that do not fit.
    """
    x = matrix(features, "features").cpu()
    y = as_tensor(is_forget).cpu()
    if y.shape != (len(x),) or not torch.isin(y.double(), torch.tensor([0.0, 1.0]).double()).all():
        raise ValueError(f"is_forget has shape {tuple(y.shape)}: expected one boolean for each of {len(x)} images.")
    sides = [torch.nonzero(y.bool() == side).flatten() for side in (False, True)]
    count = min(limit, *map(len, sides))
    if count < 8 or trials < 1:
        raise ValueError(f"{count} images of each value of Y and {trials} trials: expected at least 8 and 1.")
    x = ((x - x.mean(0)) / x.std(0).clamp_min(1e-12)).float()
    values = []
    with torch.random.fork_rng(devices=[]):
        for trial in range(trials):
            torch.manual_seed(seed * 1_000_003 + trial)
            drawn = [side[torch.randperm(len(side))[:count]] for side in sides]
            cuts = [count // 2, count // 4, count - count // 2 - count // 4]
            train, stop, test = (
                (x[torch.cat(part)], torch.arange(2).repeat_interleave(len(part[0])))
                for part in zip(*(side.split(cuts) for side in drawn), strict=True)
            )
            values.append(_trial(train, stop, test, steps, batch_size, learning_rate))
    return min(max(float(np.mean(values)), 0.0), math.log(2))


def idi(unlearned: Sequence[float], retrained: Sequence[float], original: Sequence[float]) -> float:
    """Information difference index: `Σ (I_unlearned - I_retrained) / Σ (I_original - I_retrained)` over layers.

    0: features tell the forgotten images as well as the retrained model's do; 1: as well as the original's; negative:
    less than either, over-erased (Jeon et al. 2024, arXiv 2405.17878).

    Args:
        unlearned: `infonce` of each layer of the unlearned model.
        retrained: The same of the retrained model.
        original: The same of the original model.

    Raises:
        ValueError: Not as many layers of each, or an original that differs from the retrained model by less than 0.05
            nats over all layers: the index would be a ratio of two errors.
    """
    return _ratio([numbers(list(each), "nats") for each in (unlearned, retrained, original)], "nats")


def probe_advantage(unlearned: Sequence[float], floor: Sequence[float], original: Sequence[float]) -> float:
    """`Σ (unlearned - floor) / Σ (original - floor)` of probe accuracies on the forgotten classes, over layers.

    As IDI, with linear probes for the information and any floor for the retrained model: a model of random weights
    (0 is then below the retrained model, for retain images teach features that serve forgotten classes too), or the
    retrained one. 0 is as the floor, 1 as the original. The advantage of one layer is its accuracy minus the floor's.

    Args:
        unlearned: `linear_probe` of each layer of the unlearned model.
        floor: `linear_probe` of each layer of the model that is the floor.
        original: `linear_probe` of each layer of the original model.

    Raises:
        ValueError: Not as many layers of each, an accuracy outside 0..1, or an original that is above the floor by
            less than 0.05 summed over all layers.
    """
    return _ratio([shares(list(each), "accuracies") for each in (unlearned, floor, original)], "of accuracy")


def _ratio(layers: list[np.ndarray], unit: str) -> float:
    ours, floor, original = layers
    if not len(ours) == len(floor) == len(original):
        raise ValueError(
            f"{len(ours)}, {len(floor)} and {len(original)} layers: expected the same layers of each model."
        )
    span = float((original - floor).sum())
    if span < LEAST_SPAN:
        raise ValueError(
            f"The original is only {span:.3f} {unit} above the floor, summed over {len(ours)} layers: the ratio would "
            "be noise. Give more images, or leave it out."
        )
    return float((ours - floor).sum()) / span


def _trial(
    train: tuple[Tensor, Tensor],
    stop: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> float:
    """The bound on `test` of a critic trained on `train` until it was best on `stop`."""
    critic = nn.Sequential(nn.Linear(train[0].shape[1], 128), nn.ReLU(), nn.Linear(128, 32))
    vectors = nn.Parameter(torch.randn(2, 32) / 32**0.5)
    optimizer = torch.optim.Adam([*critic.parameters(), vectors], lr=learning_rate, weight_decay=1e-4)

    def bound(z: Tensor, y: Tensor) -> Tensor:
        scores, counts = critic(z) @ vectors.T, torch.bincount(y, minlength=2)
        own = scores.gather(1, y[:, None]).squeeze(1)
        return (own - (scores + counts.log()).logsumexp(1)).mean() + math.log(len(y))  # all j of one y score alike

    best, value = -math.inf, 0.0
    for step in range(steps + 1):
        if step % 10 == 0:
            with torch.no_grad():
                on_stop = bound(*stop).item()
                if on_stop > best:
                    best, value = on_stop, bound(*test).item()
        batch = torch.randperm(len(train[0]))[:batch_size]
        optimizer.zero_grad()
        (-bound(train[0][batch], train[1][batch])).backward()
        optimizer.step()
    return value
