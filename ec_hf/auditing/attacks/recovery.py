"""The attacks of an audit: each on all models alike, with the time that it takes, and what it brings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np

from ec_hf.auditing.attacks.base import Attack, AttackImages, Outcome, attack_images
from ec_hf.auditing.attacks.registry import attacks_of
from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import AttackCurve, Measurement
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import spread
from ec_hf.metrics import bootstrap_mean

__all__ = ["Attacked", "recovery"]


@dataclass(frozen=True, eq=False)
class Attacked:
    """What one attack brought back in one model.

    Attributes:
        attack: name of the attack.
        model: name of the model.
        split: of the held-out images.
        outcome: which of them were classified right.
    """

    attack: str
    model: str
    split: str
    outcome: Outcome

    def area(self, seed: int) -> Measurement:
        """The area under the curve, with its interval over the images."""
        areas = self.outcome.areas
        return mean_over_images("attack_area", self.model, areas, seed, split=self.split, note=self.attack)

    def curve(self, seed: int) -> AttackCurve:
        """The curve, with 95 % intervals over the images."""
        hits = self.outcome.hits.astype(np.float64)
        low, high = zip(*(bootstrap_mean(row, seed=seed) for row in hits), strict=True)
        return AttackCurve(
            attack=self.attack,
            model=self.model,
            unit=self.outcome.unit,
            x=list(self.outcome.x),
            accuracy=hits.mean(axis=1).tolist(),
            low=list(low),
            high=list(high),
            settings={**self.outcome.settings, "held_out": hits.shape[1]},
        )


def recovery(
    question: Question, subjects: Mapping[str, Subject], clock: Callable[[str], AbstractContextManager[None]]
) -> tuple[list[Attacked], list[str]]:
    """Makes the attacks that were asked for on all models.

    Args:
        question: what is asked.
        subjects: the models by name, on their device and in evaluation mode.
        clock: takes the time of each attack, under its name.

    Returns:
        What was brought back, and notes on attacks that could not be made.
    """
    chosen = attacks_of(question.settings.attacks)
    if not chosen:
        return [], []
    images = attack_images(question)
    if images is None:
        return [], ["Attacks need forgotten training images to learn from, and others of them to ask about."]
    found: list[Attacked] = []
    notes: list[str] = []
    for name, attack in chosen.items():
        with clock(name):
            results = _results(attack, subjects, images)
        for model, result in zip(subjects, results, strict=True):
            if isinstance(result, Outcome):
                found.append(Attacked(name, model, images.split, result))
            else:
                notes.append(f"The attack {name} on {model} could not be made: {result}.")
    return found, notes


def _results(attack: Attack, subjects: Mapping[str, Subject], images: AttackImages) -> list[Outcome | str]:
    """By model, what the attack brought back or why it could not be made; the processes share the models."""

    def result(subject: Subject) -> Outcome | str:
        try:
            return attack.run(subject, images)
        except ValueError as error:
            return str(error)

    return spread([partial(result, subject) for subject in subjects.values()])
