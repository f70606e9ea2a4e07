"""What an audit found, in plain sentences for readers who know neither the paper nor the metrics.

The sentences follow from the measurements of the report alone. Every threshold is a constant here, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ec_hf.auditing.report import AuditReport, Measurement
from ec_hf.reporting.tables import forget_split, metric_title, model_label, split_label, value_text

__all__ = ["verdict"]

MARGIN = 0.05
"""Shares and areas under a curve this near count as equal: the 95 % interval of a share of 300 images is as wide."""
RETAIN_LOSS = 0.02
"""Retain accuracy that may be lost before the rest counts as hurt: a choice, not measured."""
GAP = 0.1
"""CKA and probe accuracy this near count as equal: a choice, not measured; intervals that meet count as equal too."""
SAME = 0.8
"""CKA at which two models are as alike as two trainings of one network (0.78 to 0.96, small ResNet, MNIST-5k)."""
SHALLOW = 4
"""The first of so many parts of the hidden states is left out: edges and colours stay what they are in any model."""
REFERENCES = ("retrained", "original", "random_init")
HALF = 0.5
"""A finding at more than this share of the hidden states is one about the layers, at fewer about some of them."""


def verdict(report: AuditReport) -> list[str]:
    """Says of each unlearned model what it has forgotten, where, and at what price; then what the report cannot show.

    Args:
        report: of `ec_hf.audit`, or read from audit.json; parts that were not measured are named as such.

    Returns:
        Sentences, in the order in which to read them; those on one model begin with its name.
    """
    names = [name for name, info in report.models.items() if info.role == "unlearned"]
    if not names:
        return ["The report holds no unlearned model, so there is no forgetting to judge."]
    lines = []
    for name in names:
        output, layers, rest = _output(report, name), _layers(report, name), _rest(report, name)
        scores = _scores(report, name)
        findings = [_summary(output, scores, layers, rest), output.text, scores, layers.text, _probe(report, name)]
        findings += [_relearning(report, name), _membership(report, name), _eight_bits(report, name), rest.text]
        lines += [f"{model_label(name)}: {text}" for text in findings if text]
    return [*lines, *_order(report, names), *_blind(report, names), _references(report)]


@dataclass(frozen=True)
class _Finding:
    """One of the words of a summary, and the sentence with the numbers behind it."""

    kind: str
    text: str = ""


def _summary(output: _Finding, scores: str, layers: _Finding, rest: _Finding) -> str:
    answers = "forgotten in its answers but not in its scores" if scores else "forgotten at the output"
    first = {"forgotten": answers, "known": "not forgotten at the output"}.get(
        output.kind, "what the output knows was not measured"
    )
    kept = "but not in the layers (superficial forgetting)" if output.kind == "forgotten" else "and not in the layers"
    second = {
        "kept": kept,
        "partly": "and in some of the layers only",
        "as retrained": "and in the layers, about as far as a model that never saw the data",
        "beyond": "and in the layers, further than in a model that never saw the data",
        "uneven": "and unevenly in the layers, in some too little and in others too much",
        "moved": "and changed in the layers (how far they should change, only a retrained model can tell)",
        "blind": "what the layers know cannot be told on this data",
        "unclear": "what the layers know cannot be told from so few images",
    }.get(layers.kind, "what the layers know was not measured")
    third = {"intact": "the rest is intact", "hurt": "the rest has suffered"}.get(rest.kind, "")
    if scores and output.kind == "forgotten":
        second = second.removeprefix("and ").removeprefix("but ")
    joint = " " if second.startswith(("and", "but")) else "; "
    return "; ".join(part for part in (first + joint + second, third) if part) + "."


def _output(report: AuditReport, name: str) -> _Finding:
    split = forget_split(report, "accuracy")
    mine = _one(report, "accuracy", name, split)
    if mine is None or mine.value is None:
        return _Finding("unknown")
    retrained = report.value("accuracy", model="retrained", split=split)
    chance = mine.chance or (1 / len(report.dataset["class_names"]) if report.dataset.get("class_names") else None)
    unseen = report.value("accuracy", model=name, split="retain_test")
    aims = (  # a forgotten class is one that is not named; forgotten rows are named as well as any unseen image
        [("chance", chance), ("the retrained model", retrained)]
        if _whole_classes(report)
        else [("the retrained model", retrained), ("its own on images that it never saw", unseen)]
    )
    aim, target = next(((text, value) for text, value in aims if value is not None), ("", None))
    if target is None:
        return _Finding("unknown")
    original = report.value("accuracy", model="original", split=split)
    against = [f"{aim} {_share(target)}"] + ([f"the original {_share(original)}"] if original is not None else [])
    numbers = f"it gets {_share(mine.value)} of the {split_label(split)} images right ({', '.join(against)})"
    if mine.value > target + MARGIN:
        return _Finding("known", f"the output has not forgotten: {numbers}.")
    if not _whole_classes(report) and mine.value < target - MARGIN:
        return _Finding("forgotten", f"the output does worse on what it forgot than on what it never saw: {numbers}.")
    return _Finding("forgotten", f"the output has forgotten: {numbers}.")


def _scores(report: AuditReport, name: str) -> str:
    """Do the logits still tell the forgotten classes apart, though the model names none of them?"""
    rows = {
        each: next(report.find("linear_probe", model=each, layer="logits", split=split), None)
        for split in [forget_split(report, "linear_probe")]
        for each in (name, *REFERENCES)
    }
    found = {each: row for each, row in rows.items() if row is not None and row.value is not None}
    if name not in found or not {"retrained", "original"} & set(found):
        return ""
    if "retrained" in found:
        left = _apart(found[name], found["retrained"]) > 0
    else:
        left = _apart(found["original"], found[name]) <= 0
    numbers = ", ".join(f"{model_label(k)} {_share(_number(row))}" for k, row in found.items() if k != name)
    return left * (
        "its scores (logits) still tell the forgotten classes apart: a classifier that sees nothing else finds them "
        f"in {_share(_number(found[name]))} of the images ({numbers})."
    )


def _layers(report: AuditReport, name: str) -> _Finding:
    """Is only the output changed, or do the layers come as far from the original as those of a retrained model?"""
    mine = _profile(report, "linear_cka", name, reference="original")
    deep = _deep(report, mine)
    if not deep:
        return _Finding("unknown", "no similarity of its layers to the original's was measured.")
    target = _profile(report, "linear_cka", "retrained", reference="original")
    if not target:
        return _without_retrained(report, name, mine, deep)
    telling = [layer for layer in deep if layer in target and _number(target[layer]) < 1 - GAP]
    if not telling:
        lowest = min(_number(each) for layer, each in target.items() if layer in deep)
        return _Finding(
            "blind",
            "even a model that never saw the forget set has features of its images like the original's (CKA at least "
            f"{lowest:.2f} beyond the shallow layers), so their similarity cannot tell what the layers know.",
        )
    above = [layer for layer in telling if _apart(mine[layer], target[layer]) > 0]
    below = [layer for layer in telling if _apart(mine[layer], target[layer]) < 0]
    of = f"of the {len(telling)} layers at which a retrained model differs from the original"

    def at(layers: Sequence[str]) -> str:
        return f"at {'all' if len(layers) == len(telling) else len(layers)} {of}"

    if above:
        kind = "uneven" if below else "kept" if len(above) > HALF * len(telling) else "partly"
        text = (
            f"{at(above)}, its features of forget images are more like the original's than the retrained "
            f"model's are ({_widest(above, mine, target)})"
        )
        if below:
            text += f"; at {len(below)} they are less like them ({_widest(below, mine, target)}): more than forgetting"
        return _Finding(kind, text + ".")
    if below:
        return _Finding(
            "beyond",
            f"more was erased than the data had put there: {at(below)}, its features of forget images are "
            f"less like the original's than the retrained model's are ({_widest(below, mine, target)}).",
        )
    far = [layer for layer in telling if abs(_number(mine[layer]) - _number(target[layer])) > GAP]
    if len(far) > HALF * len(telling):
        return _Finding(
            "unclear",
            "the images are too few to tell how far its layers have come: intervals of their similarity to the "
            f"original's meet those of the retrained model's ({_widest(far, mine, target)}).",
        )
    return _Finding(
        "as retrained",
        "its features of forget images have come as far from the original's as the retrained model's: over the "
        f"{len(telling)} layers at which that differs from the original, the two differ in CKA by "
        f"{_gap(telling, mine, target):.2f} on average ({_widest(telling, mine, target)}).",
    )


def _without_retrained(
    report: AuditReport, name: str, mine: Mapping[str, Measurement], deep: Sequence[str]
) -> _Finding:
    floor = _profile(report, "linear_cka", "random_init", reference="original")
    deep = [layer for layer in deep if layer not in floor or _number(floor[layer]) < SAME]
    if not deep:
        return _Finding(
            "blind",
            f"even random weights have features of forget images like the original's (CKA {SAME} or more at every "
            "layer beyond the shallow ones), so their similarity cannot tell what the layers know.",
        )
    close = [layer for layer in deep if _number(mine[layer]) >= SAME]
    lowest = min(deep, key=lambda layer: _number(mine[layer]))
    kept = report.value("linear_cka", model=name, reference="original", split="retain_test", layer=lowest)
    retain = f", on retain images {kept:.2f}" if kept is not None else ""
    if close:
        kind = "kept" if len(close) > HALF * len(deep) else "partly"
        return _Finding(
            kind,
            f"at {len(close)} of {len(deep)} layers beyond the shallow ones, its features of forget images are as "
            f"close to the original's as those of a second training of the network would be (CKA {SAME} or more); the "
            f"lowest is {_number(mine[lowest]):.2f} at {lowest}{retain}.",
        )
    text = (
        f"the layers have changed on forget images: CKA to the original falls to {_number(mine[lowest]):.2f} at "
        f"{lowest}{retain}"
    )
    if kept is not None and kept - _number(mine[lowest]) <= GAP:
        text += ", so the change is not aimed at the forget set"
    return _Finding("moved", text + ".")


def _rest(report: AuditReport, name: str) -> _Finding:
    mine, original = (report.value("accuracy", model=each, split="retain_test") for each in (name, "original"))
    if mine is None or original is None:
        return _Finding("unknown")
    numbers = f"{_share(mine)} of the retain test images right, the original {_share(original)}"
    if original - mine > RETAIN_LOSS:
        return _Finding("hurt", f"the rest has suffered: {numbers}, a loss of {100 * (original - mine):.1f} points.")
    return _Finding("intact", f"the rest is intact: {numbers}.")


def _probe(report: AuditReport, name: str) -> str:
    """Can the classes still be read from frozen features, better than from those of the reference?"""
    mine = _profile(report, "linear_probe", name)
    reference = "retrained" if _profile(report, "linear_probe", "retrained") else "original"
    target = _profile(report, "linear_probe", reference)
    shared = [layer for layer in _deep(report, mine) if layer in target]
    if not shared:
        return ""
    what = "the forgotten classes" if _whole_classes(report) else "the classes of the forgotten images"
    signs = {layer: _apart(mine[layer], target[layer]) for layer in shared}
    chosen = shared[-1]
    if reference == "retrained":
        above, below = ([layer for layer in shared if signs[layer] == sign] for sign in (1, -1))
        chosen = max(above or below or shared, key=lambda k: abs(_number(mine[k]) - _number(target[k])))
    than = f"in the {reference}{' model' * (reference == 'retrained')}'s"
    known = "still finds" if reference == "original" else "finds"
    found = {
        1: f"still finds {what} in its features, better than {than}",
        -1: f"finds {what} in its features less well than {than}",
        0: f"{known} {what} in its features about as well as {than}",
    }[signs[chosen]]
    if signs[chosen] == 0 and abs(_number(mine[chosen]) - _number(target[chosen])) > GAP:
        found = f"finds {what} in its features, on too few images to tell them from those {than}"
    if signs[chosen] < 0 and reference == "retrained":
        found += ", more was erased than had to be"
    where = {"split": mine[chosen].split, "layer": chosen}
    others = {each: report.value("linear_probe", model=each, **where) for each in REFERENCES}
    numbers = [f"{model_label(each)} {_share(value)}" for each, value in others.items() if value is not None]
    numbers += [f"chance {_share(chance)}"] if (chance := mine[chosen].chance) is not None else []
    mine_at = _share(_number(mine[chosen]))
    return f"a new linear classifier {found}: {mine_at} at {chosen} ({', '.join(numbers)})."


def _relearning(report: AuditReport, name: str) -> str:
    """After how many steps of fine-tuning is half of the original's accuracy back?"""
    original = report.value("accuracy", model="original", split="forget_test")
    curves = {(curve.model, curve.mode): curve for curve in report.relearning if curve.steps}
    mode = next((mode for mode in ("head", "full") if (name, mode) in curves), None)
    if original is None or mode is None or curves[name, mode].accuracy[0] >= original / 2:
        return ""

    there = ("retrained", mode) in curves

    def back(model: str) -> str:
        curve = curves[model, mode]
        pairs = zip(curve.steps, curve.accuracy, strict=True)
        step = next((step for step, accuracy in pairs if accuracy >= original / 2), None)
        return f"not within {curve.steps[-1]} steps" if step is None else f"after {step} steps"

    trained = "only its classifier is" if mode == "head" else "all of its weights are"
    text = f"when {trained} fine-tuned on a few forget images, half of the original's accuracy on others is back"
    return f"{text} {back(name)}" + (f", in the retrained model {back('retrained')}." if there else ".")


