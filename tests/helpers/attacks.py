"""A tiny model under attack, and the images that the attack gets."""

from __future__ import annotations

import numpy as np

from ec_hf.auditing.attacks.base import AttackImages
from ec_hf.auditing.subjects import Loaded, Subject, info, subjects_of
from helpers.models import make_images, make_model, make_processor

FORGOTTEN = (1, 3)


def subject_of(model) -> Subject:
    """A model and how it is run."""
    images = {"forget_train": make_images(10)}
    loaded = {"original": Loaded(model.eval(), make_processor(), info(model, "original"))}
    return subjects_of(loaded, images)[0]["original"]


def images_for(shots: int = 6, held_out: int = 12, seed: int = 0) -> AttackImages:
    """Images of two forgotten classes, so many of each to learn from and others to ask about, beside retained ones."""
    data, other = make_images(10 * shots), make_images(3 * held_out, seed=1)
    labels = np.array(data["label"])
    forgotten = np.concatenate([np.flatnonzero(labels == label)[:shots] for label in FORGOTTEN])
    retained = np.flatnonzero(~np.isin(labels, FORGOTTEN))
    asked = np.flatnonzero(np.isin(other["label"], FORGOTTEN))[:held_out]
    return AttackImages(
        forgotten=data.select(forgotten),
        retained=data.select(retained),
        held_out=other.select(asked),
        forgotten_labels=labels[forgotten],
        retained_labels=labels[retained],
        split="forget_test",
        seed=seed,
    )


def subject_and_images(family: str, **model) -> tuple[Subject, AttackImages]:
    """A model of a family, and images to attack it with."""
    return subject_of(make_model(family, **model)), images_for()
