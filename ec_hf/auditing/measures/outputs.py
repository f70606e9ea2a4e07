"""What the outputs show: accuracy, confidence, entropy, distances to the retrained model, confusion."""

from __future__ import annotations

from math import log
from typing import Any

import numpy as np

from ec_hf.auditing.collected import BySplit
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Measurement, RetainedClass
from ec_hf.auditing.similarity import NOT_FINITE
from ec_hf.metrics import bootstrap_mean, share_by_class_mix

__all__ = ["confusion", "mean_over_images", "output_means", "retained_classes", "several_note"]

PER_IMAGE = {"accuracy": "hit", "accuracy_masked": "hit_masked", "confidence": "confidence", "entropy": "entropy"}
"""Metric -> figure of each image whose mean it is."""
DISTANCES = ("js_divergence", "activation_distance", "agreement")


def mean_over_images(metric: str, model: str, values: np.ndarray, seed: int, **fields: Any) -> Measurement:
    """The mean of one value an image, with its bootstrap interval.

    Args:
        metric: name of the metric.
        model: name of the model.
        values: `(n,)`, numbers or booleans.
        seed: seed of the bootstrap's random draws.
        **fields: other fields of the `Measurement`.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        return Measurement(metric, model, None, count=len(values), **{**fields, "note": NOT_FINITE})
    low, high = bootstrap_mean(values, seed=seed)
    return Measurement(metric, model, float(values.mean()), low=low, high=high, count=len(values), **fields)


def output_means(collected: BySplit, question: Question) -> list[Measurement]:
    """Accuracy as it is and with the forgotten logits masked, confidence, entropy, distances to the retrained model.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    rows = []
    for split, shown in collected.items():
        chances = _chances(split, question)
        for model, figures in shown.outputs.items() if len(shown.labels) else ():
            for metric, figure in PER_IMAGE.items():
                if figure in figures:
                    fields = {"split": split, "chance": chances[metric]}
                    rows.append(mean_over_images(metric, model, figures[figure], question.seed, **fields))
            for metric in DISTANCES:
                if metric in figures:
                    fields = {"split": split, "reference": "retrained", "note": several_note(question)}
                    rows.append(mean_over_images(metric, model, figures[metric], question.seed, **fields))
    return [*rows, *_matched_accuracies(collected, question)]


def _matched_accuracies(collected: BySplit, question: Question) -> list[Measurement]:
    """Accuracy on unseen images of the forgotten rows' classes: what a model should get on the rows that it forgot."""
    shown, mix = collected["retain_test"], collected["forget_train"].labels
    used = int(np.isin(shown.labels, mix).sum())
    if question.whole_classes or not used:
        return []
    rows = []
    for model in question.trained:
        hits = shown.outputs[model]["hit"]
        fields: dict[str, Any] = {"split": "retain_test", "chance": 1 / len(question.class_names), "count": used}
        if not np.isfinite(hits).all():
            rows.append(Measurement("accuracy_matched", model, None, note=NOT_FINITE, **fields))
            continue
        value, low, high = share_by_class_mix(hits, shown.labels, mix)
        rows.append(Measurement("accuracy_matched", model, value, low=low, high=high, **fields))
    return rows


def several_note(question: Question) -> str | None:
    """Says of a number that it is a mean over several retrained models; None where there are not several.

    Args:
        question: what is asked.
    """
    count = len(question.retrained)
    return f"mean over {count} retrained models, without the model itself" if count > 1 else None


def confusion(collected: BySplit, question: Question) -> dict[str, dict[str, dict[str, int]]]:
    """What forgotten test images are taken for: model -> true class -> predicted class -> images, most first.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    shown, names = collected["forget_test"], question.class_names
    table: dict[str, dict[str, dict[str, int]]] = {}
    for model, figures in shown.outputs.items() if len(shown.labels) else ():
        for true in question.whole_classes:
            predicted, counts = np.unique(figures["prediction"][shown.labels == true], return_counts=True)
            if len(predicted):
                order = np.argsort(-counts, kind="stable")
                most_first = {names[predicted[k]]: int(counts[k]) for k in order}
                table.setdefault(model, {})[names[true]] = most_first
    return table


def retained_classes(collected: BySplit, question: Question) -> dict[str, dict[str, RetainedClass]]:
    """What the trained models still know of each kept class, image by image beside the original.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    shown, names = collected["retain_test"], question.class_names
    if not len(shown.labels):
        return {}
    right = {model: shown.outputs[model]["hit"] == 1 for model in question.trained}
    of_class = {names[k]: shown.labels == k for k in np.unique(shown.labels)}
    return {
        model: {
            name: RetainedClass(
                images=int(rows.sum()),
                right=int(hits[rows].sum()),
                lost=int((right["original"] & ~hits)[rows].sum()),
                gained=int((~right["original"] & hits)[rows].sum()),
            )
            for name, rows in of_class.items()
        }
        for model, hits in right.items()
    }


def _chances(split: str, question: Question) -> dict[str, float]:
    """What a model without any knowledge would get; the masked classes cannot be named at all."""
    classes = len(question.class_names)
    unmasked = classes - len(question.whole_classes)
    return {
        "accuracy": 1 / classes,
        "accuracy_masked": 1 / unmasked if split.startswith("retain") and unmasked else 0.0,
        "confidence": 1 / classes,
        "entropy": log(classes),
    }
