"""What an audit looks at, checked before it starts: models that can be compared, images that they can see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.auditing.report import ModelInfo
from ec_hf.data.columns import find_label_column, read_column, shown
from ec_hf.models.inputs import ImageCollator, collator_for
from ec_hf.models.loading import load_model, new_like
from ec_hf.models.points import SupervisionPoint, describe_hidden_states, hidden_state_kwargs, pool, take

__all__ = [
    "Subject",
    "choose_rows",
    "info",
    "labels_of",
    "load_models",
    "random_init",
    "stratified_rows",
    "subjects_of",
]

RESERVED = ("original", "retrained", "random_init")
FORGET_SAMPLE = 300
"""Images of the forgotten classes that keep their features, where there are so many: intervals need them."""
LEAST_PER_CLASS = 5
RANDOM_INIT = 0x5EED_F100


@dataclass
class Subject:
    """A model under audit and how it is run.

    Attributes:
        model: the classifier.
        collator: makes its ``pixel_values`` and ``labels``; models that share one share the pixels too.
        points: its hidden states; empty for a model that returns none.
    """

    model: PreTrainedModel
    collator: ImageCollator
    points: Sequence[SupervisionPoint] = ()

    @property
    def layers(self) -> list[str]:
        """Names of what `run` pools, shallow to deep; the logits are the last."""
        return [*(point.name for point in self.points), "logits"]

    def run(self, pixels: Tensor, pooling: str) -> list[Tensor]:
        """Pooled features `(batch, width)` of every layer, float32, the logits last."""
        kwargs = hidden_state_kwargs(self.model) if self.points else {}
        output = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype), **kwargs)
        states = output.hidden_states if self.points else ()
        features = [pool(take(states, point), point, pooling) for point in self.points]
        return [each.float() for each in (*features, output.logits)]


def load_models(
    original: Any, unlearned: Any, retrained: Any = None
) -> tuple[dict[str, PreTrainedModel], dict[str, Any], dict[str, ModelInfo]]:
    """The models by name, the image processors that came with them, and who they are; all fit to be compared.

    Args:
        original: a model, or a Hub id, folder or timm name.
        unlearned: the same, or several of them by name.
        retrained: the same, or None.

    Raises:
        TypeError: for something that is neither a `PreTrainedModel` nor a name.
        ValueError: for names that are reserved, weights that are not finite, and label sets that differ.
    """
    several = dict(unlearned) if isinstance(unlearned, Mapping) else {"unlearned": unlearned}
    if not several or (taken := [name for name in several if name in RESERVED]):
        problem = f"the name {taken[0]!r} is taken" if several else "it is empty"
        raise ValueError(f"unlearned: {problem}; give {{name: model}} with names other than {list(RESERVED)}")
    named = {"original": original, **several} | ({} if retrained is None else {"retrained": retrained})
    for name, model in named.items():
        if not isinstance(model, (PreTrainedModel, str, Path)):
            hint = "; a bare timm model is loaded by its name" if isinstance(model, nn.Module) else ""
            raise TypeError(f"{name}: expected a PreTrainedModel or its name, got {type(model).__name__}{hint}")
    models, processors, infos = {}, {}, {}
    for name, given in named.items():
        by_name = not isinstance(given, PreTrainedModel)
        models[name], processors[name] = load_model(given) if by_name else (given, None)
        infos[name] = info(models[name], name if name in RESERVED else "unlearned", by_name=by_name)
        _check_finite(name, models[name])
        _check_labels(name, models[name], models["original"])
    return models, {name: each for name, each in processors.items() if each is not None}, infos


def info(model: PreTrainedModel, role: str, *, by_name: bool = False) -> ModelInfo:
    """Who a model is; its Hub id only where it was loaded by it, for weights in memory may be others."""
    name = getattr(model.config, "_name_or_path", None) if by_name else None
    on_hub = bool(name) and not Path(str(name)).exists()
    return ModelInfo(
        type(model).__name__,
        sum(weight.numel() for weight in model.parameters()),
        role,
        id=str(name) if on_hub else None,
        revision=getattr(model.config, "_commit_hash", None) if on_hub else None,
    )


def random_init(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration with random weights; torch's random state is left as it was.

    They are not those that training from the same seed would have begun with, which the model may still resemble.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + RANDOM_INIT)
        return new_like(model).to(model.device, model.dtype).eval()


def subjects_of(
    models: Mapping[str, PreTrainedModel],
    processors: Mapping[str, Any],
    splits: Mapping[str, Dataset],
    *,
    pooling: str = "all",
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[dict[str, Subject], list[str]]:
    """Finds out, on one image, how each model is run; models whose processors do the same share a collator.

    Args:
        models: by name, "original" among them.
        processors: image processors by name of the model; a model without one uses the first there is.
        splits: datasets, at least one of them with a row.
        pooling: see `ec_hf.models.points.pool`.
        image_column: as for `ec_hf.models.inputs.collator_for`.
        label_column: as for `ec_hf.models.inputs.collator_for`.

    Returns:
        The subjects by name, and notes on what cannot be measured of them.

    Raises:
        ValueError: for images that a model cannot take, and as `collator_for`.
    """
    filled = {name: split for name, split in splits.items() if len(split)}
    example = next(iter(filled.values()))[0]
    collators: dict[str, ImageCollator] = {}
    subjects: dict[str, Subject] = {}
    notes: list[str] = []
    for name, model in models.items():
        processor = processors.get(name, next(iter(processors.values()), None))
        collator = collator_for(model, processor, filled, image_column=image_column, label_column=label_column)
        described = processor.to_dict() if hasattr(processor, "to_dict") else id(processor)
        key = json.dumps([described, collator.num_channels], sort_keys=True, default=str)
        collator = collators.setdefault(key, collator)
        pixels = collator([example])["pixel_values"]
        subjects[name] = Subject(model, collator, _points(name, model, pixels, notes))
        if pooling == "cls" and (bare := [point for point in subjects[name].points if not point.prefix]):
            raise ValueError(f"pooling='cls': {bare[0]} of {name!r} has no CLS token; use 'all' or 'mean'")
    depths = {name: len(subject.points) for name, subject in subjects.items()}
    if len({depth for depth in depths.values() if depth}) > 1:
        counts = ", ".join(f"{name} {depth}" for name, depth in depths.items())
        notes.append(f"Models of different depth (hidden states: {counts}): CKA compares the nearest relative depth.")
    if len(collators) > 1:
        notes.append("The models have different image processors: each sees the images as its own prepares them.")
    return subjects, notes


def labels_of(dataset: Dataset, collator: ImageCollator, label_column: str | None = None) -> np.ndarray:
    """Label ids `(n,)` of all rows, read without an image."""
    values = read_column(dataset, find_label_column(dataset, label_column)).to_pylist()
    ids = collator.label_ids
    return np.array([value if ids is None else ids[value] for value in values], dtype=np.int64)


def stratified_rows(labels: np.ndarray, quota: int | Mapping[int, int], seed: int) -> np.ndarray:
    """Ascending rows of which no class has more than its quota, drawn at random.

    Args:
        labels: `(n,)` label ids.
        quota: rows a class, the same for all or by label id.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    classes, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = [quota if isinstance(quota, int) else quota.get(int(k), 0) for k in classes]
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[place < np.repeat(np.asarray(wanted, dtype=int), counts)])


