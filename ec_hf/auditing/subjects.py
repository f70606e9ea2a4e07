"""The models under audit, checked before it starts: that they can be compared, and can see the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.auditing.report import ModelInfo
from ec_hf.data.columns import find_label_column, matched_by_order, shown
from ec_hf.models.adapters import merged
from ec_hf.models.inputs import ImageCollator, collator_for
from ec_hf.models.loading import contents_hash, load_model, new_like
from ec_hf.models.modules import modules_at, with_modules
from ec_hf.models.penultimate import Layer, Penultimate, classifier_of, penultimate_point
from ec_hf.models.points import (
    SupervisionPoint,
    describe_hidden_states,
    hidden_state_kwargs,
    pool,
    select_points,
    take,
)
from ec_hf.models.transforms import as_processor
from ec_hf.models.wrapping import classifier_for

__all__ = [
    "Loaded",
    "Subject",
    "check_finite",
    "check_labels",
    "info",
    "load_models",
    "model_class_names",
    "random_init",
    "retrained_by_name",
    "subjects_of",
    "taken",
]

RESERVED = ("original", "retrained", "random_init")
RANDOM_INIT = 0x5EED_F100
"""Added to the seed of random weights, so that they are not those that training from the same seed began with."""


@dataclass
class Subject:
    """A model under audit and how it is run.

    Attributes:
        model: the classifier.
        collator: makes its ``pixel_values`` and ``labels``; models that share one share the pixels too.
        points: its hidden states, none for a model that returns none, or the layers that were asked for, and then its
            penultimate layer, which the classifier reads, where it has one.
        classifier: the layers that give its logits.
        depth: number of hidden states that it returns.
        modules: those that points are named after, by name.
    """

    model: PreTrainedModel
    collator: ImageCollator
    points: Sequence[SupervisionPoint] = ()
    classifier: Sequence[Layer] = ()
    depth: int = 0
    modules: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def layers(self) -> list[str]:
        """Names of what `run` pools, shallow to deep; the logits are the last."""
        return [*(point.name for point in self.points), "logits"]

    def run(self, pixels: Tensor, pooling: str) -> list[Tensor]:
        """Pooled features `(batch, width)` of every layer, float32, the logits last."""
        kwargs = hidden_state_kwargs(self.model) if self.depth and self.points else {}
        with Penultimate(self.classifier, self.modules) as penultimate:
            output = self.model(pixel_values=pixels.to(self.model.device, self.model.dtype), **kwargs)
        states = penultimate.after(output.hidden_states if kwargs else ())
        features = [pool(take(states, point), point, pooling) for point in self.points]
        return [layer.float() for layer in (*features, output.logits)]


class Loaded(NamedTuple):
    """A model as it was loaded.

    Attributes:
        model: the classifier.
        processor: its image processor; None for images that hold ``pixel_values``.
        info: who it is.
    """

    model: PreTrainedModel
    processor: Any
    info: ModelInfo


def load_models(
    original: Any,
    unlearned: Any,
    retrained: Any = None,
    *,
    processor: Any = None,
    seed: int = 0,
    images: Dataset | None = None,
    **columns: str | None,
) -> dict[str, Loaded]:
    """The models by name, all fit to be compared; without a retrained one, a model of random weights joins.

    A model has the processor that is given for it, else the one that came with it, else that of another model.

    Args:
        original: a model, or a Hub id, folder or timm name.
        unlearned: the same, or several of them by name.
        retrained: the same, several of them in a list or by name, or None.
        processor: image processor of all models, or of some by name.
        seed: seed of the random weights.
        images: images of the audit, for modules that are no models of transformers.
        **columns: image_column and label_column of them.

    Raises:
        TypeError: for something that is neither a model nor a name.
        ValueError: for names that are reserved, weights that are not finite, label sets that differ, and processors of
            models that are not there.
    """
    models: dict[str, PreTrainedModel] = {}
    infos: dict[str, ModelInfo] = {}
    own_processors: dict[str, Any] = {}
    several, processor = retrained_by_name(retrained), as_processor(processor)
    roles = {"original": "original", **dict.fromkeys(several, "retrained")}
    for name, given in _named(original, unlearned, several).items():
        by_name = not isinstance(given, nn.Module)
        models[name], own_processors[name] = (
            taken(name, given, processor, images, **columns) if isinstance(given, nn.Module) else load_model(given)
        )
        infos[name] = info(models[name], roles.get(name, "unlearned"), by_name=by_name)
        check_finite(name, models[name])
        check_labels(name, models[name], models["original"])
    processors = _processors(own_processors, processor)
    loaded = {name: Loaded(model, processors[name], infos[name]) for name, model in models.items()}
    if not several:
        floor = random_init(models["original"], seed)
        loaded["random_init"] = Loaded(floor, processors["original"], info(floor, "floor"))
    return loaded


def taken(
    name: str, given: nn.Module, processor: Any, images: Dataset | None, **columns: str | None
) -> tuple[PreTrainedModel, Any]:
    """A model in memory, whatever module it is, and the image processor that it brings along, if it does.

    Args:
        name: what it is called in errors.
        given: the module.
        processor: image processor of all models, or of some by name.
        images: what the models are asked about.
        **columns: image_column and label_column of these.

    Raises:
        TypeError: as `ec_hf.as_classifier`.
        ValueError: as `ec_hf.as_classifier`.
    """
    of_it = processor.get(name) if isinstance(processor, Mapping) else processor
    try:
        return classifier_for(given, of_it, images, **columns)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {str(error).removeprefix('model: ')}") from error


def retrained_by_name(given: Any) -> dict[str, Any]:
    """Retrained models by their names in the report; none, one or several of them.

    One is called "retrained" whatever its name; several without names "retrained 1", "retrained 2" and so on.

    Args:
        given: as for `load_models`.

    Raises:
        ValueError: for an empty list or mapping, and for names that are reserved.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        if len(given) > 1 and (taken := [name for name in given if name in RESERVED]):
            raise ValueError(f"retrained: the name {taken[0]!r} is taken; give names other than {list(RESERVED)}")
        named = dict(given)
    elif isinstance(given, (list, tuple)):
        named = {f"retrained {k}": model for k, model in enumerate(given, start=1)}
    else:
        named = {"retrained": given}
    if not named:
        raise ValueError("retrained: it is empty; leave it out, or give a model or several")
    return named if len(named) > 1 else {"retrained": next(iter(named.values()))}


