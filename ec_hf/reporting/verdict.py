"""What an audit found, in plain sentences for readers who know neither the paper nor the metrics.

The findings follow from the measurements of the report alone. Every threshold is a constant with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from ec_hf.auditing.report import AuditReport, Measurement, RelearningCurve
from ec_hf.reporting.findings import Finding, Kind
from ec_hf.reporting.labels import metric_title, model_label, share, split_label, value_text
from ec_hf.reporting.layerwise import layers, probe, ranking
from ec_hf.reporting.reading import (
    GAP,
    MARGIN,
    REFERENCES,
    apart,
    deep,
    forget_split,
    number,
    output,
    profile,
    whole_classes,
)

__all__ = ["findings", "headline"]

RETAIN_LOSS = 0.02
"""Retain accuracy that may be lost before the rest counts as hurt: a choice, not measured."""

# The headline, put together from what single findings come to: kind -> words.
OUTPUT: dict[Kind, str] = {"forgotten": "forgotten at the output", "known": "not forgotten at the output"}
IN_ANSWERS_ONLY = "forgotten in its answers but not in its scores"
LAYERS: dict[Kind, str] = {
    "kept": "not in the layers",
    "partly": "in some of the layers only",
    "as retrained": "in the layers, about as far as a model that never saw the data",
    "beyond": "in the layers, further than in a model that never saw the data",
    "uneven": "unevenly in the layers, in some too little and in others too much",
    "moved": "changed in the layers (how far they should change, only a retrained model can tell)",
}
SUPERFICIAL = "not in the layers (superficial forgetting)"
NO_ANSWER: dict[Kind, str] = {
    "blind": "what the layers know cannot be told on this data",
    "unclear": "what the layers know cannot be told from so few images",
    "unknown": "what the layers know was not measured",
}
REST: dict[Kind, str] = {"intact": "the rest is intact", "hurt": "the rest has suffered"}


def findings(report: AuditReport) -> list[Finding]:
    """Says of each unlearned model what it has forgotten, where, and at what price; then what the report cannot show.

    Args:
        report: of `ec_hf.audit`, or read from audit.json; parts that were not measured are named as such.

    Returns:
        Findings, in the order in which to read them; the first on a model is its headline (topic "summary").
    """
    names = [name for name, info in report.models.items() if info.role == "unlearned"]
    if not names:
        nothing = "The report holds no unlearned model, so there is no forgetting to judge."
        return [Finding(None, "summary", "unknown", nothing)]
    of_models = [finding for name in names for finding in _of_model(report, name)]
    of_audit = [ranking(report, names), _blind_metrics(report, names), _references(report)]
    return [*of_models, *(finding for finding in of_audit if finding)]


def _of_model(report: AuditReport, name: str) -> list[Finding]:
    topics = (_output, _scores, layers, probe, _relearning, _membership, _eight_bits, _rest)
    judged = [finding for judge in topics if (finding := judge(report, name))]
    return [headline(name, judged), *judged]


def headline(name: str, judged: Sequence[Finding]) -> Finding:
    """The summary of what was found on one model; its kind is that of the output.

    Args:
        name: of the model.
        judged: the findings on it.
    """
    kinds = {finding.topic: finding.kind for finding in judged}
    at_output, in_layers, rest = (kinds.get(topic, "unknown") for topic in ("output", "layers", "rest"))
    answers_only = at_output == "forgotten" and "scores" in kinds
    first = IN_ANSWERS_ONLY if answers_only else OUTPUT.get(at_output, "what the output knows was not measured")
    superficial = at_output == "forgotten" and in_layers == "kept"
    if in_layers in NO_ANSWER:
        joint, second = ";", NO_ANSWER[in_layers]
    else:
        joint, second = " but" if superficial else " and", SUPERFICIAL if superficial else LAYERS[in_layers]
    if answers_only:  # its "but" is one already
        joint = ";"
    third = f"; {REST[rest]}" if rest in REST else ""
    return Finding(name, "summary", at_output, f"{first}{joint} {second}{third}.")


def _output(report: AuditReport, name: str) -> Finding | None:
    split = forget_split(report, "accuracy")
    mine = output(report, "accuracy", name, split)
    aim = _aim_of_accuracy(report, mine, name, split) if mine else None
    if mine is None or aim is None:
        return None
    accuracy, (whose, target) = number(mine), aim
    original = report.value("accuracy", model="original", split=split)
    against = [f"{whose} {share(target)}", *([f"the original {share(original)}"] if original is not None else [])]
    numbers = f"it gets {share(accuracy)} of the {split_label(split)} images right ({', '.join(against)})"
    if accuracy > target + MARGIN:
        return Finding(name, "output", "known", f"the output has not forgotten: {numbers}.")
    if not whole_classes(report) and accuracy < target - MARGIN:
        worse = "the output does worse on what it forgot than on what it never saw"
        return Finding(name, "output", "forgotten", f"{worse}: {numbers}.")
    return Finding(name, "output", "forgotten", f"the output has forgotten: {numbers}.")


def _aim_of_accuracy(report: AuditReport, mine: Measurement, name: str, split: str) -> tuple[str, float] | None:
    """Whose accuracy forgotten images should come down to, and that accuracy.

    A forgotten class is one that is not named; forgotten rows are named as well as any unseen image.
    """
    retrained = "the retrained model", report.value("accuracy", model="retrained", split=split)
    if whole_classes(report):
        classes = report.dataset.get("class_names")
        aims = [("chance", mine.chance or (1 / len(classes) if classes else None)), retrained]
    else:
        unseen = report.value("accuracy", model=name, split="retain_test")
        aims = [retrained, ("its own on images that it never saw", unseen)]
    return next(((whose, value) for whose, value in aims if value is not None), None)


def _scores(report: AuditReport, name: str) -> Finding | None:
    """Do the logits still tell the forgotten classes apart, though the model names none of them?"""
    split = forget_split(report, "linear_probe")
    rows = {
        model: next(report.find("linear_probe", model=model, layer="logits", split=split), None)
        for model in (name, *REFERENCES)
    }
    measured = {model: row for model, row in rows.items() if row is not None and row.value is not None}
    mine = measured.pop(name, None)
    if mine is None:
        return None
    if "retrained" in measured:
        left = apart(mine, measured["retrained"]) > 0
    else:
        left = "original" in measured and apart(measured["original"], mine) <= 0
    if not left:
        return None
    numbers = ", ".join(f"{model_label(model)} {share(number(row))}" for model, row in measured.items())
    return Finding(
        name,
        "scores",
        "known",
        "its scores (logits) still tell the forgotten classes apart: a classifier that sees nothing else finds them "
        f"in {share(number(mine))} of the images ({numbers}).",
    )


def _rest(report: AuditReport, name: str) -> Finding | None:
    mine, original = (report.value("accuracy", model=model, split="retain_test") for model in (name, "original"))
    if mine is None or original is None:
        return None
    numbers = f"{share(mine)} of the retain test images right, the original {share(original)}"
    if original - mine > RETAIN_LOSS:
        loss = f"a loss of {100 * (original - mine):.1f} points"
        return Finding(name, "rest", "hurt", f"the rest has suffered: {numbers}, {loss}.")
    return Finding(name, "rest", "intact", f"the rest is intact: {numbers}.")


def _relearning(report: AuditReport, name: str) -> Finding | None:
    """After how many steps of fine-tuning is half of the original's accuracy back?"""
    original = report.value("accuracy", model="original", split="forget_test")
    curves = {(curve.model, curve.mode): curve for curve in report.relearning if curve.steps}
    mode = next((mode for mode in ("head", "full") if (name, mode) in curves), None)
    if original is None or mode is None:
        return None
    curve, target, half = curves[name, mode], curves.get(("retrained", mode)), original / 2
    if curve.accuracy[0] >= half:
        return None
    trained = "only its classifier is" if mode == "head" else "all of its weights are"
    text = (
        f"when {trained} fine-tuned on a few forget images, half of the original's accuracy on others is back "
        f"{_when(curve, half)}"
    )
    if target:
        text += f", in the retrained model {_when(target, half)}"
    return Finding(name, "relearning", "not back" if _steps(curve, half) is None else "back", f"{text}.")


