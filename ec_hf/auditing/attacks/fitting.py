"""How attacks train and ask: cross-entropy on a few images, then which held-out images are classified right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import default_collate as default
from transformers import PreTrainedModel

__all__ = ["endless_batches", "hits_on", "logits_of", "train"]

PREPARED = 512
"""A sample of so many images is prepared once; of a larger one, each batch anew."""

Classify = Callable[[Tensor], Tensor]


def logits_of(model: PreTrainedModel) -> Classify:
    """From pixels to logits."""
    return lambda pixels: model(pixel_values=pixels).logits


def endless_batches(
    sample: Any, collator: Callable[[list[Any]], dict[str, Tensor]], batch_size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """The batches of a sample without end, shuffled anew each time round.

    Args:
        sample: map-style dataset.
        collator: makes ``pixel_values`` and ``labels`` of its rows.
        batch_size: images a batch.
        seed: seed of the order.
    """
    collate = collator
    if len(sample) <= PREPARED:
        prepared = (collator([sample[row]]) for row in range(len(sample)))
        sample, collate = [{key: value[0] for key, value in row.items()} for row in prepared], default
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(sample, batch_size=batch_size, shuffle=True, generator=order, collate_fn=collate)
    while True:
        yield from loader


def train(
    classify: Classify,
    parameters: Iterable[nn.Parameter],
    batches: Iterable[dict[str, Tensor]],
    model: PreTrainedModel,
    learning_rate: float,
) -> Iterator[int]:
    """Trains some parameters by AdamW without weight decay on the cross-entropy, step by step.

    Args:
        classify: from pixels to logits.
        parameters: what is trained; all else stays.
        batches: what is learnt, one batch a step.
        model: the model behind `classify`, for its device and labels.
        learning_rate: of AdamW.

    Yields:
        The number of steps that are done.

    Raises:
        ValueError: labels that the model does not have, or a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for step, batch in enumerate(batches, start=1):
        pixels, labels = _on_device(batch, model)
        loss = nn.functional.cross_entropy(classify(pixels).float(), labels)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} at step {step}: is a class masked in this model? Keep its logit, "
                "or lower learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


@torch.no_grad()
def hits_on(classify: Classify, tests: Iterable[dict[str, Tensor]], model: PreTrainedModel) -> np.ndarray:
    """`(images,)` booleans: which images are classified right.

    Args:
        classify: from pixels to logits.
        tests: batches of the images.
        model: the model behind `classify`, for its device and labels.

    Raises:
        ValueError: labels that the model does not have.
    """
    found = []
    for batch in tests:
        pixels, labels = _on_device(batch, model)
        found.append((classify(pixels).argmax(-1) == labels).cpu().numpy())
    return np.concatenate(found)


def _on_device(batch: dict[str, Tensor], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    labels, known = batch["labels"], int(model.config.num_labels or 0)
    if int(labels.min()) < 0 or int(labels.max()) >= known:
        raise ValueError(
            f"the images have the label ids {sorted(set(labels.tolist()))}, the model has {known} labels: a class "
            "whose logit was dropped cannot be relearnt. Use the model as it was before that"
        )
    return batch["pixel_values"].to(model.device, model.dtype), labels.to(model.device)
