"""What an audit found, in plain sentences for readers who know neither the paper nor the metrics.

Where there is a retrained model, the signals of the report decide, and the headline is never better than the worst of
them. Without one, the findings tell what has changed, and the headline says that it cannot tell how far to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ec_hf.auditing.report import STATUSES, AuditReport, Measurement, Status
from ec_hf.reporting import layerwise
from ec_hf.reporting.attacked import attacks
from ec_hf.reporting.findings import Finding, Kind, Topic
from ec_hf.reporting.labels import metric_title, percent, split_label, value_text
from ec_hf.reporting.printable import printable
from ec_hf.reporting.reading import (
    above,
    apart,
    deep,
    forget_split,
    number,
    of_role,
    output,
    profile,
    signals_of,
    whole_classes,
    worst_status,
)
from ec_hf.reporting.rest import classes_can_tell, rest
from ec_hf.reporting.signals import blind_signals, judgement, ranking, signal_findings

__all__ = ["findings", "headline"]


# The headline of a model without a retrained one beside it, put together from what single findings come to.
OUTPUT: dict[Kind, str] = {
    "known": "not forgotten at the output",
    "not named": "no longer named at the output",
    "unclear": "perhaps no longer named at the output",
}
OUTPUT_ON_ROWS: dict[Kind, str] = {
    "known": "at the output the forgotten rows are still known better than unseen images of their classes",
    "not named": "at the output the forgotten rows are known worse than unseen images of their classes",
    "unclear": "at the output the forgotten rows are known no better than unseen images of their classes",
}
"""The same where rows of kept classes were forgotten: the answer to an unseen image of the class is the target."""
IN_ANSWERS_ONLY = "no longer named in its answers, but still told apart by its scores"
LAYERS: dict[Kind, str] = {
    "kept": "the layers are close to what they were (superficial, unless those of a retrained model are as close)",
    "partly": "some of the layers are close to what they were",
    "moved": "the layers have changed",
    "blind": "what the layers know cannot be told on this data",
    "unknown": "what the layers know was not measured",
}
STILL: dict[Topic, str] = {
    "8 bits": "remembered when it is stored in 8 bits",
    "membership": "its losses still tell which images it was trained on",
}
NO_TARGET = "without a retrained model it cannot be told how far forgetting should go, nor whether this is enough"
OF_ROWS = (
    "Rows of kept classes were forgotten: a model has forgotten them where it treats them as unseen images of the "
    "same classes, not where it stops naming them."
)
BESIDE: dict[Status, str] = {
    "untouched": "not forgotten",
    "under-erased": "not forgotten",
    "unclear": "may be forgotten",
    "over-erased": "forgotten, and more was erased than retraining would",
}
"""How a headline begins that something beside the signals decides."""
NOT_JUDGED = (
    "not judged: the position of each signal between the original and the retrained model was not measured, since "
    "this report was made by an older version of ec_hf; the model must be audited again to be judged"
)
NO_SIGNAL = "not judged: no signal was measured on this model"
REST: dict[Kind, str] = {
    "intact": "the rest is intact",
    "hidden loss": "the rest is named as often as before, yet less well than the original would without these classes",
    "hurt": "the rest has suffered",
}


def findings(report: AuditReport) -> list[Finding]:
    """Says of each unlearned model what it has forgotten, where, and at what price; then what the report cannot show.

    Args:
        report: of `ec_hf.audit`, or read from audit.json; parts that were not measured are named as such.

    Returns:
        Findings, in the order in which to read them; the first on a model is its headline (topic "summary").
    """
    report = printable(report)
    names = of_role(report, "unlearned")
    if not names:
        nothing = "The report holds no unlearned model, so there is no forgetting to judge."
        return [Finding(None, "summary", "unknown", nothing)]
    of_models = [finding for name in names for finding in _of_model(report, name)]
    blind = blind_signals(report) if of_role(report, "retrained") else _unchanged(report, names)
    of_audit = [ranking(report, names), blind, _references(report)]
    return [*of_models, *(finding for finding in of_audit if finding)]


def _of_model(report: AuditReport, name: str) -> list[Finding]:
    if of_role(report, "retrained"):
        measured = {each.metric for each in report.signals if each.model == name}
        others = [attacks(report, name)]
        others += [_eight_bits(report, name)] if measured and "accuracy_int8" not in measured else []
        judged = [*signal_findings(report, name), *others, rest(report, name)]
    else:
        topics = (_output, layerwise.scores, layerwise.layers, layerwise.probe, attacks, _membership, _eight_bits)
        judged = [judge(report, name) for judge in (*topics, rest)]
    found = [finding for finding in judged if finding]
    return [headline(report, name, found), *found]


def headline(report: AuditReport, name: str, judged: Sequence[Finding]) -> Finding:
    """The summary of what was found on one model.

    With signals its kind is the worst status: of the signals, of the report and of the findings. Without a retrained
    model it is "known" where the output still knows, else "unclear".

    Args:
        report: the report.
        name: of the model.
        judged: the findings on it.
    """
    kinds = {finding.topic: finding.kind for finding in judged}
    of_rest = REST.get(kinds.get("rest", "unknown"), "what the rest has lost was not measured")
    if kinds.get("rest") == "intact" and not classes_can_tell(report, name):
        of_rest += " on average"
    if not of_role(report, "retrained"):
        kind, text = _without_retrained(kinds, OUTPUT if whole_classes(report) else OUTPUT_ON_ROWS)
    elif not signals_of(report, name):
        kind, text = "unknown", NO_SIGNAL if report.signals else NOT_JUDGED
    else:
        kind, text = _from_signals(report, name, judged)
    return Finding(name, "summary", kind, f"{text}; {of_rest}.")


def _from_signals(report: AuditReport, name: str, judged: Sequence[Finding]) -> tuple[Kind, str]:
    """What the signals come to, or something worse that was found beside them."""
    by_signals = judgement(report, name)
    beside: dict[Status, str] = {}
    if by_signals.status != "blind" and (weak := weak_references(report)):
        beside["unclear"] = weak
    if (stated := report.status.get(name)) is not None:
        beside[stated] = (
            f"the report holds {stated!r} as its status, since the signals do not judge everything, or not against a "
            "true reference (see the notes)"
        )
    beside |= {kind: finding.text.rstrip(".") for finding in judged for kind in STATUSES if kind == finding.kind}
    worst = worst_status([by_signals.status, *beside])
    if worst == by_signals.status or worst not in BESIDE:
        return worst, by_signals.text
    return worst, "; ".join(filter(None, [f"{BESIDE[worst]}: {beside[worst]}", by_signals.too_much]))


def _without_retrained(kinds: Mapping[Topic, Kind], words: Mapping[Kind, str]) -> tuple[Kind, str]:
    at_output, in_layers = kinds.get("output", "unknown"), kinds.get("layers", "unknown")
    first = words.get(at_output, "what the output knows was not measured")
    if at_output != "known" and "scores" in kinds:
        first = IN_ANSWERS_ONLY
    still = [text for topic, text in STILL.items() if topic in kinds]
    known = bool(still) or at_output == "known" or "scores" in kinds
    return "known" if known else "unclear", "; ".join([first, *still, LAYERS[in_layers], NO_TARGET])


def _output(report: AuditReport, name: str) -> Finding | None:
    """Does the output still name what was forgotten, without a retrained model to compare with?"""
    split = forget_split(report, "accuracy")
    mine = output(report, "accuracy", name, split)
    aim = _aim_of_accuracy(report, mine, name) if mine else None
    if mine is None or aim is None:
        return None
    whose, target = aim
    original = report.value("accuracy", model="original", split=split)
    against = [
        f"{whose} {percent(number(target))}",
        *([f"the original {percent(original)}"] if original is not None else []),
    ]
    numbers = f"it gets {percent(number(mine))} of the {split_label(split)} images right ({', '.join(against)})"
    side = above(mine, number(target)) if target.low is None else apart(mine, target)
    if side > 0:
        return Finding(name, "output", "known", f"the output has not forgotten: {numbers}.")
    if whole_classes(report):
        if side < 0:
            return Finding(name, "output", "not named", f"the output hardly names the forgotten classes: {numbers}.")
        naming = "as often as by guessing, where a model that never saw a class hardly ever names it"
        return Finding(name, "output", "unclear", f"the output names the forgotten classes {naming}: {numbers}.")
    if side < 0:
        worse = "the output does worse on what it forgot than on what it never saw"
        return Finding(name, "output", "not named", f"{worse}: {numbers}.")
    alike = "the output does no better on what it forgot than on what it never saw, as far as these images tell"
    return Finding(name, "output", "unclear", f"{alike}: {numbers}.")


def _aim_of_accuracy(report: AuditReport, mine: Measurement, name: str) -> tuple[str, Measurement] | None:
    """What accuracy on forgotten images is held against, and that accuracy.

    A forgotten class is one that is not named; forgotten rows are named as well as unseen images of their classes.
    """
    if whole_classes(report):
        classes = report.dataset.get("class_names")
        chance = mine.chance or (1 / len(classes) if classes else None)
        return None if chance is None else ("chance", Measurement("accuracy", name, chance))
    if (matched := output(report, "accuracy_matched", name, "retain_test")) is not None:
        return "its own on images of the same classes that it never saw", matched
    unseen = output(report, "accuracy", name, "retain_test")
    return None if unseen is None else ("its own on images that it never saw", unseen)


def _membership(report: AuditReport, name: str) -> Finding | None:
    """Do losses tell forgotten training images from unseen ones, as far as an interval can say?"""
    mine = output(report, "mia_loss", name, "forget_train")
    chance = 0.5
    if mine is None or mine.low is None or mine.high is None or above(mine, chance) == 0:
        return None
    side = "lower" if above(mine, chance) > 0 else "higher"
    return Finding(
        name,
        "membership",
        "known",
        "its losses tell forgotten training images from images of the same classes that it never saw: they are "
        f"{side} (area under the curve {number(mine):.2f} [{mine.low:.2f}, {mine.high:.2f}]; chance 0.50).",
    )


def _eight_bits(report: AuditReport, name: str) -> Finding | None:
    """Does rounding the weights bring back what was hidden?"""
    split = forget_split(report, "accuracy_int8")
    before, after = (output(report, metric, name, split) for metric in ("accuracy", "accuracy_int8"))
    if before is None or after is None or apart(after, before) <= 0:
        return None
    numbers = f"{percent(number(after))} of the {split_label(split)} images right, {percent(number(before))} before"
    kind: Kind = "under-erased" if of_role(report, "retrained") else "known"
    return Finding(name, "8 bits", kind, f"stored in 8 bits it remembers: {numbers}.")


def _unchanged(report: AuditReport, names: Sequence[str]) -> Finding | None:
    """The metrics that give the original and what unlearning made of it the same on forgotten data."""
    metrics = ("accuracy", "confidence", "linear_probe", "knn", "mia_loss", "mia_confidence", "attack_area")
    equal = [text for metric in metrics if (text := _equal(report, metric, names))]
    if not equal:
        return None
    text = (
        "These do not tell the original from what unlearning made of it (intervals that meet, or too near): "
        f"{'; '.join(equal)}. Either nothing has changed there, or they cannot show it on these images."
    )
    return Finding(None, "blind metrics", "blind", text)


def _equal(report: AuditReport, metric: str, others: Sequence[str]) -> str | None:
    """The two numbers of a metric that are furthest apart, where it tells the original from none of the others."""
    layered = metric in ("linear_probe", "knn")
    splits = [each.split for each in report.find(metric, model="original")]
    split = next((split for split in ("forget_test", "forget_train") if split in splits), None)
    of_original = [each for each in report.find(metric, model="original", split=split) if each.value is not None]
    if layered:
        told = deep(report, {str(each.layer): each for each in of_original})
        of_original = [each for each in of_original if each.layer in told]
    pairs = [
        (mine, other)
        for mine in of_original
        for name in others
        for other in report.find(metric, model=name, split=split, layer=mine.layer, note=mine.note)
        if other.value is not None
    ]
    if not pairs or any(apart(mine, other) for mine, other in pairs):
        return None
    mine, other = max(pairs, key=lambda pair: abs(number(pair[0]) - number(pair[1])))
    where = f" at {mine.layer}" if mine.layer else ""
    return f"{metric_title(metric)} ({value_text(metric, mine.value)} and {value_text(metric, other.value)}{where})"


def weak_references(report: AuditReport) -> str:
    """Which retrained models know clearly less of the rest than the original, in words; "" for none.

    What such a model lacks may be training, so that a model that is as it is has not forgotten for certain.
    """
    original = output(report, "accuracy", "original", "retain_test")
    others = [(name, output(report, "accuracy", name, "retain_test")) for name in of_role(report, "retrained")]
    if original is None:
        return ""
    weak = [f"{name} gets {percent(number(each))}" for name, each in others if each and apart(each, original) < 0]
    if not weak:
        return ""
    return (
        f"on the rest the reference is worse than the original ({', '.join(weak)} of the retain test images right, "
        f"the original {percent(number(original))}), so what it lacks may be training and not the forgotten images"
    )


def _references(report: AuditReport) -> Finding:
    explained = "CKA is the similarity of two models' features of the same images: 1 is the same, 0 is unrelated."
    if not whole_classes(report):
        explained += f" {OF_ROWS}"
    if retrained := of_role(report, "retrained"):
        if len(retrained) == 1:
            target = (
                "The retrained model is the target of these comparisons: it never saw the forget set, so what can be "
                "read from it about the forgotten data comes from the rest. It is one training run; another seed "
                "would give other numbers, and how far from these was not measured."
            )
        else:
            target = (
                f"The {len(retrained)} retrained models are the target of these comparisons: they never saw the "
                "forget set, so what can be read from them about the forgotten data comes from the rest. Their spread "
                "is the measure of what is near enough."
            )
        if weak := weak_references(report):
            target += f" But {weak}: train it as the original was trained."
        return Finding(None, "references", "with retrained", f"{explained} {target}")
    limits = (
        "There is no retrained model in this report. It shows how far the layers have moved from the original's, not "
        "how far they should have: a model that never saw the forget set also tells something about it, by what it "
        "learnt from the rest. Nor can it show that too much was erased."
    )
    for each in list(profile(report, "linear_cka", "random_init", reference="original").values())[-1:]:
        limits += f" Random weights (CKA {each.value:.2f} at {each.layer}) mark the lower end."
    return Finding(None, "references", "without retrained", f"{explained} {limits}")
