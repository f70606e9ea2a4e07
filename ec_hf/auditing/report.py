"""`AuditReport`: what an audit found, as plain values that go to JSON and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from ec_hf.data.typed import typed
from ec_hf.files import read_json, write_json
from ec_hf.metrics.attack_area import Unit

__all__ = [
    "SCHEMA_VERSION",
    "STATUSES",
    "AttackCurve",
    "AuditReport",
    "Measurement",
    "ModelInfo",
    "RetainedClass",
    "Retrieval",
    "Signal",
    "Status",
    "overall",
]

SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
"""Version 1 had no signals; up to version 2, relearning was the only attack with a curve."""
ROLES = ("original", "unlearned", "retrained", "floor")
SPLITS = ("forget_train", "retain_train", "forget_test", "retain_test")


@dataclass(frozen=True)
class Measurement:
    """One number, with everything that is needed to read it.

    Attributes:
        metric: key of `ec_hf.metrics.METRICS`, which holds direction, range, formula and source.
        model: name of the model in `AuditReport.models`.
        value: the number; None where it is not defined, and then `note` says why.
        split: "forget_train", "retain_train", "forget_test", "retain_test" or "downstream"; None for summary scores.
        layer: hidden state ("hidden_states.3"), name of a module, "penultimate" or "logits"; None for figures of the
            model's output.
        reference: name of the model that it is compared with, where the metric compares.
        low: lower end of the 95 % interval over images, where there is one.
        high: upper end of it.
        chance: what a model without any knowledge would get, where that is known.
        count: number of images it was measured on.
        note: a stated degradation, such as a sample that was too small.
    """

    metric: str
    model: str
    value: float | None
    split: str | None = None
    layer: str | None = None
    reference: str | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    count: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class RetainedClass:
    """What a model still knows of one class that was kept, on test images.

    Attributes:
        images: number of images of the class.
        right: how many the model classifies right.
        lost: how many of them the original classified right and the model does not.
        gained: how many the model classifies right and the original did not.
    """

    images: int
    right: int
    lost: int
    gained: int


Status = Literal["untouched", "under-erased", "unclear", "over-erased", "as retrained", "blind"]
STATUSES: tuple[Status, ...] = get_args(Status)
"""What a signal says of a model, the worst first: it is where the original is; it falls short of the retrained models;
the images cannot tell; it is past them; it is where they are. A blind signal does not tell original from retrained."""


@dataclass(frozen=True)
class Signal:
    """Where one measurement puts an unlearned model between the original and models that never saw the forget set.

    Attributes:
        metric: key of `ec_hf.metrics.METRICS`.
        model: name of the unlearned model.
        split: of the images.
        layer: hidden state, "penultimate" or "logits"; None for figures of the output.
        value: of the unlearned model.
        original: of the original.
        retrained: of each retrained model.
        position: (original - value) / (original - mean of retrained): 0 as the original, 1 as retrained, above 1
            over-erased; None where the signal does not tell original from retrained. Of CKA, 1 is also how far the
            original would come by forgetting alone, without what another training does.
        low: lower end of the interval of the position, over images and retrained models.
        high: upper end of it.
        status: what follows from the interval. Without a position it is "blind", or "over-erased" for a model that
            lies below the original and the retrained models alike.
        count: number of images.
        note: what tells it from others of the same metric, such as the name of the attack.
        effect: how far the original is above the retrained models in standard errors, over images and trainings: how
            well the signal tells them apart, whatever the unlearned model; None where that is not known.
    """

    metric: str
    model: str
    split: str
    layer: str | None
    value: float
    original: float
    retrained: list[float]
    position: float | None
    low: float | None
    high: float | None
    status: Status
    count: int
    note: str | None = None
    effect: float | None = None


def overall(signals: Iterable[Signal]) -> Status | None:
    """What all signals of one model come to: the worst of them; None without a signal.

    Blind signals make it no better: they count only where all are blind. Where no signal of a layer tells anything,
    the output alone is no all-clear, whether it is as retrained or past that: the status is then "unclear". The logits
    are the output too.
    """
    signals = list(signals)
    if not signals:
        return None
    worst = min((signal.status for signal in signals), key=STATUSES.index)
    inside = {signal.status for signal in signals if signal.layer not in (None, "logits")}
    return "unclear" if worst in ("over-erased", "as retrained") and inside <= {"blind"} else worst


@dataclass(frozen=True)
class ModelInfo:
    """Which model a name in the report stands for.

    Attributes:
        id: Hub id, or None for a local folder or a model in memory.
        revision: commit on the Hub.
        weights: of an unlearned model, the hash by which its weights are known again, whatever their names; see
            `ec_hf.models.loading.contents_hash`.
        architecture: class name of the model.
        parameters: number of parameters.
        role: what it is in the report: "original", "unlearned", "retrained" or "floor" (random weights).
    """

    architecture: str
    parameters: int
    role: str
    id: str | None = None
    revision: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class AttackCurve:
    """Accuracy of a model on held-out forget images by the strength of an attack.

    Attributes:
        attack: name of the attack, see `ec_hf.auditing.attacks.registry`.
        model: name of the model.
        unit: what makes the attack stronger: "steps", "images a class", "bits" or "sparsity".
        x: strengths, from weak to strong: bits descend, all others ascend.
        accuracy: accuracy (a share) at each of them.
        low: lower ends of their 95 % intervals over the images; empty where these were not measured.
        high: upper ends of them.
        settings: the budget: learning rate, batch size, images, steps, seed, and "held_out" images.
    """

    attack: str
    model: str
    unit: Unit
    x: list[float]
    accuracy: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retrieval:
    """The images that a model's deepest features find nearest to one forget image; rows, not images.

    Attributes:
        model: name of the model.
        query: row of the query in the split "forget_test".
        query_label: its label id.
        neighbours: rows in the test set "forget_test" followed by "retain_test", nearest first, the query left out.
        labels: label ids of the neighbours.
    """

    model: str
    query: int
    query_label: int
    neighbours: list[int]
    labels: list[int]


@dataclass
class AuditReport:
    """What an audit found.

    Attributes:
        models: the models by name, in the order of the report's columns.
        layers: names of all hidden states, or of the layers that were asked for, shallow to deep, and "penultimate",
            which is what the classifier reads.
        measurements: every number, in long form; `find` and `value` select.
        signals: where each measurement puts the unlearned models between original and retrained ones; none without a
            retrained model.
        status: unlearned model -> the worst status of its signals; models without a signal are left out.
        dataset: name, number of images by split, class names in the order of the label ids.
        request: hash and summary of the forget request, and "classes": label ids where whole classes go, else [].
        references: in words, what the models are compared with and what that can and cannot show.
        notes: in words, what could not be measured, and why.
        retained: trained model -> kept class -> what the model still knows of it (class names).
        confusion: model -> true forgotten class -> predicted class -> number of forget test images (class names).
        attacks: curves of recovery attacks, where these were asked for.
        retrievals: nearest images of a few forget images.
        embedding: t-SNE of pooled deepest features: {"labels": [...], "points": {model: [[x, y], ...]}}; label ids.
        settings: settings of the audit: sample sizes, seed, pooling, modes.
        seconds: wall time by part.
        versions: versions of the packages.
        schema_version: version of this layout.

    Example:
        >>> report = AuditReport.load("out/audit.json")  # doctest: +SKIP
        >>> report.value("accuracy", model="EC", split="forget_test")  # doctest: +SKIP
        0.0
        >>> report.status  # doctest: +SKIP
        {'EC': 'as retrained'}
    """

    models: dict[str, ModelInfo] = field(default_factory=dict)
    layers: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    status: dict[str, Status] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)
    references: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    retained: dict[str, dict[str, RetainedClass]] = field(default_factory=dict)
    confusion: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    attacks: list[AttackCurve] = field(default_factory=list)
    retrievals: list[Retrieval] = field(default_factory=list)
    embedding: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def find(self, metric: str | None = None, **wanted: Any) -> Iterator[Measurement]:
        """The measurements whose fields equal those given; a field that is not given may be anything."""
        wanted |= {"metric": metric} if metric else {}
        return (row for row in self.measurements if all(getattr(row, k) == v for k, v in wanted.items()))

    def value(self, metric: str, **wanted: Any) -> float | None:
        """The value of the first measurement that `find` gives; None where there is none."""
        return next((row.value for row in self.find(metric, **wanted)), None)

    def profile(self, metric: str, **wanted: Any) -> dict[str, float | None]:
        """Layer -> value of a layer-wise metric, shallow to deep, for the layers where it was measured."""
        values = {row.layer: row.value for row in self.find(metric, **wanted)}
        return {layer: values[layer] for layer in [*self.layers, "logits"] if layer in values}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; empty fields of a measurement are left out."""
        data = asdict(self)
        data["measurements"] = [
            {k: v for k, v in row.items() if v is not None or k == "value"} for row in data["measurements"]
        ]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AuditReport:
        """Builds a report from `to_dict()`; keys that this version does not know are refused.

        Raises:
            ValueError: another schema version, unknown keys, or a value of another type than the report has there.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"this is no audit report: expected an object, found {type(data).__name__}")
        version = data.get("schema_version")
        if type(version) is not int or version not in READABLE:
            raise ValueError(
                f"audit report of schema version {version!r}: this version of ec_hf reads 1 to {SCHEMA_VERSION}"
            )
        data = data if version == SCHEMA_VERSION else _with_attacks(data)
        try:
            report = typed(cls, {**data, "schema_version": SCHEMA_VERSION}, "the audit report")
            _check_parts(report)
        except ValueError as error:
            raise ValueError(f"this is no audit report: {error}") from error
        return report

    def save(self, path: str | Path) -> None:
        """Writes the report as JSON, whole or not at all; NaN and infinity are refused, for they are not JSON."""
        write_json(path, self.to_dict(), indent=1)

    @classmethod
    def load(cls, path: str | Path) -> AuditReport:
        """Reads a report; the message of an error names the file.

        Raises:
            ValueError: the file is no JSON or no report of this schema version.
        """
        content = read_json(path)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class _Dataset(TypedDict, total=False):
    name: str | None
    images: dict[str, int]
    class_names: list[str]


class _Request(TypedDict, total=False):
    hash: str | None
    summary: str | None
    classes: list[int]
    class_count: int


class _Embedding(TypedDict, total=False):
    labels: list[int]
    points: dict[str, list[list[float]]]


def _check_parts(report: AuditReport) -> None:
    """Refuse what the fields' types let through and no audit writes, as readers of the report rely on it."""
    parts = {"dataset": (_Dataset, report.dataset), "request": (_Request, report.request)}
    parts["embedding"] = (_Embedding, report.embedding)
    for name, (kind, value) in parts.items():
        typed(kind, value, name)
    counts = [each for classes in report.retained.values() for each in classes.values()]
    predicted = [n for table in report.confusion.values() for row in table.values() for n in row.values()]
    points = [point for points in report.embedding.get("points", {}).values() for point in points]
    checks = {
        f"a model has a role other than {', '.join(ROLES)}": any(
            info.role not in ROLES for info in report.models.values()
        ),
        "a signal has no retrained model to compare with": any(not each.retrained for each in report.signals),
        "a curve of an attack has not one accuracy for each x": any(
            len(curve.x) != len(curve.accuracy) for curve in report.attacks
        ),
        "a kept class has no image, or counts that do not fit its images": any(
            each.images < 1 or not all(0 <= n <= each.images for n in (each.right, each.lost, each.gained))
            for each in counts
        ),
        "the confusion has a count below 0": any(n < 0 for n in predicted),
        "a point of the embedding has not two coordinates": any(len(point) != 2 for point in points),
    }
    if wrong := [text for text, is_so in checks.items() if is_so]:
        raise ValueError(wrong[0])


def _with_attacks(data: dict[str, Any]) -> dict[str, Any]:
    """A report up to version 2 with its relearning as attacks."""
    try:
        curves = [
            {
                "attack": f"relearn_{curve['mode']}",
                "model": curve["model"],
                "unit": "steps",
                "x": curve["steps"],
                "accuracy": curve["accuracy"],
                "settings": curve.get("settings", {}),
            }
            for curve in data.get("relearning", [])
        ]
        rows: dict[str, Any] = {
            name: [
                {**row, "metric": "attack_area", "note": f"relearn_{row['note']}"}
                if row["metric"] == "relearning_area"
                else row
                for row in data[name]
            ]
            for name in ("measurements", "signals")
            if name in data
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no audit report: its relearning or its numbers lack {error}") from error
    return {**{name: value for name, value in data.items() if name != "relearning"}, **rows, "attacks": curves}
