"""What an audit found, in plain sentences for readers who know neither the paper nor the metrics.

Where there is a retrained model, the signals of the report decide, and the headline is never better than the worst of
them. Without one, the findings tell what has changed, and the headline says that it cannot tell how far to go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy.stats import binom

from ec_hf.auditing.report import STATUSES, AttackCurve, AuditReport, Measurement, RetainedClass, Status
from ec_hf.reporting import layerwise
from ec_hf.reporting.findings import Finding, Kind, Topic
from ec_hf.reporting.labels import attack_words, metric_title, percent, split_label, value_text
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
from ec_hf.reporting.signals import blind_signals, judgement, ranking, signal_findings

__all__ = ["findings", "headline"]

CLASS_ALPHA = 0.05
"""In this share of audits some kept class may be said to have suffered though it differs by chance."""
FEW_CLASSES = 3
FEW_ATTACKS = 3
"""So many attacks are told with their strengths, those first that are quicker than on a retrained model."""
RETAIN_LOSS = 0.02
"""Retain accuracy that may be lost before the rest counts as hurt. It is a choice, not measured, and the finding says
so: whoever uses the model must judge the loss."""

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
IN_ANSWERS_ONLY = "no longer named in its answers, but still known in its scores"
LAYERS: dict[Kind, str] = {
    "kept": "the layers are close to what they were (superficial)",
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
REST: dict[Kind, str] = {"intact": "the rest is intact", "hurt": "the rest has suffered"}


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
        others = [_attacks(report, name)]
        others += [_eight_bits(report, name)] if measured and "accuracy_int8" not in measured else []
        judged = [*signal_findings(report, name), *others, _rest(report, name)]
    else:
        topics = (_output, layerwise.scores, layerwise.layers, layerwise.probe, _attacks, _membership, _eight_bits)
        judged = [judge(report, name) for judge in (*topics, _rest)]
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
    rest = REST.get(kinds.get("rest", "unknown"), "what the rest has lost was not measured")
    if kinds.get("rest") == "intact" and not _classes_can_tell(report, name):
        rest += " on average"
    if not of_role(report, "retrained"):
        kind, text = _without_retrained(kinds, OUTPUT if whole_classes(report) else OUTPUT_ON_ROWS)
    elif not signals_of(report, name):
        kind, text = "unknown", NO_SIGNAL if report.signals else NOT_JUDGED
    else:
        kind, text = _from_signals(report, name, judged)
    return Finding(name, "summary", kind, f"{text}; {rest}.")


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


def _rest(report: AuditReport, name: str) -> Finding | None:
    mine, original = (report.value("accuracy", model=model, split="retain_test") for model in (name, "original"))
    if mine is None or original is None:
        return None
    numbers = f"{percent(mine)} of the retain test images right, the original {percent(original)}"
    numbers += _classes_of_rows(report, name)
    limit = f"{100 * RETAIN_LOSS:.0f} points"
    lost = _lost_classes(report, name)
    if original - mine > RETAIN_LOSS:
        loss = f"a loss of {100 * (original - mine):.1f} points{f'; most of all {lost}' if lost else ''}"
        return Finding(name, "rest", "hurt", f"the rest has suffered: {numbers}, {loss}.")
    if lost:
        return Finding(name, "rest", "hurt", f"single classes have suffered: {lost}; of all, {numbers}.")
    if _rows_hurt(report, name):
        return Finding(name, "rest", "hurt", f"the classes of the forgotten rows have suffered: {numbers}.")
    stated = f"a loss of up to {limit} counts as none"
    if _classes_can_tell(report, name):
        known = f"no single class has lost more than chance, as far as {_fewest(report, name)} images of one can tell"
        return Finding(name, "rest", "intact", f"the rest is intact: {numbers} ({stated}; {known}).")
    stated += ", and single classes can have lost more"
    return Finding(name, "rest", "intact", f"the rest is intact on average: {numbers} ({stated}).")


def _classes_of_rows(report: AuditReport, name: str) -> str:
    """Accuracy on unseen images of the classes of forgotten rows, which must stay; "" for a request of classes."""
    models = {"": name, "the original ": "original"}
    models |= {f"{model} ": model for model in of_role(report, "retrained")}
    known = {whose: output(report, "accuracy_matched", model, "retain_test") for whose, model in models.items()}
    if known[""] is None:
        return ""
    told = ", ".join(f"{whose}{percent(number(each))}" for whose, each in known.items() if each)
    return f"; of unseen images of the forgotten rows' classes {told}"


def _rows_hurt(report: AuditReport, name: str) -> bool:
    """Whether unseen images of the forgotten rows' classes lost more than the limit, and more than chance explains."""
    mine, original = (output(report, "accuracy_matched", each, "retain_test") for each in (name, "original"))
    if mine is None or original is None:
        return False
    return number(original) - number(mine) > RETAIN_LOSS and above(mine, number(original)) < 0


