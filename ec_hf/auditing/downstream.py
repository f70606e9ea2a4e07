"""k-NN accuracy on other labelled images: are the features still of use elsewhere?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Generator
from torch.utils.data import random_split

from ec_hf.auditing.forward import features_of
from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.question import Question, drawn_evenly
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.subjects import Subject
from ec_hf.data.columns import find_image_column, find_label_column, read_column
from ec_hf.data.sources import train_and_test
from ec_hf.metrics import knn_hits

__all__ = ["bank_and_queries", "downstream_accuracies"]

NEIGHBOURS = 5


def bank_and_queries(data: Any) -> tuple[Dataset, Dataset]:
    """What k-NN learns from and what it classifies: the splits there are, or as UUEF draws them, 80 to 20 with seed 2.

    Args:
        data: a dataset, or splits by name.

    Raises:
        ValueError: for anything else, and for fewer than five rows.
    """
    if isinstance(data, Mapping) and len(data) > 1:
        return train_and_test(data)
    data = next(iter(data.values())) if isinstance(data, Mapping) else data
    if not isinstance(data, Dataset) or len(data) < 5:
        raise ValueError(
            "downstream: expected a datasets.Dataset of at least five rows, or {'train': ..., 'test': ...}"
        )
    bank, queries = random_split(data, [0.8, 0.2], generator=Generator().manual_seed(2))
    return data.select(bank.indices), data.select(queries.indices)


def downstream_accuracies(question: Question, subjects: Mapping[str, Subject]) -> tuple[list[Measurement], list[str]]:
    """k-NN accuracy on the downstream images from frozen features, and notes on models that have none.

    Args:
        question: what is asked, with downstream images.
        subjects: the models by name.
    """
    assert question.downstream is not None
    settings = question.settings
    bank, queries = question.downstream
    column = find_label_column(bank)
    values = sorted({value for part in (bank, queries) for value in read_column(part, column).unique().to_pylist()})
    ids = {value: k for k, value in enumerate(values)}
    penultimate = settings.downstream_features == "penultimate"
    frozen = _frozen(subjects, find_image_column(bank), column, ids, penultimate)

    def looked_at(part: Dataset) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features by model, and label ids, of about `max_images`."""
        labels = np.array([ids[value] for value in read_column(part, column).to_pylist()])
        rows = drawn_evenly(settings.max_images, labels, question.seed)
        features = features_of(
            frozen, part.select(rows), pooling=settings.pooling, batch_size=settings.batch_size, title="Downstream"
        )
        return features, labels[rows]

    (known, known_labels), (asked, asked_labels) = looked_at(bank), looked_at(queries)
    measurements = []
    for name, subject in frozen.items():
        hits = np.full(len(asked_labels), np.nan)
        if np.isfinite(known[name]).all() and np.isfinite(asked[name]).all():
            hits = knn_hits(known[name], known_labels, asked[name], asked_labels, k=min(NEIGHBOURS, len(known_labels)))
        fields = {"split": "downstream", "layer": subject.layers[0], "chance": 1 / len(ids)}
        measurements.append(mean_over_images("knn_downstream", name, hits, question.seed, **fields))
    bare = ", ".join(name for name, subject in subjects.items() if not subject.points)
    note = f"k-NN on the downstream set sees the logits of {bare}, which have no other layer."
    return measurements, [note] if penultimate and bare else []


def _frozen(
    subjects: Mapping[str, Subject], image_column: str, label_column: str, label_ids: Mapping[Any, int], deepest: bool
) -> dict[str, Subject]:
    """The models as they see the downstream images; models that shared a collator share the new one."""
    collators = {
        id(collator): replace(collator, image_column=image_column, label_column=label_column, label_ids=label_ids)
        for collator in (subject.collator for subject in subjects.values())
    }
    return {
        name: replace(subject, collator=collators[id(subject.collator)], points=subject.points[-1:] if deepest else ())
        for name, subject in subjects.items()
    }
