"""What the attacks share that change the stored weights of a model and learn nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.base import AttackImages
from ec_hf.auditing.attacks.fitting import hits_on, logits_of
from ec_hf.auditing.subjects import Subject

__all__ = ["hits_of_changed", "weighted_layers"]


def weighted_layers(model: nn.Module) -> list[nn.Module]:
    """All linear and convolution layers whose weights are in floating point."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [each for each in model.modules() if isinstance(each, kinds) and each.weight.is_floating_point()]


def hits_of_changed(
    subject: Subject,
    images: AttackImages,
    degrees: Sequence[Any],
    changed: Callable[[PreTrainedModel, Any], PreTrainedModel],
) -> np.ndarray:
    """Which held-out images a model classifies right when its weights are changed, (degrees, images) booleans.

    Args:
        subject: whose model is changed; it stays as it is.
        images: the held-out images among them are asked about.
        degrees: how much is changed, one row each.
        changed: makes a copy of the model that is changed to a degree.
    """
    tests, hits = images.tests(subject.collator), []
    for degree in degrees:
        model = changed(subject.model, degree)
        hits.append(hits_on(logits_of(model), tests, model))
    return np.stack(hits)
