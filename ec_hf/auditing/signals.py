"""Signals: where each measurement puts the unlearned models between the original and the retrained ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ec_hf.auditing.compared import Compared
from ec_hf.auditing.report import Signal
from ec_hf.metrics.position import place
from ec_hf.metrics.training_noise import NO_NOISE, Noise, noise_between, pooled, scaled

__all__ = ["FAMILY_ALPHA", "signals_of"]

FAMILY_ALPHA = 0.05
"""In this share of audits one or more signals of a model that was retrained may say that it was not (Bonferroni)."""
KINDS = {
    **dict.fromkeys(("mia_loss", "mia_confidence", "mia_lira", "mia_population"), "membership"),
    **dict.fromkeys(("mia_lira_tpr", "mia_population_tpr"), "members found"),
}
"""Metrics whose noise is estimated together; the others are kinds of their own."""
WITHOUT_LEARNING = ("quantization", "pruning")
"""Attacks that train nothing: retrained models differ far less after them than after an attack that learns."""


def signals_of(rows: Sequence[Compared], unlearned: Iterable[str], retrained: Sequence[str]) -> list[Signal]:
    """The signals of all unlearned models.

    Args:
        rows: what was measured of all models.
        unlearned: names of the unlearned models.
        retrained: names of the retrained ones, at least one.
    """
    rows = _distinct(rows)
    noises = _noises(rows, retrained)
    signals = []
    for model in unlearned:
        own = [(row, noise) for row, noise in zip(rows, noises, strict=True) if model in row.values]
        signals += [_signal(row, model, retrained, noise, FAMILY_ALPHA / len(own)) for row, noise in own]
    return signals


def _distinct(rows: Sequence[Compared]) -> list[Compared]:
    """Without what is said twice: of a ResNet the classifier reads the pooled deepest hidden state as it is.

    Two layers with the same CKA, to the last bit and of every model, are one.
    """
    likeness = {row.layer: dict(row.values) for row in rows if row.metric == "linear_cka"}
    read = likeness.pop("penultimate", None)
    twice = {layer for layer, values in likeness.items() if read is not None and values == read}
    return [row for row in rows if row.layer not in twice]


def _signal(row: Compared, model: str, retrained: Sequence[str], noise: Noise, alpha: float) -> Signal:
    names = ["original", model, *retrained]
    values = [row.values[name] for name in names]
    places = [list(row.values).index(name) for name in names]
    if row.allowance is not None:
        places.append(len(row.values))
    found = place(
        np.array(values if row.allowance is None else [*values, row.allowance]),
        row.covariance[np.ix_(places, places)],
        row.count,
        alpha=alpha,
        noise=noise,
        shares=row.shares,
        allowance=row.allowance is not None,
    )
    status, note = found.status, row.note
    if _kind(row) == "membership" and status == "over-erased":
        # An attacker tells these images all the same: he takes the losses the other way round.
        status, note = "under-erased", "by losses that are unusually high"
    return Signal(
        metric=row.metric,
        model=model,
        split=row.split,
        layer=row.layer,
        value=values[1],
        original=values[0],
        retrained=values[2:],
        position=found.position,
        low=found.low,
        high=found.high,
        status=status,
        count=row.count,
        note=note,
        effect=found.effect,
    )


def _noises(rows: Sequence[Compared], retrained: Sequence[str]) -> list[Noise]:
    """The noise of each measurement between two trainings.

    From the spread of several retrained models. Of one, from the retained images; where these do not show it (CKA,
    attacks), in proportion to what they show of the other measurements.
    """
    kinds: dict[str, list[Compared]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    if len(retrained) > 1:
        spread = {kind: _spread(own, retrained) for kind, own in kinds.items()}
        return [spread[_kind(row)] for row in rows]
    known = {kind: [row.noise for row in own if row.noise] for kind, own in kinds.items()}
    shown = {kind: pooled(noises) for kind, noises in known.items() if noises}
    gaps = [_gap(row, retrained) for row in rows if _kind(row) in shown]
    others = [shown[_kind(row)] for row in rows if _kind(row) in shown]
    return [shown.get(_kind(row)) or scaled(others, gaps, _gap(row, retrained)) or NO_NOISE for row in rows]


def _spread(rows: Sequence[Compared], retrained: Sequence[str]) -> Noise:
    values = np.array([[row.values[name] for name in retrained] for row in rows])
    places = [[list(row.values).index(name) for name in retrained] for row in rows]
    covariances = np.array([row.covariance[np.ix_(own, own)] for row, own in zip(rows, places, strict=True)])
    return noise_between(values, covariances)


def _gap(row: Compared, retrained: Sequence[str]) -> float:
    return row.values["original"] - float(np.mean([row.values[name] for name in retrained]))


def _kind(row: Compared) -> str:
    if row.metric == "attack_area" and row.note in WITHOUT_LEARNING:
        return "attack_area without learning"
    return KINDS.get(row.metric, row.metric)