def _membership(report: AuditReport, name: str) -> str:
    mine, target = (_one(report, "mia_loss", model, "forget_train") for model in (name, "retrained"))
    if mine is None or mine.value is None:
        return ""
    aim = target.value if target and target.value is not None else 0.5
    if abs(mine.value - aim) <= MARGIN:
        return ""
    against = f"retrained {aim:.2f}, chance 0.50" if target and target.value is not None else "chance 0.50"
    return (
        "its losses tell forgotten training images from images of the same classes that it never saw (area under the "
        f"curve {mine.value:.2f}; {against})."
    )


def _eight_bits(report: AuditReport, name: str) -> str:
    split = forget_split(report, "accuracy_int8")
    before, after = (report.value(metric, model=name, split=split) for metric in ("accuracy", "accuracy_int8"))
    if before is None or after is None or after - before <= MARGIN:
        return ""
    images = f"{split_label(split)} images"
    return f"stored in 8 bits it remembers: {_share(after)} of the {images} right, {_share(before)} before."


def _order(report: AuditReport, names: Sequence[str]) -> list[str]:
    """Which of several models has layers nearest to the retrained model's."""
    target = _profile(report, "linear_cka", "retrained", reference="original")
    gaps = {}
    for name in names:
        mine = _profile(report, "linear_cka", name, reference="original")
        shared = [layer for layer in _deep(report, mine) if layer in target]
        if shared:
            gaps[name] = _gap(shared, mine, target)
    if len(gaps) < 2:
        return []
    ranked = [f"{model_label(name)} ({gap:.2f})" for name, gap in sorted(gaps.items(), key=lambda each: each[1])]
    return [
        "By the similarity of their layers to the original's on forget images, nearest to the retrained model: "
        f"{', then '.join(ranked)}; in brackets the mean difference in CKA."
    ]


