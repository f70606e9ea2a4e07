"""Stage 1 of EC: the heads are fitted on the frozen original model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler

from ec_hf.models.heads import ECHeads
from ec_hf.models.modules import modules_at
from ec_hf.models.penultimate import Layer, Penultimate
from ec_hf.models.points import hidden_state_kwargs


def fit_heads(
    heads: ECHeads,
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    accelerator: Accelerator,
    *,
    epochs: int,
    learning_rate: float,
    classifier: Iterable[Layer] = (),
) -> dict[str, float]:
    """Fit the heads to classify the frozen model's features (stage 1 of EC).

    Args:
        heads: the heads, changed in place.
        model: the original model; run in eval mode under inference mode, so that nothing of it can change.
        batches: a prepared loader of ``pixel_values`` and ``labels`` of this process's share of the images.
        accelerator: the accelerator of the run; with several processes the heads are fitted together.
        epochs: passes over the batches.
        learning_rate: peak learning rate of AdamW, which falls linearly to 0.
        classifier: the layers that give the model's logits; needed where a head stands on the penultimate layer.

    Returns:
        Accuracy of each head over the images of the last pass, by the name of its supervision point.
    """
    classifier, modules = tuple(classifier), modules_at(model, heads.points)
    total = epochs * len(batches)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(heads.to(accelerator.device).parameters(), learning_rate, weight_decay=0.01)
    wrapped, optimizer = accelerator.prepare(heads.train(), optimizer)
    needed = {point.index for point in heads.points}
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=total // 20, num_training_steps=total)
    was_training = model.training
    model.eval()
    silent = None if accelerator.is_local_main_process else True  # None: where stderr is no terminal
    progress = tqdm(total=total, desc="Fitting EC heads", disable=silent)
    for _ in range(epochs):
        correct = torch.zeros(len(heads.points) + 1, device=accelerator.device)  # the last entry counts the images
        for batch in batches:
            with torch.inference_mode(), accelerator.autocast(), Penultimate(classifier, modules) as penultimate:
                output = model(pixel_values=batch["pixel_values"], **hidden_state_kwargs(model))
                states = penultimate.after(output.hidden_states)
            with accelerator.autocast():
                _, logits = wrapped([_clone(state) if i in needed else None for i, state in enumerate(states)])
                loss = torch.stack([F.cross_entropy(each.float(), batch["labels"]) for each in logits]).sum()
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            hits = [(each.argmax(-1) == batch["labels"]).sum() for each in logits]
            correct += torch.stack([*hits, torch.tensor(len(batch["labels"]), device=correct.device)])
            progress.update()
    progress.close()
    model.train(was_training)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.free_memory()
    *hits, images = accelerator.reduce(correct).tolist()
    return {point.name: count / images for point, count in zip(heads.points, hits, strict=True)}


def _clone(state: Any) -> Any:
    """Inference tensors cannot be saved for backward; their clones can."""
    return tuple(part.clone() for part in state) if isinstance(state, (tuple, list)) else state.clone()
