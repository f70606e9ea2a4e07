"""What the signals say of an unlearned model: where each puts it between the original and the retrained models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ec_hf.auditing.report import STATUSES, AuditReport, Signal, Status, overall
from ec_hf.reporting.findings import Finding, Topic
from ec_hf.reporting.labels import (
    attack_words,
    metric_title,
    model_label,
    note_label,
    position_text,
    split_label,
    value_text,
)
from ec_hf.reporting.reading import apart, of_role, signals_of

__all__ = ["Judgement", "blind_signals", "counts_text", "judgement", "ranking", "signal_findings"]

LEADS = {
    "accuracy": "its answers are right for {value} of the {images}",
    "accuracy_int8": "stored in 8 bits, its answers are right for {value} of the {images}",
    "confidence": "it is {value} sure of its answers on the {images}",
    "linear_probe": "a new linear classifier on its features finds the class of {value} of the {images}",
    "knn": "the nearest images in its features have the class of {value} of the {images} (k-NN)",
    "linear_cka": "its features of the {images} resemble the original's by {value} in CKA (1 is the same)",
    "attack_area": "{way}, it gets {value} of the {images} right, on average over the strengths that were tried",
    "mia_loss": "its losses tell the {images} from images that it never saw with an AUC of {value} (0.50 is chance)",
    "mia_confidence": (
        "its confidence tells the {images} from images that it never saw with an AUC of {value} (0.50 is chance)"
    ),
    "mia_lira": (
        "shadow models tell the {images} from images that it never saw with an AUC of {value} (0.50 is chance)"
    ),
    "mia_population": (
        "thresholds for each class tell the {images} from images that it never saw with an AUC of {value} (0.50 is "
        "chance)"
    ),
    "mia_lira_tpr": "shadow models find {value} of the {images} as trained on, at 1 % false alarms",
    "mia_population_tpr": "thresholds for each class find {value} of the {images} as trained on, at 1 % false alarms",
    "residual_knowledge": "after a small change, {value} of the {images} are named",
}
"""How a value is told to readers who do not know the metric."""
OTHER = "the {metric} of the {images} is {value}"
LEFT: tuple[Status, ...] = ("untouched", "under-erased")
"""More is left than in a retrained model."""
SUFFICE: tuple[Status, ...] = ("over-erased", "as retrained")
TOPICS: dict[str, Topic] = {
    "accuracy_int8": "8 bits",
    "mia_loss": "membership",
    "mia_confidence": "membership",
    **dict.fromkeys(("mia_lira", "mia_lira_tpr", "mia_population", "mia_population_tpr"), "membership"),
    "mia_svc_efficacy": "membership",
    "mia_svc_member": "membership",
    "attack_area": "attacks",
    "residual_knowledge": "output",
    "knn": "neighbours",
    "linear_probe": "probe",
    "infonce": "probe",
}
"""Topics of metrics; the others are of the output where they have no layer, and of the layers where they have one."""
ORDER: tuple[Topic, ...] = (
    "output",
    "scores",
    "layers",
    "probe",
    "neighbours",
    "attacks",
    "membership",
    "8 bits",
)


@dataclass(frozen=True)
class Judgement:
    """What all signals come to.

    Attributes:
        status: the worst of them.
        text: the same in words, without a full stop.
        too_much: what the text says of over-erased signals; "" where there are none.
    """

    status: Status
    text: str
    too_much: str = ""


def judgement(report: AuditReport, name: str) -> Judgement:
    """What all signals on a model come to; a model without a signal is refused.

    Args:
        report: the report.
        name: of the unlearned model.
    """
    signals = signals_of(report, name)
    telling = [each for each in signals if each.status != "blind"]
    status = overall(signals)
    assert status is not None, "the caller sees to it that there is a signal"
    if not telling:
        whom = "a retrained model" if len(of_role(report, "retrained")) == 1 else "the retrained models"
        none = f"none of the {len(signals)} signals tells the original from {whom}"
        return Judgement(status, f"cannot be told on these images: {none}")
    if status == "as retrained":
        return Judgement(status, f"forgotten, as far as this audit can see: {_within(report, len(telling))}")
    left = [each for each in telling if each.status in LEFT]
    over = [each for each in telling if each.status == "over-erased"]
    unclear = [each for each in telling if each.status == "unclear"]
    too_much = f"on {_of_telling(over, telling)} less is left than retraining leaves{_clearest(over)}" if over else ""
    if left:
        text = f"not forgotten{_though(telling)}: on {_of_telling(left, telling)} more is left than retraining leaves"
        text += f"{_as_before(left)}{_clearest(left)}"
    elif unclear:
        text = f"may be forgotten: too few images to tell on {_of_telling(unclear, telling)}{_clearest(unclear)}"
    elif status == "unclear":
        text = "may be forgotten: no layer tells anything on these images, and answers alone are no all-clear"
    else:
        return Judgement(status, f"forgotten, and more was erased than retraining would: {too_much}", too_much)
    return Judgement(status, f"{text}; {too_much}" if over else text, too_much)


def signal_findings(report: AuditReport, name: str) -> list[Finding]:
    """What the signals on a model say, topic by topic; each finding tells the worst of its topic."""
    by_topic: dict[Topic, list[Signal]] = {topic: [] for topic in ORDER}
    for each in signals_of(report, name):
        by_topic[_topic(each)].append(each)
    return [Finding(name, topic, found[0].status, _sentence(found)) for topic, found in by_topic.items() if found]


def blind_signals(report: AuditReport) -> Finding | None:
    """The signals that do not tell the original from the retrained models, and so judge no model."""
    blind = [each for each in report.signals if each.status == "blind"]
    if not blind:
        return None
    text = (
        "These signals do not tell the original from a retrained model on these images, and so say nothing about "
        f"forgetting here: {_listed(blind)}."
    )
    if alone := [each for each in blind if _apart_alone(report, each)]:
        text += (
            f" Looked at alone, these would, since their intervals for the two do not meet: {_listed(alone)}. Of so "
            "many signals one can do so by chance; more test images or more retrained models will show it."
        )
    return Finding(None, "blind metrics", "blind", text)


def _listed(signals: Sequence[Signal]) -> str:
    """Signals by their metric, with the layers of each."""
    layers: dict[str, list[str]] = {}
    for each in signals:
        note = f", {note_label(each.metric, each.note)}" if each.metric == "attack_area" else ""
        places = layers.setdefault(f"{metric_title(each.metric)}{note} ({split_label(each.split)})", [])
        if each.layer and each.layer not in places:
            places.append(each.layer)
    return "; ".join(f"{what}{_at_layers(places)}" for what, places in layers.items())


def _apart_alone(report: AuditReport, signal: Signal) -> bool:
    """Whether the interval of the original meets none of the retrained models', on this signal by itself."""
    where = {"split": signal.split, "layer": signal.layer, "note": signal.note}
    models = ("original", *of_role(report, "retrained"))
    found = [each for name in models for each in report.find(signal.metric, model=name, **where)]
    if len(found) != len(models) or any(None in (each.value, each.low, each.high) for each in found):
        return False
    return all(apart(found[0], each) for each in found[1:])


