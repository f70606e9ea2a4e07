"""Class-logit finishing: what becomes of the logits of forgotten classes in a model that is handed out.

It works on a copy, after erasure and apart from it: no feature changes, only the last layer. What is published is a
plain checkpoint all the same, so whoever holds it can add the class again; nothing hidden undoes or keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedModel

from ec_hf.models.penultimate import Layer, classifier_of

__all__ = ["FINISHES", "finished", "logit_layers"]

FINISHES = ("keep", "mask", "drop")
UNREACHABLE = -1e4
"""The logit of a masked class: far below any other, and within the range of float16."""


def finished(model: PreTrainedModel, classes: Collection[int], how: str) -> PreTrainedModel:
    """A copy of `model` in which the logits of some classes are kept, masked or dropped.

    ``mask`` sets their rows of the last layer to zero and their biases to -10,000, so that no image can reach them.
    ``drop`` removes the rows, and the other classes move up, in `id2label` and `label2id` too.

    Args:
        model: an image classifier.
        classes: label ids of the forgotten classes.
        how: "keep", "mask" or "drop".

    Raises:
        ValueError: no class is named, or one that the model does not have; fewer than two classes would be left; the
            logits are not the output of a layer; or the last layer has no bias to mask with.
    """
    if how not in FINISHES:
        raise ValueError(f"finish={how!r}: expected one of {', '.join(FINISHES)}")
    model = copy.deepcopy(model)
    if how == "keep":
        return model
    names = {int(label): name for label, name in (model.config.id2label or {}).items()}
    if not classes or (unknown := sorted(set(classes) - set(names))):
        what = f"the model has no label {unknown}" if classes else "no class is known to be forgotten as a whole"
        raise ValueError(f"finish={how!r}: {what}; finish='keep' leaves the logits as they are")
    kept = [label for label in names if label not in classes]
    if len(kept) < 2:
        raise ValueError(f"finish={how!r} would leave {len(kept)} of {len(names)} classes; a classifier needs two")
    for layer in logit_layers(model):
        _mask(layer, sorted(classes)) if how == "mask" else _keep_rows(layer, kept)
    if how == "drop":
        model.config.id2label = {new: names[old] for new, old in enumerate(kept)}
        model.config.label2id = {names[old]: new for new, old in enumerate(kept)}
        model.num_labels = len(kept)  # type: ignore[assignment]
    return model


def logit_layers(model: PreTrainedModel) -> list[Layer]:
    """The layers that give the logits, as `ec_hf.models.penultimate.classifier_of` finds them.

    Raises:
        ValueError: the logits are the output of no layer.
    """
    if layers := classifier_of(model):
        return list(layers.values())
    raise ValueError(
        f"the logits of {type(model).__name__} are not the output of its last linear layer, so a class cannot be "
        "masked or dropped there; finish='keep' leaves the model as it is"
    )


@torch.no_grad()
def _mask(layer: Layer, classes: list[int]) -> None:
    if layer.bias is None:
        raise ValueError(
            "finish='mask': the last layer has no bias that could make a class unreachable, and a checkpoint with one "
            "would not load; finish='drop' removes the class"
        )
    layer.weight[classes] = 0.0
    layer.bias[classes] = UNREACHABLE


def _keep_rows(layer: Layer, kept: list[int]) -> None:
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.detach()[kept].clone(), parameter.requires_grad))
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(kept))
