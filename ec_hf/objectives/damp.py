"""DAMP as a host objective."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import share
from ec_hf.objectives.projection import Layer, layer_inputs, linear_layers, remove_directions

__all__ = ["Damp", "forget_directions"]


@dataclass
class Damp(Objective):
    """What sets the forgotten classes apart, taken out of the input of each layer, more of it the deeper the layer.

        W_ℓ ← W_ℓ (I − α_ℓ Q_ℓ Q_ℓᵀ),   α_ℓ = strength · max(0, 2 a_ℓ − 1) · ℓ / L

    over the linear layers and ungrouped convolutions ℓ = 1 … L in the order in which they run. The features of a layer
    are its inputs, averaged over tokens or positions; the mean of a class over its images is its prototype. Q_ℓ spans
    what is left of the forgotten classes' prototypes outside the span of the retained ones, so that the response to a
    retained prototype stays as it is. a_ℓ tells how well the layer separates the two: of the images of each set, the
    share whose nearest prototype belongs to its own set, averaged over the two sets. All is measured on the original.

    The paper's α is a probe's separability times a ramp over depth too; the probe here, the nearest prototype, and the
    linear ramp are this project's reading of it. Left out: grouped convolutions, and layers that are no module of
    their own, such as the input projection of `nn.MultiheadAttention`. A layer with no more channels than there are
    retained classes has, as a rule, no such direction, and is left as it is. So is a layer that is frozen.

    Args:
        strength: from 0 to 1.

    Raises:
        ValueError: a setting out of range.
    """

    strength: float = 1.0

    name = "damp"
    trains = False
    published: ClassVar = {"objective_kwargs": {"strength": 1.0}}
    source = "Class Unlearning via Depth-Aware Removal of Forget-Specific Directions (DAMP), arXiv 2604.15166"

    def __post_init__(self) -> None:
        share(self, "strength")

    def check(self, forget_classes: int, whole_classes: bool) -> None:
        """Refuse single rows of a class."""
        if not whole_classes:
            raise ValueError(
                "objective 'damp' forgets whole classes: no retain image may have a forgotten class, and both sets "
                "must be `datasets` whose labels can be read without the images. Ask for classes, or choose another "
                "objective."
            )

    def prepare(self, setting: Setting) -> None:
        """Edit the layers.

        Raises:
            ValueError: the forget set is not whole classes, or no layer has a direction of theirs alone.
        """
        self.check(len(setting.forget_classes or ()), whole_classes=setting.forget_classes is not None)
        model = setting.model
        pair = next(iter(setting.retain()))["pixel_values"][:1].repeat(2, 1, 1, 1)
        layers = list(layer_inputs(model, linear_layers(model), pair))
        labels = model.config.num_labels
        forget = prototypes(model, layers, setting.forget(), labels)
        retain = prototypes(model, layers, setting.retain(), labels)
        directions = [forget_directions(forget[layer], retain[layer]) for layer in layers]
        if not any(basis.shape[1] for basis in directions):
            raise ValueError(
                "objective 'damp': at every layer the prototypes of the retained classes span those of the forgotten "
                "ones, so there is no direction to remove; the model is too narrow for this many classes"
            )
        found = [
            nearest_shares(model, layers, part(), own, other)
            for part, own, other in ((setting.forget, forget, retain), (setting.retain, retain, forget))
        ]
        for depth, (layer, basis) in enumerate(zip(layers, directions, strict=True), start=1):
            if layer.weight.requires_grad:
                separability = max(0.0, sum(shares[layer] for shares in found) - 1)
                remove_directions(layer, basis, self.strength * separability * depth / len(layers))

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """No loss."""
        return {}


def forget_directions(forget: Tensor, retain: Tensor, tolerance: float = 1e-3) -> Tensor:
    """Orthonormal directions of forget prototypes outside the span of the retain prototypes.

    Args:
        forget: (classes, channels).
        retain: (classes, channels).
        tolerance: a direction counts where more of the prototypes lies in it than this share of their length.

    Returns:
        (channels, directions), possibly with no direction.
    """
    _, scale, span = torch.linalg.svd(retain, full_matrices=False)
    span = span[scale > 1e-6 * scale[0]]
    rest = forget - forget @ span.T @ span
    _, scale, directions = torch.linalg.svd(rest, full_matrices=False)
    return directions[scale > tolerance * forget.norm(dim=1).max()].T


def prototypes(
    model: object, layers: list[Layer], batches: Iterable[Mapping[str, Tensor]], labels: int
) -> dict[Layer, Tensor]:
    """Mean inputs (classes with images, channels) of each layer."""
    sums: dict[Layer, Tensor] = {}
    counts = torch.zeros(labels, dtype=torch.float64)
    for batch in batches:
        members = F.one_hot(batch["labels"].cpu(), labels).T.double()
        counts += members.sum(dim=1)
        for layer, features in layer_inputs(model, layers, batch["pixel_values"]).items():
            sums[layer] = sums.get(layer, 0) + members @ features
    return {layer: total[counts > 0] / counts[counts > 0, None] for layer, total in sums.items()}


def nearest_shares(
    model: object,
    layers: list[Layer],
    batches: Iterable[Mapping[str, Tensor]],
    own: dict[Layer, Tensor],
    other: dict[Layer, Tensor],
) -> dict[Layer, float]:
    """At each layer, the share of the images that are nearer to one of their own prototypes than to any other."""
    hits: dict[Layer, float] = dict.fromkeys(layers, 0)
    images = 0
    for batch in batches:
        images += len(batch["labels"])
        for layer, features in layer_inputs(model, layers, batch["pixel_values"]).items():
            to_own, to_other = (torch.cdist(features, means[layer]).amin(dim=1) for means in (own, other))
            hits[layer] += (to_own < to_other).sum().item()
    return {layer: count / images for layer, count in hits.items()}
