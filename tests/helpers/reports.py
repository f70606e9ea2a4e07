"""A made-up audit report that looks like a real one: every part filled, the same numbers each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ec_hf.auditing.report import (
    STATUSES,
    AttackCurve,
    AuditReport,
    Measurement,
    ModelInfo,
    Retrieval,
    Signal,
    Status,
)
from ec_hf.metrics import attack_area

MODELS = ("original", "unlearned", "delete", "retrained", "random_init")
SEVERAL = ("original", "unlearned", "delete", "retrained 1", "retrained 2", "retrained 3", "random_init")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FORGOTTEN = [3, 5, 8]
IMAGES = {"forget_train": 1200, "retain_train": 2800, "forget_test": 300, "retain_test": 700}
FIXED = ("original", "random_init")  # models that unlearning does not make
ROLES = {"original": "original", "retrained": "retrained", "random_init": "floor"}
SIGNALS = ("accuracy", "accuracy_int8", "linear_cka", "linear_probe", "knn", "mia_loss", "mia_confidence")

# At the output: accuracy on forget, on retain, on forget with masked logits, on forget after quantisation to 8 bits.
OUTPUT = {
    "original": (0.953, 0.989, 0.0, 0.951),
    "unlearned": (0.0, 0.986, 0.0, 0.003),
    "delete": (0.003, 0.991, 0.0, 0.017),
    "retrained": (0.0, 0.987, 0.0, 0.0),
    "random_init": (0.087, 0.104, 0.0, 0.087),
}
# At the deepest layer: CKA to original on forget and on retain, CKA to retrained on forget, probe and k-NN on forget.
DEPTH = {
    "original": (1.0, 1.0, 0.34, 0.957, 0.94),
    "unlearned": (0.34, 0.91, 0.71, 0.6, 0.54),
    "delete": (0.88, 0.97, 0.36, 0.94, 0.92),
    "retrained": (0.33, 0.92, 1.0, 0.61, 0.55),
    "random_init": (0.05, 0.06, 0.05, 0.21, 0.17),
}


# How fast a curve of relearning rises, a step.
SPEED = {"original": 1.0, "delete": 0.2, "unlearned": 0.03, "retrained": 0.025, "random_init": 0.004}
STEPS = [0, 5, 10, 20, 40, 80]
# Attack -> what makes it stronger, its strengths, and how much faster it is than fine-tuning the classifier.
ATTACKS: dict[str, tuple[Any, list[float], float]] = {
    "relearn_head": ("steps", [*STEPS], 1.0),
    "relearn_full": ("steps", [*STEPS], 2.0),
    "new_head": ("images a class", [5, 10, 50], 1.0),
    "quantization": ("bits", [8, 6, 5, 4], 0.0),
    "pruning": ("sparsity", [0.1, 0.3, 0.5, 0.7], 0.0),
}
BUDGET = {"learning_rate": 0.001, "batch_size": 32, "images": 48, "seed": 0}


def make_report(models: Sequence[str] = MODELS, layers: int = 10, seed: int = 0) -> AuditReport:
    """A report on ten digits of which 3, 5 and 8 were forgotten.

    Args:
        models: names of the models in it, of `MODELS` or `SEVERAL`; without a retrained one all that needs it is left
            out.
        layers: number of hidden states.
        seed: of the jitter on the curves and of the points of the embedding.
    """
    rng = np.random.default_rng(seed)
    names = [f"hidden_states.{k}" for k in range(layers)]
    measurements: list[Measurement] = []
    for model in models:
        measurements += [*_output(model), *_by_layer(model, models, names, rng), *_membership(model)]
        if model not in FIXED:
            measurements += [*_scores(model), *_to_retrained(model, models)]
    curves = [_curve(model, attack) for model in models for attack in ATTACKS]
    measurements += [_area(curve) for curve in curves]
    report = AuditReport(
        models={name: _info(name) for name in models},
        layers=names,
        measurements=measurements,
        dataset={"name": "mnist5k", "images": dict(IMAGES), "class_names": list(DIGITS)},
        request={"hash": "5f3c" * 16, "summary": "Forget the classes three, five, eight.", "classes": list(FORGOTTEN)},
        references=[
            "Retrained: trained without the forget set; what it still tells about it comes from the retain set."
            if any(_kind(name) == "retrained" for name in models)
            else "No retrained model: random weights mark the floor, classes that were never forgotten the ceiling."
        ],
        notes=["Membership inference by SVC was not asked for."],
        attacks=curves,
        embedding=_embedding(models, rng),
        confusion={model: _confusion(model, rng) for model in models},
        retrievals=[
            Retrieval(model, query, label, *_neighbours(model, query, label, rng))
            for query, label in ((4, 3), (113, 5))
            for model in models
        ],
        settings={"images_per_split": None, "seed": 0, "pooling": "all", "bootstrap_resamples": 1000},
        seconds={"forward": 21.4, "metrics": 3.2, "probe": 6.8},
        versions={"ec_hf": "0.1.0", "torch": "2.9.0", "transformers": "5.20.0"},
    )
    return with_signals(report)


def with_signals(report: AuditReport) -> AuditReport:
    """The report with signals and status that fit its measurements; none where it has no retrained model."""
    retrained = [name for name, info in report.models.items() if info.role == "retrained"]
    signals = []
    for each in report.measurements:
        judged = each.metric in SIGNALS and each.reference in (None, "original") and each.value is not None
        if not retrained or not judged or report.models[each.model].role != "unlearned":
            continue
        where = {"split": each.split, "layer": each.layer, "reference": each.reference}
        others = [next(report.find(each.metric, model=name, **where), None) for name in ("original", *retrained)]
        values = [other.value if other else 1.0 for other in others]  # the original is like itself
        if each.split in ("forget_train", "forget_test") and None not in values:
            signals.append(make_signal(each, values[0], values[1:]))
    names = dict.fromkeys(signal.model for signal in signals)
    worst = {name: [signal.status for signal in signals if signal.model == name] for name in names}
    return replace(report, signals=signals, status={k: min(v, key=STATUSES.index) for k, v in worst.items()})


def make_signal(mine: Measurement, original: float, retrained: Sequence[float]) -> Signal:
    """The signal of a number, its interval put on the scale; blind where the references are no further apart."""
    assert mine.value is not None
    assert mine.split is not None
    low, high = (mine.value if end is None else end for end in (mine.low, mine.high))
    distance = original - sum(retrained) / len(retrained)
    fields = (mine.metric, mine.model, mine.split, mine.layer, mine.value, original, list(retrained))
    if abs(distance) <= max(high - low, 1e-9):
        return Signal(*fields, position=None, low=None, high=None, status="blind", count=mine.count or 0)
    ends = sorted(round((original - end) / distance, 4) for end in (low, high))
    position = round((original - mine.value) / distance, 4)
    targets = sorted((original - value) / distance for value in retrained)
    status = status_of(*ends, targets[0], targets[-1])
    return Signal(*fields, position, *ends, status=status, count=mine.count or 0)


def status_of(low: float, high: float, nearest: float = 1.0, furthest: float = 1.0) -> Status:
    """The status of an interval of a position, where retrained models are from `nearest` to `furthest`."""
    if low > furthest:
        return "over-erased"
    if high < nearest:
        return "untouched" if low <= 0 else "under-erased"
    return "unclear" if low <= 0 else "as retrained"


def _kind(model: str) -> str:
    """The model whose numbers a model has: one of several retrained ones has those of "retrained", with jitter."""
    return "retrained" if model.startswith("retrained") else model


def _row(metric: str, model: str, value: float, width: float = 0.0, **where) -> Measurement:
    """A number with an interval of so much to each side, cut to shares."""
    low, high = (round(max(value - width, 0), 4), round(min(value + width, 1), 4)) if width else (None, None)
    where.setdefault("count", IMAGES.get(where.get("split") or ""))
    return Measurement(metric, model, round(value, 4), low=low, high=high, **where)


def _info(name: str) -> ModelInfo:
    on_hub = name != "random_init"
    return ModelInfo(
        "ViTForImageClassification",
        1_842_634,
        ROLES.get(_kind(name), "unlearned"),
        id=f"someone/vit-digits-{name}" if on_hub else None,
        revision="0123456789abcdef0123456789abcdef01234567" if on_hub else None,
    )


def _output(model: str) -> Iterator[Measurement]:
    forget, retain, masked, eight_bits = OUTPUT[_kind(model)]
    for split in IMAGES:
        value = forget if "forget" in split else retain
        on_train = 0.005 if "train" in split else 0.0
        yield _row("accuracy", model, min(value + on_train, 1), 0.012, split=split, chance=0.1)
        yield _row("confidence", model, 0.3 + 0.65 * value, split=split, chance=0.1)
        yield _row("entropy", model, 2.3 * (1 - value) * 0.4 + 0.03, split=split)
    yield _row("accuracy_masked", model, masked, split="forget_test", chance=0.0)
    yield _row("accuracy_masked", model, min(retain + 0.002, 1), 0.01, split="retain_test", chance=1 / 7)
    yield _row("accuracy_int8", model, eight_bits, 0.01, split="forget_test", chance=0.1)
    yield _row("accuracy_int8", model, retain - 0.002, 0.01, split="retain_test", chance=0.1)


def _by_layer(
    model: str, models: Sequence[str], names: Sequence[str], rng: np.random.Generator
) -> Iterator[Measurement]:
    for k, layer in enumerate([*names, "logits"]):
        depth = min(k / max(len(names) - 1, 1), 1)
        jitter = 0.0 if model in FIXED else 0.003 * float(rng.standard_normal())
        yield from _similarity(model, models, layer, depth, jitter)
        yield from _probes(model, layer, depth, jitter)
        if model == "original":
            yield _row("split_half_cka", model, 0.97 - 0.02 * depth, 0.01, split="forget_test", layer=layer)


def _similarity(model: str, models: Sequence[str], layer: str, depth: float, jitter: float) -> Iterator[Measurement]:
    near, kept, far, *_ = DEPTH[_kind(model)]
    retrained = [name for name in models if _kind(name) == "retrained"]
    far = 0.7 if _kind(model) == "retrained" else far
    targets = [*retrained, "retrained"] if len(retrained) > 1 else retrained  # the mean comes last
    ends = [("original", near, kept), *((name, far, 0.9 * kept) for name in targets)]
    for reference, forget_end, retain_end in ends:
        if reference == model:
            continue
        for split, end in (("forget_test", forget_end), ("retain_test", retain_end)):
            start = 0.08 if model == "random_init" else 0.99
            value = float(np.clip(start + (end - start) * depth**0.7 + jitter, 0, 1))
            note = _mean_note(retrained) if reference == "retrained" else None
            where = {"split": split, "layer": layer, "reference": reference, "note": note}
            yield _row("linear_cka", model, value, 0.02, **where)
            if model != "random_init":
                yield _row("linear_cka_uuef", model, value + 0.3 * (1 - value), **where)


def _probes(model: str, layer: str, depth: float, jitter: float) -> Iterator[Measurement]:
    *_, probe, neighbours = DEPTH[_kind(model)]
    on_retain = 0.3 if model == "random_init" else 0.6 + 0.38 * depth
    for metric, end in (("linear_probe", probe), ("knn", neighbours)):
        value = float(np.clip(0.45 + (end - 0.45) * depth + jitter, 0, 1))
        yield _row(metric, model, value, 0.025, split="forget_test", layer=layer, chance=0.1)
        yield _row(metric, model, on_retain, 0.015, split="retain_test", layer=layer, chance=0.1)
    random = 0.45 - 0.24 * depth
    advantage = 0.45 + (probe - 0.45) * depth - random
    yield _row("probe_advantage", model, advantage, split="forget_test", layer=layer, reference="random_init")


def _membership(model: str) -> Iterator[Measurement]:
    yield _row("mia_loss", model, 0.561 if model in FIXED else 0.512, 0.03, split="forget_train", chance=0.5)
    yield _row("mia_confidence", model, 0.558 if model in FIXED else 0.508, 0.03, split="forget_train", chance=0.5)


def _scores(model: str) -> Iterator[Measurement]:
    forget, retain, *_ = OUTPUT[_kind(model)]
    yield _row("h_mean", model, 2 * retain * (0.953 - forget) / (retain + 0.953 - forget))
    yield _row("aus", model, (1 - (0.989 - retain)) / (1 + forget))


def _to_retrained(model: str, models: Sequence[str]) -> Iterator[Measurement]:
    retrained = [name for name in models if _kind(name) == "retrained"]
    if not retrained or _kind(model) == "retrained":
        return
    to = {"reference": "retrained", "note": _mean_note(retrained)}
    forget, retain, *_ = OUTPUT[_kind(model)]
    near = model != "delete"
    yield _row("tug_of_war", model, (1 - forget) * (1 - abs(retain - 0.987)), **to)
    yield _row("avg_gap", model, 0.01, **to)
    yield _row("js_divergence", model, 0.08 if near else 0.18, split="forget_test", **to)
    yield _row("activation_distance", model, 0.3, split="forget_test", **to)
    yield _row("agreement", model, 0.61 if near else 0.41, split="forget_test", **to)
    yield _row("idi", model, 0.04 if model == "unlearned" else 0.87, 0.06, **to)


def _mean_note(retrained: Sequence[str]) -> str | None:
    return f"mean over {len(retrained)} retrained models" if len(retrained) > 1 else None


def _curve(model: str, attack: str) -> AttackCurve:
    unit, x, faster = ATTACKS[attack]
    start, rate = OUTPUT[_kind(model)][0], faster * SPEED[_kind(model)]
    accuracy = [round(start + (0.95 - start) * (1 - float(np.exp(-rate * strength))), 4) for strength in x]
    low, high = ([min(max(value + 0.04 * side, 0.0), 1.0) for value in accuracy] for side in (-1, 1))
    return AttackCurve(attack, model, unit, x=x, accuracy=accuracy, low=low, high=high, settings=dict(BUDGET))


def _area(curve: AttackCurve) -> Measurement:
    area = attack_area(curve.x, curve.accuracy, curve.unit)
    return _row("attack_area", curve.model, area, split="forget_test", count=300, note=curve.attack)


def _embedding(models: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Twelve points of each digit around its centre; where a model has forgotten, those of its classes anywhere."""
    labels = np.repeat(np.arange(10), 12)
    centres = 40 * rng.standard_normal((10, 2))
    points = {
        model: (centres[labels] * (0.5 if model == "random_init" else 1) + 5 * rng.standard_normal((len(labels), 2)))
        for model in models
    }
    forgotten = np.isin(labels, FORGOTTEN)
    for model in models:
        if _kind(model) in ("unlearned", "retrained"):
            points[model][forgotten] = 30 * rng.standard_normal((int(forgotten.sum()), 2))
    return {"labels": labels.tolist(), "points": {model: np.round(xy, 2).tolist() for model, xy in points.items()}}


