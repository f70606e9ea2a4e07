"""How far retain accuracy may fall on the images that decide: what is asked for, chance, and what they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ec_hf.auditing.earlier import checked_again
from ec_hf.data.erasure import ErasureData
from ec_hf.models.inputs import collator_for
from ec_hf.objectives import get_objective
from ec_hf.training.config import ECConfig

__all__ = ["floor_for", "lead_of_original", "retain_floor_for"]

LEAD_IMAGES = 2000
"""Images of each kind that tell how much better the original is on what it was trained on: to about a point."""


def floor_for(floor: float, images: int) -> float:
    """How far retain accuracy on so many images may fall before the true fall is known to be larger than `floor`.

    Where the true fall is `floor`, 95 % of samples of so many images show no larger one than this: the normal
    approximation, with answers that change on twice that share of the images. One image may always be lost.

    Args:
        floor: share by which retain accuracy may fall.
        images: number of retain images that decide.
    """
    return max(floor + 1.64 * math.sqrt(2 * floor / images), 1 / images)


def retain_floor_for(config: ECConfig, data: ErasureData) -> float:
    """How far retain accuracy may fall in a run on this data, by its settings and the images that decide."""
    if not 0 < config.retain_floor < 1:
        return config.retain_floor
    return min(1.0, floor_for(config.retain_floor, len(data.held_out.evaluated["retain"])))


def lead_of_original(config: ECConfig, data: ErasureData, model: PreTrainedModel, processor: Any) -> float:
    """By how much the original is better on the held-out retain images, which it was trained on, than on new ones.

    New weights never see these images, so that their accuracy is to be compared with the original's on test images.
    The unlearned model is shown none of these before the audit. 0 for other objectives, and without test images.

    Args:
        config: settings of the erasure.
        data: the images.
        model: the original model.
        processor: its image processor.
    """
    objective = get_objective(config.objective, **(config.objective_kwargs or {}))  # type: ignore[arg-type] # text became a dict
    sets = {"held out": data.held_out.evaluated["retain"], "test": data.splits.get("retain_test") or ()}
    if not (objective.from_scratch or objective.renews) or not all(map(len, sets.values())):
        return 0.0
    rng = np.random.default_rng(config.seed)
    few = {name: part.select(rng.permutation(len(part))[:LEAD_IMAGES]) for name, part in sets.items()}
    columns = {"image_column": config.image_column, "label_column": config.label_column}
    collator = collator_for(model, processor, few, **columns)
    label_column = data.columns["label_column"]
    found = checked_again(few, {"original": model}, collator, label_column=label_column, seed=config.seed)
    held_out, test = (each.value for each in found)
    return max(held_out - test, 0.0) if held_out is not None and test is not None else 0.0
