"""CKA of every layer as measurements, with its interval, its floor and the original's split halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np

from ec_hf.auditing.collected import BySplit, Collected
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.similarity import layer_pairs
from ec_hf.metrics import cka_floor, half_sample_cka, split_half_cka

__all__ = ["cka_jobs", "cka_of_pair", "features_of_pair", "means_over_retrained"]

INTERVAL_IMAGES = 256
CHANCE = {"linear_cka": 0.0, "linear_cka_uuef": None}


def cka_jobs(collected: BySplit, question: Question) -> list[Callable[[], list[Measurement]]]:
    """Jobs that give CKA of each model to each reference by split and layer, its floor, and the original's ceiling.

    The value is over all images of the split; interval, floor and ceiling are from a few hundred of the kept ones.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    references, seed = question.references, question.seed
    jobs: list[Callable[[], list[Measurement]]] = []
    for split, shown in collected.items():
        if not len(shown.labels):
            continue
        for metric, pairs in shown.cka.items():
            for pair, layers in pairs.items():
                jobs += [
                    partial(_cka_of_layer, shown, split, metric, pair, layer, references, seed) for layer in layers
                ]
        jobs += [partial(_floor_and_ceiling, shown, split, layer, seed) for layer in shown.features["original"]]
    return jobs


def _cka_of_layer(
    shown: Collected,
    split: str,
    metric: str,
    pair: tuple[str, str],
    layer: str,
    references: Sequence[str],
    seed: int,
) -> list[Measurement]:
    """One value and its interval; of two references, seen from both sides."""
    (model, reference), (value, note) = pair, shown.cka[metric][pair][layer]
    low, high = None, None
    if metric == "linear_cka" and value is not None:
        with suppress(ValueError):  # too few images, or too alike, for an interval
            x, y = features_of_pair(shown, pair, layer)
            low, high = half_sample_cka(x, y, value=value, images=len(shown.labels), seed=seed)
    row = Measurement(
        metric,
        model,
        value,
        split,
        layer,
        reference,
        low,
        high,
        count=len(shown.labels),
        note=note,
        chance=CHANCE[metric],
    )
    mirrored = model in references and (reference, model) not in shown.cka[metric]
    return [row, replace(row, model=reference, reference=model)] if mirrored else [row]


def means_over_retrained(rows: Sequence[Measurement], question: Question) -> list[Measurement]:
    """CKA of each model to the retrained ones in the mean; of a retrained model, to the other ones. None of one model.

    The mean of the retrained models is the ceiling: no closer are two trainings that have seen the same images.

    Args:
        rows: measurements with those of CKA.
        question: what is asked.
    """
    found: dict[tuple[str, str, str | None, str | None], list[Measurement]] = {}
    for row in rows if len(question.retrained) > 1 else ():
        if row.metric in CHANCE and row.reference in question.retrained:
            found.setdefault((row.metric, row.model, row.split, row.layer), []).append(row)
    means = []
    for each in found.values():
        values = [row.value for row in each if row.value is not None]
        if len(values) == len(each):
            note = f"mean over {len(each)} retrained models"
            mean = replace(
                each[0], value=float(np.mean(values)), reference="retrained", low=None, high=None, note=note
            )
            means.append(mean)
    return means


def features_of_pair(shown: Collected, pair: tuple[str, str], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of a few images in a layer of a model, and in the layer of its reference that it is compared with.

    Args:
        shown: what the pass collected of a split.
        pair: names of the model and of its reference.
        layer: of the model.
    """
    own, other = (shown.features[name] for name in pair)
    partner = dict(layer_pairs(list(own), list(other)))[list(own).index(layer)]
    return _few(shown, own[layer]), _few(shown, list(other.values())[partner])


def cka_of_pair(shown: Collected, pair: tuple[str, str], layer: str) -> float | None:
    """Debiased CKA of a layer over all images of a split; None where there is none, or the models differ in depth.

    Args:
        shown: what the pass collected of the split.
        pair: names of two models, one of them a reference.
        layer: of both models.
    """
    by_pair = shown.cka.get("linear_cka", {})
    same = list(shown.features[pair[0]]) == list(shown.features[pair[1]])
    layers = by_pair.get(pair) or by_pair.get(pair[::-1]) or {}
    return layers[layer][0] if same and layer in layers else None


def _floor_and_ceiling(shown: Collected, split: str, layer: str, seed: int) -> list[Measurement]:
    """What unrelated features get, and what two halves of the original's channels do."""
    x = _few(shown, shown.features["original"][layer])
    computed: list[tuple[str, str | None, Callable[[], float]]] = [
        ("cka_floor", None, partial(cka_floor, x, seed=seed)),
        ("split_half_cka", None, partial(split_half_cka, x, seed=seed)),
    ]
    if "linear_cka_uuef" in shown.cka:
        computed.append(("cka_floor", "in UUEF's way", partial(cka_floor, x, mode="uuef", seed=seed)))
    rows = []
    for metric, note, compute in computed:
        with suppress(ValueError):  # too few images, or too alike
            rows.append(Measurement(metric, "original", compute(), split, layer, count=len(x), note=note))
    return rows


def _few(shown: Collected, features: np.ndarray) -> np.ndarray:
    """Every n-th of the kept images, so that about `INTERVAL_IMAGES` remain."""
    return features[:: max(1, len(shown.kept) // INTERVAL_IMAGES)]
