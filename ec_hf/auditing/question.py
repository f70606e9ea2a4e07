"""What an audit asks, checked before it starts: which models, on which images, what of them was to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from datasets import Dataset

from ec_hf.auditing.report import SPLITS, ModelInfo
from ec_hf.auditing.settings import AuditSettings
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.sampling import stratified_rows
from ec_hf.data.splitting import four_splits

__all__ = ["Question", "checked_splits", "drawn_evenly", "kept_rows", "question_of", "quota_per_class"]

FORGET_SAMPLE = 300
"""Images of the forgotten classes that keep their features, where there are so many: intervals need them."""
LEAST_PER_CLASS = 5


@dataclass(frozen=True, eq=False)
class Question:
    """What an audit asks.

    Attributes:
        models: who the models are, by name; "original" is one of them.
        splits: the images that are looked at, by the names of `SPLITS`; a split may be empty.
        labels: `(n,)` label ids of each split.
        class_names: names of the classes in the order of their label ids.
        whole_classes: ascending label ids that are forgotten with all their images; none where rows are forgotten.
        test_rows: for each image of forget_test and of retain_test, its row among both, one after the other, before
            `max_images` left some out.
        settings: how the audit measures.
        request: what was to be forgotten; None where the splits were given without it.
        downstream: other labelled images, for k-NN on frozen features: what to learn from, and what to ask about.
        dataset_name: name of the dataset in the report.
    """

    models: Mapping[str, ModelInfo]
    splits: Mapping[str, Dataset]
    labels: Mapping[str, np.ndarray]
    class_names: Sequence[str]
    whole_classes: Sequence[int]
    test_rows: Mapping[str, np.ndarray]
    settings: AuditSettings
    request: ForgetRequest | None = None
    downstream: tuple[Dataset, Dataset] | None = None
    dataset_name: str | None = None

    @property
    def seed(self) -> int:
        """Seed of all random draws."""
        return self.settings.seed

    @property
    def references(self) -> list[str]:
        """Names of the models that the others are compared with."""
        return ["original", *self.retrained]

    @property
    def retrained(self) -> list[str]:
        """Names of the models that never saw the forget set."""
        return [name for name, model in self.models.items() if model.role == "retrained"]

    @property
    def floor(self) -> list[str]:
        """Names of the models that the advantage of a probe is counted from."""
        return self.retrained or [name for name, model in self.models.items() if model.role == "floor"]

    @property
    def trained(self) -> list[str]:
        """Names of all models but that of random weights."""
        return [name for name, model in self.models.items() if model.role != "floor"]

    @property
    def unlearned(self) -> list[str]:
        """Names of the models that were made to forget."""
        return [name for name, model in self.models.items() if model.role == "unlearned"]


def checked_splits(
    train: Dataset | None,
    test: Dataset | None,
    request: ForgetRequest | None,
    splits: Mapping[str, Dataset] | None,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
) -> dict[str, Dataset]:
    """The four splits, from a request or as they are given; what is missing is empty.

    Args:
        train: as for `ec_hf.audit`, like the others.
        test: held-out data.
        request: what was to be forgotten.
        splits: the parts themselves, in place of train and test.
        label_column: as for `ec_hf.split`.
        id_column: as for `ec_hf.split`.

    Raises:
        TypeError: for a split that is no `datasets.Dataset`.
        ValueError: for names that are no split, nothing that is forgotten, and inputs of both kinds or of neither.
    """
    if splits is None:
        if train is None or test is None or request is None:
            missing = [name for name, x in (("train", train), ("test", test), ("request", request)) if x is None]
            raise ValueError(f"{', '.join(missing)} missing: give train, test and request, or splits")
        return four_splits(train, test, request, label_column=label_column, id_column=id_column)
    if train is not None or test is not None:
        raise ValueError("give either train and test or splits, not both")
    if unknown := [name for name in splits if name not in SPLITS]:
        raise ValueError(f"splits: {unknown[0]!r} is none of {list(SPLITS)}")
    if wrong := [name for name, part in splits.items() if not isinstance(part, Dataset)]:
        raise TypeError(f"splits: {wrong[0]} is a {type(splits[wrong[0]]).__name__}; expected a datasets.Dataset")
    filled = [name for name, part in splits.items() if len(part)]
    if not any(name.startswith("forget") for name in filled):
        raise ValueError("splits: there is no image to forget, neither in forget_train nor in forget_test")
    empty = splits[filled[0]].select([])
    return {name: splits.get(name, empty) for name in SPLITS}


def question_of(
    models: Mapping[str, ModelInfo],
    splits: Mapping[str, Dataset],
    labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    settings: AuditSettings,
    *,
    request: ForgetRequest | None = None,
    downstream: tuple[Dataset, Dataset] | None = None,
    dataset_name: str | None = None,
) -> Question:
    """The question about the images of some splits, or about `max_images` of each.

    Args:
        models: as in `Question`, like the others.
        splits: all four splits as they were given.
        labels: `(n,)` label ids of each split.
        class_names: names of the classes in the order of their label ids.
        settings: how the audit measures.
        request: what was to be forgotten.
        downstream: other labelled images.
        dataset_name: name of the dataset in the report.
    """
    rows = {name: drawn_evenly(settings.max_images, ids, settings.seed) for name, ids in labels.items()}
    return Question(
        models=models,
        splits={name: part.select(rows[name]) for name, part in splits.items()},
        labels={name: ids[rows[name]] for name, ids in labels.items()},
        class_names=class_names,
        whole_classes=_whole_classes(labels),
        test_rows={
            "forget_test": rows["forget_test"],
            "retain_test": rows["retain_test"] + len(splits["forget_test"]),
        },
        settings=settings,
        request=request,
        downstream=downstream,
        dataset_name=dataset_name,
    )


def kept_rows(question: Question) -> dict[str, np.ndarray]:
    """The ascending rows of each split that keep their features, chosen from labels alone.

    Each class has the same share of the sample sizes, at least five rows; forgotten classes have more where they are
    few.
    """
    rows = {}
    for part in ("train", "test"):
        quota = quota_per_class(question, part)
        of_forgotten = max(quota, ceil(FORGET_SAMPLE / max(len(question.whole_classes), 1)))
        quotas = dict.fromkeys(range(len(question.class_names)), quota)
        quotas |= dict.fromkeys(question.whole_classes, of_forgotten)
        for name in (f"forget_{part}", f"retain_{part}"):
            rows[name] = stratified_rows(question.labels[name], quotas, question.seed)
    return rows


def quota_per_class(question: Question, part: str) -> int:
    """How many images of a class keep their features, where all classes have as many.

    Args:
        question: the question.
        part: "train" or "test".
    """
    size = {"train": question.settings.train_sample, "test": question.settings.test_sample}[part]
    present = np.unique(np.concatenate([question.labels[f"forget_{part}"], question.labels[f"retain_{part}"]]))
    return max(LEAST_PER_CLASS, ceil(size / max(len(present), 1)))


def drawn_evenly(count: int | None, labels: np.ndarray, seed: int) -> np.ndarray:
    """Ascending rows: about so many, drawn at random and of all classes alike; all where the count is None.

    Args:
        count: number of rows.
        labels: `(n,)` label ids.
        seed: seed of the random draw.
    """
    if count is None:
        return np.arange(len(labels))
    return stratified_rows(labels, ceil(count / max(len(np.unique(labels)), 1)), seed)


def _whole_classes(labels: Mapping[str, np.ndarray]) -> list[int]:
    """Label ids that are forgotten with all their images, rather than some of their images."""
    forget, retain = (
        {int(label) for name, ids in labels.items() if name.startswith(half) for label in np.unique(ids)}
        for half in ("forget", "retain")
    )
    return sorted(forget - retain)