def _named(original: Any, unlearned: Any, retrained: Mapping[str, Any]) -> dict[str, nn.Module | str | Path]:
    """What was given for the models, by their names in the report; a model with adapters as a merged copy."""
    several = dict(unlearned) if isinstance(unlearned, Mapping) else {"unlearned": unlearned}
    reserved = list(dict.fromkeys([*RESERVED, *retrained]))
    if not several or (taken := [name for name in several if name in reserved]):
        problem = f"the name {taken[0]!r} is taken" if several else "it is empty"
        raise ValueError(f"unlearned: {problem}; give {{name: model}} with names other than {reserved}")
    given = {"original": original, **several, **retrained}
    named: dict[str, Any] = {name: merged(model) for name, model in given.items()}
    for name, model in named.items():
        if not isinstance(model, (nn.Module, str, Path)):
            raise TypeError(f"{name}: expected a PreTrainedModel or its name, got {type(model).__name__}")
    return named


def _processors(own: Mapping[str, Any], given: Any) -> dict[str, Any]:
    """The image processor of each model: the one given for it, else its own, else the first there is."""
    chosen = dict(given) if isinstance(given, Mapping) else dict.fromkeys(own, given)
    if unknown := [name for name in chosen if name not in own]:
        raise ValueError(f"processor: there is no model {unknown[0]!r}; there are {list(own)}")
    known = {name: each for name, each in (*own.items(), *chosen.items()) if each is not None}
    first = next(iter(known.values()), None)
    return {name: known.get(name, first) for name in own}


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
        weights=contents_hash(model.state_dict().values()) if role == "unlearned" else None,
    )


def random_init(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A model of the same configuration with random weights; torch's random state is left as it was.

    They are not those that training from the same seed would have begun with, which the model may still resemble.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + RANDOM_INIT)
        return new_like(model).to(model.device, model.dtype).eval()


