"""What frozen features still tell of the classes: a linear probe, nearest neighbours, and an information estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from ec_hf.auditing.collected import BySplit
from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.question import Question, quota_per_class
from ec_hf.auditing.report import Measurement
from ec_hf.data.sampling import stratified_rows
from ec_hf.metrics import infonce, knn_hits, probe_hits

__all__ = ["LayerHits", "ProbeImages", "information_jobs", "probe_accuracies", "probe_images", "probe_jobs"]

NEIGHBOURS = 5


@dataclass(frozen=True)
class ProbeImages:
    """Which kept images a probe and k-NN learn from, and which they classify.

    Attributes:
        learnt: split -> positions among its kept rows, to learn from.
        asked: split -> positions among its kept rows, to classify.
    """

    learnt: Mapping[str, np.ndarray]
    asked: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerHits:
    """Which images a probe or k-NN gets right from one layer.

    Attributes:
        metric: "linear_probe" or "knn".
        model: name of the model.
        split: of the images.
        layer: of the features.
        hits: `(n,)` of the images asked about, in the order of the split; NaN if the features are not finite.
        labels: `(n,)` label ids of these images.
    """

    metric: str
    model: str
    split: str
    layer: str
    hits: np.ndarray
    labels: np.ndarray


def probe_images(collected: BySplit, question: Question) -> tuple[ProbeImages, list[str]]:
    """Which images probe and k-NN learn from, and which they must classify.

    Where whole classes are forgotten, they learn from training images of all classes alike, forgotten ones included:
    do the features still tell the classes apart? They classify test images. Where rows are forgotten, they learn from
    retain images alone, and classify the forgotten rows too.

    Args:
        collected: what the pass collected.
        question: what is asked.

    Returns:
        The images, and notes on what cannot be classified.
    """
    labels = {split: shown.kept_labels for split, shown in collected.items()}
    learnt, (asked, notes) = _learnt(labels, question), _asked(labels, question)
    known = np.unique([label for split, chosen in learnt.items() for label in labels[split][chosen]])
    if len(known) < 2:
        notes.append("The training images kept are of one class or none: there is nothing to probe.")
        return ProbeImages({}, {}), notes
    asked = {split: chosen[np.isin(labels[split][chosen], known)] for split, chosen in asked.items()}
    return ProbeImages(learnt, {split: chosen for split, chosen in asked.items() if len(chosen)}), notes


def probe_jobs(collected: BySplit, images: ProbeImages) -> list[Callable[[], list[LayerHits]]]:
    """Jobs that find what a linear probe and k-NN get right by model and layer, from frozen features.

    Args:
        collected: what the pass collected.
        images: what to learn from and what to classify, from `probe_images`.
    """
    models = next(iter(collected.values())).features if images.asked else {}
    return [
        partial(_probe_and_knn, collected, images, model, layer)
        for model, layers in models.items()
        for layer in layers
    ]


def probe_accuracies(found: Iterable[LayerHits], question: Question) -> list[Measurement]:
    """Linear probe and k-NN accuracy of what `probe_jobs` found.

    Args:
        found: which images are got right.
        question: what is asked.
    """
    chance = 1 / len(question.class_names)
    return [
        mean_over_images(
            each.metric, each.model, each.hits, question.seed, split=each.split, layer=each.layer, chance=chance
        )
        for each in found
    ]


def information_jobs(collected: BySplit, question: Question) -> list[Callable[[], list[Measurement]]]:
    """Jobs that estimate what each layer tells about an image being one to forget, from the kept training images.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    models = collected["forget_train"].features
    return [
        partial(_information, collected, model, layer, question.seed)
        for model, layers in models.items()
        for layer in layers
    ]


def _learnt(labels: Mapping[str, np.ndarray], question: Question) -> dict[str, np.ndarray]:
    quota = quota_per_class(question, "train")
    splits = ("forget_train", "retain_train") if question.whole_classes else ("retain_train",)
    rows = {split: stratified_rows(labels[split], quota, question.seed) for split in splits}
    return {split: chosen for split, chosen in rows.items() if len(chosen)}


def _asked(labels: Mapping[str, np.ndarray], question: Question) -> tuple[dict[str, np.ndarray], list[str]]:
    splits = (
        ("forget_test", "retain_test") if question.whole_classes else ("forget_test", "retain_test", "forget_train")
    )
    asked = {split: np.arange(len(labels[split])) for split in splits}
    if not question.whole_classes:
        return asked, []
    asked["forget_test"] = np.flatnonzero(np.isin(labels["forget_test"], question.whole_classes))
    missing = sorted(set(question.whole_classes) - set(labels["forget_test"].tolist()))
    note = (
        f"The test set has no image of {len(missing)} of the {len(question.whole_classes)} forgotten classes: probe, "
        "k-NN and membership inference do not cover them."
    )
    return asked, [note] if missing else []


def _probe_and_knn(collected: BySplit, images: ProbeImages, model: str, layer: str) -> list[LayerHits]:
    def features_and_labels(chosen: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        features = [collected[split].features[model][layer][rows] for split, rows in chosen.items()]
        labels = [collected[split].kept_labels[rows] for split, rows in chosen.items()]
        return np.concatenate(features), np.concatenate(labels)

    learnt, asked = features_and_labels(images.learnt), features_and_labels(images.asked)
    if np.isfinite(learnt[0]).all() and np.isfinite(asked[0]).all():
        neighbours = min(NEIGHBOURS, len(learnt[0]))
        hits = {"linear_probe": probe_hits(*learnt, *asked), "knn": knn_hits(*learnt, *asked, k=neighbours)}
    else:
        hits = dict.fromkeys(("linear_probe", "knn"), np.full(len(asked[0]), np.nan))
    last = np.cumsum([len(chosen) for chosen in images.asked.values()])[:-1]
    by_split = {metric: np.split(values, last) for metric, values in hits.items()}
    labels = np.split(asked[1], last)
    return [
        LayerHits(metric, model, split, layer, values[place].astype(np.float64), labels[place])
        for place, split in enumerate(images.asked)
        for metric, values in by_split.items()
    ]


def _information(collected: BySplit, model: str, layer: str, seed: int) -> list[Measurement]:
    forget, retain = (collected[split].features[model][layer] for split in ("forget_train", "retain_train"))
    if not len(forget) or not len(retain):
        return []
    value, note = None, None
    try:
        is_forget = np.repeat([1, 0], [len(forget), len(retain)])
        value = infonce(np.concatenate([forget, retain]), is_forget, seed=seed)
    except ValueError as error:
        note = str(error).split(":")[0]
    count = len(forget) + len(retain)
    return [Measurement("infonce", model, value, "forget_train", layer, chance=0.0, count=count, note=note)]