def _steps(curve: RelearningCurve, accuracy: float) -> int | None:
    """The steps after which a curve first reaches an accuracy."""
    return next((step for step, reached in zip(curve.steps, curve.accuracy, strict=True) if reached >= accuracy), None)


def _when(curve: RelearningCurve, accuracy: float) -> str:
    steps = _steps(curve, accuracy)
    return f"not within {curve.steps[-1]} steps" if steps is None else f"after {steps} steps"


def _membership(report: AuditReport, name: str) -> Finding | None:
    mine, retrained = (output(report, "mia_loss", model, "forget_train") for model in (name, "retrained"))
    if mine is None:
        return None
    aim = number(retrained) if retrained else 0.5
    if abs(number(mine) - aim) <= MARGIN:
        return None
    against = f"retrained {aim:.2f}, chance 0.50" if retrained else "chance 0.50"
    return Finding(
        name,
        "membership",
        "known",
        "its losses tell forgotten training images from images of the same classes that it never saw (area under the "
        f"curve {number(mine):.2f}; {against}).",
    )


def _eight_bits(report: AuditReport, name: str) -> Finding | None:
    split = forget_split(report, "accuracy_int8")
    before, after = (report.value(metric, model=name, split=split) for metric in ("accuracy", "accuracy_int8"))
    if before is None or after is None or after - before <= MARGIN:
        return None
    numbers = f"{share(after)} of the {split_label(split)} images right, {share(before)} before"
    return Finding(name, "8 bits", "known", f"stored in 8 bits it remembers: {numbers}.")


