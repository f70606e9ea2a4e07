"""Shadow models: other trainings that did or did not see the forgotten images, for attacks on membership (LiRA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import PreTrainedModel

from ec_hf.auditing.collected import Shadows
from ec_hf.auditing.forward import evaluating, features_of
from ec_hf.auditing.measures.membership import held_out_splits, matched_rows
from ec_hf.auditing.question import Question
from ec_hf.auditing.sense import same_weights
from ec_hf.auditing.subjects import Loaded, Subject, check_finite, check_labels, taken
from ec_hf.metrics import logit_confidence, loss
from ec_hf.models.inputs import collator_for
from ec_hf.models.loading import load_model

__all__ = ["seen_by_shadows", "shadows_by_side"]

SIDES = ("out", "in")


def shadows_by_side(given: Any) -> dict[str, list[Any]]:
    """Shadow models by whether they were trained with the forgotten images ("in") or without them ("out").

    Args:
        given: as for `ec_hf.audit`.

    Raises:
        TypeError: for something that is neither a model nor a name.
        ValueError: for sides other than "in" and "out".
    """
    sides: dict[str, list[Any]] = {side: [] for side in SIDES}
    if given is None:
        return sides
    if isinstance(given, Mapping):
        if unknown := [side for side in given if side not in SIDES]:
            raise ValueError(f"shadows: {unknown[0]!r} is no side; give {{'out': [...], 'in': [...]}}")
        pairs = [(side, model) for side, some in given.items() for model in _listed(some)]
    else:
        pairs = [_side_of(model) for model in _listed(given)]
    for side, model in pairs:
        if not isinstance(model, (nn.Module, str, Path)):
            raise TypeError(f"shadows: expected PreTrainedModels or their names, got {type(model).__name__}")
        sides[side].append(model)
    return sides


def seen_by_shadows(
    sides: Mapping[str, Sequence[Any]],
    question: Question,
    loaded: Mapping[str, Loaded],
    device: Any,
    **columns: str | None,
) -> Shadows | None:
    """Runs the shadow models, one after the other, on the forgotten and on as many held-out images.

    Args:
        sides: of `shadows_by_side`.
        question: what is asked.
        loaded: the audited models by name.
        device: where to run.
        **columns: image_column and label_column, as for `ec_hf.models.inputs.collator_for`.

    Returns:
        What they showed; None without a shadow model, or without held-out images of the forgotten classes.

    Raises:
        ValueError: for a shadow model whose labels are not those of the original, whose weights are not finite, or
            that is another model of the audit or the same as another shadow model.
    """
    rows = matched_rows(question)
    if rows is None or not any(sides.values()):
        return None
    count = len(rows[0])
    images, labels = _images(question, rows)
    columns_of: dict[str, list[np.ndarray]] = {side: [np.empty((2 * count, 0))] for side in SIDES}
    for side in SIDES:
        for number, given in enumerate(sides[side], start=1):
            name = f"shadow {number} ({side})"
            usual, by_name = loaded["original"].processor, isinstance(given, (str, Path))
            own, processor = load_model(given) if by_name else taken(name, given, usual, images, **columns)
            _check(name, own, loaded)
            collator = collator_for(own, processor or usual, {"images": images}, **columns)
            with evaluating([own], device):
                subject = Subject(own, collator)
                logits = features_of({name: subject}, images, batch_size=question.settings.batch_size, title=name)
            if not np.isfinite(logits[name]).all():
                raise ValueError(f"{name}: outputs that are NaN or infinite on some images; leave it out")
            shown = logit_confidence(loss(logits[name], labels))[:, None]
            if any(np.array_equal(shown, other) for each in columns_of.values() for other in each):
                raise ValueError(f"{name} shows the same as another shadow model: give each model once")
            columns_of[side].append(shown)
    outside, inside = (np.concatenate(columns_of[side], axis=1) for side in SIDES)
    return Shadows(outside, inside[:count])


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, (str, Path, nn.Module)) else list(given)


def _side_of(model: Any) -> tuple[str, Any]:
    """The side that stands before a name, as in "in=ID"; without one, the model was trained without the images."""
    side, sign, name = model.partition("=") if isinstance(model, str) else ("", "", "")
    return (side, name) if sign and side in SIDES else ("out", model)


def _images(question: Question, rows: tuple[np.ndarray, np.ndarray]) -> tuple[Dataset, np.ndarray]:
    """The images of the matched rows, forgotten ones first, and their label ids."""
    outside = [name for name in held_out_splits(question) if len(question.labels[name])]
    held_out = concatenate_datasets([question.splits[name] for name in outside])
    of_held_out = np.concatenate([question.labels[name] for name in outside])
    images = concatenate_datasets([question.splits["forget_train"].select(rows[0]), held_out.select(rows[1])])
    return images, np.concatenate([question.labels["forget_train"][rows[0]], of_held_out[rows[1]]])


def _check(name: str, model: PreTrainedModel, loaded: Mapping[str, Loaded]) -> None:
    check_finite(name, model)
    check_labels(name, model, loaded["original"].model)
    for other, each in loaded.items():
        if same_weights(model, each.model):
            why = (
                "the retrained models are shadow models already, leave it out of shadows"
                if each.info.role == "retrained"
                else "a model that is judged cannot be its own shadow, give other trainings"
            )
            raise ValueError(f"{name} and {other} have the same weights: {why}")