def _blind(report: AuditReport, names: Sequence[str]) -> list[str]:
    """The metrics that give the original and the model it is held against the same on forgotten data."""
    others = ["retrained"] if "retrained" in report.models else list(names)
    by_layer = ("linear_probe", "knn")
    equal = []
    for metric in ("accuracy", "confidence", *by_layer, "mia_loss", "mia_confidence", "relearning_area"):
        splits = [each.split for each in report.find(metric, model="original")]
        split = next((s for s in ("forget_test", "forget_train") if s in splits), None)
        first = [each for each in report.find(metric, model="original", split=split) if each.value is not None]
        if metric in by_layer:
            first = [each for each in first if each.layer in _deep(report, {str(e.layer): e for e in first})]
        pairs = [
            (each, other)
            for each in first
            for name in others
            for other in report.find(metric, model=name, split=split, layer=each.layer, note=each.note)
            if other.value is not None
        ]
        margin = GAP if metric in by_layer else MARGIN
        if pairs and not any(_apart(mine, other, margin) for mine, other in pairs):
            mine, other = max(pairs, key=lambda pair: abs(_number(pair[0]) - _number(pair[1])))
            both = f"{value_text(metric, mine.value)} and {value_text(metric, other.value)}"
            equal.append(f"{metric_title(metric)} ({both}{f' at {mine.layer}' if mine.layer else ''})")
    if not equal:
        return []
    listed = "; ".join(equal)
    if "retrained" in report.models:
        return [
            "These do not tell the original from the retrained model on these images (too near, or intervals that "
            f"meet), and so say nothing about forgetting here: {listed}."
        ]
    return [
        "These do not tell the original from what unlearning made of it (too near, or intervals that meet): "
        f"{listed}. Either nothing has changed there, or they cannot show it on these images."
    ]