def choose_rows(
    labels: Mapping[str, np.ndarray], classes: Sequence[int], sizes: Mapping[str, int], seed: int
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of each split that keep their features, chosen from labels alone.

    Each class has the same share of `sizes`, at least five rows; forgotten classes have more where they are few.

    Args:
        labels: label ids by split ("forget_train", ...).
        classes: label ids that are forgotten as a whole.
        sizes: about how many rows of "train" and of "test".
        seed: of the draw.

    Returns:
        Ascending rows by split; and how many training rows of a class a balanced bank may hold.
    """
    rows, quotas = {}, {}
    for part, size in sizes.items():
        present = np.unique(np.concatenate([labels[f"forget_{part}"], labels[f"retain_{part}"]]))
        quotas[part] = max(LEAST_PER_CLASS, ceil(size / max(len(present), 1)))
        more = max(quotas[part], ceil(FORGET_SAMPLE / max(len(classes), 1)))
        for half in ("forget", "retain"):
            wanted = {int(k): more if k in classes else quotas[part] for k in present}
            rows[f"{half}_{part}"] = stratified_rows(labels[f"{half}_{part}"], wanted, seed)
    return rows, quotas["train"]


def _points(name: str, model: PreTrainedModel, pixels: Tensor, notes: list[str]) -> list[SupervisionPoint]:
    """The hidden states of a model, after a trial on one image; none, with a note, where it returns none."""
    shape = tuple(pixels.shape[1:])
    try:
        with torch.inference_mode():
            model(pixel_values=pixels.to(model.device, model.dtype))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{name}: {type(model).__name__} cannot take images of shape {shape} ({str(error).splitlines()[0]}). Pass "
            "processor={name: processor} with the image processor that this model was trained with"
        ) from error
    try:
        return describe_hidden_states(model, shape)  # type: ignore[arg-type]
    except (ValueError, TypeError, IndexError, AttributeError):
        notes.append(f"{name}: {type(model).__name__} returns no hidden states, so only its output is measured.")
        return []


def _check_finite(name: str, model: PreTrainedModel) -> None:
    if bad := [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{name}: weights that are NaN or infinite, in {shown(bad)}: there is nothing to audit")


def _check_labels(name: str, model: PreTrainedModel, original: PreTrainedModel) -> None:
    theirs, ours = ({int(k): v for k, v in (each.config.id2label or {}).items()} for each in (model, original))
    counts = model.config.num_labels, original.config.num_labels
    if counts[0] != counts[1]:
        raise ValueError(
            f"{name} has {counts[0]} labels, the original {counts[1]}: the models must classify the same classes in "
            "the same order. Audit a model before the logits of forgotten classes are dropped"
        )
    odd = [key for key in ours if theirs.get(key) != ours[key]]
    if odd and not any(all(label == f"LABEL_{key}" for key, label in names.items()) for names in (theirs, ours)):
        raise ValueError(
            f"{name} calls label {odd[0]} {theirs.get(odd[0])!r}, the original {ours[odd[0]]!r}: the models must "
            "classify the same classes in the same order; set id2label and label2id of their configurations"
        )
