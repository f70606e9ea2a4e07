"""What attacks bring back: at which strength half of the original's accuracy returns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ec_hf.auditing.report import AttackCurve, AuditReport
from ec_hf.reporting.findings import Finding, Kind
from ec_hf.reporting.labels import attack_words, percent
from ec_hf.reporting.reading import of_role, signals_of

__all__ = ["attacks"]

FEW_ATTACKS = 3
"""So many attacks are told with their strengths, those first that are quicker than on a retrained model."""


def attacks(report: AuditReport, name: str) -> Finding | None:
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
