"""What `ec_hf.audit` does, step by step: check, look once, measure, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import chain
from math import ceil
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset

from ec_hf import measure
from ec_hf._version import __version__
from ec_hf.audit import AuditSettings
from ec_hf.collect import Collected, collect, evaluating, predictions, spread
from ec_hf.data import four_splits
from ec_hf.metrics.embedding import embedding
from ec_hf.report import SPLITS, AuditReport, Measurement, ModelInfo
from ec_hf.requests import ForgetRequest
from ec_hf.subjects import (
    Subject,
    choose_rows,
    info,
    labels_of,
    load_models,
    random_init,
    stratified_rows,
    subjects_of,
)

__all__ = ["report_of"]

INT8_IMAGES = 1000
VERSIONS = {
    "ec_hf": __version__,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "accelerate": accelerate.__version__,
}


def parts_of(
    train: Dataset | None,
    test: Dataset | None,
    request: ForgetRequest | None,
    splits: Mapping[str, Dataset] | None,
    label_column: str | None,
    id_column: str | None,
) -> dict[str, Dataset]:
    """The four splits, from a request or as they are given; what is missing is empty.

    Raises:
        ValueError: for names that are no split, nothing that is forgotten, and inputs of both kinds or of neither.
    """
    if splits is None:
        if train is None or test is None or request is None:
            missing = [name for name, x in (("train", train), ("test", test), ("request", request)) if x is None]
            raise ValueError(f"{', '.join(missing)} missing: give train, test and request, or splits")
        return four_splits(train, test, request, label_column=label_column, id_column=id_column)
    if train is not None or test is not None:
        raise ValueError("give either train and test or splits, not both")
    if unknown := [name for name in splits if name not in SPLITS]:
        raise ValueError(f"splits: {unknown[0]!r} is none of {list(SPLITS)}")
    if wrong := [name for name, part in splits.items() if not isinstance(part, Dataset)]:
        raise TypeError(f"splits: {wrong[0]} is a {type(splits[wrong[0]]).__name__}; expected a datasets.Dataset")
    filled = [name for name, part in splits.items() if len(part)]
    if not any(name.startswith("forget") for name in filled):
        raise ValueError("splits: there is no image to forget, neither in forget_train nor in forget_test")
    empty = splits[filled[0]].select([])
    return {name: splits.get(name, empty) for name in SPLITS}


def report_of(
    settings: AuditSettings,
    original: Any,
    unlearned: Any,
    retrained: Any,
    splits: dict[str, Dataset],
    request: ForgetRequest | None,
    downstream: Any,
    *,
    processor: Any = None,
    dataset_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> AuditReport:
    """Runs an audit on four splits; see `ec_hf.audit` for the arguments."""
    seconds: dict[str, float] = {}
    state, seed = PartialState(), settings.seed
    with _clock(seconds, "loading"):
        models, processors, infos = load_models(original, unlearned, retrained)
        given = dict(processor) if isinstance(processor, Mapping) else dict.fromkeys(models, processor)
        processors |= {name: each for name, each in given.items() if each is not None}
        references = ["original", *(["retrained"] if retrained is not None else [])]
        floors = [] if retrained is not None else ["random_init"]
        for name in floors:
            models[name] = random_init(models["original"], seed)
            infos[name] = info(models[name], "floor")
            processors |= {name: processors["original"]} if "original" in processors else {}
    with evaluating(models.values(), state.device):
        columns = {"image_column": image_column, "label_column": label_column}
        subjects, notes = subjects_of(models, processors, splits, pooling=settings.pooling, **columns)
        labels = {name: labels_of(part, subjects["original"].collator, label_column) for name, part in splits.items()}
        splits, labels = _reduced(splits, labels, settings)
        classes = _whole_classes(labels)
        sizes = {"train": settings.train_sample, "test": settings.test_sample}
        rows, quota = choose_rows(labels, classes, sizes, seed)
        notes += [f"The split {name} has no image." for name, each in labels.items() if not len(each)]
        with _clock(seconds, "forward"):
            found = {
                name: collect(
                    subjects,
                    splits[name],
                    labels[name],
                    rows[name],
                    references=references,
                    uuef=settings.cka_mode == "uuef",
                    masked=classes,
                    pooling=settings.pooling,
                    batch_size=settings.batch_size,
                    num_workers=settings.num_workers,
                    name=name,
                )
                for name in splits
            }
        unlearned_names = [name for name in subjects if infos[name].role == "unlearned"]
        measurements: list[Measurement] = []
        if settings.int8 and len(labels["forget_test"]):
            with _clock(seconds, "int8"):
                for name in unlearned_names:
                    measurements += _int8(name, subjects[name], splits["forget_test"], labels["forget_test"], settings)
    named = {int(k): str(v) for k, v in (models["original"].config.id2label or {}).items()}
    names = [named[k] for k in sorted(named)]
    with _clock(seconds, "measuring"):
        bank, missing = measure.bank_of(found, classes, quota, seed)
        notes += missing
        jobs = measure.similarities(found, references, seed) + measure.recoveries(found, bank, len(names), seed)
        measurements += measure.outputs(found, classes, len(names), seed)
        measurements += chain.from_iterable(spread(jobs))
        measurements += measure.membership(found, classes, floors, seed)
        measurements += measure.advantages(measurements, "retrained" if retrained is not None else "random_init")
        measurements += measure.summaries(measurements, classes, floors)
        deepest = {name: subject.layers[-2] for name, subject in subjects.items() if subject.points}
        shown = {name: layer for name, layer in deepest.items() if infos[name].role != "floor"}
        picture = (
            _embedding(found["forget_test"], found["retain_test"], shown, classes, seed) if settings.embedding else {}
        )
    layers = max((subject.layers[:-1] for subject in subjects.values()), key=len)
    return AuditReport(
        models=infos,
        layers=layers,
        measurements=measurements,
        dataset={
            "name": dataset_name,
            "images": {name: len(each) for name, each in labels.items()},
            "class_names": names,
        },
        request={
            "hash": request.content_hash if request else None,
            "summary": request.summary() if request else "Given as splits, without a request.",
            "classes": classes,
        },
        references=_references(infos),
        notes=notes,
        confusion=measure.confusion(found, classes, names),
        retrievals=measure.retrievals(found, classes, deepest),
        embedding=picture,
        settings=asdict(settings) | {"processes": state.num_processes, "sample": {k: len(v) for k, v in rows.items()}},
        seconds=seconds,
        versions=VERSIONS,
    )


def _references(infos: Mapping[str, ModelInfo]) -> list[str]:
    """What the models are compared with, and what that can and cannot show."""
    original = (
        "original: the model before unlearning. Likeness to it on forget images shows what was left as it was; "
        "unlikeness alone does not show that the information is gone."
    )
    if "retrained" in infos:
        return [
            original,
            "retrained: a model that never saw the forget set. Features and outputs as near to it as possible are the "
            "aim; further from the original than it is means that more was erased than the data had put there. It is "
            "one model of one seed: differences of the size that another seed makes mean nothing.",
        ]
    return [
        original,
        "random_init: the same architecture with random weights, a floor. What a probe or k-NN gets from it, it gets "
        "from the pixels and not from training.",
        "split halves of the original: its own channels against each other, how alike two views of the same knowledge "
        "are.",
        "classes that were never forgotten: the same figures on retain images, a ceiling.",
        "There is no retrained model. These references bound what is left, but cannot tell how much a model that "
        "never saw the forget set would know of it from the retain set alone: a probe above the floor is no leak yet.",
    ]


def _int8(
    name: str, subject: Subject, dataset: Dataset, labels: np.ndarray, settings: AuditSettings
) -> list[Measurement]:
    """Accuracy on forgotten test images after the weights were rounded to 8 bits."""
    from ec_hf.recovery import quantized

    chosen = stratified_rows(labels, ceil(INT8_IMAGES / max(len(np.unique(labels)), 1)), settings.seed)
    rounded = replace(subject, model=quantized(subject.model, bits=8))
    hits = predictions(rounded, dataset.select(chosen), len(chosen), batch_size=settings.batch_size) == labels[chosen]
    chance = 1 / len(subject.model.config.id2label or [0])
    return [measure.mean("accuracy_int8", name, hits, settings.seed, split="forget_test", chance=chance)]


def _embedding(
    forget: Collected, retain: Collected, layers: Mapping[str, str], classes: Sequence[int], seed: int
) -> dict[str, Any]:
    """The t-SNE picture of the deepest features of the kept test images; empty where there is nothing to draw."""
    labels = np.concatenate([forget.kept_labels, retain.kept_labels])
    features = {
        name: np.concatenate([each.features[name][layer] for each in (forget, retain) if len(each.rows)])
        for name, layer in layers.items()
        if len(labels)
    }
    features = {name: each for name, each in features.items() if np.isfinite(each).all()}
    present = [k for k in classes if (labels == k).any()]
    if not present or not features or len(labels) < 4:
        return {}
    return embedding(features, labels, present, seed)


def _whole_classes(labels: Mapping[str, np.ndarray]) -> list[int]:
    """Label ids that are forgotten with all their images, rather than some of their images."""
    sides = {
        half: {int(label) for name, each in labels.items() if name.startswith(half) for label in np.unique(each)}
        for half in ("forget", "retain")
    }
    return sorted(sides["forget"] - sides["retain"])


def _reduced(
    splits: Mapping[str, Dataset], labels: Mapping[str, np.ndarray], settings: AuditSettings
) -> tuple[dict[str, Dataset], dict[str, np.ndarray]]:
    """At most `max_images` of each split, of its classes alike."""
    if settings.max_images is None:
        return dict(splits), dict(labels)
    rows = {
        name: stratified_rows(each, ceil(settings.max_images / max(len(np.unique(each)), 1)), settings.seed)
        for name, each in labels.items()
    }
    return (
        {name: splits[name].select(rows[name]) for name in rows},
        {name: labels[name][rows[name]] for name in rows},
    )


@contextmanager
def _clock(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 2)
