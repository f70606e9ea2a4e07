"""How an audit goes on when its question stands: look once, try to recover, measure, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate import PartialState
from scipy.stats import binom

from ec_hf._version import __version__
from ec_hf.auditing.attacks.quantization import int8_accuracies
from ec_hf.auditing.attacks.recovery import Attacked, recovery
from ec_hf.auditing.collected import BySplit, Shadows
from ec_hf.auditing.compared import compared, forget_split
from ec_hf.auditing.downstream import downstream_accuracies
from ec_hf.auditing.forward import collect
from ec_hf.auditing.measures.cka import cka_jobs, means_over_retrained
from ec_hf.auditing.measures.membership import attack_areas, attack_notes, membership_areas, svc_attack_jobs
from ec_hf.auditing.measures.neighbours import retrievals, tsne_picture
from ec_hf.auditing.measures.outputs import confusion, output_means, retained_classes
from ec_hf.auditing.measures.probes import LayerHits, information_jobs, probe_accuracies, probe_images, probe_jobs
from ec_hf.auditing.measures.summaries import information_differences, probe_advantages, summary_scores
from ec_hf.auditing.question import Question, kept_rows
from ec_hf.auditing.report import AuditReport, Measurement, Signal, Status, overall
from ec_hf.auditing.residual import ResidualKnowledge, residual_areas, residual_knowledge
from ec_hf.auditing.sense import (
    doubtful_references,
    features_without_sense,
    models_without_sense,
    named_by_retrained,
)
from ec_hf.auditing.signals import FAMILY_ALPHA, signals_of
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import spread

__all__ = ["Clock", "answer"]

ONE_RETRAINED = (
    "retrained: a model that never saw the forget set. Features and outputs as near to it as possible are the "
    "aim; further from the original than it is means that more was erased than the data had put there. It is "
    "one model of one seed: differences of the size that another seed makes mean nothing. How large these are is "
    "estimated from the retained images, which the original and it both know; several retrained models would tell it."
)
SEVERAL_RETRAINED = (
    "retrained: models that never saw the forget set. Features and outputs as near to them as they are to each other "
    "are the aim; further from the original than they are means that more was erased than the data had put there. "
    "A single number that compares with the retrained models is the mean over them."
)
ROWS = (
    "The request forgets rows of classes that are kept. The target on the forgotten rows is therefore not chance, but "
    "what a model gets on images of the same classes that it never saw (accuracy_matched), which must stay."
)
SIGNALS = (
    "Signals: each puts an unlearned model at 0 if it is as the original and at 1 if it is as a retrained model. "
    f"Their intervals hold together: of a model that is truly retrained, {1 - FAMILY_ALPHA:.0%} of audits put every "
    "signal within the spread of retraining or call it blind."
)

VERSIONS = {
    "ec_hf": __version__,
    "torch": str(torch.__version__),
    "transformers": transformers.__version__,
    "accelerate": accelerate.__version__,
}


class Clock:
    """Wall time by part.

    Attributes:
        seconds: part -> seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Takes the time of a ``with`` block."""
        start = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - start, 2)


def answer(
    question: Question,
    subjects: Mapping[str, Subject],
    notes: Sequence[str],
    clock: Clock,
    shadows: Shadows | None = None,
) -> AuditReport:
    """Looks once at all images, measures, and reports.

    Args:
        question: what is asked.
        subjects: the models by name, on their device and in evaluation mode.
        notes: what is known ahead not to be measurable.
        clock: takes the time of each part.
        shadows: what shadow models showed, if any were given.
    """
    deepest = {name: subject.layers[-2] for name, subject in subjects.items() if subject.points}
    empty = [f"The split {name} has no image." for name, labels in question.labels.items() if not len(labels)]
    with clock("forward"):
        collected = look(question, subjects)
    recovered, attacked, not_recovered = _recover(question, subjects, clock)
    residual: list[ResidualKnowledge] = []
    if question.settings.asks_residual:
        with clock("residual"):
            residual = residual_knowledge(question, subjects, forget_split(question))
    with clock("measuring"):
        measured, hits, not_measured = _measure(collected, question, shadows)
        summaries = _summarize([*recovered, *measured], question)
        nearest = retrievals(collected, question, deepest)
    doubtful = _doubts(question, subjects, collected)
    with clock("signals"):
        signals, not_told = _signals(collected, hits, attacked, question, shadows, residual)
    picture: dict[str, Any] = {}
    if question.settings.embedding:
        with clock("embedding"):
            picture = tsne_picture(collected, question, deepest)
    return AuditReport(
        models=dict(question.models),
        layers=max((subject.layers[:-1] for subject in subjects.values()), key=len),
        measurements=[*recovered, *residual_areas(residual, question), *measured, *summaries],
        signals=signals,
        status=_statuses(signals, collected, question, doubtful),
        dataset={
            "name": question.dataset_name,
            "images": {name: len(labels) for name, labels in question.labels.items()},
            "class_names": list(question.class_names),
        },
        request={
            "hash": question.request.content_hash if question.request else None,
            "summary": question.request.summary() if question.request else "Given as splits, without a request.",
            "classes": list(question.whole_classes),
        },
        references=[*_references(question), *([] if question.whole_classes else [ROWS]), *_shadow_reference(shadows)],
        notes=[
            *notes,
            *empty,
            *models_without_sense(collected, question),
            *not_recovered,
            *not_measured,
            *features_without_sense(collected),
            *not_told,
            *dict.fromkeys(doubtful.values()),
        ],
        retained=retained_classes(collected, question),
        confusion=confusion(collected, question),
        attacks=[each.curve(question.seed) for each in attacked],
        retrievals=nearest,
        embedding=picture,
        settings={
            **asdict(question.settings),
            "processes": PartialState().num_processes,
            "sample": {name: len(found.kept) for name, found in collected.items()},
        },
        seconds=clock.seconds,
        versions=VERSIONS,
    )


def _doubts(question: Question, subjects: Mapping[str, Subject], collected: BySplit) -> dict[str, str]:
    """Unlearned model -> why its references, or the images, allow no all-clear."""
    doubtful = doubtful_references({name: (each.model, question.models[name].role) for name, each in subjects.items()})
    for model, found in _classes_unheard(collected, question).items() if question.retrained else ():
        doubtful[model] = " ".join(filter(None, [doubtful.get(model), found]))
    return doubtful


def look(question: Question, subjects: Mapping[str, Subject]) -> BySplit:
    """The one pass of all models over all images.

    Args:
        question: what is asked.
        subjects: the models by name.
    """
    settings, kept = question.settings, kept_rows(question)
    return {
        name: collect(
            subjects,
            question.splits[name],
            question.labels[name],
            kept[name],
            references=question.references,
            targets=question.retrained,
            uuef=settings.cka_mode == "uuef",
            masked=question.whole_classes,
            pooling=settings.pooling,
            batch_size=settings.batch_size,
            num_workers=settings.num_workers,
            name=name,
        )
        for name in question.splits
    }


def _recover(
    question: Question, subjects: Mapping[str, Subject], clock: Clock
) -> tuple[list[Measurement], list[Attacked], list[str]]:
    """What needs the models again: 8-bit weights, another dataset, attacks; with notes on what could not be had."""
    int8: list[Measurement] = []
    elsewhere: tuple[list[Measurement], list[str]] = [], []
    if question.settings.int8 and len(question.labels["forget_test"]):
        with clock("int8"):
            int8 = int8_accuracies(question, subjects)
    if question.downstream is not None:
        with clock("downstream"):
            elsewhere = downstream_accuracies(question, subjects)
    attacked, not_made = recovery(question, subjects, clock)
    areas = [each.area(question.seed) for each in attacked]
    return [*int8, *elsewhere[0], *areas], attacked, [*elsewhere[1], *not_made]


def _measure(
    collected: BySplit, question: Question, shadows: Shadows | None
) -> tuple[list[Measurement], list[LayerHits], list[str]]:
    """All that is measured on what the pass collected, what probes and k-NN get right, and notes on what is not."""
    images, notes = probe_images(collected, question)
    jobs: list[Callable[[], Any]] = [*cka_jobs(collected, question)]
    similarities = len(jobs)
    jobs += probe_jobs(collected, images)
    probed = len(jobs)
    if question.settings.svc:
        jobs += svc_attack_jobs(collected, question)
    if question.settings.idi and question.retrained:
        jobs += information_jobs(collected, question)
    elif question.settings.idi:
        notes = [*notes, "IDI needs a retrained model; the probe advantage is its relative that does not."]
    outputs, done = output_means(collected, question), spread(jobs)
    cka = list(chain.from_iterable(done[:similarities]))
    hits = list(chain.from_iterable(done[similarities:probed]))
    layers = [*cka, *means_over_retrained(cka, question), *probe_accuracies(hits, question)]
    others = chain.from_iterable(done[probed:])
    membership = [*membership_areas(collected, question), *attack_areas(collected, question, shadows)]
    return [*outputs, *layers, *others, *membership], hits, [*notes, *attack_notes(question, shadows)]


def _signals(
    collected: BySplit,
    hits: Sequence[LayerHits],
    attacked: Sequence[Attacked],
    question: Question,
    shadows: Shadows | None,
    residual: Sequence[ResidualKnowledge],
) -> tuple[list[Signal], list[str]]:
    """Where each measurement puts the unlearned models, and notes on models that it says nothing of."""
    if not question.retrained:
        return [], []
    rows = compared(collected, hits, attacked, question, shadows, residual)
    lost = {
        model: dict.fromkeys(row.metric for row in rows if model not in row.values) for model in question.unlearned
    }
    notes = [
        f"{model}: there is no signal of {', '.join(metrics)} in one or more layers or in the output."
        for model, metrics in lost.items()
        if metrics
    ]
    signals = signals_of(rows, question.unlearned, question.retrained)
    for model, layers in _unjudged(signals, collected, question).items():
        if layers:
            notes.append(
                f"{model}: no signal judges {', '.join(layers)}, which some model lacks or has no finite features of: "
                "what is left there is not known."
            )
    if question.whole_classes and not set(question.labels["forget_train"].tolist()) <= set(question.whole_classes):
        notes.append(
            "The request names rows of kept classes beside whole classes: the signals judge the whole classes alone. "
            "Audit the rows by a request of their own."
        )
    if len(question.retrained) == 1 and not any(row.noise for row in rows):
        notes.append(
            "There is no retained image to show how far two trainings differ: the intervals of the signals are "
            "those of the images alone, and too narrow. Give retain_test, or several retrained models."
        )
    return signals, notes


def _unjudged(signals: Sequence[Signal], collected: BySplit, question: Question) -> dict[str, list[str]]:
    """Unlearned model -> layers that it shares with the original and that no signal judges."""
    features = collected[forget_split(question)].features
    judged = {(signal.model, signal.layer) for signal in signals}
    twice = {signal.model for signal in signals if signal.layer == "penultimate"}  # may stand for the deepest state
    return {
        model: [
            layer
            for layer in features.get(model, {})
            if layer in features.get("original", {})
            and (model, layer) not in judged
            and not (model in twice and layer == _deepest_hidden(features[model]))
        ]
        for model in question.unlearned
    }


def _deepest_hidden(layers: Iterable[str]) -> str | None:
    return next((layer for layer in reversed(list(layers)) if layer not in ("penultimate", "logits")), None)


def _classes_unheard(collected: BySplit, question: Question) -> dict[str, str]:
    """Unlearned model -> a note on forgotten classes of which the signals tell too little, if there are any.

    Signals are means over the images of all forgotten classes. A class without an image, or one that is still named
    among many that are not, is not seen in these.
    """
    split = forget_split(question)
    shown, notes = collected[split], {}
    missing = len(set(question.whole_classes) - set(shown.labels.tolist()))
    for model in question.unlearned:
        known = _still_named(collected, question, model, split)
        some = f"of the {len(question.whole_classes)} forgotten classes"
        told = [f"{missing} {some} have no image"] if missing else []
        told += [f"{known} {some} are named nearly as often as before"] if known else []
        if told:
            notes[model] = (
                f"{model}: {', and '.join(told)} in {split}, so the signals are no all-clear for all of them."
            )
    return notes


def _still_named(collected: BySplit, question: Question, model: str, split: str) -> int:
    """The forgotten classes that a model still names in half as many images as the original, or more.

    Beyond chance, and where it names more of them than each retrained model does.
    """
    shown, count = collected[split], 0
    hits = {name: shown.outputs[name]["hit"] for name in ("original", model, *question.retrained)}
    for label in question.whole_classes:
        right = {name: float(np.nansum(own[shown.labels == label])) for name, own in hits.items()}
        images = int((shown.labels == label).sum())
        most = max((right[name] for name in question.retrained), default=0.0)
        by_chance = binom.sf(
            right[model] - 1, max(images, 1), max(most / max(images, 1), 1 / len(question.class_names))
        )
        known = right[model] > 0 and 2 * right[model] >= right["original"] > 2 * most
        count += bool(known and by_chance < FAMILY_ALPHA / len(question.whole_classes))
    return count


def _statuses(
    signals: Sequence[Signal], collected: BySplit, question: Question, doubtful: Mapping[str, str]
) -> dict[str, Status]:
    """Unlearned model -> what its signals come to; no all-clear where a layer is not judged, or in doubt."""
    statuses: dict[str, Status] = {}
    known = named_by_retrained(collected, question)
    unjudged = _unjudged(signals, collected, question) if question.retrained else {}
    for model in question.unlearned:
        status = overall(signal for signal in signals if signal.model == model)
        if status in ("over-erased", "as retrained") and (known or unjudged.get(model) or model in doubtful):
            status = "unclear"
        if status is not None:
            statuses[model] = status
    return statuses


def _summarize(rows: Sequence[Measurement], question: Question) -> list[Measurement]:
    """Ratios and summary scores of the measurements."""
    return [
        *probe_advantages(rows, question.floor),
        *information_differences(rows, question.retrained),
        *summary_scores(rows, question),
    ]


def _shadow_reference(shadows: Shadows | None) -> list[str]:
    """Which shadow models membership was attacked with."""
    if shadows is None:
        return []
    return [
        f"shadow models: {shadows.outside.shape[1]} trained without the forget set, beside the retrained ones, and "
        f"{shadows.inside.shape[1]} trained with it. LiRA reads from them how sure a model is of an image that it "
        "did or did not train on."
    ]


def _references(question: Question) -> list[str]:
    """What the models are compared with, and what that can and cannot show."""
    original = (
        "original: the model before unlearning. Likeness to it on forget images shows what was left as it was; "
        "unlikeness alone does not show that the information is gone."
    )
    if question.retrained:
        several = len(question.retrained) > 1
        return [original, SEVERAL_RETRAINED if several else ONE_RETRAINED, SIGNALS]
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
