"""The metrics as `evaluate` modules: one row an image, read from a table; the functions hold the maths.

Every module takes some of the columns of `COLUMNS`, so that modules which need different ones can be combined:

    metrics = evaluate.combine([ec_hf.metrics.path("linear_cka"), ec_hf.metrics.path("accuracy")])
    metrics.add_batch(features=..., reference_features=..., logits=..., labels=...)
    metrics.compute()

Options of the functions are keyword arguments of `compute`; in a combination each module takes those that it knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np

from ec_hf import metrics

__all__ = ["MODULES", "module_class"]

ROW, FLAG, LABEL = datasets.Sequence(datasets.Value("float64")), datasets.Value("bool"), datasets.Value("int64")
COLUMNS = {
    "features": (ROW, "pooled features of the model"),
    "reference_features": (ROW, "pooled features of the model it is compared with"),
    "logits": (ROW, "outputs of the model"),
    "probabilities": (ROW, "softmax outputs of the model"),
    "reference_probabilities": (ROW, "softmax outputs of the model it is compared with"),
    "labels": (LABEL, "label id"),
    "is_train": (FLAG, "True for images to learn from, False for those to be judged"),
    "is_member": (FLAG, "True for images the model was trained on, False for images it never saw"),
    "is_forget": (FLAG, "True for images to forget"),
}


def _accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(metrics.hits(logits, labels).mean())


def _accuracy_masked(logits: np.ndarray, labels: np.ndarray, *, forgotten: list[int]) -> float:
    return float(metrics.masked_hits(logits, labels, forgotten).mean())


def _confidence(logits: np.ndarray) -> float:
    return float(metrics.confidence(logits).mean())


def _entropy(logits: np.ndarray) -> float:
    return float(metrics.entropy(logits).mean())


def _uuef(features: np.ndarray, reference_features: np.ndarray, *, batch_size: int = 512) -> float:
    return metrics.linear_cka(features, reference_features, mode="uuef", batch_size=batch_size)


def _linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    is_train: np.ndarray,
    *,
    classes: list[int] | None = None,
    c: float = 0.01,
) -> float:
    return metrics.linear_probe(features[is_train], labels[is_train], features[~is_train], labels[~is_train], classes)


def _knn(
    features: np.ndarray, labels: np.ndarray, is_train: np.ndarray, *, k: int = 5, classes: list[int] | None = None
) -> float:
    return metrics.knn(features[is_train], labels[is_train], features[~is_train], labels[~is_train], k, classes)


def _mia(scores: np.ndarray, labels: np.ndarray, is_member: np.ndarray, higher_is_member: bool, seed: int) -> float:
    members, others = (np.flatnonzero(side) for side in (is_member, ~is_member))
    rows = metrics.class_matched(labels[members], labels[others], seed)
    return metrics.membership_auc(scores[members[rows[0]]], scores[others[rows[1]]], higher_is_member)


def _mia_loss(logits: np.ndarray, labels: np.ndarray, is_member: np.ndarray, *, seed: int = 0) -> float:
    return _mia(metrics.loss(logits, labels), labels, is_member, False, seed)


def _mia_confidence(logits: np.ndarray, labels: np.ndarray, is_member: np.ndarray, *, seed: int = 0) -> float:
    return _mia(metrics.confidence(logits), labels, is_member, True, seed)


MODULES: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
    "accuracy": (_accuracy, ("logits", "labels")),
    "accuracy_masked": (_accuracy_masked, ("logits", "labels")),
    "activation_distance": (metrics.activation_distance, ("probabilities", "reference_probabilities")),
    "agreement": (metrics.agreement, ("probabilities", "reference_probabilities")),
    "cka_floor": (metrics.cka_floor, ("features", "reference_features")),
    "confidence": (_confidence, ("logits",)),
    "entropy": (_entropy, ("logits",)),
    "infonce": (metrics.infonce, ("features", "is_forget")),
    "js_divergence": (metrics.js_divergence, ("probabilities", "reference_probabilities")),
    "knn": (_knn, ("features", "labels", "is_train")),
    "linear_cka": (metrics.linear_cka, ("features", "reference_features")),
    "linear_cka_uuef": (_uuef, ("features", "reference_features")),
    "linear_probe": (_linear_probe, ("features", "labels", "is_train")),
    "mia_confidence": (_mia_confidence, ("logits", "labels", "is_member")),
    "mia_loss": (_mia_loss, ("logits", "labels", "is_member")),
    "split_half_cka": (metrics.split_half_cka, ("features",)),
}


def _options(key: str) -> set[str]:
    function, columns = MODULES[key]
    return set(list(inspect.signature(function).parameters)[len(columns) :])


def module_class(key: str) -> type[evaluate.Metric]:
    """The `evaluate.Metric` of a key of `MODULES`, which is also one of `ec_hf.metrics.METRICS`."""
    function, columns = MODULES[key]
    about = metrics.METRICS[key]

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            inputs = "\n".join(f"    {name}: for each image, {COLUMNS[name][1]}." for name in columns)
            options = ", ".join(sorted(_options(key))) or "none"
            return evaluate.MetricInfo(
                description=f"{about.title}: {about.formula}. Chance: {about.chance}.",
                citation=about.source,
                inputs_description=f"\nArgs:\n{inputs}\nOptions of compute: {options}.\n",
                features=datasets.Features({name: COLUMNS[name][0] for name in columns}),
            )

        def _compute(self, **kwargs: Any) -> dict[str, float]:
            for name in (COLUMNS.keys() & kwargs.keys()) - set(columns):
                del kwargs[name]  # a column of another module of the combination
            arrays = [np.asarray(kwargs.pop(name)) for name in columns]
            if unknown := kwargs.keys() - set().union(*map(_options, MODULES)):
                raise ValueError(f"{key} has no options {sorted(unknown)}: it has {sorted(_options(key))}.")
            return {key: function(*arrays, **{name: kwargs[name] for name in _options(key) & kwargs.keys()})}

    Module.__name__ = Module.__qualname__ = "".join(part.capitalize() for part in key.split("_"))
    return Module
