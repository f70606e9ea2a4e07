"""Residual knowledge: does a model name forgotten images again after a change too small to see?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.question import Question, drawn_evenly
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import spread

__all__ = ["RADII", "ResidualKnowledge", "named_at_random", "named_by_search", "residual_areas", "residual_knowledge"]

RADII = (0.03, 0.06, 0.12)
"""In units of the pixels that a model takes, after normalisation: with mean and deviation 0.5 black is -1, white is 1,
and 0.06 is 8 of 255 levels."""
IMAGES, DRAWS, STEPS = 64, 8, 5
HOW = ("random changes", "searched changes")

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ResidualKnowledge:
    """What models name around forgotten images.

    Attributes:
        how: "random changes" or "searched changes".
        radius: largest change of a pixel value, after normalisation.
        split: of the images.
        named: model -> `(n,)` share of the points around each image that get its label; NaN where outputs are not
            finite.
    """

    how: str
    radius: float
    split: str
    named: Mapping[str, np.ndarray]


def residual_knowledge(question: Question, subjects: Mapping[str, Subject], split: str) -> list[ResidualKnowledge]:
    """Changes up to 64 forgotten images a little, at random and by search, and asks all models for their labels.

    The definition of Hsu et al. 2026 (arXiv 2601.22359) holds the chance that an unlearned model names a random point
    near a forgotten image against that of a retrained model. So do the random changes here, which are the same for all
    models. The search is what an attacker with the weights would do: a few gradient steps towards the label. Each
    model is searched in its own way, the retrained ones too: what was found on one model seldom holds on another,
    which would make any model look worse than the retrained ones.

    Args:
        question: what is asked.
        subjects: the models by name, in evaluation mode.
        split: of the forgotten images.

    Returns:
        Both kinds of change at each of `RADII`; none without a forgotten image.
    """
    chosen = drawn_evenly(IMAGES, question.labels[split], question.seed)
    if not len(chosen):
        return []
    images = question.splits[split].select(chosen)
    labels = torch.from_numpy(question.labels[split][chosen])
    names = question.trained
    jobs = [
        partial(_of_model, subjects[name], images, labels, question.settings.batch_size, question.seed)
        for name in names
    ]
    found = dict(zip(names, spread(jobs), strict=True))
    return [
        ResidualKnowledge(how, radius, split, {name: each[how, radius] for name, each in found.items()})
        for how in HOW
        for radius in RADII
    ]


def residual_areas(found: Sequence[ResidualKnowledge], question: Question) -> list[Measurement]:
    """The share of points around forgotten images that get their label, by kind of change, radius and model.

    Args:
        found: of `residual_knowledge`.
        question: what is asked.
    """
    chance = 1 / len(question.class_names)
    return [
        mean_over_images(
            "residual_knowledge",
            model,
            named,
            question.seed,
            split=each.split,
            chance=chance if each.how == HOW[0] else None,
            note=f"{each.how} of up to {each.radius:g}",
        )
        for each in found
        for model, named in each.named.items()
    ]


@torch.no_grad()
def named_at_random(
    forward: Forward, pixels: Tensor, labels: Tensor, radius: float, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """`(n,)` share of random points around each image that get its label; NaN where outputs are not finite.

    Args:
        forward: from pixels to logits.
        pixels: `(n, channels, height, width)`, after normalisation.
        labels: `(n,)` label ids.
        radius: changes are uniform in `[-radius, radius]` for each value.
        draws: points an image.
        seed: of the changes, which for one shape and seed are the same up to the radius.
    """
    generator = torch.Generator().manual_seed(seed)
    hits = torch.zeros(len(pixels))
    for _ in range(draws):
        change = 2 * torch.rand(pixels.shape, generator=generator) - 1
        hits += _hits(forward(pixels + radius * change.to(pixels)), labels)
    return (hits / draws).numpy()


def named_by_search(
    forward: Forward, pixels: Tensor, labels: Tensor, radius: float, *, steps: int = STEPS
) -> np.ndarray:
    """`(n,)`, 1 where a few gradient steps find a point near the image that gets its label; NaN as in the random case.

    Steps of `2.5 radius / steps` along the sign of the gradient that lowers the loss of the label, cut to the radius
    (projected gradient descent, Madry et al. 2018, arXiv 1706.06083, towards the label). The image itself counts.

    Args:
        forward: from pixels to logits, differentiable.
        pixels: `(n, channels, height, width)`, after normalisation.
        labels: `(n,)` label ids.
        radius: largest change of a value.
        steps: number of steps.
    """
    change = torch.zeros_like(pixels)
    found = torch.zeros(len(pixels))
    for step in range(steps + 1):
        with torch.enable_grad():
            change.requires_grad_(True)
            logits = forward(pixels + change)
            found = torch.maximum(found, _hits(logits.detach(), labels))
            if step == steps:
                break
            loss = F.cross_entropy(logits.float(), labels.to(logits.device), reduction="sum")
            (slope,) = torch.autograd.grad(loss, change)
        with torch.no_grad():
            change = (change - 2.5 * radius / steps * slope.nan_to_num().sign()).clamp(-radius, radius)
    return found.numpy()


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    hits = (logits.argmax(-1).cpu() == labels).float()
    return hits.masked_fill(~torch.isfinite(logits).all(-1).cpu(), torch.nan)


def _of_model(
    subject: Subject, images: Sequence[Mapping], labels: Tensor, batch_size: int, seed: int
) -> dict[tuple[str, float], np.ndarray]:
    """Kind of change and radius -> what is named of each image."""
    model = subject.model
    parts: dict[tuple[str, float], list[np.ndarray]] = {(how, radius): [] for how in HOW for radius in RADII}

    def forward(pixels: Tensor) -> Tensor:
        return model(pixel_values=pixels).logits

    for start in range(0, len(images), batch_size):
        rows = range(start, min(start + batch_size, len(images)))
        pixels = subject.collator([images[row] for row in rows])["pixel_values"].to(model.device, model.dtype)
        asked = labels[start : start + batch_size]
        for radius in RADII:
            parts[HOW[0], radius].append(named_at_random(forward, pixels, asked, radius, seed=seed + start))
            parts[HOW[1], radius].append(named_by_search(forward, pixels, asked, radius))
    return {key: np.concatenate(own) for key, own in parts.items()}
