"""From what one pass collected to measurements: functions of arrays, without models or images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any

import numpy as np
from scipy.special import softmax

from ec_hf.auditing.forward import Collected
from ec_hf.auditing.report import Measurement, Retrieval
from ec_hf.auditing.similarity import NOT_FINITE, layer_pairs
from ec_hf.auditing.subjects import stratified_rows
from ec_hf.metrics import (
    aus,
    avg_gap,
    bootstrap_mean,
    cka_floor,
    class_matched,
    h_mean,
    half_sample_cka,
    idi,
    infonce,
    knn_hits,
    membership_auc,
    membership_svc,
    nearest,
    probe_advantage,
    probe_hits,
    split_half_cka,
    tug_of_war,
)

__all__ = [
    "Bank",
    "advantages",
    "attacks",
    "bank_of",
    "confusion",
    "differences",
    "information",
    "mean",
    "membership",
    "outputs",
    "recoveries",
    "retrievals",
    "similarities",
    "summaries",
]

NEIGHBOURS = 5
QUERIES, RETRIEVED = 3, 8
INTERVAL_IMAGES = 256
RESAMPLES = 200
SVC = {"mia_svc_efficacy": "efficacy", "mia_svc_member": "member_share"}
CHANCE = {"linear_cka": 0.0, "linear_cka_uuef": None}
OUTPUTS = {"accuracy": "hit", "accuracy_masked": "hit_masked", "confidence": "confidence", "entropy": "entropy"}
DISTANCES = ("js_divergence", "activation_distance", "agreement")

Found = Mapping[str, Collected]
"""What was collected, by split."""


def outputs(found: Found, classes: Sequence[int], num_labels: int, seed: int) -> list[Measurement]:
    """Accuracy as it is and with the forgotten logits masked, confidence, entropy, distances to the retrained model.

    Args:
        found: what was collected.
        classes: label ids that are forgotten as a whole; their logits are the masked ones.
        num_labels: number of labels of the models.
        seed: of the bootstrap.
    """
    rows = []
    for split, each in found.items():
        rest = num_labels - len(classes)
        chance: dict[str, float | None] = {"accuracy": 1 / num_labels, "confidence": 1 / num_labels}
        chance["entropy"] = log(num_labels)
        chance["accuracy_masked"] = 1 / rest if split.startswith("retain") and rest else 0.0
        for model, figures in each.outputs.items():
            if not len(each.labels):
                continue
            for metric, key in OUTPUTS.items():
                if key in figures:
                    rows.append(mean(metric, model, figures[key], seed, split=split, chance=chance[metric]))
            for metric in DISTANCES:
                if metric in figures:
                    rows.append(mean(metric, model, figures[metric], seed, split=split, reference="retrained"))
    return rows


def similarities(found: Found, references: Sequence[str], seed: int) -> list[Callable[[], list[Measurement]]]:
    """Jobs that give CKA of each model to each reference by split and layer, its floor, and the original's ceiling.

    The value is over all images of the split; interval, floor and ceiling are from a few hundred of the kept ones.

    Args:
        found: what was collected.
        references: names of the models to compare with.
        seed: of the halves and shuffles that are drawn.
    """
    jobs: list[Callable[[], list[Measurement]]] = []
    for split, each in found.items():
        if not len(each.labels):
            continue
        for metric, pairs in each.cka.items():
            for pair, layers in pairs.items():
                jobs += [partial(_similarity, each, split, metric, pair, layer, references, seed) for layer in layers]
        uuef = "linear_cka_uuef" in each.cka
        jobs += [partial(_ends, each, split, layer, uuef, seed) for layer in each.features["original"]]
    return jobs


@dataclass(frozen=True)
class Bank:
    """Which kept rows a probe and k-NN learn from, and which they are asked about.

    Attributes:
        rows: split -> positions among its kept rows, to learn from.
        asked: split -> positions among its kept rows, to classify.
    """

    rows: dict[str, np.ndarray]
    asked: dict[str, np.ndarray]


def bank_of(found: Found, classes: Sequence[int], quota: int, seed: int) -> tuple[Bank, list[str]]:
    """Whom to ask about forgotten classes or rows, and from what to learn.

    Where whole classes are forgotten, the bank holds training images of all classes alike, forgotten ones included:
    do the features still tell the classes apart? Test images are asked. Where rows are forgotten, the bank holds
    retain images alone, and the forgotten rows are asked too.

    Args:
        found: what was collected.
        classes: label ids that are forgotten as a whole.
        quota: images of a class in the bank.
        seed: of the draw.

    Returns:
        The bank, and notes on what cannot be asked.
    """
    labels = {split: each.kept_labels for split, each in found.items()}
    halves = ("forget", "retain") if classes else ("retain",)
    rows = {f"{half}_train": stratified_rows(labels[f"{half}_train"], quota, seed) for half in halves}
    rows = {split: chosen for split, chosen in rows.items() if len(chosen)}
    asked = {split: np.arange(len(labels[split])) for split in ("forget_test", "retain_test")}
    notes = []
    if classes:
        asked["forget_test"] = np.flatnonzero(np.isin(labels["forget_test"], classes))
        if missing := sorted(set(classes) - set(labels["forget_test"].tolist())):
            notes.append(
                f"The test set has no image of the forgotten label ids {missing}: probe, k-NN and membership "
                "inference do not cover them."
            )
    else:
        asked["forget_train"] = np.arange(len(labels["forget_train"]))
    known = np.unique([label for split, chosen in rows.items() for label in labels[split][chosen]])
    if len(known) < 2:
        notes.append("The training images kept are of one class or none: there is nothing to probe.")
        return Bank({}, {}), notes
    asked = {split: chosen[np.isin(labels[split][chosen], known)] for split, chosen in asked.items()}
    return Bank(rows, {split: chosen for split, chosen in asked.items() if len(chosen)}), notes


def recoveries(found: Found, bank: Bank, num_labels: int, seed: int) -> list[Callable[[], list[Measurement]]]:
    """Jobs that give linear probe and k-NN accuracy by model and layer, from frozen features.

    Args:
        found: what was collected.
        bank: what to learn from and what to ask, from `bank_of`.
        num_labels: number of labels of the models.
        seed: of the bootstrap.
    """
    models = next(iter(found.values())).features if bank.asked else {}
    return [
        partial(_recovery, found, bank, model, layer, num_labels, seed)
        for model, layers in models.items()
        for layer in layers
    ]


def membership(found: Found, classes: Sequence[int], floors: Sequence[str], seed: int) -> list[Measurement]:
    """Can the forgotten training images be told from held-out images of the same classes by loss or confidence?

    Non-members are the forgotten classes' test images; where rows are forgotten, all test images of their classes.

    Args:
        found: what was collected.
        classes: label ids that are forgotten as a whole.
        floors: models that were never trained, which are left out.
        seed: of the images that are matched, and of the bootstrap.
    """
    members = found["forget_train"]
    others = [found[split] for split in (("forget_test",) if classes else ("forget_test", "retain_test"))]
    labels = np.concatenate([each.labels for each in others])
    if not len(members.labels):
        return []
    rows = []
    for model in members.outputs:
        if model in floors:
            continue
        for metric, key, higher in (("mia_loss", "loss", False), ("mia_confidence", "confidence", True)):
            where: dict[str, Any] = {"split": "forget_train", "chance": 0.5}
            try:
                inside, outside = class_matched(members.labels, labels, seed)
            except ValueError:
                note = "no held-out image of a forgotten class"
                rows.append(Measurement(metric, model, None, note=note, **where))
                continue
            scores = [each.outputs[model][key] for each in others if len(each.labels)]
            a, b = members.outputs[model][key][inside], np.concatenate(scores)[outside]
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                rows.append(Measurement(metric, model, None, count=len(a), note=NOT_FINITE, **where))
                continue
            rng = np.random.default_rng(seed)
            drawn = [membership_auc(rng.choice(a, len(a)), rng.choice(b, len(b)), higher) for _ in range(RESAMPLES)]
            low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
            rows.append(
                Measurement(metric, model, membership_auc(a, b, higher), low=low, high=high, count=len(a), **where)
            )
    return rows


def attacks(found: Found, floors: Sequence[str], seed: int) -> list[Callable[[], list[Measurement]]]:
    """Jobs for the support-vector attack on membership, from the kept images, under both published signs.

    Shadow members are retain training images, shadow non-members retain test images, as where it was published.

    Args:
        found: what was collected.
        floors: models that were never trained, which are left out.
        seed: of the images that are drawn.
    """
    return [partial(_attack, found, model, seed) for model in found["forget_train"].outputs if model not in floors]


def information(found: Found, seed: int) -> list[Callable[[], list[Measurement]]]:
    """Jobs that estimate what each layer tells about an image being one to forget, from the kept training images.

    Args:
        found: what was collected.
        seed: of the critics.
    """
    models = found["forget_train"].features
    return [partial(_information, found, model, layer, seed) for model, layers in models.items() for layer in layers]


def differences(rows: Sequence[Measurement]) -> list[Measurement]:
    """IDI of all models between the original (1) and the retrained one (0), from `information`."""
    return _over_layers("idi", "infonce", "forget_train", "retrained", rows, idi)


def advantages(rows: Sequence[Measurement], floor: str) -> list[Measurement]:
    """What a linear probe gets on forgotten images beyond a floor: by layer the difference, over all layers the ratio.

    Args:
        rows: measurements with those of `recoveries`.
        floor: the retrained model, or the one of random weights.
    """
    probes = [row for row in rows if row.metric == "linear_probe" and (row.split or "").startswith("forget")]
    base = {(row.split, row.layer): row.value for row in probes if row.model == floor}
    found = []
    for row in probes:
        less = base.get((row.split, row.layer))
        if row.model != floor and row.value is not None and less is not None:
            value = row.value - less
            found.append(
                replace(row, metric="probe_advantage", value=value, reference=floor, low=None, high=None, chance=0.0)
            )
    for split in dict.fromkeys(row.split for row in probes):
        found += _over_layers("probe_advantage", "linear_probe", split, floor, probes, probe_advantage)
    return found


def summaries(rows: Sequence[Measurement], classes: Sequence[int], floors: Sequence[str]) -> list[Measurement]:
    """The summary scores whose inputs are there: H-mean and AUS, and with a retrained model tug-of-war and Avg-gap.

    Args:
        rows: measurements with those of `outputs`.
        classes: label ids that are forgotten as a whole.
        floors: models that were never trained, which are left out.
    """
    values = {(row.metric, row.model, row.split): row.value for row in rows if row.layer is None}

    def of(model: str, *splits: str) -> list[float]:
        """Accuracies, or nothing where one is missing."""
        found = [values.get(("accuracy", model, split)) for split in splits]
        return [] if None in found else [x for x in found if x is not None]

    found = []
    for model in dict.fromkeys(row.model for row in rows):
        if model in floors:
            continue
        forget = "forget_test" if of(model, "forget_test") else "forget_train"
        mine, first = of(model, forget, "retain_test"), of("original", forget, "retain_test")
        if mine and first and model != "original":
            if classes:
                found.append(Measurement("h_mean", model, h_mean(mine[1], mine[0], first[0])))
            found.append(Measurement("aus", model, aus(first[1], mine[1], mine[0], random_forgetting=not classes)))
        three = ("forget_train", "retain_train", "retain_test")
        mine, target, note = of(model, *three), of("retrained", *three), "over forget, retain and test accuracy"
        if not mine or not target or model == "retrained":
            continue
        found.append(Measurement("tug_of_war", model, tug_of_war(mine, target), reference="retrained"))
        attack = [values.get(("mia_svc_efficacy", name, "forget_train")) for name in (model, "retrained")]
        if attack[0] is not None and attack[1] is not None:
            mine, target, note = [*mine, attack[0]], [*target, attack[1]], f"{note}, and MIA-efficacy"
        found.append(Measurement("avg_gap", model, avg_gap(mine, target), reference="retrained", note=note))
    return found


def confusion(found: Found, classes: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    """What forgotten test images are taken for: model -> true class -> predicted class -> images, most first."""
    each = found["forget_test"]
    table: dict[str, dict[str, dict[str, int]]] = {}
    for model, figures in each.outputs.items() if len(each.labels) else ():
        for true in classes:
            guessed, counts = np.unique(figures["prediction"][each.labels == true], return_counts=True)
            if len(guessed):
                order = np.argsort(-counts, kind="stable")
                row = {names[guessed[k]]: int(counts[k]) for k in order}
                table.setdefault(model, {})[names[true]] = row
    return table


def retrievals(
    found: Found, classes: Sequence[int], layers: Mapping[str, str], places: Mapping[str, np.ndarray]
) -> list[Retrieval]:
    """The nearest kept test images of a few forgotten ones, the same for all models.

    Args:
        found: what was collected.
        classes: label ids that are forgotten as a whole; without them there is no forgotten test image to ask.
        layers: model -> its deepest layer.
        places: split -> for each collected row, its row in [forget_test ; retain_test] as they were given.
    """
    sides = {split: found[split] for split in ("forget_test", "retain_test") if len(found[split].rows)}
    labels = np.concatenate([np.zeros(0, dtype=int), *(each.kept_labels for each in sides.values())])
    place = np.concatenate([np.zeros(0, dtype=int), *(places[split][each.rows] for split, each in sides.items())])
    queries = [row for k in classes for row in np.flatnonzero(found["forget_test"].kept_labels == k)[:1]][:QUERIES]
    if not queries or len(labels) < 2:
        return []
    count, results = min(RETRIEVED, len(labels) - 1), []
    for model, layer in layers.items():
        features = np.concatenate([each.features[model][layer] for each in sides.values()])
        if not np.isfinite(features).all():
            continue
        for query, near in zip(queries, nearest(features, features[queries], count + 1), strict=True):
            others = near[near != query][:count]
            results.append(
                Retrieval(
                    model, int(place[query]), int(labels[query]), place[others].tolist(), labels[others].tolist()
                )
            )
    return results


def mean(metric: str, model: str, values: np.ndarray, seed: int, **fields: Any) -> Measurement:
    """The mean over images, with its bootstrap interval."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        return Measurement(metric, model, None, count=len(values), note=NOT_FINITE, **fields)
    low, high = bootstrap_mean(values, seed=seed)
    return Measurement(metric, model, float(values.mean()), low=low, high=high, count=len(values), **fields)


