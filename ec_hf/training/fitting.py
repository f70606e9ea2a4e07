"""Stage 1 of EC: the heads are fitted on the frozen original model."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler

from ec_hf.models.heads import ECHeads
from ec_hf.models.modules import modules_at
from ec_hf.models.penultimate import Layer, Penultimate
from ec_hf.models.points import hidden_state_kwargs

__all__ = ["fit_heads", "with_held_out"]

ROUND = 500
"""Steps of a round; a fit of no more than these has one round."""
HELD_OUT = 1024
"""Images that a longer fit leaves out to see whether another round pays, but a tenth of all at most."""
GAIN = 0.005
"""What the mean accuracy of the heads on held-out images must have gained in a round for another one."""


def fit_heads(
    heads: ECHeads,
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    accelerator: Accelerator,
    *,
    epochs: int,
    learning_rate: float,
    classifier: Iterable[Layer] = (),
    held_out: Iterable[dict[str, Tensor]] | None = None,
) -> dict[str, float]:
    """Fit the heads to classify the frozen model's features (stage 1 of EC).

    A fit with `held_out` goes in rounds of `ROUND` steps. After each of them the heads classify the held-out images,
    and the fit ends when their mean accuracy gained less than `GAIN`. `epochs` passes are the most it takes, so that a
    large data set is seen in part and a small one is fitted in one round.

    Args:
        heads: the heads, changed in place.
        model: the original model; run in eval mode under inference mode, so that nothing of it can change.
        batches: a prepared loader of ``pixel_values`` and ``labels`` of this process's share of the images.
        accelerator: the accelerator of the run; with several processes the heads are fitted together.
        epochs: passes over the batches.
        learning_rate: peak learning rate of AdamW, which falls linearly to 0 in each round.
        classifier: the layers that give the model's logits; needed where a head stands on the penultimate layer.
        held_out: a prepared loader of other images, in the same form.

    Returns:
        Accuracy of each head by the name of its supervision point: on the held-out images, or over the last pass
        where there are none.
    """
    fit = _Fit(heads, model, accelerator, tuple(classifier))
    total, each_pass = epochs * len(batches), len(batches)  # type: ignore[arg-type]
    size = total if held_out is None else min(ROUND, total)
    was_training = model.training
    model.eval()
    silent = None if accelerator.is_local_main_process else True  # None: where stderr is no terminal
    progress = tqdm(total=total, desc="Fitting EC heads", disable=silent)
    passes, accuracies = chain.from_iterable(batches for _ in range(epochs)), torch.zeros(len(heads.points))
    for first in range(0, total, size):
        steps = min(size, total - first)
        seen = fit.round(islice(passes, steps), steps, each_pass, learning_rate, progress)
        before, accuracies = accuracies, seen if held_out is None else fit.accuracies(held_out)
        if (accuracies - before).mean() < GAIN:
            break
    if next(passes, None) is not None and hasattr(batches, "end"):
        batches.end()  # else Accelerate takes a pass that was broken off for one that is still under way
    progress.close()
    model.train(was_training)
    fit.close()
    return {point.name: value for point, value in zip(heads.points, accuracies.tolist(), strict=True)}


def with_held_out(images: Dataset, *, steps: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """The images to fit on, and those by which a fit of more than one round sees that it is done.

    Args:
        images: map-style dataset.
        steps: of the fit, if all its passes are made.
        seed: of the choice.
    """
    count = len(images)  # type: ignore[arg-type]
    if steps <= ROUND or count < 10:
        return images, None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    left_out = min(HELD_OUT, count // 10)
    return Subset(images, order[left_out:]), Subset(images, order[:left_out])


class _Fit:
    """Heads in training on the features of a frozen model."""

    def __init__(
        self, heads: ECHeads, model: PreTrainedModel, accelerator: Accelerator, classifier: tuple[Layer, ...]
    ) -> None:
        self.model, self.accelerator, self.classifier = model, accelerator, classifier
        self.modules = modules_at(model, heads.points)
        self.needed = {point.index for point in heads.points}
        optimizer = torch.optim.AdamW(heads.to(accelerator.device).parameters(), weight_decay=0.01)
        self.heads, self.optimizer = accelerator.prepare(heads.train(), optimizer)
        self.places = len(heads.points)

    def round(
        self, batches: Iterable[dict[str, Tensor]], steps: int, last: int, learning_rate: float, progress: tqdm
    ) -> Tensor:
        """Train for some steps, over which the learning rate rises and falls; accuracies over the `last` of them."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = learning_rate
        schedule = get_scheduler("linear", self.optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
        correct = self._none_yet()
        for step, batch in enumerate(batches):
            if step >= last and step % last == 0:
                correct = self._none_yet()
            logits = self._logits(batch)
            loss = torch.stack([F.cross_entropy(each.float(), batch["labels"]) for each in logits]).sum()
            self.optimizer.zero_grad()
            self.accelerator.backward(loss)
            self.optimizer.step()
            schedule.step()
            correct += _hits(logits, batch["labels"])
            progress.update()
        return self._shares(correct)

    @torch.no_grad()
    def accuracies(self, batches: Iterable[dict[str, Tensor]]) -> Tensor:
        """Accuracy of each head on the images of all processes."""
        correct = self._none_yet()
        for batch in batches:
            correct += _hits(self._logits(batch), batch["labels"])
        return self._shares(correct)

    def close(self) -> None:
        """Take the heads out of what the accelerator put around them."""
        self.accelerator.unwrap_model(self.heads, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def _logits(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        model = self.model
        with (
            torch.inference_mode(),
            self.accelerator.autocast(),
            Penultimate(self.classifier, self.modules) as penultimate,
        ):
            output = model(pixel_values=batch["pixel_values"], **hidden_state_kwargs(model))
            states = penultimate.after(output.hidden_states)
        with self.accelerator.autocast():
            return self.heads([_clone(state) if i in self.needed else None for i, state in enumerate(states)])[1]

    def _none_yet(self) -> Tensor:
        return torch.zeros(self.places + 1, device=self.accelerator.device)  # the last entry counts the images

    def _shares(self, correct: Tensor) -> Tensor:
        *hits, images = self.accelerator.reduce(correct).cpu().unbind()
        return torch.stack(hits) / images


def _hits(logits: Iterable[Tensor], labels: Tensor) -> Tensor:
    hits = [(each.argmax(-1) == labels).sum() for each in logits]
    return torch.stack([*hits, torch.tensor(len(labels), device=labels.device)])


def _clone(state: Any) -> Any:
    """Inference tensors cannot be saved for backward; their clones can."""
    return tuple(part.clone() for part in state) if isinstance(state, (tuple, list)) else state.clone()
