"""Reading numbers and signals out of an `AuditReport`, and telling whether two numbers differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ec_hf.auditing.report import STATUSES, AuditReport, Measurement, Signal, Status

__all__ = [
    "GAP",
    "MEAN",
    "above",
    "apart",
    "deep",
    "forget_split",
    "layer_order",
    "merged",
    "number",
    "of_role",
    "output",
    "profile",
    "signals_of",
    "whole_classes",
    "worst_status",
]

GAP = 0.1
"""Numbers that have no interval count as equal this near. It is a choice, not measured: that of a share of 100 images
is about as wide. It is used without a retrained model only."""
SHALLOW = 4
"""Of so many parts of the layers the shallowest is passed over: edges and colours stay what they are in any model."""
MEAN = "retrained (mean of"
"""How the name of a model begins that stands for several retrained ones."""
LAST = ("penultimate", "logits")
"""Layers behind the hidden states."""


def of_role(report: AuditReport, role: str) -> list[str]:
    """The names of the models that have a role, in the order of the report."""
    return [name for name, info in report.models.items() if info.role == role]


def layer_order(report: AuditReport) -> list[str]:
    """All layers that a number can be of, shallow to deep."""
    return [*report.layers, *(layer for layer in LAST if layer not in report.layers)]


def forget_split(report: AuditReport, metric: str) -> str:
    """Where to read a metric on forgotten data: its test images, or training images where only rows were forgotten.

    Test images that match a request of rows were never trained on, so there was nothing of them to forget.
    """
    if not whole_classes(report) and report.value(metric, split="forget_train") is not None:
        return "forget_train"
    return "forget_test" if report.value(metric, split="forget_test") is not None else "forget_train"


def whole_classes(report: AuditReport) -> bool:
    """Whether whole classes were forgotten, not single rows."""
    return bool(report.request.get("classes") or report.request.get("class_count"))


def signals_of(report: AuditReport, name: str) -> list[Signal]:
    """The signals on a model, the worst first: by status, then those that are furthest from the retrained models."""

    def severity(each: Signal) -> tuple[int, float]:
        position = 1.0 if each.position is None else each.position
        return STATUSES.index(each.status), -position if each.status == "over-erased" else position

    return sorted((each for each in report.signals if each.model == name), key=severity)


def worst_status(statuses: Iterable[Status]) -> Status:
    """The worst of at least one status."""
    return min(statuses, key=STATUSES.index)


def output(report: AuditReport, metric: str, model: str, split: str) -> Measurement | None:
    """A figure of a model's output; None where it was not measured or is not defined."""
    each = next(report.find(metric, model=model, split=split, layer=None), None)
    return each if each is not None and each.value is not None else None


def profile(report: AuditReport, metric: str, model: str, **wanted: str) -> dict[str, Measurement]:
    """Hidden state -> measurement on forgotten data, shallow to deep, where there is a value."""
    measured = report.find(metric, model=model, split=forget_split(report, metric), **wanted)
    by_layer = {each.layer: each for each in measured if each.value is not None}
    return {layer: by_layer[layer] for layer in report.layers if layer in by_layer}


def deep(report: AuditReport, by_layer: Mapping[str, Measurement]) -> list[str]:
    """The hidden states with a value, without the shallow ones."""
    return [layer for layer in report.layers[len(report.layers) // SHALLOW :] if layer in by_layer]


def apart(mine: Measurement, other: Measurement) -> int:
    """1 where the first is clearly higher, -1 where clearly lower, 0 where that cannot be told.

    Two numbers are apart where their intervals do not meet, and without intervals where they differ by `GAP`.
    """
    difference = number(mine) - number(other)
    upper, lower = (mine, other) if difference > 0 else (other, mine)
    if upper.low is not None and lower.high is not None:
        meet = upper.low <= lower.high
        return 0 if meet else (1 if difference > 0 else -1)
    return 0 if abs(difference) <= GAP else (1 if difference > 0 else -1)


def above(mine: Measurement, value: float) -> int:
    """1 where the interval of a number is above a value, -1 where it is below, 0 where it holds the value."""
    low = number(mine) if mine.low is None else mine.low
    high = number(mine) if mine.high is None else mine.high
    return 1 if low > value else -1 if high < value else 0


def number(each: Measurement) -> float:
    """The value of a measurement that has one."""
    assert each.value is not None, "rows without a value are left out before"
    return each.value


def merged(report: AuditReport) -> AuditReport:
    """The report with one model, such as "retrained (mean of 3)", in place of several retrained ones.

    Its numbers, and those of other models in comparison with it, are means; their intervals are the range over the
    retrained models. Means that the audit itself made, with "retrained" as their reference, keep their place where
    nothing else is there. A report with fewer than two retrained models is returned as it is.
    """
    several = of_role(report, "retrained")
    if len(several) < 2:
        return report
    name = dict.fromkeys([*several, "retrained"], f"{MEAN} {len(several)})")
    single = {(each.metric, each.model) for each in report.measurements if each.reference in several}
    groups: dict[Measurement, list[Measurement]] = {}
    for each in report.measurements:
        if each.reference == "retrained" and (each.metric, each.model) in single:
            continue
        model, reference = name.get(each.model, each.model), name.get(each.reference or "", each.reference)
        if (model, reference) == (each.model, each.reference):
            groups[each] = [each]
        else:
            key = replace(each, model=model, reference=reference, value=None, low=None, high=None, count=None)
            groups.setdefault(key, []).append(each)
    models = {name.get(each, each): info for each, info in report.models.items()}
    return replace(report, models=models, measurements=[_mean(key, each) for key, each in groups.items()])


def _mean(key: Measurement, group: list[Measurement]) -> Measurement:
    values = [each.value for each in group if each.value is not None]
    if not values:
        return key
    if len(group) == 1:
        return replace(group[0], model=key.model, reference=key.reference)
    mean = sum(values) / len(values)
    return replace(key, value=mean, low=min(values), high=max(values), count=group[0].count)