def _references(report: AuditReport) -> str:
    explained = "CKA is the similarity of two models' features of the same images: 1 is the same, 0 is unrelated. "
    if "retrained" in report.models:
        return explained + (
            "The retrained model is the target of these comparisons: it never saw the forget set, so what can be read "
            "from it about the forgotten data comes from the rest. It is one training run; another seed would give "
            "somewhat other numbers."
        )
    floor = list(_profile(report, "linear_cka", "random_init", reference="original").values())[-1:]
    marks = "".join(f" Random weights (CKA {each.value:.2f} at {each.layer}) mark the lower end." for each in floor)
    return explained + (
        "There is no retrained model in this report. It shows how far the layers have moved from the original's, not "
        "how far they should have: a model that never saw the forget set also tells something about it, by what it "
        f"learnt from the rest. Nor can it show that too much was erased.{marks}"
    )


def _one(report: AuditReport, metric: str, model: str, split: str) -> Measurement | None:
    return next(report.find(metric, model=model, split=split, layer=None), None)


def _profile(report: AuditReport, metric: str, model: str, **wanted: str) -> dict[str, Measurement]:
    """Hidden state -> measurement on forgotten data, shallow to deep, where there is a value."""
    found = report.find(metric, model=model, split=forget_split(report, metric), **wanted)
    rows = {each.layer: each for each in found if each.value is not None}
    return {layer: rows[layer] for layer in report.layers if layer in rows}


