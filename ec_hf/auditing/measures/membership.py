"""Can the forgotten training images be told from images that no model ever saw?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from ec_hf.auditing.collected import BySplit, Shadows
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.similarity import NOT_FINITE
from ec_hf.metrics import (
    class_matched,
    lira_scores,
    logit_confidence,
    membership_auc,
    membership_svc,
    membership_tpr,
    population_scores,
)

__all__ = [
    "ENOUGH_FOR_TPR",
    "SCORES",
    "Sides",
    "attack_areas",
    "attack_notes",
    "attack_sides",
    "held_out_splits",
    "matched_rows",
    "membership_areas",
    "population_sides",
    "scores_of",
    "svc_attack_jobs",
]

RESAMPLES = 200
SCORES = {"mia_loss": ("loss", False), "mia_confidence": ("confidence", True)}
"""Metric -> figure of each image that is the score, and whether it is higher on training images."""
ENOUGH_FOR_TPR = 100
"""Held-out images of which 1 % is one image."""
LEAST_SHADOWS, LEAST_MEMBERS = 2, 4
"""What `lira_scores` needs."""
Sides = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Model -> scores of forgotten and of held-out images, higher is more of a member."""
SVC = {"mia_svc_efficacy": "efficacy", "mia_svc_member": "member_share"}


def held_out_splits(question: Question) -> tuple[str, ...]:
    """Where held-out images of the forgotten classes are; where rows are forgotten, all test images may be."""
    return ("forget_test",) if question.whole_classes else ("forget_test", "retain_test")


def scores_of(collected: BySplit, splits: Sequence[str], model: str, figure: str) -> np.ndarray:
    """A figure of all images of some splits, one split after the other.

    Args:
        collected: what the pass collected.
        splits: their names.
        model: name of the model.
        figure: name of the figure.
    """
    return np.concatenate(
        [collected[split].outputs[model][figure] for split in splits if len(collected[split].labels)]
    )


def matched_rows(question: Question) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of forget_train and of the held-out splits, one after the other, with as many of every class on both sides.

    None where no class is on both sides.

    Args:
        question: what is asked.
    """
    held_out = np.concatenate([question.labels[split] for split in held_out_splits(question)])
    try:
        return class_matched(question.labels["forget_train"], held_out, question.seed)
    except ValueError:
        return None


def membership_areas(collected: BySplit, question: Question) -> list[Measurement]:
    """Can the forgotten training images be told from held-out images of the same classes by loss or confidence?

    Non-members are the forgotten classes' test images; where rows are forgotten, all test images of their classes.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    members = collected["forget_train"]
    if not len(members.labels):
        return []
    held_out = held_out_splits(question)
    matched = matched_rows(question)
    if matched is None:
        note = "no held-out image of a forgotten class"
        return [
            Measurement(metric, model, None, "forget_train", chance=0.5, note=note)
            for model in question.trained
            for metric in SCORES
        ]
    rows = []
    for model in question.trained:
        for metric, (figure, higher_is_member) in SCORES.items():
            sign = 1 if higher_is_member else -1
            a = sign * members.outputs[model][figure][matched[0]]
            b = sign * scores_of(collected, held_out, model, figure)[matched[1]]
            rows.append(_resampled(metric, model, a, b, membership_auc, 0.5, question.seed))
    return rows


def attack_areas(collected: BySplit, question: Question, shadows: Shadows | None = None) -> list[Measurement]:
    """How well LiRA and the population attack tell forgotten images from held-out ones: AUC, and TPR at 1 % FPR.

    The population attack is made where rows are forgotten; LiRA too where shadow models suffice, and for classes where
    shadow models were given.

    Args:
        collected: what the pass collected.
        question: what is asked.
        shadows: what shadow models showed, if any were given.
    """
    rows = []
    for metric, sides in attack_sides(collected, question, shadows).items():
        for model, (a, b) in sides.items():
            rows.append(_resampled(metric, model, a, b, membership_auc, 0.5, question.seed))
            note = None if len(b) >= ENOUGH_FOR_TPR else f"of {len(b)} held-out images none may be a false alarm"
            tail = _resampled(f"{metric}_tpr", model, a, b, membership_tpr, 0.01, question.seed)
            rows.append(replace(tail, note=tail.note or note))
    return rows


def attack_notes(question: Question, shadows: Shadows | None) -> list[str]:
    """Why LiRA could not be made, where it was asked for.

    Args:
        question: what is asked.
        shadows: what shadow models showed, if any were given.
    """
    if shadows is None:
        return []
    count = shadows.outside.shape[1] + max(len(question.retrained) - 1, 0)
    if count >= LEAST_SHADOWS:
        return []
    return [
        f"LiRA needs {LEAST_SHADOWS} models that were trained without the forget set, beside the retrained model that "
        f"is attacked itself; there are {count}. Give more as shadows."
    ]


