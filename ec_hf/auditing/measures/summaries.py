"""Scores that are computed from other measurements: ratios over all layers, and published summary scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean as mean
from typing import Any

from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Measurement
from ec_hf.metrics import aus, avg_gap, h_mean, idi, probe_advantage, tug_of_war

__all__ = ["information_differences", "probe_advantages", "summary_scores"]

THREE_SPLITS = ("forget_train", "retain_train", "retain_test")


def probe_advantages(rows: Sequence[Measurement], floor: Sequence[str]) -> list[Measurement]:
    """What a linear probe gets on forgotten images beyond a floor: by layer the difference, over all layers the ratio.

    Args:
        rows: measurements with those of the linear probe.
        floor: names of the retrained models, whose mean is the floor, or of the one of random weights.
    """
    probes = [row for row in rows if row.metric == "linear_probe" and (row.split or "").startswith("forget")]
    places = dict.fromkeys((row.split, row.layer) for row in probes)
    bases = {place: _mean_of(floor, [row for row in probes if (row.split, row.layer) == place]) for place in places}
    changed: dict[str, Any] = {"metric": "probe_advantage", "reference": _one_name(floor), "low": None, "high": None}
    advantages = []
    for row in probes:
        base = bases[row.split, row.layer]
        if row.model not in floor and row.value is not None and base is not None:
            advantages.append(replace(row, value=row.value - base, chance=0.0, **changed))
    for split in dict.fromkeys(row.split for row in probes):
        advantages += _over_layers("probe_advantage", "linear_probe", split, floor, probes, probe_advantage)
    return advantages


def information_differences(rows: Sequence[Measurement], retrained: Sequence[str]) -> list[Measurement]:
    """IDI of all models between the original (1) and the retrained ones (0).

    Args:
        rows: measurements with those of InfoNCE.
        retrained: names of the retrained models.
    """
    return _over_layers("idi", "infonce", "forget_train", retrained, rows, idi) if retrained else []


def summary_scores(rows: Sequence[Measurement], question: Question) -> list[Measurement]:
    """The summary scores whose inputs are there: H-mean and AUS, and with a retrained model tug-of-war and Avg-gap.

    Args:
        rows: measurements with accuracies and, if it was made, the support-vector attack.
        question: what is asked.
    """
    values = {(row.metric, row.model, row.split): row.value for row in rows if row.layer is None}

    def known(model: str, *wanted: tuple[str, str]) -> list[float]:
        """Values of some metrics on some splits, or nothing where one is missing."""
        present = [value for metric, split in wanted if (value := values.get((metric, model, split))) is not None]
        return present if len(present) == len(wanted) else []

    scores: list[Measurement] = []
    for model in dict.fromkeys(row.model for row in rows if row.model in question.trained):
        split = "forget_test" if known(model, ("accuracy", "forget_test")) else "forget_train"
        pair = [("accuracy", split), ("accuracy", "retain_test")]
        if model != "original":
            scores += _from_original(model, known(model, *pair), known("original", *pair), question)
        if model not in question.retrained:
            three, attack = [("accuracy", name) for name in THREE_SPLITS], [("mia_svc_efficacy", "forget_train")]
            scores += _from_retrained(
                model,
                (known(model, *three), [known(target, *three) for target in question.retrained]),
                (known(model, *attack), [known(target, *attack) for target in question.retrained]),
            )
    return scores


def _from_original(
    model: str, own: Sequence[float], original: Sequence[float], question: Question
) -> list[Measurement]:
    """H-mean and AUS from forget and retain accuracy; nothing where these are missing."""
    if not own or not original:
        return []
    (forget, retain), (forget_before, retain_before) = own, original
    whole = bool(question.whole_classes)
    scores = [Measurement("h_mean", model, h_mean(retain, forget, forget_before))] if whole else []
    score = aus(retain_before, retain, forget, random_forgetting=not whole)
    return [*scores, Measurement("aus", model, score)]


def _from_retrained(
    model: str,
    accuracies: tuple[Sequence[float], Sequence[Sequence[float]]],
    attacks: tuple[Sequence[float], Sequence[Sequence[float]]],
) -> list[Measurement]:
    """Tug-of-war and Avg-gap to each retrained model in the mean, from accuracies and MIA-efficacies."""
    own, targets = accuracies
    if not own or not targets or not all(targets):
        return []
    several = f"mean over {len(targets)} retrained models" if len(targets) > 1 else None
    near, note = mean(tug_of_war(own, target) for target in targets), "over forget, retain and test accuracy"
    if attacks[0] and all(attacks[1]):
        targets = [[*target, *attack] for target, attack in zip(targets, attacks[1], strict=True)]
        own, note = [*own, *attacks[0]], f"{note}, and MIA-efficacy"
    gap = mean(avg_gap(own, target) for target in targets)
    return [
        Measurement("tug_of_war", model, near, reference="retrained", note=several),
        Measurement("avg_gap", model, gap, reference="retrained", note=f"{note}; {several}" if several else note),
    ]


def _one_name(models: Sequence[str]) -> str:
    """What a model, or the mean of several retrained ones, is called as a reference."""
    return models[0] if len(models) == 1 else "retrained"


def _mean_of(models: Sequence[str], rows: Iterable[Measurement]) -> float | None:
    """Mean of the values of some models; None where one is missing."""
    values = [row.value for row in rows if row.model in models and row.value is not None]
    return mean(values) if models and len(values) == len(models) else None


def _over_layers(
    metric: str,
    by_layer: str,
    split: str | None,
    floor: Sequence[str],
    rows: Iterable[Measurement],
    score: Callable[[Sequence[float], Sequence[float], Sequence[float]], float],
) -> list[Measurement]:
    """A ratio over all layers between a floor (0) and the original (1), for models of the original's layers."""
    values: dict[str, list[float | None]] = {}
    for row in rows:
        if row.metric == by_layer and row.split == split and row.layer != "logits":
            values.setdefault(row.model, []).append(row.value)
    known = {model: [value for value in layers if value is not None] for model, layers in values.items()}
    of_floor = [known.get(name, []) for name in floor]
    same_length = len({len(layers) for layers in of_floor}) == 1
    base = [mean(layer) for layer in zip(*of_floor, strict=True)] if same_length else []
    top = known.get("original", [])
    ratios = []
    for model, own in known.items():
        if model in (*floor, "original") or not len(values[model]) == len(own) == len(base) == len(top):
            continue
        value, note = None, None
        try:
            value = score(own, base, top)
        except ValueError as error:
            note = str(error).split(":")[0]
        ratios.append(Measurement(metric, model, value, split, reference=_one_name(floor), note=note))
    return ratios