def ranking(report: AuditReport, names: Sequence[str]) -> Finding | None:
    """Which of several models stands nearest to the retrained ones, over all signals that can tell."""
    distances = {}
    for name in names:
        positions = [each.position for each in signals_of(report, name) if each.position is not None]
        if positions:
            distances[name] = sum(abs(1 - position) for position in positions) / len(positions)
    if len(distances) < 2:
        return None
    ranked = [f"{model_label(name)} ({distances[name]:.2f})" for name in sorted(distances, key=lambda n: distances[n])]
    return Finding(
        None,
        "ranking",
        "ranked",
        f"Over all signals that can tell, nearest to retraining: {', then '.join(ranked)}; in brackets the mean "
        "distance of their positions from 1, which is where retraining is.",
    )


def counts_text(signals: Sequence[Signal]) -> str:
    """How many signals have which status, the worst first: "3 under-erased, 8 as retrained"."""
    counts = Counter(each.status for each in signals)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def _topic(signal: Signal) -> Topic:
    if signal.layer == "logits" and signal.metric in ("linear_probe", "knn", "linear_cka"):
        return "scores"
    return TOPICS.get(signal.metric, "output" if signal.layer is None else "layers")


def _sentence(found: Sequence[Signal]) -> str:
    """The worst signal of a topic, and how many there are of which status."""
    worst = found[0]
    against = f"the original {value_text(worst.metric, worst.original)}, {_retrained(worst)}"
    others = f"; the worst of {len(found)} signals: {counts_text(found)}" if len(found) > 1 else ""
    if others and all(each.status == worst.status for each in found):
        others = f"; the same holds for all {len(found)} signals"
    return f"{_lead(worst)}; {against}: {worst.status}{_position(worst)}{others}."


def _lead(signal: Signal) -> str:
    lead = LEADS.get(signal.metric, OTHER).format(
        value=value_text(signal.metric, signal.value),
        images=f"{split_label(signal.split)} images",
        metric=metric_title(signal.metric),
        way=attack_words(signal.note or "unnamed").way,
    )
    lead += f" at {signal.layer}" if signal.layer else ""
    return f"{lead}, {signal.note}" if signal.note and signal.metric != "attack_area" else lead


def _retrained(signal: Signal) -> str:
    values = [value_text(signal.metric, value) for value in (min(signal.retrained), max(signal.retrained))]
    return f"retrained {' to '.join(dict.fromkeys(values))}"


def _position(signal: Signal) -> str:
    if signal.position is None:
        return ""
    text = f", position {position_text(signal.position)}"
    if signal.low is not None and signal.high is not None:
        text += f" [{position_text(signal.low)}, {position_text(signal.high)}]"
    return text


def _clearest(some: Sequence[Signal]) -> str:
    """The first of some signals, with its numbers."""
    first = some[0]
    against = f"original {value_text(first.metric, first.original)}, {_retrained(first)}{_position(first)}"
    return f", {'worst: ' if len(some) > 1 else ''}{_lead(first)} ({against})"


def _of_telling(some: Sequence[Signal], telling: Sequence[Signal]) -> str:
    if len(telling) == 1:
        return "the one signal that can tell"
    count = "all" if len(some) == len(telling) else f"{len(some)} of the"
    return f"{count} {len(telling)} signals that can tell"


def _as_before(left: Sequence[Signal]) -> str:
    """How many of the signals are where the original is."""
    untouched = sum(each.status == "untouched" for each in left)
    if not untouched:
        return ""
    return " (as much as before)" if untouched == len(left) else f" (on {untouched} of them as much as before)"


def _though(telling: Sequence[Signal]) -> str:
    """Said where the answers alone would be an all-clear."""
    answers = [each.status in SUFFICE for each in telling if each.metric == "accuracy" and each.layer is None]
    return ", though its answers do not show it" if answers and all(answers) else ""


def _within(report: AuditReport, count: int) -> str:
    where = f"on all {count} signals that can tell" if count > 1 else "on the one signal that can tell"
    trainings = len(of_role(report, "retrained"))
    if trainings == 1:
        return f"{where} it is where one retrained model is, and another retraining was not looked at"
    return f"{where} it is within the spread of {trainings} retrained models"


def _at_layers(places: Sequence[str]) -> str:
    return f" at {', '.join(places)}" if places else ""
