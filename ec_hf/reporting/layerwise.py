"""What the layers of an unlearned model still hold, where no retrained model shows how far they should have come.

Layers are held against the original's and against random weights. This tells what has changed, not whether it is
enough.
"""

from __future__ import annotations

from functools import partial

from ec_hf.auditing.report import AuditReport, Measurement
from ec_hf.reporting.findings import Finding, Kind
from ec_hf.reporting.labels import model_label, percent
from ec_hf.reporting.reading import above, apart, deep, forget_split, number, profile, whole_classes

__all__ = ["layers", "probe", "scores"]

SAME = 0.8
"""CKA from which on features count as close. It is a choice, and the finding says so: two trainings of one network
have anything from 0.25 to 0.96, by the data and the network."""
HALF = 0.5
"""A finding at more than this share of the hidden states is one about the layers, at fewer about some of them."""
REFERENCES = ("original", "random_init")


def layers(report: AuditReport, name: str) -> Finding:
    """Have the layers changed on forget images at all?"""
    finding = partial(Finding, name, "layers")
    mine = profile(report, "linear_cka", name, reference="original")
    beyond_shallow = deep(report, mine)
    if not beyond_shallow:
        return finding("unknown", "no similarity of its layers to the original's was measured.")
    floor = profile(report, "linear_cka", "random_init", reference="original")
    telling = [layer for layer in beyond_shallow if layer not in floor or number(floor[layer]) < SAME]
    if not telling:
        return finding(
            "blind",
            f"even random weights have features of forget images like the original's (CKA {SAME} or more at every "
            "layer beyond the shallow ones), so their similarity cannot tell what the layers know.",
        )
    close = [layer for layer in telling if number(mine[layer]) >= SAME]
    lowest = min(telling, key=lambda layer: number(mine[layer]))
    low = mine[lowest]
    on_retain = report.find("linear_cka", model=name, reference="original", split="retain_test", layer=lowest)
    retain = next((each for each in on_retain if each.value is not None), None)
    where = lowest if retain is None else f"{lowest}, on retain images {number(retain):.2f}"
    if close:
        return finding(
            "kept" if len(close) > HALF * len(telling) else "partly",
            f"at {len(close)} of {len(telling)} layers beyond the shallow ones, its features of forget images are "
            f"close to the original's (CKA {SAME} or more, a threshold that was chosen, not measured); the lowest is "
            f"{number(low):.2f} at {where}.",
        )
    aimless = retain is not None and apart(retain, low) <= 0
    so = ", so no aim at the forget set can be told" if aimless else ""
    text = f"the layers have changed on forget images: CKA to the original falls to {number(low):.2f} at {where}{so}."
    return finding("moved", text)


def probe(report: AuditReport, name: str) -> Finding | None:
    """Can the classes still be read from frozen features, as well as from the original's?"""
    mine, original = (profile(report, "linear_probe", model) for model in (name, "original"))
    shared = [layer for layer in deep(report, mine) if layer in original]
    if not shared:
        return None
    layer = shared[-1]
    kind, than = _against_original(mine[layer], original[layer], _floor(report, mine[layer]))
    text = (
        f"a new linear classifier finds {_classes(report)} in its features {than}: {percent(number(mine[layer]))} at "
    )
    return Finding(name, "probe", kind, f"{text}{layer} ({_others(report, mine[layer])}).")


def scores(report: AuditReport, name: str) -> Finding | None:
    """Do the logits still tell the forgotten classes apart, though the model may name none of them?

    Of rows of kept classes this says nothing: a model that never saw them knows their classes too.
    """
    if not whole_classes(report):
        return None
    split = forget_split(report, "linear_probe")
    where = {"split": split, "layer": "logits"}
    mine, original = (next(report.find("linear_probe", model=m, **where), None) for m in (name, "original"))
    if mine is None or original is None or mine.value is None or original.value is None:
        return None
    kind, _ = _against_original(mine, original, _floor(report, mine))
    if kind != "kept":
        return None
    text = f"its scores (logits) still tell {_classes(report)} apart: a classifier that sees nothing else finds them"
    numbers = f"{percent(number(mine))} of the images ({_others(report, mine)})"
    return Finding(name, "scores", "known", f"{text} in {numbers}.")


def _against_original(mine: Measurement, original: Measurement, floor: Measurement | float | None) -> tuple[Kind, str]:
    less = apart(mine, original) < 0
    over_floor = True
    if floor is not None:
        over_floor = (above(mine, floor) if isinstance(floor, float) else apart(mine, floor)) > 0
    if less:
        return "moved", "less well than in the original's"
    if over_floor:
        return "kept", "and no less well than in the original's, as far as these images tell"
    return "unclear", "on too few images to tell them from the original's or from those of random weights"


def _floor(report: AuditReport, mine: Measurement) -> Measurement | float | None:
    """What random weights get in the same place; chance where that was not measured."""
    where = {"split": mine.split, "layer": mine.layer}
    floor = next(report.find("linear_probe", model="random_init", **where), None)
    return floor if floor is not None and floor.value is not None else mine.chance


def _others(report: AuditReport, mine: Measurement) -> str:
    where = {"split": mine.split, "layer": mine.layer}
    values = {model: report.value("linear_probe", model=model, **where) for model in REFERENCES}
    numbers = [f"{model_label(model)} {percent(value)}" for model, value in values.items() if value is not None]
    return ", ".join([*numbers, *([f"chance {percent(mine.chance)}"] if mine.chance is not None else [])])


def _classes(report: AuditReport) -> str:
    return "the forgotten classes" if whole_classes(report) else "the classes of the forgotten images"
