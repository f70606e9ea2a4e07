"""What all recovery attacks share: the images that they get, and the form of what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from torch import Tensor
from torch.utils.data import ConcatDataset

from ec_hf.auditing.question import Question, drawn_evenly
from ec_hf.auditing.subjects import Subject
from ec_hf.data.sampling import stratified_rows
from ec_hf.metrics.attack_area import Unit, area_weights

__all__ = ["Attack", "AttackImages", "Outcome", "attack_images"]

SHOTS = (5, 10, 50)
"""Images of each forgotten class that an attack learns from, where it is measured by their number."""
FORGOTTEN, RETAINED, HELD_OUT = 1000, 1000, 300
"""About how many images an attack gets at most: forgotten and retained ones to learn from, others to ask about."""
BATCH = 32


@dataclass(eq=False)
class AttackImages:
    """The images that every attack on every model gets.

    Attributes:
        forgotten: forgotten images that an attack can learn from.
        retained: retained ones to learn beside them.
        held_out: other forgotten images, which are asked about.
        forgotten_labels: `(n,)` label ids of the forgotten ones.
        retained_labels: `(m,)` label ids of the retained ones.
        split: where the held-out ones are from.
        seed: seed of all draws.
    """

    forgotten: Dataset
    retained: Dataset
    held_out: Dataset
    forgotten_labels: np.ndarray
    retained_labels: np.ndarray
    split: str
    seed: int
    _prepared: dict[int, list[dict[str, Tensor]]] = field(default_factory=dict, repr=False)

    @property
    def shots(self) -> list[int]:
        """Ascending numbers of images a class to learn from, none above what the largest class has."""
        most = int(np.unique(self.forgotten_labels, return_counts=True)[1].max())
        return sorted({min(count, most) for count in SHOTS})

    def few(self, count: int) -> ConcatDataset:
        """About so many forgotten images, of all classes alike, and about as many retained ones."""
        return self._with_retained(drawn_evenly(count, self.forgotten_labels, self.seed))

    def of_each_class(self, shots: int) -> ConcatDataset:
        """So many images of each forgotten class, and about as many retained images as these are together."""
        return self._with_retained(self.rows_of_each_class(shots))

    def rows_of_each_class(self, shots: int) -> np.ndarray:
        """Ascending rows of `forgotten`: so many of each class, or all of a class that has fewer."""
        return stratified_rows(self.forgotten_labels, shots, self.seed)

    def tests(self, collator: Any) -> list[dict[str, Tensor]]:
        """The held-out images in batches, prepared once for each collator."""
        if id(collator) not in self._prepared:
            count = len(self.held_out)
            rows = [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
            self._prepared[id(collator)] = [collator([self.held_out[row] for row in part]) for part in rows]
        return self._prepared[id(collator)]

    def _with_retained(self, rows: np.ndarray) -> ConcatDataset:
        beside = drawn_evenly(len(rows), self.retained_labels, self.seed)
        return ConcatDataset([self.forgotten.select(rows), self.retained.select(beside)])


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack on a model brought back.

    Attributes:
        x: strengths of the attack, from weak to strong.
        hits: `(points, images)` booleans: which held-out images are classified right at each strength.
        unit: what x counts.
        settings: the budget of the attack.
    """

    x: Sequence[float]
    hits: np.ndarray
    unit: Unit
    settings: dict[str, Any]

    @property
    def areas(self) -> np.ndarray:
        """`(images,)` area under the curve of each image alone, from 0 to 1; their mean is that of the attack."""
        return area_weights(self.x, self.unit) @ self.hits


class Attack(ABC):
    """A way to bring back what a model was made to forget.

    Attributes:
        unit: what makes the attack stronger.
        level: "quick" for what costs a small network minutes at most, "full" for all others.
    """

    unit: Unit
    level: Literal["quick", "full"]

    @abstractmethod
    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """Attacks a copy of a model; the model itself stays as it is.

        Args:
            subject: the model and how it is run, on its device and in evaluation mode.
            images: what to learn from and what to ask about.

        Raises:
            ValueError: the attack cannot be made on this model; the message says why.
        """


def attack_images(question: Question) -> AttackImages | None:
    """Draws the images of all attacks; None where there are none to learn from or none to ask about.

    Asked about are test images of the forgotten classes. Where there are none, or where rows are forgotten, they are
    other forgotten training images, and at most half of each class is learnt from.

    Args:
        question: what is asked.
    """
    labels, splits, seed = question.labels, question.splits, question.seed
    own = np.arange(len(labels["forget_train"]))
    if question.whole_classes:
        own = own[np.isin(labels["forget_train"], question.whole_classes)]
    own_labels = labels["forget_train"][own]
    split = "forget_test" if question.whole_classes and len(labels["forget_test"]) else "forget_train"
    classes, counts = np.unique(own_labels, return_counts=True)
    most = min(max(SHOTS), max(min(SHOTS), ceil(FORGOTTEN / max(len(classes), 1))))
    limits = counts if split == "forget_test" else counts // 2
    quota = {int(label): min(most, int(limit)) for label, limit in zip(classes, limits, strict=True)}
    learnt = own[stratified_rows(own_labels, quota, seed)]
    others = np.arange(len(labels[split])) if split == "forget_test" else np.setdiff1d(own, learnt)
    asked = others[drawn_evenly(HELD_OUT, labels[split][others], seed)]
    if not len(learnt) or not len(asked):
        return None
    beside = drawn_evenly(RETAINED, labels["retain_train"], seed)
    return AttackImages(
        forgotten=splits["forget_train"].select(learnt),
        retained=splits["retain_train"].select(beside),
        held_out=splits[split].select(asked),
        forgotten_labels=labels["forget_train"][learnt],
        retained_labels=labels["retain_train"][beside],
        split=split,
        seed=seed,
    )
