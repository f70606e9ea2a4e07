"""Can the forgotten training images be told from images that no model ever saw?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from ec_hf.auditing.collected import BySplit
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.similarity import NOT_FINITE
from ec_hf.metrics import class_matched, membership_auc, membership_svc

__all__ = ["SCORES", "held_out_splits", "membership_areas", "scores_of", "svc_attack_jobs"]

RESAMPLES = 200
SCORES = {"mia_loss": ("loss", False), "mia_confidence": ("confidence", True)}
"""Metric -> figure of each image that is the score, and whether it is higher on training images."""
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
    labels = np.concatenate([collected[split].labels for split in held_out])
    try:
        inside, outside = class_matched(members.labels, labels, question.seed)
    except ValueError:
        note = "no held-out image of a forgotten class"
        return [
            Measurement(metric, model, None, "forget_train", chance=0.5, note=note)
            for model in question.trained
            for metric in SCORES
        ]
    rows = []
    for model in question.trained:
        for metric, (figure, higher_is_member) in SCORES.items():
            a = members.outputs[model][figure][inside]
            b = scores_of(collected, held_out, model, figure)[outside]
            rows.append(_area(metric, model, a, b, higher_is_member, question.seed))
    return rows


def svc_attack_jobs(collected: BySplit, question: Question) -> list[Callable[[], list[Measurement]]]:
    """Jobs for the support-vector attack on membership, from the kept images, under both published signs.

    Shadow members are retain training images, shadow non-members retain test images, as where it was published.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    return [partial(_svc_attack, collected, model, question.seed) for model in question.trained]


def _area(
    metric: str, model: str, members: np.ndarray, others: np.ndarray, higher_is_member: bool, seed: int
) -> Measurement:
    """The area under the ROC curve with its bootstrap interval."""
    fields: dict[str, Any] = {"split": "forget_train", "chance": 0.5, "count": len(members)}
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        return Measurement(metric, model, None, note=NOT_FINITE, **fields)
    rng = np.random.default_rng(seed)
    drawn = [
        membership_auc(rng.choice(members, len(members)), rng.choice(others, len(others)), higher_is_member)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    value = membership_auc(members, others, higher_is_member)
    return Measurement(metric, model, value, low=low, high=high, **fields)


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
