"""Layers with several names: a module may give what the model returns as a hidden state, or what is classified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ec_hf.models.modules import modules_at
from ec_hf.models.penultimate import Layer, Penultimate
from ec_hf.models.points import SupervisionPoint, hidden_state_kwargs, image_shape, take
from ec_hf.models.trial import trial_images

__all__ = ["twins"]


def twins(
    model: PreTrainedModel,
    points: Sequence[SupervisionPoint],
    classifier: Iterable[Layer] = (),
    shape: tuple[int, int, int] | None = None,
) -> list[tuple[SupervisionPoint, SupervisionPoint]]:
    """The pairs of points that have the same features, found by one forward over random images.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        points: hidden states, named modules and the penultimate layer.
        classifier: the layers that give the logits, where the penultimate layer is among the points.
        shape: ``(channels, height, width)`` of the images that the model will see; read from its configuration
            when left out.
    """
    images = trial_images(model, shape or image_shape(model))
    was_training = model.training
    try:
        with torch.no_grad(), Penultimate(classifier, modules_at(model, points)) as penultimate:
            output = model.eval()(pixel_values=images, **hidden_state_kwargs(model))
            states = penultimate.after(output.hidden_states)
    finally:
        model.train(was_training)
    features = {point: take(states, point).flatten() for point in points}
    return [(a, b) for a, b in combinations(features, 2) if _equal(features[a], features[b])]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