def _deep(report: AuditReport, rows: Mapping[str, Measurement]) -> list[str]:
    """The hidden states with a value, without the shallow ones."""
    return [layer for layer in report.layers[len(report.layers) // SHALLOW :] if layer in rows]


def _apart(mine: Measurement, other: Measurement, margin: float = GAP) -> int:
    """1 where the first is clearly higher, -1 where clearly lower: by the margin, and the intervals do not meet."""
    difference = _number(mine) - _number(other)
    upper, lower = (mine, other) if difference > 0 else (other, mine)
    meet = upper.low is not None and lower.high is not None and upper.low <= lower.high
    return 0 if abs(difference) <= margin or meet else 1 if difference > 0 else -1


def _widest(layers: Sequence[str], mine: Mapping[str, Measurement], target: Mapping[str, Measurement]) -> str:
    layer = max(layers, key=lambda k: abs(_number(mine[k]) - _number(target[k])))
    return f"widest at {layer}: CKA {_number(mine[layer]):.2f} against {_number(target[layer]):.2f}"


def _gap(layers: Sequence[str], mine: Mapping[str, Measurement], target: Mapping[str, Measurement]) -> float:
    return sum(abs(_number(mine[k]) - _number(target[k])) for k in layers) / len(layers)


def _whole_classes(report: AuditReport) -> bool:
    return bool(report.request.get("classes") or report.request.get("class_count"))


def _number(each: Measurement) -> float:
    assert each.value is not None, "rows without a value are left out before"
    return each.value


def _share(value: float) -> str:
    return value_text("accuracy", value)
