"""Tables of an `AuditReport`: Markdown for cards, rich for terminals, rows for the page."""

from __future__ import annotations

from collections.abc import Callable

from ec_hf.report import AuditReport

__all__ = ["class_names", "forget_split", "layer_label", "model_label", "split_label"]


def class_names(report: AuditReport) -> Callable[[int], str]:
    """From label id to class name; a name that the report does not hold is the id."""
    names = report.dataset.get("class_names") or []
    return lambda k: str(names[k]) if 0 <= k < len(names) else str(k)


def forget_split(report: AuditReport, metric: str) -> str:
    """Where to read a metric on forgotten data: its test images, or training images where only rows were forgotten."""
    return "forget_test" if report.value(metric, split="forget_test") is not None else "forget_train"


def layer_label(layer: str) -> str:
    """The short name of a layer: "hidden_states.3" is "3"."""
    return layer.removeprefix("hidden_states.")


def model_label(name: str) -> str:
    """The name of a model as readers see it."""
    return {"random_init": "random weights"}.get(name, name)


def split_label(split: str) -> str:
    """The name of a split as readers see it: "forget_test" is "forget test"."""
    return split.replace("_", " ")