def _blind_metrics(report: AuditReport, names: Sequence[str]) -> Finding | None:
    """The metrics that give the original and the model it is held against the same on forgotten data."""
    others = ["retrained"] if "retrained" in report.models else names
    metrics = ("accuracy", "confidence", "linear_probe", "knn", "mia_loss", "mia_confidence", "relearning_area")
    equal = [text for metric in metrics if (text := _equal(report, metric, others))]
    if not equal:
        return None
    listed = "; ".join(equal)
    if "retrained" in report.models:
        text = (
            "These do not tell the original from the retrained model on these images (too near, or intervals that "
            f"meet), and so say nothing about forgetting here: {listed}."
        )
    else:
        text = (
            "These do not tell the original from what unlearning made of it (too near, or intervals that meet): "
            f"{listed}. Either nothing has changed there, or they cannot show it on these images."
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
    if not pairs or any(apart(mine, other, GAP if layered else MARGIN) for mine, other in pairs):
        return None
    mine, other = max(pairs, key=lambda pair: abs(number(pair[0]) - number(pair[1])))
    where = f" at {mine.layer}" if mine.layer else ""
    return f"{metric_title(metric)} ({value_text(metric, mine.value)} and {value_text(metric, other.value)}{where})"


def _references(report: AuditReport) -> Finding:
    explained = "CKA is the similarity of two models' features of the same images: 1 is the same, 0 is unrelated."
    if "retrained" in report.models:
        target = (
            "The retrained model is the target of these comparisons: it never saw the forget set, so what can be read "
            "from it about the forgotten data comes from the rest. It is one training run; another seed would give "
            "somewhat other numbers."
        )
        return Finding(None, "references", "with retrained", f"{explained} {target}")
    limits = (
        "There is no retrained model in this report. It shows how far the layers have moved from the original's, not "
        "how far they should have: a model that never saw the forget set also tells something about it, by what it "
        "learnt from the rest. Nor can it show that too much was erased."
    )
    for each in list(profile(report, "linear_cka", "random_init", reference="original").values())[-1:]:
        limits += f" Random weights (CKA {each.value:.2f} at {each.layer}) mark the lower end."
    return Finding(None, "references", "without retrained", f"{explained} {limits}")
