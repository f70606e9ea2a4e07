"""A new classifier on frozen features: what the features still tell, with a few images of each forgotten class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from ec_hf.auditing.attacks.base import BATCH, Attack, AttackImages, Outcome
from ec_hf.auditing.subjects import Subject
from ec_hf.metrics import probe_hits

__all__ = ["NewHead"]


@dataclass(frozen=True)
class NewHead(Attack):
    """Fits a linear classifier from zero to the features of retain images and of so many images a forgotten class.

    The features are what the model's own classifier reads, or its deepest hidden state where no layer is known to give
    the logits. The old classifier is not used, so that a logit that was masked or dropped hides nothing.
    """

    unit: Literal["images a class"] = "images a class"
    level: Literal["quick", "full"] = "full"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        if not subject.points:
            raise ValueError(f"{type(subject.model).__name__} has no layer whose features a new head could read")
        if not len(images.retained):
            raise ValueError("a new head needs retain images, to tell the forgotten ones from")
        forgotten, retained, asked = (
            _features(subject, DataLoader(part, batch_size=BATCH, collate_fn=subject.collator))
            for part in (images.forgotten, images.retained, images.held_out)
        )
        if not all(np.isfinite(features).all() for features, _ in (forgotten, retained, asked)):
            raise ValueError("features are NaN or infinite")
        hits = []
        for shots in images.shots:
            rows = images.rows_of_each_class(shots)
            features, labels = (
                np.concatenate([few[rows], many]) for few, many in zip(forgotten, retained, strict=True)
            )
            hits.append(probe_hits(features, labels, *asked))
        settings = {"layer": subject.layers[-2], "retained": len(images.retained), "classifier": "logistic regression"}
        return Outcome(images.shots, np.stack(hits), self.unit, settings)


@torch.inference_mode()
def _features(subject: Subject, batches: Iterable[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """`(n, width)` features of the last layer before the logits, and `(n,)` label ids."""
    found = [(subject.run(batch["pixel_values"], "all")[-2].cpu(), batch["labels"]) for batch in batches]
    features, labels = zip(*found, strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()
