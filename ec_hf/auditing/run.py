"""What `ec_hf.audit` does, step by step: check, look once, measure, report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from math import ceil
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from torch.utils.data import ConcatDataset

from ec_hf._version import __version__
from ec_hf.auditing import measure
from ec_hf.auditing.forward import Collected, collect, evaluating, features_of
from ec_hf.auditing.quantization import quantized
from ec_hf.auditing.relearning import relearn
from ec_hf.auditing.report import SPLITS, AuditReport, Measurement, ModelInfo, RelearningCurve
from ec_hf.auditing.settings import AuditSettings
from ec_hf.auditing.subjects import (
    Subject,
    choose_rows,
    info,
    labels_of,
    load_models,
    random_init,
    stratified_rows,
    subjects_of,
)
from ec_hf.data.columns import find_image_column, find_label_column, read_column
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.sources import train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.distributed import spread
from ec_hf.metrics import knn_hits, relearning_area
from ec_hf.metrics.embedding import embedding

__all__ = ["report_of"]


INT8_IMAGES, PICTURED = 1000, 30
RELEARNING_IMAGES, RELEARNING_HELD_OUT = 48, 300
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
        if unknown := [name for name in given if name not in models]:
            raise ValueError(f"processor: there is no model {unknown[0]!r}; there are {list(models)}")
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
        classes = _whole_classes(labels)
        seen = {name: _at_most(settings.max_images, each, seed) for name, each in labels.items()}
        places = {"forget_test": seen["forget_test"], "retain_test": seen["retain_test"] + len(labels["forget_test"])}
        splits = {name: part.select(seen[name]) for name, part in splits.items()}
        labels = {name: each[seen[name]] for name, each in labels.items()}
        notes += [f"The split {name} has no image." for name, each in labels.items() if not len(each)]
        rows, quota = choose_rows(
            labels, classes, {"train": settings.train_sample, "test": settings.test_sample}, seed
        )
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
        curves: list[RelearningCurve] = []
        measurements: list[Measurement] = []
        if settings.int8 and len(labels["forget_test"]):
            with _clock(seconds, "int8"):
                for name, each in infos.items():
                    if each.role == "unlearned":
                        measurements += _int8(name, subjects[name], splits, labels, settings)
        if downstream is not None:
            with _clock(seconds, "downstream"):
                measurements += _downstream(subjects, downstream, settings, notes)
        if settings.relearning:
            with _clock(seconds, "relearning"):
                curves, areas = _relearning(subjects, splits, labels, classes, seed, notes)
                measurements += areas
    named = {int(k): str(v) for k, v in (models["original"].config.id2label or {}).items()}
    names = [named[k] for k in sorted(named)]
    with _clock(seconds, "measuring"):
        bank, missing = measure.bank_of(found, classes, quota, seed)
        notes += missing
        jobs = measure.similarities(found, references, seed) + measure.recoveries(found, bank, len(names), seed)
        if settings.svc:
            jobs += measure.attacks(found, floors, seed)
        if settings.idi and floors:
            notes.append("IDI needs a retrained model; the probe advantage is its relative that does not.")
        elif settings.idi:
            jobs += measure.information(found, seed)
        measurements += measure.outputs(found, classes, len(names), seed)
        measurements += chain.from_iterable(spread(jobs))
        measurements += measure.membership(found, classes, floors, seed)
        measurements += measure.advantages(measurements, "random_init" if floors else "retrained")
        measurements += measure.differences(measurements)
        measurements += measure.summaries(measurements, classes, floors)
        deepest = {name: subject.layers[-2] for name, subject in subjects.items() if subject.points}
        neighbours = measure.retrievals(found, classes, deepest, places)
    picture: dict[str, Any] = {}
    if settings.embedding:
        with _clock(seconds, "embedding"):
            picture = _embedding(found, {name: deepest[name] for name in deepest if name not in floors}, classes, seed)
    return AuditReport(
        models=infos,
        layers=max((subject.layers[:-1] for subject in subjects.values()), key=len),
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
        relearning=curves,
        retrievals=neighbours,
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
    name: str,
    subject: Subject,
    splits: Mapping[str, Dataset],
    labels: Mapping[str, np.ndarray],
    settings: AuditSettings,
) -> list[Measurement]:
    """Accuracy on forgotten test images after the weights were rounded to 8 bits."""
    chosen = _at_most(INT8_IMAGES, labels["forget_test"], settings.seed)
    rounded = Subject(quantized(subject.model, bits=8), subject.collator)
    images = splits["forget_test"].select(chosen)
    logits = features_of({name: rounded}, images, batch_size=settings.batch_size)[name]
    hits = logits.argmax(1) == labels["forget_test"][chosen]
    chance = 1 / logits.shape[1]
    return [measure.mean("accuracy_int8", name, hits, settings.seed, split="forget_test", chance=chance)]


def _downstream(
    subjects: Mapping[str, Subject], data: Any, settings: AuditSettings, notes: list[str]
) -> list[Measurement]:
    """k-NN accuracy on other labelled images, from frozen features."""
    bank, queries = _halves(data)
    column = find_label_column(bank)
    values = sorted({value for part in (bank, queries) for value in read_column(part, column).unique().to_pylist()})
    ids = {value: k for k, value in enumerate(values)}
    collators = {
        id(subject.collator): replace(
            subject.collator, image_column=find_image_column(bank), label_column=column, label_ids=ids
        )
        for subject in subjects.values()
    }
    penultimate = settings.downstream_features == "penultimate"
    if penultimate and (bare := [name for name, subject in subjects.items() if not subject.points]):
        notes.append(f"k-NN on the downstream set sees the logits of {', '.join(bare)}, which have no hidden states.")
    looked_at = {
        name: Subject(subject.model, collators[id(subject.collator)], subject.points[-1:] if penultimate else ())
        for name, subject in subjects.items()
    }
    found = []
    for part in (bank, queries):
        labels = np.array([ids[value] for value in read_column(part, column).to_pylist()])
        rows = _at_most(settings.max_images, labels, settings.seed)
        features = features_of(
            looked_at, part.select(rows), pooling=settings.pooling, batch_size=settings.batch_size, title="Downstream"
        )
        found.append((features, labels[rows]))
    (known, known_labels), (asked, asked_labels) = found
    rows_found = []
    for name, subject in looked_at.items():
        hits = knn_hits(known[name], known_labels, asked[name], asked_labels, k=min(5, len(known_labels)))
        where = {"split": "downstream", "layer": subject.layers[0], "chance": 1 / len(ids)}
        rows_found.append(measure.mean("knn_downstream", name, hits, settings.seed, **where))
    return rows_found


def _halves(data: Any) -> tuple[Dataset, Dataset]:
    """Bank and queries: the splits there are, or as UUEF draws them, 80 to 20 with seed 2."""
    if isinstance(data, Mapping) and len(data) > 1:
        return train_and_test(data)
    data = next(iter(data.values())) if isinstance(data, Mapping) else data
    if not isinstance(data, Dataset) or len(data) < 5:
        raise ValueError(
            "downstream: expected a datasets.Dataset of at least five rows, or {'train': ..., 'test': ...}"
        )
    bank, queries = torch.utils.data.random_split(data, [0.8, 0.2], generator=torch.Generator().manual_seed(2))
    return data.select(bank.indices), data.select(queries.indices)


def _relearning(
    subjects: Mapping[str, Subject],
    splits: Mapping[str, Dataset],
    labels: Mapping[str, np.ndarray],
    classes: Sequence[int],
    seed: int,
    notes: list[str],
) -> tuple[list[RelearningCurve], list[Measurement]]:
    """Fine-tunes copies of all models on a few forget images among as many retain images; asks held-out forget images.

    Those are test images of the forgotten classes, or the other forgotten rows.
    """
    few = _at_most(RELEARNING_IMAGES, labels["forget_train"], seed)
    split = "forget_test" if classes else "forget_train"
    rest = np.arange(len(labels[split])) if classes else np.setdiff1d(np.arange(len(labels[split])), few)
    asked = rest[_at_most(RELEARNING_HELD_OUT, labels[split][rest], seed)]
    if not len(few) or not len(asked):
        notes.append("Relearning needs forgotten training images, and others of them to ask about.")
        return [], []
    beside = _at_most(len(few), labels["retain_train"], seed)
    sample: ConcatDataset = ConcatDataset([splits["forget_train"].select(few), splits["retain_train"].select(beside)])
    held_out = splits[split].select(asked)

    def job(name: str, mode: str) -> RelearningCurve | str:
        subject = subjects[name]
        try:
            return relearn(subject.model, sample, held_out, subject.collator, mode=mode, seed=seed, name=name)
        except ValueError as error:
            return f"Relearning ({mode}) of {name}: {error}"

    results = spread([partial(job, name, mode) for mode in ("head", "full") for name in subjects])
    curves = [each for each in results if not isinstance(each, str)]
    notes += [each for each in results if isinstance(each, str)]
    areas = [
        Measurement(
            "relearning_area",
            curve.model,
            relearning_area(curve.steps, curve.accuracy),
            split,
            count=len(asked),
            note=curve.mode,
        )
        for curve in curves
    ]
    return curves, areas


def _embedding(
    found: Mapping[str, Collected], layers: Mapping[str, str], classes: Sequence[int], seed: int
) -> dict[str, Any]:
    """The t-SNE picture of the deepest features of the kept test images; empty where there is nothing to draw."""
    sides = [found[split] for split in ("forget_test", "retain_test") if len(found[split].rows)]
    if not sides:
        return {}
    labels = np.concatenate([each.kept_labels for each in sides])
    features = {name: np.concatenate([each.features[name][layer] for each in sides]) for name, layer in layers.items()}
    features = {name: each for name, each in features.items() if np.isfinite(each).all()}
    present = [k for k in classes if (labels == k).any()]
    return (
        embedding(features, labels, present, seed, per_class=PICTURED)
        if present and features and len(labels) >= 8
        else {}
    )


def _whole_classes(labels: Mapping[str, np.ndarray]) -> list[int]:
    """Label ids that are forgotten with all their images, rather than some of their images."""
    sides = {
        half: {int(label) for name, each in labels.items() if name.startswith(half) for label in np.unique(each)}
        for half in ("forget", "retain")
    }
    return sorted(sides["forget"] - sides["retain"])


def _at_most(count: int | None, labels: np.ndarray, seed: int) -> np.ndarray:
    """Ascending rows: all, or about so many, of all classes alike."""
    if count is None:
        return np.arange(len(labels))
    return stratified_rows(labels, ceil(count / max(len(np.unique(labels)), 1)), seed)


@contextmanager
def _clock(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] = round(time.perf_counter() - start, 2)