def _lost_classes(report: AuditReport, name: str) -> str:
    """The kept classes that lost images beyond chance, the worst first; "" where none did.

    McNemar's exact test, one-sided: of the images on which model and original differ, is more than half lost? Over all
    kept classes together 5 % are false findings at most (Bonferroni). A class that is wiped out is told without
    that correction, which few images of many classes could never pass.
    """
    classes = report.retained.get(name, {})
    worse = {
        kept: (counts.gained - counts.lost) / counts.images
        for kept, counts in classes.items()
        if counts.lost and _chance_of(counts) < (CLASS_ALPHA if _wiped_out(counts) else CLASS_ALPHA / len(classes))
    }
    told = []
    for kept in sorted(worse, key=lambda each: worse[each])[:FEW_CLASSES]:
        counts = classes[kept]
        before = (counts.right + counts.lost - counts.gained) / counts.images
        told.append(f"{kept} {percent(before)} before, {percent(counts.right / counts.images)} now")
    if len(worse) > FEW_CLASSES:
        told.append(f"and {len(worse) - FEW_CLASSES} more")
    return ", ".join(told)


def _chance_of(counts: RetainedClass) -> float:
    return float(binom.sf(counts.lost - 1, counts.lost + counts.gained, 0.5))


def _wiped_out(counts: RetainedClass) -> bool:
    """Whether the original knew a class, half of its images or more, and the model at most a fifth of those."""
    before = counts.right + counts.lost - counts.gained
    return 2 * before >= counts.images and 5 * counts.right <= before


def _classes_can_tell(report: AuditReport, name: str) -> bool:
    """Whether each kept class has so many images that its loss could be told from chance."""
    classes = report.retained.get(name, {})
    return bool(classes) and 0.5 ** _fewest(report, name) < CLASS_ALPHA / len(classes)


def _fewest(report: AuditReport, name: str) -> int:
    return min(counts.images for counts in report.retained[name].values())


def _attacks(report: AuditReport, name: str) -> Finding | None:
    """At which strength of an attack is half of the original's accuracy back?"""
    original, own = (report.value("accuracy", model=model, split="forget_test") for model in ("original", name))
    mine = [curve for curve in report.attacks if curve.model == name and curve.x]
    if original is None or own is None or own >= original / 2 or not mine:
        return None
    half, retrained = original / 2, of_role(report, "retrained")
    others = {
        curve.attack: [each for each in report.attacks if each.attack == curve.attack and each.model in retrained]
        for curve in mine
    }
    sooner = [
        curve
        for curve in mine
        if others[curve.attack] and _place(curve, half) < min(_place(other, half) for other in others[curve.attack])
    ]
    back = [curve for curve in mine if _place(curve, half) < math.inf]
    kind: Kind = "back" if back else "not back"
    ordered = sorted(back, key=lambda curve: curve not in sooner)  # stable
    told = ordered[:FEW_ATTACKS]
    clauses = [_comeback(curve, others[curve.attack], half, first=not k) for k, curve in enumerate(told)]
    if more := ordered[FEW_ATTACKS:]:
        clauses.append(f"these attacks bring it back too: {_listed(more)}")
    if never := [curve for curve in mine if curve not in back]:
        what = "it" if back else "half of the original's accuracy on other forget images"
        clauses.append(f"these attacks do not bring {what} back: {_listed(never)}")
    text = "; ".join(clauses)
    judged = {each.note for each in signals_of(report, name) if each.metric == "attack_area"}
    if any(curve.attack not in judged for curve in sooner):
        kind, text = "unclear", f"{text}: sooner, in single runs whose spread was not measured"
    return Finding(name, "attacks", kind, f"{text}.")


def _comeback(curve: AttackCurve, retrained: Sequence[AttackCurve], half: float, *, first: bool) -> str:
    """When half of the original's accuracy is back, and when it is in the retrained models."""
    what = "half of the original's accuracy on others is back " if first else ""
    text = f"{attack_words(curve.attack).way}, {what}{_when(curve, half)}"
    if retrained:
        whose = "the retrained model" if len(retrained) == 1 else "the retrained models"
        text += f", in {whose} {', '.join(dict.fromkeys(_when(each, half) for each in retrained))}"
    return text


def _listed(curves: Sequence[AttackCurve]) -> str:
    return ", ".join(f"{words.title} ({words.by})" for words in (attack_words(curve.attack) for curve in curves))


def _place(curve: AttackCurve, accuracy: float) -> float:
    """The number of the first point of a curve that reaches an accuracy; infinity where none does."""
    return next((k for k, now in enumerate(curve.accuracy) if now >= accuracy), math.inf)


def _when(curve: AttackCurve, accuracy: float) -> str:
    place = _place(curve, accuracy)
    strength = curve.x[-1] if place == math.inf else curve.x[int(place)]
    words = {
        "steps": f"after {strength:g} steps",
        "images a class": f"with {strength:g} images a class",
        "bits": f"at {strength:g} bits",
        "sparsity": f"at a share of {percent(strength)}",
    }[curve.unit]
    return words if place < math.inf else f"not even {words}"


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
