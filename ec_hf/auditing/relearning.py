"""What brings forgotten classes back: a few steps of training on a few forget images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from transformers import PreTrainedModel

from ec_hf.auditing.question import Question, drawn_evenly
from ec_hf.auditing.report import Measurement, RelearningCurve
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import spread
from ec_hf.metrics import relearning_area
from ec_hf.models.points import describe_hidden_states, hidden_state_kwargs, image_shape, take

__all__ = ["STEPS", "head_parameters", "relearn", "relearning_curves"]

STEPS = (0, 1, 2, 4, 8, 16, 32, 64)
LEARNING_RATES = {"head": 1e-2, "full": 1e-4}
IMAGES, HELD_OUT = 48, 300


def head_parameters(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that logits depend on and the last hidden state does not: all that comes after it.

    Found by differentiation, so it holds for any architecture: the classifier, with the norm (ViT, Swin, DINOv2) or
    the last convolution (MobileNetV2, EfficientNet) that a model has between its last hidden state and the classifier.

    Raises:
        ValueError: if there are none.
    """
    model = copy.deepcopy(model).eval().requires_grad_(True)
    point = describe_hidden_states(model)[-1]
    pixels = torch.rand(2, *image_shape(model), generator=torch.Generator().manual_seed(0))
    output = model(pixel_values=pixels.to(model.device, model.dtype), **hidden_state_kwargs(model))
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
    batch_size: int = 32,
    seed: int = 0,
    name: str = "model",
) -> RelearningCurve:
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
        mode: "head" for the parameters after the last hidden state (see `head_parameters`), "full" for all.
        steps: after which optimiser steps accuracy is measured, ascending from 0.
        learning_rate: 1e-2 for "head" and 1e-4 for "full" if left out.
        batch_size: images a step; at most the whole sample.
        seed: seed of the order of the sample.
        name: name of the model in the report.

    Raises:
        ValueError: for an empty dataset, another mode, steps that do not ascend from 0, a model whose labels do not
            reach those of the images (a class that was dropped cannot be relearnt), or a loss that is not finite
            (a class whose logit was masked).
    """
    steps = [int(step) for step in steps]
    _check(mode, steps, batch_size, sample, held_out)
    learning_rate = LEARNING_RATES[mode] if learning_rate is None else learning_rate
    model = _trainable_copy(model, mode)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(sample, batch_size=batch_size, shuffle=True, generator=generator, collate_fn=collator)
    tests = DataLoader(held_out, batch_size=batch_size, collate_fn=collator)
    accuracy = [_accuracy(model, tests)]
    for step, batch in zip(range(1, steps[-1] + 1), _again_and_again(loader), strict=False):
        pixels, labels = _on_device(batch, model)
        loss = nn.functional.cross_entropy(model(pixel_values=pixels).logits.float(), labels)
        if not torch.isfinite(loss):
            raise ValueError(
                f"{name}: the loss is {loss.item()} at step {step}: is a class masked in this model? Keep its logit, "
                "or lower learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in steps:
            accuracy.append(_accuracy(model, tests))
    settings = {
        "learning_rate": learning_rate,
        "batch_size": min(batch_size, len(sample)),
        "images": len(sample),
        "held_out": len(held_out),
        "seed": seed,
        "optimizer": "AdamW",
        "parameters": sum(parameter.numel() for parameter in trained),
    }
    return RelearningCurve(model=name, mode=mode, steps=steps, accuracy=accuracy, settings=settings)


def relearning_curves(
    question: Question, subjects: Mapping[str, Subject]
) -> tuple[list[RelearningCurve], list[Measurement], list[str]]:
    """Fine-tunes copies of all models on a few forget images among as many retain images; asks held-out forget images.

    Those are test images of the forgotten classes, or the other forgotten rows.

    Args:
        question: what is asked.
        subjects: the models by name.

    Returns:
        The curves, the area under each, and notes on what could not be learnt.
    """
    labels, splits, seed = question.labels, question.splits, question.seed
    few = drawn_evenly(IMAGES, labels["forget_train"], seed)
    split = "forget_test" if question.whole_classes else "forget_train"
    rest = np.arange(len(labels[split]))
    if not question.whole_classes:
        rest = np.setdiff1d(rest, few)
    asked = rest[drawn_evenly(HELD_OUT, labels[split][rest], seed)]
    if not len(few) or not len(asked):
        return [], [], ["Relearning needs forgotten training images, and others of them to ask about."]
    beside = drawn_evenly(len(few), labels["retain_train"], seed)
    sample: ConcatDataset = ConcatDataset([splits["forget_train"].select(few), splits["retain_train"].select(beside)])
    held_out = splits[split].select(asked)

    def curve_or_note(name: str, mode: str) -> RelearningCurve | str:
        subject = subjects[name]
        try:
            return relearn(subject.model, sample, held_out, subject.collator, mode=mode, seed=seed, name=name)
        except ValueError as error:
            return f"Relearning ({mode}) of {name}: {error}"

    results = spread([partial(curve_or_note, name, mode) for mode in ("head", "full") for name in subjects])
    curves = [result for result in results if isinstance(result, RelearningCurve)]
    areas = [_area(curve, split, len(asked)) for curve in curves]
    return curves, areas, [result for result in results if isinstance(result, str)]


def _area(curve: RelearningCurve, split: str, count: int) -> Measurement:
    area = relearning_area(curve.steps, curve.accuracy)
    return Measurement("relearning_area", curve.model, area, split, count=count, note=curve.mode)


def _check(mode: str, steps: Sequence[int], batch_size: int, sample: Any, held_out: Any) -> None:
    if mode not in LEARNING_RATES:
        raise ValueError(f'mode={mode!r}: expected "head" or "full"')
    if not steps or steps[0] != 0 or any(after <= before for before, after in pairwise(steps)):
        raise ValueError(f"steps={steps}: expected steps that ascend from 0")
    if batch_size < 1 or not len(sample) or not len(held_out):
        raise ValueError(
            f"{len(sample)} images to fine-tune on, {len(held_out)} held out, batches of {batch_size}: expected at "
            "least one of each"
        )


def _trainable_copy(model: PreTrainedModel, mode: str) -> PreTrainedModel:
    """A copy in evaluation mode of which all parameters, or those of the head alone, take a gradient."""
    model = copy.deepcopy(model).eval().requires_grad_(mode == "full")
    for name in head_parameters(model) if mode == "head" else ():
        model.get_parameter(name).requires_grad_(True)
    return model


def _again_and_again(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """The batches of a loader without end, shuffled anew each time round."""
    while True:
        yield from loader


@torch.no_grad()
def _accuracy(model: PreTrainedModel, batches: DataLoader) -> float:
    hits = count = 0
    for batch in batches:
        pixels, labels = _on_device(batch, model)
        hits += int((model(pixel_values=pixels).logits.argmax(-1) == labels).sum())
        count += len(labels)
    return hits / count


def _on_device(batch: dict[str, Tensor], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    labels, known = batch["labels"], int(model.config.num_labels or 0)
    if int(labels.min()) < 0 or int(labels.max()) >= known:
        raise ValueError(
            f"the images have the label ids {sorted(set(labels.tolist()))}, the model has {known} labels: a class "
            "whose logit was dropped cannot be relearnt. Use the model as it was before that"
        )
    return batch["pixel_values"].to(model.device, model.dtype), labels.to(model.device)
