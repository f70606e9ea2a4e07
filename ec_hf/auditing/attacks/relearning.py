"""Relearning: a few steps of training on a few forget images bring back what was only hidden."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.adapter import RANK, add_adapters
from ec_hf.auditing.attacks.base import BATCH, Attack, AttackImages, Outcome
from ec_hf.auditing.attacks.fitting import endless_batches, hits_on, logits_of, train
from ec_hf.auditing.report import AttackCurve
from ec_hf.auditing.subjects import Subject
from ec_hf.models.points import describe_hidden_states, hidden_state_kwargs, image_shape, take
from ec_hf.models.trial import trial_images

__all__ = ["STEPS", "Relearning", "head_parameters", "relearn"]

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
LEARNING_RATES = {"head": 1e-2, "full": 1e-4, "lora": 1e-3}
IMAGES = 48


@dataclass(frozen=True)
class Relearning(Attack):
    """Fine-tunes a copy on a few forget images among as many retain images.

    By steps it learns from about 48 forget images. By images a class it takes 64 steps on so many of each class.

    Args:
        mode: "head" for the parameters after the last hidden state, "full" for all, "lora" for low-rank adapters.
        unit: "steps" or "images a class".
        level: "quick" or "full".
    """

    mode: str
    unit: Literal["steps", "images a class"]
    level: Literal["quick", "full"] = "full"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        model, collator, tests = subject.model, subject.collator, images.tests(subject.collator)
        if self.unit == "steps":
            sample = images.few(IMAGES)
            hits, settings = relearnt(model, sample, tests, collator, mode=self.mode, steps=STEPS, seed=images.seed)
            return Outcome(STEPS, hits, self.unit, settings)
        found = [
            relearnt(
                model, images.of_each_class(shots), tests, collator, mode=self.mode, steps=STEPS[-1:], seed=images.seed
            )
            for shots in images.shots
        ]
        settings = {**found[-1][1], "steps": STEPS[-1]}
        return Outcome(images.shots, np.concatenate([hits for hits, _ in found]), self.unit, settings)


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that logits depend on and the last hidden state does not: all that comes after it.

    Found by differentiation, so it holds for any architecture: the classifier, with the norm (ViT, Swin, DINOv2) or
    the last convolution (MobileNetV2, EfficientNet) that a model has between its last hidden state and the classifier.

    Raises:
        ValueError: if there are none.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    try:
        point = describe_hidden_states(model)[-1]
    except (TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{type(model).__name__} returns no hidden states that its head could follow") from error
    output = model(pixel_values=trial_images(model, image_shape(model)), **hidden_state_kwargs(model))
    parameters = dict(model.named_parameters())
    tensors = list(parameters.values())

    def reached(result: Tensor) -> set[str]:
        slopes = torch.autograd.grad(result.float().sum(), tensors, allow_unused=True, retain_graph=True)
        return {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}

    after = reached(output.logits) - reached(take(output.hidden_states, point))
    if not after:
        raise ValueError(
            f'{type(model).__name__} has no parameters after its last hidden state: relearn with mode="full"'
        )
    return [name for name in parameters if name in after]


def relearn(
    model: PreTrainedModel,
    sample: Any,
    held_out: Any,
    collator: Callable[[list[Any]], dict[str, Tensor]],
    *,
    mode: str = "head",
    steps: Sequence[int] = STEPS,
    learning_rate: float | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    name: str = "model",
) -> AttackCurve:
    """Accuracy on held-out forget images while a copy of the model is fine-tuned on a small sample.

    AdamW without weight decay on the cross-entropy. The copy stays in evaluation mode: no dropout, and batch norm
    keeps its running statistics, so that a run depends on nothing but the seed. A sample of forgotten classes alone
    also teaches a model to answer nothing else, whatever it sees; with as many retain images beside them it must tell
    them apart. Compare curves of equal settings, best with that of the retrained model.

    Args:
        model: an image classifier; it stays as it is.
        sample: map-style dataset to fine-tune on: a few forget images, and retain images if they are to be told apart.
        held_out: map-style dataset of other forget images.
        collator: makes ``pixel_values`` and ``labels`` (the model's label ids) of their rows.
        mode: "head" for the parameters after the last hidden state (see `head_parameters`), "full" for all, "lora" for
            a low-rank adapter beside each linear layer and convolution (see `ec_hf.auditing.attacks.adapter`).
        steps: after which optimiser steps accuracy is measured, ascending from 0.
        learning_rate: 1e-2 for "head", 1e-4 for "full" and 1e-3 for "lora" if left out.
        batch_size: images a step; at most the whole sample.
        seed: seed of the order of the sample and of the adapters.
        name: name of the model in the report.

    Raises:
        ValueError: for an empty dataset, another mode, steps that do not ascend from 0, a model whose labels do not
            reach those of the images (a class that was dropped cannot be relearnt), or a loss that is not finite
            (a class whose logit was masked).
    """
    steps = [int(step) for step in steps]
    _check(mode, steps, batch_size, sample, held_out)
    tests = list(DataLoader(held_out, batch_size=batch_size, collate_fn=collator))
    chosen: dict[str, Any] = {"learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    try:
        hits, settings = relearnt(model, sample, tests, collator, mode=mode, steps=steps, **chosen)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    settings["held_out"] = len(held_out)
    accuracy = hits.mean(axis=1).tolist()
    return AttackCurve(f"relearn_{mode}", name, "steps", x=list(steps), accuracy=accuracy, settings=settings)


def relearnt(
    model: PreTrainedModel,
    sample: Any,
    tests: Sequence[dict[str, Tensor]],
    collator: Callable[[list[Any]], dict[str, Tensor]],
    *,
    mode: str,
    steps: Sequence[int],
    learning_rate: float | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Which of the held-out images a copy of a model gets right after some steps; see `relearn` for the arguments.

    Args:
        model: an image classifier.
        sample: what to fine-tune on.
        tests: batches of the held-out images.
        collator: of the sample.
        mode: what is trained.
        steps: ascending; from 1 on, or with 0 for the model as it is.
        learning_rate: of AdamW.
        batch_size: images a step.
        seed: of all draws.

    Returns:
        `(steps, images)` booleans, and the settings of the run.
    """
    learning_rate = LEARNING_RATES[mode] if learning_rate is None else learning_rate
    model = copy.deepcopy(model).eval()
    trained = _trained(model, mode, seed)
    classify, hits = logits_of(model), []
    if steps[0] == 0:
        hits.append(hits_on(classify, tests, model))
    batches = endless_batches(sample, collator, batch_size, seed)
    done = islice(train(classify, trained, batches, model, learning_rate), steps[-1])
    hits += [hits_on(classify, tests, model) for step in done if step in steps]
    settings = {
        "learning_rate": learning_rate,
        "batch_size": min(batch_size, len(sample)),
        "images": len(sample),
        "seed": seed,
        "optimizer": "AdamW",
        "parameters": sum(parameter.numel() for parameter in trained),
        **({"rank": RANK} if mode == "lora" else {}),
    }
    return np.stack(hits), settings


def _check(mode: str, steps: Sequence[int], batch_size: int, sample: Any, held_out: Any) -> None:
    if mode not in LEARNING_RATES:
        raise ValueError(f"mode={mode!r}: expected one of {list(LEARNING_RATES)}")
    if not steps or steps[0] != 0 or any(after <= before for before, after in pairwise(steps)):
        raise ValueError(f"steps={steps}: expected steps that ascend from 0")
    if batch_size < 1 or not len(sample) or not len(held_out):
        raise ValueError(
            f"{len(sample)} images to fine-tune on, {len(held_out)} held out, batches of {batch_size}: expected at "
            "least one of each"
        )


def _trained(model: PreTrainedModel, mode: str, seed: int) -> list[nn.Parameter]:
    """The parameters that are trained; all others are frozen. The model gets its adapters here."""
    if mode == "lora":
        return add_adapters(model, seed=seed)
    model.requires_grad_(mode == "full")
    for name in head_parameters(model) if mode == "head" else ():
        model.get_parameter(name).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