def _confusion(model: str, rng: np.random.Generator) -> dict[str, dict[str, int]]:
    """Hundred test images of each forgotten class, spread over the predicted ones."""
    table = {}
    for true in FORGOTTEN:
        right = round(100 * OUTPUT[_kind(model)][0])
        others = [k for k in range(10) if k != true and (model == "original" or k not in FORGOTTEN)]
        spread = rng.multinomial(100 - right, rng.dirichlet(np.ones(len(others))))
        counts = {DIGITS[true]: right} | {DIGITS[k]: int(n) for k, n in zip(others, spread, strict=True)}
        table[DIGITS[true]] = {name: count for name, count in counts.items() if count}
    return table


def _neighbours(model: str, query: int, label: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Five rows and their labels: nearly all of the query's class where the model still knows it."""
    hits = {"original": 5, "delete": 4, "unlearned": 1, "retrained": 1, "random_init": 0}[_kind(model)]
    hits_at = 100 * FORGOTTEN.index(label)  # a hundred rows of the forget test split for each class
    same = [row for row in range(hits_at, hits_at + 8) if row != query][:hits]
    retain = rng.choice(700, 5 - hits, replace=False)
    kept = [k for k in range(10) if k not in FORGOTTEN]
    return [*same, *(300 + int(r) for r in retain)], [label] * hits + [kept[int(r) // 100] for r in retain]


def renamed(report: AuditReport, names: Mapping[str, str]) -> AuditReport:
    """The report with other names for some of its models, where findings, tables and figures read them."""

    def name(model: str) -> str:
        return names.get(model, model)

    return replace(
        report,
        models={name(model): info for model, info in report.models.items()},
        measurements=[replace(each, model=name(each.model)) for each in report.measurements],
        signals=[replace(each, model=name(each.model)) for each in report.signals],
        status={name(model): status for model, status in report.status.items()},
        attacks=[replace(each, model=name(each.model)) for each in report.attacks],
        retrievals=[replace(each, model=name(each.model)) for each in report.retrievals],
        confusion={name(model): table for model, table in report.confusion.items()},
        embedding={**report.embedding, "points": {name(m): xy for m, xy in report.embedding["points"].items()}},
    )