def attack_sides(collected: BySplit, question: Question, shadows: Shadows | None = None) -> dict[str, Sides]:
    """Metric -> model -> scores of the forgotten and of the held-out images of the same class mix.

    Args:
        collected: what the pass collected.
        question: what is asked.
        shadows: what shadow models showed, if any were given.
    """
    sides: dict[str, Sides] = {}
    if matched_rows(question) is None:
        return sides
    if shadows is not None or not question.whole_classes:
        sides["mia_lira"] = _lira_sides(collected, question, shadows)
    if not question.whole_classes:
        sides["mia_population"] = population_sides(collected, question, "forget_train", held_out_splits(question))
    return {metric: own for metric, own in sides.items() if own}


def population_sides(collected: BySplit, question: Question, split: str, held_out: Sequence[str]) -> Sides:
    """Scores of the population attack on the images of a split and on held-out ones of the same class mix.

    All held-out images of a class are its population, which must hold two or more of them.

    Args:
        collected: what the pass collected.
        question: what is asked.
        split: of the images.
        held_out: names of the held-out splits.
    """
    own, others = collected[split].labels, np.concatenate([collected[each].labels for each in held_out])
    known, counts = np.unique(others, return_counts=True)
    enough = known[counts > 1]
    first, second = np.flatnonzero(np.isin(own, enough)), np.flatnonzero(np.isin(others, enough))
    try:
        rows = class_matched(own[first], others[second], question.seed)
    except ValueError:
        return {}
    first, second = first[rows[0]], second[rows[1]]
    sides = {}
    for model in question.trained:
        losses, unseen = scores_of(collected, (split,), model, "loss"), scores_of(collected, held_out, model, "loss")
        if np.isfinite(losses).all() and np.isfinite(unseen).all():
            members = population_scores(losses[first], own[first], unseen, others)
            nonmembers = population_scores(unseen[second], others[second], unseen, others, within=True)
            sides[model] = members, nonmembers
    return sides


def _lira_sides(collected: BySplit, question: Question, shadows: Shadows | None) -> Sides:
    """Scores of LiRA; a retrained model that is attacked is no shadow model of its own."""
    rows = matched_rows(question)
    assert rows is not None, "the caller sees to it"
    shown = {}
    for model in question.trained:
        a = collected["forget_train"].outputs[model]["loss"][rows[0]]
        b = scores_of(collected, held_out_splits(question), model, "loss")[rows[1]]
        if np.isfinite(a).all() and np.isfinite(b).all():
            shown[model] = logit_confidence(np.concatenate([a, b]))
    count = len(rows[0])
    online = shadows is not None and shadows.inside.shape[1] > 0 and count >= LEAST_MEMBERS
    sides = {}
    for model, target in shown.items():
        outside = [shown[name][:, None] for name in question.retrained if name in shown and name != model]
        outside += [shadows.outside] if shadows is not None else []
        if sum(each.shape[1] for each in outside) >= LEAST_SHADOWS:
            learnt = (shadows.inside, np.arange(count)) if shadows is not None and online else (None, None)
            scores = lira_scores(target, np.concatenate(outside, axis=1), *learnt)
            sides[model] = scores[:count], scores[count:]
    return sides


def svc_attack_jobs(collected: BySplit, question: Question) -> list[Callable[[], list[Measurement]]]:
    """Jobs for the support-vector attack on membership, from the kept images, under both published signs.

    Shadow members are retain training images, shadow non-members retain test images, as where it was published.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    return [partial(_svc_attack, collected, model, question.seed) for model in question.trained]


def _resampled(
    metric: str,
    model: str,
    members: np.ndarray,
    others: np.ndarray,
    function: Callable[[np.ndarray, np.ndarray], float],
    chance: float,
    seed: int,
) -> Measurement:
    """A function of the scores of both sides, higher on training images, with its bootstrap interval."""
    fields: dict[str, Any] = {"split": "forget_train", "chance": chance, "count": len(members)}
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        return Measurement(metric, model, None, note=NOT_FINITE, **fields)
    rng = np.random.default_rng(seed)
    drawn = [function(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    return Measurement(metric, model, function(members, others), low=low, high=high, **fields)


def _svc_attack(collected: BySplit, model: str, seed: int) -> list[Measurement]:
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for split in ("retain_train", "retain_test", "forget_train"):
        logits = collected[split].features[model]["logits"].astype(np.float64)
        if not len(logits) or not np.isfinite(logits).all():
            note = NOT_FINITE if len(logits) else f"the split {split} has no image"
            return [Measurement(metric, model, None, "forget_train", note=note) for metric in SVC]
        sides.append((softmax(logits, axis=1), collected[split].kept_labels))
    members, nonmembers, target = sides
    shares = membership_svc(members, nonmembers, target, seed=seed)
    count = len(target[1])
    return [Measurement(metric, model, shares[key], "forget_train", count=count) for metric, key in SVC.items()]
