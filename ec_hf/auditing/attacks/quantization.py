"""Weights rounded as by quantisation, which undoes unlearning that moved them by less than a step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.base import Attack, AttackImages, Outcome
from ec_hf.auditing.attacks.weights import hits_of_changed, weighted_layers
from ec_hf.auditing.forward import features_of
from ec_hf.auditing.measures.outputs import mean_over_images
from ec_hf.auditing.question import Question, drawn_evenly
from ec_hf.auditing.report import Measurement
from ec_hf.auditing.subjects import Subject

__all__ = ["Quantization", "int8_accuracies", "quantized"]

INT8_IMAGES = 1000
BITS = (8, 6, 5, 4)


@dataclass(frozen=True)
class Quantization(Attack):
    """Stores the weights in fewer and fewer bits; nothing is learnt."""

    unit: Literal["bits"] = "bits"
    level: Literal["quick", "full"] = "quick"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        hits = hits_of_changed(subject, images, BITS, quantized)
        return Outcome(BITS, hits, self.unit, {"rounding": "to nearest, for each output channel"})


def quantized(model: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """A copy whose weights are rounded as by quantisation; it computes in the old dtype and runs anywhere.

    Rounded are the weights of all linear and convolution layers, to whole multiples of `max |w| / (2^(bits-1) - 1)`
    for each output channel (symmetric, no calibration data). Biases, norms, embeddings and activations stay.
    Unlearning that moved weights by less than half such a step is undone (Zhang et al. 2024, arXiv 2410.16454).

    Args:
        model: any model; it stays as it is.
        bits: bits of a weight, from 2 to 16.

    Raises:
        ValueError: for bits outside 2..16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits}: expected 2 to 16")
    model = copy.deepcopy(model)
    for layer in weighted_layers(model):
        weight: Any = layer.weight.data
        step = weight.float().abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
        step = step.clamp_min(torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.dim() - 1))
        weight.copy_((weight.float() / step).round() * step)
    return model


def int8_accuracies(question: Question, subjects: Mapping[str, Subject]) -> list[Measurement]:
    """Accuracy of the unlearned models on forgotten test images after their weights were rounded to 8 bits.

    Args:
        question: what is asked.
        subjects: the models by name.
    """
    labels = question.labels["forget_test"]
    chosen = drawn_evenly(INT8_IMAGES, labels, question.seed)
    images = question.splits["forget_test"].select(chosen)
    measurements = []
    for name in question.unlearned:
        rounded = {name: Subject(quantized(subjects[name].model, bits=8), subjects[name].collator)}
        logits = features_of(rounded, images, batch_size=question.settings.batch_size)[name]
        hits = logits.argmax(1) == labels[chosen]
        fields = {"split": "forget_test", "chance": 1 / logits.shape[1]}
        measurements.append(mean_over_images("accuracy_int8", name, hits, question.seed, **fields))
    return measurements
