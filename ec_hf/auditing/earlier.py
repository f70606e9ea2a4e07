"""Earlier requests asked again: does the model still not know what it was made to forget before?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from ec_hf.auditing.forward import collect, evaluating
from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.subjects import Subject
from ec_hf.data.columns import find_label_column, read_column
from ec_hf.models.inputs import ImageCollator, label_ids_of

__all__ = ["checked_again"]


DROPPED = "the model has no output for these classes any more"


def checked_again(
    sets: Mapping[str, Dataset],
    models: Mapping[str, PreTrainedModel],
    collator: ImageCollator,
    *,
    label_column: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Measurement]:
    """Accuracy of models on the forget sets of earlier requests, for the measurements of an `AuditReport`.

    Started on several processes, they share the images and all return the same.

    Args:
        sets: by name, as `split` makes them of `earlier_requests`; the measurements have the name as their `split`.
        models: by their names in the report.
        collator: makes ``pixel_values`` and ``labels`` for all of them.
        label_column: as for `split`.
        batch_size: images a batch and process.
        seed: seed of the bootstrap's random draws.

    Returns:
        The measurements; without a value, and with a note, where the models have no label for a class of the set.
    """
    subjects = {name: Subject(model, collator) for name, model in models.items()}
    no_features = np.empty(0, dtype=int)
    measurements = []
    with evaluating(models.values(), PartialState().device):
        for name, part in sets.items():
            if not _has_labels(collator, part, label_column):
                measurements += [Measurement("accuracy", model, None, split=name, note=DROPPED) for model in models]
                continue
            labels = label_ids_of(part, collator, label_column)
            shown = collect(subjects, part, labels, no_features, batch_size=batch_size, name=name)
            hits = {model: figures["hit"] for model, figures in shown.outputs.items()}
            measurements += [mean_over_images("accuracy", model, hits[model], seed, split=name) for model in models]
    return measurements


def _has_labels(collator: ImageCollator, part: Dataset, label_column: str | None) -> bool:
    """Whether the models have a label for each image of a set; a published model may have lost that of a class."""
    held = read_column(part, find_label_column(part, label_column)).unique().to_pylist()
    return collator.label_ids is None or set(held) <= set(collator.label_ids)