def subjects_of(
    loaded: Mapping[str, Loaded],
    splits: Mapping[str, Dataset],
    *,
    pooling: str = "all",
    layers: str | Sequence[int | str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[dict[str, Subject], list[str]]:
    """Finds out, on one image, how each model is run; models whose processors do the same share a collator.

    Args:
        loaded: the models by name, "original" among them.
        splits: datasets, at least one of them with a row.
        pooling: see `ec_hf.models.points.pool`.
        layers: what to look at beside the penultimate layer, as the points of `ec_hf.models.points.select_points`;
            all hidden states if left out.
        image_column: as for `ec_hf.models.inputs.collator_for`.
        label_column: as for `ec_hf.models.inputs.collator_for`.

    Returns:
        The subjects by name, and notes on what cannot be measured of them.

    Raises:
        ValueError: for images that a model cannot take, layers that it does not have, and as `collator_for`.
    """
    filled = {name: split for name, split in splits.items() if len(split)}
    example = next(iter(filled.values()))[0]
    shared: dict[str, ImageCollator] = {}
    subjects: dict[str, Subject] = {}
    for name, (model, processor, _) in loaded.items():
        collator = collator_for(model, processor, filled, image_column=image_column, label_column=label_column)
        described = processor.to_dict() if hasattr(processor, "to_dict") else id(processor)
        key = json.dumps([described, collator.num_channels], sort_keys=True, default=str)
        collator = shared.setdefault(key, collator)
        pixels = collator([example])["pixel_values"]
        subjects[name] = _subject(name, model, collator, tuple(pixels.shape[1:]), _hidden(name, model, pixels), layers)
        points = [point for point in subjects[name].points if not point.is_penultimate]
        if pooling == "cls" and (bare := [point for point in points if not point.prefix]):
            raise ValueError(f"pooling='cls': {bare[0]} of {name!r} has no CLS token; use 'all' or 'mean'")
    return subjects, [*_limits(subjects), *_names_that_do_not_tell(loaded["original"][0], filled, label_column)]


def _subject(
    name: str,
    model: PreTrainedModel,
    collator: ImageCollator,
    shape: tuple[int, ...],
    hidden: Sequence[SupervisionPoint],
    layers: str | Sequence[int | str] | None,
) -> Subject:
    """A model with the points that it is looked at, the penultimate layer behind them."""
    classifier = tuple(classifier_of(model, shape).values())  # type: ignore[arg-type]
    if layers is None:
        return Subject(
            model, collator, (*hidden, *penultimate_point(classifier, len(hidden))), classifier, len(hidden)
        )
    try:
        states = with_modules(model, hidden, layers, shape)  # type: ignore[arg-type]
        penultimate = penultimate_point(classifier, len(states))
        chosen = select_points(model, [*states, *penultimate], layers)
    except ValueError as error:
        raise ValueError(f"layers, of {name!r}: {str(error).removeprefix('points: ')}") from error
    points = (*(point for point in chosen if not point.is_penultimate), *penultimate)
    return Subject(model, collator, points, classifier, len(hidden), modules_at(model, states))


def _names_that_do_not_tell(
    model: PreTrainedModel, splits: Mapping[str, Dataset], label_column: str | None
) -> list[str]:
    """In words, that the classes of model and data go together by their order alone."""
    part = next(iter(splits.values()))
    if not isinstance(part, Dataset):
        return []
    if not matched_by_order(part, find_label_column(part, label_column), model.config.id2label or {}):
        return []
    return ["The model and the data share no class name, so that their classes were matched by their order."]


def _limits(subjects: Mapping[str, Subject]) -> list[str]:
    """In words, what cannot be measured of the models, or not in the same way."""
    depths = {name: sum(not point.is_penultimate for point in each.points) for name, each in subjects.items()}
    notes = []
    for name, subject in subjects.items():
        what = "what its classifier reads and its output are" if subject.points else "its output is"
        if not subject.depth and not depths[name]:
            notes.append(f"{name}: {type(subject.model).__name__} returns no hidden states, so only {what} measured.")
        elif not subject.classifier:
            notes.append(f"{name}: no linear layer gives its logits, so it has no penultimate layer.")
    if len({depth for depth in depths.values() if depth}) > 1:
        counts = ", ".join(f"{name} {depth}" for name, depth in depths.items())
        what = "layers" if any(subject.modules for subject in subjects.values()) else "hidden states"
        notes.append(f"Models of different depth ({what}: {counts}): CKA compares the nearest relative depth.")
    if len({id(subject.collator) for subject in subjects.values()}) > 1:
        notes.append("The models have different image processors: each sees the images as its own prepares them.")
    return notes


def model_class_names(
    model: PreTrainedModel, images: Dataset | None = None, label_column: str | None = None
) -> list[str]:
    """Names of a model's classes in the order of their label ids; a name that stands twice gets its id.

    Args:
        model: the classifier.
        images: data whose names stand in where the model has none of its own (LABEL_0, ...).
        label_column: as for `find_label_column`.
    """
    names = {int(k): str(name) for k, name in (model.config.id2label or {}).items()}
    if isinstance(images, Dataset) and all(name == f"LABEL_{k}" for k, name in names.items()):
        matched = matched_by_order(images, find_label_column(images, label_column), names)
        names = {k: matched.get(name, name) for k, name in names.items()}
    often = Counter(names.values())
    return [names[k] if often[names[k]] == 1 else f"{names[k]} ({k})" for k in sorted(names)]


def _hidden(name: str, model: PreTrainedModel, pixels: Tensor) -> list[SupervisionPoint]:
    """The hidden states of a model, after a trial on one image; none where it returns none."""
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
        return []


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuses weights that are NaN or infinite."""
    if bad := [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{name}: weights that are NaN or infinite, in {shown(bad)}: there is nothing to audit")


def check_labels(name: str, model: PreTrainedModel, original: PreTrainedModel) -> None:
    """Refuses a model that does not classify the classes of the original in the same order."""
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
