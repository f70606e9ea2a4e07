"""By measurement, the values of all models on the same images, and how these vary together with the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ec_hf.auditing.attacks.recovery import Attacked
from ec_hf.auditing.collected import BySplit, Collected, Shadows
from ec_hf.auditing.measures.cka import cka_of_pair, features_of_pair
from ec_hf.auditing.measures.membership import (
    ENOUGH_FOR_TPR,
    SCORES,
    Sides,
    attack_sides,
    held_out_splits,
    population_sides,
    scores_of,
)
from ec_hf.auditing.measures.probes import LayerHits
from ec_hf.auditing.question import Question
from ec_hf.auditing.residual import ResidualKnowledge
from ec_hf.metrics import class_matched, membership_tpr
from ec_hf.metrics.half_sample_cka import half_sample_values
from ec_hf.metrics.membership import placements
from ec_hf.metrics.position import area_covariance, mean_covariance
from ec_hf.metrics.training_noise import RETAINED_FREEDOM, Noise, noise_on_retained

__all__ = ["Compared", "attacks_on_rows", "compared", "forget_split"]

OUTPUTS = {"accuracy": "hit", "confidence": "confidence"}
"""Metric -> figure of each image whose mean it is."""
HALVES, RESAMPLES = 100, 200

Pair = tuple[str, str]


@dataclass(frozen=True)
class Compared:
    """One measurement of several models on the same images; higher is more knowledge of the forgotten ones.

    Attributes:
        metric: key of `ec_hf.metrics.METRICS`.
        split: of the images.
        layer: of the features; None for figures of the output.
        values: model -> value; models without a finite one are left out.
        covariance: `(models, models)` of the values, as other images would move them.
        count: number of images.
        shares: whether the values are means over images of numbers from 0 to 1.
        noise: variance between two trainings, as the retained images show it; None where they do not.
        allowance: how far another training alone would move the original towards the retrained models; it then has
            the last row and column of the covariance. None where another training moves all models alike.
        note: what tells it from others of the same metric.
    """

    metric: str
    split: str
    layer: str | None
    values: Mapping[str, float]
    covariance: np.ndarray
    count: int
    shares: bool = True
    noise: Noise | None = None
    allowance: float | None = None
    note: str | None = None


def forget_split(question: Question) -> str:
    """Where the forgotten images are asked about: held-out ones of forgotten classes, else the forgotten ones.

    Args:
        question: what is asked.
    """
    held_out = bool(question.whole_classes) and len(question.labels["forget_test"]) > 0
    return "forget_test" if held_out or not len(question.labels["forget_train"]) else "forget_train"


def compared(
    collected: BySplit,
    hits: Sequence[LayerHits],
    attacked: Iterable[Attacked],
    question: Question,
    shadows: Shadows | None = None,
    residual: Sequence[ResidualKnowledge] = (),
) -> list[Compared]:
    """All measurements that put models between the original and the retrained ones.

    Args:
        collected: what the pass collected.
        hits: what a linear probe and k-NN get right.
        attacked: what attacks brought back, if they were asked for.
        question: what is asked, with at least one retrained model.
        shadows: what shadow models showed, if any were given.
        residual: what models name around forgotten images, if that was asked for.
    """
    rows = [
        *_outputs(collected, question),
        *_layers(hits, question),
        *_membership(collected, question),
        *attacks_on_rows(collected, question, shadows),
        *_similarity(collected, question),
        *_attacks(attacked, question),
        *_residual(residual),
    ]
    needed = {"original", *question.retrained}
    return [row for row in rows if needed <= set(row.values)]


def _outputs(collected: BySplit, question: Question) -> Iterator[Compared]:
    """Accuracy and confidence on the forgotten images."""
    split = forget_split(question)
    forgotten, retained = collected[split], collected["retain_test"]
    for metric, figure in OUTPUTS.items():
        mine, theirs = (
            {model: shown.outputs[model][figure] for model in question.trained if len(shown.labels)}
            for shown in (forgotten, retained)
        )
        yield _of_images(metric, split, None, (mine, forgotten.labels), (theirs, retained.labels), question)


def _layers(hits: Sequence[LayerHits], question: Question) -> Iterator[Compared]:
    """Linear probe and k-NN on the forgotten images at every layer."""
    split = forget_split(question)
    places = dict.fromkeys((each.metric, each.layer) for each in hits if each.split == split)
    for metric, layer in places:
        of_split: dict[str, tuple[dict[str, np.ndarray], np.ndarray]] = {}
        for each in hits:
            if (each.metric, each.layer) == (metric, layer) and each.model in question.trained:
                of_split.setdefault(each.split, ({}, each.labels))[0][each.model] = each.hits
        nothing: tuple[dict[str, np.ndarray], np.ndarray] = ({}, np.empty(0, dtype=int))
        yield _of_images(metric, split, layer, of_split[split], of_split.get("retain_test", nothing), question)


def _of_images(
    metric: str,
    split: str,
    layer: str | None,
    forgotten: tuple[Mapping[str, np.ndarray], np.ndarray],
    retained: tuple[Mapping[str, np.ndarray], np.ndarray],
    question: Question,
) -> Compared:
    """Means over the forgotten images, with the noise that the retained ones show.

    Args:
        metric: of the means.
        split: of the forgotten images.
        layer: of the features.
        forgotten: model -> `(n,)` figures, and `(n,)` label ids.
        retained: the same of retained images.
        question: what is asked.
    """
    figures = {model: np.asarray(own, dtype=float) for model, own in forgotten[0].items() if np.isfinite(own).all()}
    table = np.stack(list(figures.values()), axis=1) if figures else np.empty((0, 0))
    noise = None
    ends = [retained[0].get(name, np.full(1, np.nan)) for name in ("original", question.retrained[0])]
    if all(np.isfinite(end).all() and len(end) for end in ends):
        noise = noise_on_retained(ends[0], ends[1], retained[1], len(np.unique(forgotten[1])))
    values = dict(zip(figures, table.mean(axis=0).tolist(), strict=True))
    return Compared(metric, split, layer, values, mean_covariance(table), len(table), noise=noise)


def _membership(collected: BySplit, question: Question) -> Iterator[Compared]:
    """Areas under the ROC curves of membership by loss and by confidence, within classes."""
    for metric, (figure, higher_is_member) in SCORES.items():
        sign = 1 if higher_is_member else -1
        found = _areas(collected, question, ("forget_train", held_out_splits(question)), figure, sign)
        if not found:
            continue
        values, covariance, count = found
        kept = _areas(collected, question, ("retain_train", ("retain_test",)), figure, sign)
        noise = _noise_of_two(*kept[:2], question) if kept else None
        yield Compared(metric, "forget_train", None, values, covariance, count, noise=noise)


def attacks_on_rows(collected: BySplit, question: Question, shadows: Shadows | None) -> Iterator[Compared]:
    """LiRA and the population attack on forgotten rows, by area and by the members found at 1 % false alarms.

    Args:
        collected: what the pass collected.
        question: what is asked; of a request of classes nothing is yielded.
        shadows: what shadow models showed, if any were given.
    """
    if question.whole_classes:
        return
    for metric, sides in attack_sides(collected, question, shadows).items():
        noise = None
        if metric == "mia_population":
            kept = population_sides(collected, question, "retain_train", ("retain_test",))
            noise = _noise_of_two(*_area_of(kept), question) if kept else None
        values, covariance = _area_of(sides)
        count = len(next(iter(sides.values()))[0])
        yield Compared(metric, "forget_train", None, values, covariance, count, noise=noise)
        if count >= ENOUGH_FOR_TPR:
            found = {model: membership_tpr(*scores) for model, scores in sides.items()}
            spread = _tail_covariance(sides, question.seed)
            yield Compared(f"{metric}_tpr", "forget_train", None, found, spread, count)


def _area_of(sides: Sides) -> tuple[dict[str, float], np.ndarray]:
    """Areas under the ROC curves by model, and how they vary together with the images."""
    placed = {model: placements(*scores) for model, scores in sides.items()}
    members, others = (np.stack([each[side] for each in placed.values()], axis=1) for side in (0, 1))
    return dict(zip(placed, members.mean(axis=0).tolist(), strict=True)), area_covariance(members, others)


def _tail_covariance(sides: Sides, seed: int) -> np.ndarray:
    """How the shares of members found vary together with the images, by the paired bootstrap."""
    draw, drawn = np.random.default_rng(seed), []
    count = len(next(iter(sides.values()))[0])
    for _ in range(RESAMPLES):
        first, second = draw.integers(count, size=(2, count))
        drawn.append([membership_tpr(members[first], others[second]) for members, others in sides.values()])
    return np.atleast_2d(np.cov(drawn, rowvar=False))


def _areas(
    collected: BySplit, question: Question, splits: tuple[str, tuple[str, ...]], figure: str, sign: int
) -> tuple[dict[str, float], np.ndarray, int] | None:
    """By model, how well a figure tells the members of a split from held-out images of the same classes."""
    inside, outside = splits
    labels = np.concatenate([collected[split].labels for split in outside])
    try:
        rows = class_matched(collected[inside].labels, labels, question.seed)
    except ValueError:  # no class is on both sides
        return None
    members, others = {}, {}
    for model in question.trained:
        a = sign * scores_of(collected, (inside,), model, figure)[rows[0]]
        b = sign * scores_of(collected, outside, model, figure)[rows[1]]
        if np.isfinite(a).all() and np.isfinite(b).all():
            members[model], others[model] = placements(a, b)
    if not members:
        return None
    sides = [np.stack(list(side.values()), axis=1) for side in (members, others)]
    values = dict(zip(members, sides[0].mean(axis=0).tolist(), strict=True))
    return values, area_covariance(*sides), len(rows[0])


def _noise_of_two(values: Mapping[str, float], covariance: np.ndarray, question: Question) -> Noise | None:
    """Half the squared difference of the original and a retrained model, less the part that the images make."""
    ends = "original", question.retrained[0]
    if not set(ends) <= set(values):
        return None
    contrast = np.array([(name == ends[0]) - float(name == ends[1]) for name in values])
    squared = (values[ends[0]] - values[ends[1]]) ** 2 - contrast @ covariance @ contrast
    return Noise(max(float(squared), 0.0) / 2, RETAINED_FREEDOM)


def _similarity(collected: BySplit, question: Question) -> Iterator[Compared]:
    """CKA to the original on the forgotten images at every layer.

    Another training alone moves features away from the original's, whatever it has seen. Several retrained models show
    how far: as far as they are from each other. Of one, the retained images must tell it, which it and the original
    both know.
    """
    split, retrained = forget_split(question), question.retrained
    shown, kept = collected[split], collected[f"retain_{split.removeprefix('forget_')}"]
    among = list(combinations(retrained, 2))
    for layer in shown.features["original"]:
        others = [model for model in question.trained if model != "original"]
        found = {model: _of_pair(shown, (model, "original"), layer, question.seed) for model in others}
        apart = [_of_pair(shown, pair, layer, question.seed) for pair in among]
        on_kept = None if among else _of_pair(kept, (retrained[0], "original"), layer, question.seed)
        known = {model: each for model, each in found.items() if each}
        ceilings = [each for each in apart if each]
        if len(ceilings) < len(among) or not set(retrained) <= set(known):
            continue
        draws = [np.zeros(HALVES), *(own for own, _ in known.values())]
        if among:
            ceiling, own = float(np.mean([v for _, v in ceilings])), np.mean([d for d, _ in ceilings], axis=0)
            covariance = np.cov([*draws, -own])
        elif on_kept:
            ceiling, covariance = on_kept[1], _with_another(np.cov(draws), float(on_kept[0].var(ddof=1)))
        else:
            continue
        values = {"original": 1.0, **{model: value for model, (_, value) in known.items()}}
        allowance = max(1.0 - ceiling, 0.0)
        count = len(shown.labels)
        yield Compared("linear_cka", split, layer, values, covariance, count, shares=False, allowance=allowance)


def _of_pair(shown: Collected, pair: Pair, layer: str, seed: int) -> tuple[np.ndarray, float] | None:
    """How CKA over all images deviates with the images, `(HALVES,)`, and its value; None where there is none."""
    value = cka_of_pair(shown, pair, layer) if len(shown.labels) else None
    if value is None:
        return None
    with suppress(ValueError):  # too few images, or too alike
        x, y = features_of_pair(shown, pair, layer)
        halved, _ = half_sample_values(x, y, resamples=HALVES, seed=seed)
        return (halved - halved.mean()) * (len(x) / len(shown.labels)) ** 0.5, value
    return None


def _with_another(covariance: np.ndarray, variance: float) -> np.ndarray:
    """The covariance with one more row and column, of a value from other images."""
    larger = np.zeros((len(covariance) + 1, len(covariance) + 1))
    larger[:-1, :-1], larger[-1, -1] = covariance, variance
    return larger


def _attacks(attacked: Iterable[Attacked], question: Question) -> Iterator[Compared]:
    """Areas under the curves of attacks: means over the held-out images, which all models share."""
    areas: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for each in attacked:
        if each.model in question.trained:
            areas.setdefault((each.attack, each.split), {})[each.model] = each.outcome.areas
    for (attack, split), figures in areas.items():
        table = np.stack(list(figures.values()), axis=1)
        values = dict(zip(figures, table.mean(axis=0).tolist(), strict=True))
        yield Compared("attack_area", split, None, values, mean_covariance(table), len(table), note=attack)


def _residual(found: Sequence[ResidualKnowledge]) -> Iterator[Compared]:
    """How often points around the forgotten images get their label, mean over the radii: one measurement a kind."""
    for how in dict.fromkeys(each.how for each in found):
        some = [each for each in found if each.how == how]
        means = {model: np.mean([each.named[model] for each in some], axis=0) for model in some[0].named}
        known = {model: own for model, own in means.items() if np.isfinite(own).all()}
        if known:
            table = np.stack(list(known.values()), axis=1)
            values = dict(zip(known, table.mean(axis=0).tolist(), strict=True))
            covariance = mean_covariance(table)
            yield Compared("residual_knowledge", some[0].split, None, values, covariance, len(table), note=how)
