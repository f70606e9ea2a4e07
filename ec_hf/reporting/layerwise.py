"""What the layers of an unlearned model still hold: by their similarity to the original's, and by a probe.

How far layers should come from the original's, only a retrained model tells; without one the findings say less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ec_hf.auditing.report import AuditReport, Measurement
from ec_hf.reporting.findings import Finding, Kind
from ec_hf.reporting.labels import model_label, share
from ec_hf.reporting.reading import GAP, REFERENCES, apart, deep, mean_gap, number, profile, whole_classes, widest

__all__ = ["layers", "probe", "ranking"]

SAME = 0.8
"""CKA at which two models are as alike as two trainings of one network (0.78 to 0.96, small ResNet, MNIST-5k)."""
HALF = 0.5
"""A finding at more than this share of the hidden states is one about the layers, at fewer about some of them."""
Profile = Mapping[str, Measurement]
"""Hidden state -> measurement."""


def layers(report: AuditReport, name: str) -> Finding:
    """Is only the output changed, or do the layers come as far from the original as those of a retrained model?"""
    mine = profile(report, "linear_cka", name, reference="original")
    beyond_shallow = deep(report, mine)
    if not beyond_shallow:
        return Finding(name, "layers", "unknown", "no similarity of its layers to the original's was measured.")
    target = profile(report, "linear_cka", "retrained", reference="original")
    if not target:
        return _without_retrained(report, name, mine, beyond_shallow)
    telling = [layer for layer in beyond_shallow if layer in target and number(target[layer]) < 1 - GAP]
    if telling:
        return _against_retrained(name, mine, target, telling)
    lowest = min(number(each) for layer, each in target.items() if layer in beyond_shallow)
    return Finding(
        name,
        "layers",
        "blind",
        "even a model that never saw the forget set has features of its images like the original's (CKA at least "
        f"{lowest:.2f} beyond the shallow layers), so their similarity cannot tell what the layers know.",
    )


def _against_retrained(name: str, mine: Profile, target: Profile, telling: Sequence[str]) -> Finding:
    above = [layer for layer in telling if apart(mine[layer], target[layer]) > 0]
    below = [layer for layer in telling if apart(mine[layer], target[layer]) < 0]
    if above:
        return _too_near(name, mine, target, telling, above, below)
    finding = partial(Finding, name, "layers")
    if below:
        return finding(
            "beyond",
            f"more was erased than the data had put there: {_at(below, telling)}, its features of forget images are "
            f"less like the original's than the retrained model's are ({_widest_cka(below, mine, target)}).",
        )
    far = [layer for layer in telling if abs(number(mine[layer]) - number(target[layer])) > GAP]
    if len(far) > HALF * len(telling):
        return finding(
            "unclear",
            "the images are too few to tell how far its layers have come: intervals of their similarity to the "
            f"original's meet those of the retrained model's ({_widest_cka(far, mine, target)}).",
        )
    return finding(
        "as retrained",
        "its features of forget images have come as far from the original's as the retrained model's: over the "
        f"{len(telling)} layers at which that differs from the original, the two differ in CKA by "
        f"{mean_gap(telling, mine, target):.2f} on average ({_widest_cka(telling, mine, target)}).",
    )


def _too_near(
    name: str, mine: Profile, target: Profile, telling: Sequence[str], above: Sequence[str], below: Sequence[str]
) -> Finding:
    """Some layers are nearer to the original's than the retrained model's are."""
    kind: Kind = "kept" if len(above) > HALF * len(telling) else "partly"
    text = (
        f"{_at(above, telling)}, its features of forget images are more like the original's than the retrained "
        f"model's are ({_widest_cka(above, mine, target)})"
    )
    if below:
        kind = "uneven"
        text += f"; at {len(below)} they are less like them ({_widest_cka(below, mine, target)}): more than forgetting"
    return Finding(name, "layers", kind, f"{text}.")


def _without_retrained(report: AuditReport, name: str, mine: Profile, beyond_shallow: Sequence[str]) -> Finding:
    finding = partial(Finding, name, "layers")
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
    low = number(mine[lowest])
    on_retain = report.value("linear_cka", model=name, reference="original", split="retain_test", layer=lowest)
    where = lowest if on_retain is None else f"{lowest}, on retain images {on_retain:.2f}"
    if close:
        return finding(
            "kept" if len(close) > HALF * len(telling) else "partly",
            f"at {len(close)} of {len(telling)} layers beyond the shallow ones, its features of forget images are as "
            f"close to the original's as those of a second training of the network would be (CKA {SAME} or more); the "
            f"lowest is {low:.2f} at {where}.",
        )
    aimless = on_retain is not None and on_retain - low <= GAP
    so = ", so the change is not aimed at the forget set" if aimless else ""
    text = f"the layers have changed on forget images: CKA to the original falls to {low:.2f} at {where}{so}."
    return finding("moved", text)


def probe(report: AuditReport, name: str) -> Finding | None:
    """Can the classes still be read from frozen features, better than from those of the reference?"""
    mine = profile(report, "linear_probe", name)
    reference = "retrained" if profile(report, "linear_probe", "retrained") else "original"
    target = profile(report, "linear_probe", reference)
    shared = [layer for layer in deep(report, mine) if layer in target]
    if not shared:
        return None
    layer = _most_telling(shared, mine, target) if reference == "retrained" else shared[-1]
    kind, reading = _probe_reading(report, reference, mine[layer], target[layer])
    where = {"split": mine[layer].split, "layer": layer}
    others = {model: report.value("linear_probe", model=model, **where) for model in REFERENCES}
    numbers = [f"{model_label(model)} {share(value)}" for model, value in others.items() if value is not None]
    if (chance := mine[layer].chance) is not None:
        numbers.append(f"chance {share(chance)}")
    text = f"a new linear classifier {reading}: {share(number(mine[layer]))} at {layer} ({', '.join(numbers)})."
    return Finding(name, "probe", kind, text)


def _most_telling(shared: Sequence[str], mine: Profile, target: Profile) -> str:
    """The layer that differs most, among those that know too much where there are any, else that know too little."""
    above = [layer for layer in shared if apart(mine[layer], target[layer]) > 0]
    below = [layer for layer in shared if apart(mine[layer], target[layer]) < 0]
    return widest(above or below or shared, mine, target)


def _probe_reading(report: AuditReport, reference: str, mine: Measurement, target: Measurement) -> tuple[Kind, str]:
    classes = "the forgotten classes" if whole_classes(report) else "the classes of the forgotten images"
    than = "in the retrained model's" if reference == "retrained" else "in the original's"
    sign = apart(mine, target)
    if sign > 0:
        return "kept", f"still finds {classes} in its features, better than {than}"
    if sign < 0:
        less = f"finds {classes} in its features less well than {than}"
        return ("beyond", f"{less}, more was erased than had to be") if reference == "retrained" else ("moved", less)
    if abs(number(mine) - number(target)) > GAP:
        return "unclear", f"finds {classes} in its features, on too few images to tell them from those {than}"
    if reference == "retrained":
        return "as retrained", f"finds {classes} in its features about as well as {than}"
    return "kept", f"still finds {classes} in its features about as well as {than}"


def ranking(report: AuditReport, names: Sequence[str]) -> Finding | None:
    """Which of several models has layers nearest to the retrained model's."""
    target = profile(report, "linear_cka", "retrained", reference="original")
    gaps = {}
    for name in names:
        mine = profile(report, "linear_cka", name, reference="original")
        shared = [layer for layer in deep(report, mine) if layer in target]
        if shared:
            gaps[name] = mean_gap(shared, mine, target)
    if len(gaps) < 2:
        return None
    ranked = [f"{model_label(name)} ({gaps[name]:.2f})" for name in sorted(gaps, key=lambda name: gaps[name])]
    return Finding(
        None,
        "ranking",
        "ranked",
        "By the similarity of their layers to the original's on forget images, nearest to the retrained model: "
        f"{', then '.join(ranked)}; in brackets the mean difference in CKA.",
    )


def _at(some: Sequence[str], telling: Sequence[str]) -> str:
    count = "all" if len(some) == len(telling) else len(some)
    return f"at {count} of the {len(telling)} layers at which a retrained model differs from the original"


def _widest_cka(some: Sequence[str], mine: Profile, target: Profile) -> str:
    layer = widest(some, mine, target)
    return f"widest at {layer}: CKA {number(mine[layer]):.2f} against {number(target[layer]):.2f}"