def _recovery(found: Found, bank: Bank, model: str, layer: str, num_labels: int, seed: int) -> list[Measurement]:
    def of(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        parts = [(found[split].features[model][layer][chosen], split, chosen) for split, chosen in rows.items()]
        labels = [found[split].kept_labels[chosen] for _, split, chosen in parts]
        return np.concatenate([features for features, _, _ in parts]), np.concatenate(labels)

    known, asked = of(bank.rows), of(bank.asked)
    hits: dict[str, np.ndarray] = {}
    if np.isfinite(known[0]).all() and np.isfinite(asked[0]).all():
        hits["linear_probe"] = probe_hits(*known, *asked)
        hits["knn"] = knn_hits(*known, *asked, k=min(NEIGHBOURS, len(known[0])))
    rows, ends = [], np.cumsum([len(chosen) for chosen in bank.asked.values()])
    for split, end in zip(bank.asked, ends, strict=True):
        count = len(bank.asked[split])
        for metric in ("linear_probe", "knn"):
            values = hits[metric][end - count : end] if hits else np.full(count, np.nan)
            rows.append(mean(metric, model, values, seed, split=split, layer=layer, chance=1 / num_labels))
    return rows


def _attack(found: Found, model: str, seed: int) -> list[Measurement]:
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for split in ("retain_train", "retain_test", "forget_train"):
        logits = found[split].features[model]["logits"].astype(np.float64)
        if not len(logits) or not np.isfinite(logits).all():
            note = NOT_FINITE if len(logits) else f"the split {split} has no image"
            return [Measurement(metric, model, None, "forget_train", note=note) for metric in SVC]
        sides.append((softmax(logits, axis=1), found[split].kept_labels))
    shares = membership_svc(sides[0], sides[1], sides[2], seed=seed)
    count = len(sides[-1][1])
    return [Measurement(metric, model, shares[key], "forget_train", count=count) for metric, key in SVC.items()]


def _information(found: Found, model: str, layer: str, seed: int) -> list[Measurement]:
    sides = [found[split].features[model][layer] for split in ("forget_train", "retain_train")]
    value, note = None, None
    if not all(map(len, sides)):
        return []
    try:
        is_forget = np.repeat([1, 0], [len(side) for side in sides])
        value = infonce(np.concatenate(sides), is_forget, seed=seed)
    except ValueError as error:
        note = str(error).split(":")[0]
    count = sum(map(len, sides))
    return [Measurement("infonce", model, value, "forget_train", layer, chance=0.0, count=count, note=note)]


def _over_layers(
    metric: str,
    by_layer: str,
    split: str | None,
    floor: str,
    rows: Iterable[Measurement],
    score: Callable[[Sequence[float], Sequence[float], Sequence[float]], float],
) -> list[Measurement]:
    """A ratio over all layers between a floor (0) and the original (1), for models of the original's layers."""
    values: dict[str, dict[str | None, float | None]] = {}
    for row in rows:
        if row.metric == by_layer and row.split == split and row.layer != "logits":
            values.setdefault(row.model, {})[row.layer] = row.value
    known = {name: [x for x in mine.values() if x is not None] for name, mine in values.items()}
    base, top = known.get(floor, []), known.get("original", [])
    found = []
    for model, mine in known.items():
        if model in (floor, "original") or not len(values[model]) == len(mine) == len(base) == len(top):
            continue
        value, note = None, None
        try:
            value = score(mine, base, top)
        except ValueError as error:
            note = str(error).split(":")[0]
        found.append(Measurement(metric, model, value, split, reference=floor, note=note))
    return found


def _similarity(
    each: Collected, split: str, metric: str, pair: tuple[str, str], layer: str, references: Sequence[str], seed: int
) -> list[Measurement]:
    """One value and its interval; of two references, seen from both sides."""
    (model, reference), (value, note) = pair, each.cka[metric][pair][layer]
    low = high = None
    if metric == "linear_cka" and value is not None:
        own, other = each.features[model], each.features[reference]
        partner = dict(layer_pairs(len(own) - 1, len(other) - 1))[list(own).index(layer)]
        pick = slice(None, None, max(1, len(each.rows) // INTERVAL_IMAGES))
        x, y = own[layer][pick], list(other.values())[partner][pick]
        with suppress(ValueError):  # too few images, or too alike, for an interval
            low, high = half_sample_cka(x, y, value=value, images=len(each.labels), seed=seed)
    row = Measurement(
        metric,
        model,
        value,
        split,
        layer,
        reference,
        low,
        high,
        count=len(each.labels),
        note=note,
        chance=CHANCE[metric],
    )
    mirrored = model in references and (reference, model) not in each.cka[metric]
    return [row, replace(row, model=reference, reference=model)] if mirrored else [row]


def _ends(each: Collected, split: str, layer: str, uuef: bool, seed: int) -> list[Measurement]:
    """What unrelated features get, and what two halves of the original's channels do."""
    x = each.features["original"][layer][:: max(1, len(each.rows) // INTERVAL_IMAGES)]
    computed: list[tuple[str, str | None, Callable[[], float]]] = [
        ("cka_floor", None, partial(cka_floor, x, seed=seed)),
        ("split_half_cka", None, partial(split_half_cka, x, seed=seed)),
    ]
    if uuef:
        computed.append(("cka_floor", "in UUEF's way", partial(cka_floor, x, mode="uuef", seed=seed)))
    rows = []
    for metric, note, compute in computed:
        with suppress(ValueError):  # too few images, or too alike
            rows.append(Measurement(metric, "original", compute(), split, layer, count=len(x), note=note))
    return rows
