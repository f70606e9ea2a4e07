"""Reading numbers out of an `AuditReport`, and telling whether two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ec_hf.auditing.report import AuditReport, Measurement

__all__ = [
    "GAP",
    "MARGIN",
    "REFERENCES",
    "apart",
    "deep",
    "forget_split",
    "mean_gap",
    "number",
    "output",
    "profile",
    "whole_classes",
    "widest",
]

MARGIN = 0.05
"""Shares and areas under a curve this near count as equal: the 95 % interval of a share of 300 images is as wide."""
GAP = 0.1
"""CKA and probe accuracy this near count as equal: a choice, not measured; intervals that meet count as equal too."""
SHALLOW = 4
"""The first of so many parts of the hidden states is left out: edges and colours stay what they are in any model."""
REFERENCES = ("retrained", "original", "random_init")
"""Models that others are held against."""


def forget_split(report: AuditReport, metric: str) -> str:
    """Where to read a metric on forgotten data: its test images, or training images where only rows were forgotten."""
    return "forget_test" if report.value(metric, split="forget_test") is not None else "forget_train"


def whole_classes(report: AuditReport) -> bool:
    """Whether whole classes were forgotten, not single rows."""
    return bool(report.request.get("classes") or report.request.get("class_count"))


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


def apart(mine: Measurement, other: Measurement, margin: float = GAP) -> int:
    """1 where the first is clearly higher, -1 where clearly lower: by the margin, and the intervals do not meet."""
    difference = number(mine) - number(other)
    upper, lower = (mine, other) if difference > 0 else (other, mine)
    meet = upper.low is not None and lower.high is not None and upper.low <= lower.high
    if abs(difference) <= margin or meet:
        return 0
    return 1 if difference > 0 else -1


def widest(layers: Sequence[str], mine: Mapping[str, Measurement], target: Mapping[str, Measurement]) -> str:
    """The layer at which the two differ most."""
    return max(layers, key=lambda layer: abs(number(mine[layer]) - number(target[layer])))


def mean_gap(layers: Sequence[str], mine: Mapping[str, Measurement], target: Mapping[str, Measurement]) -> float:
    """The mean over layers of how far the two differ."""
    return sum(abs(number(mine[layer]) - number(target[layer])) for layer in layers) / len(layers)


def number(each: Measurement) -> float:
    """The value of a measurement that has one."""
    assert each.value is not None, "rows without a value are left out before"
    return each.value
