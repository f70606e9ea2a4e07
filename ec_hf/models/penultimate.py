"""Penultimate features: what the classifier of a model reads, after the final norm and the model's own pooling.

The classifier is found by differentiation and not by the names of attributes, so that no family has to be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ec_hf.models.modules import tensor_of
from ec_hf.models.points import VECTOR, SupervisionPoint, image_shape
from ec_hf.models.trial import TRIAL_IMAGES, trial_images

__all__ = ["Layer", "Penultimate", "classifier_of", "penultimate_point"]

Layer = nn.Linear | nn.Conv2d


def classifier_of(model: PreTrainedModel, shape: tuple[int, int, int] | None = None) -> dict[str, Layer]:
    """The layers that give the logits, by name: one, or several whose outputs are averaged.

    They are found by one forward over random images. An output of theirs is known by the derivative of the logits in
    it, which is 1, or 1 over their number; that holds for weights of zero too.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        shape: ``(channels, height, width)`` of the images that the model will see; read from its configuration
            when left out.

    Returns:
        Linear layers and convolutions of one position, in the order in which they run. None of them where the logits
        are anything else, such as the mean over positions or the output of an activation.
    """
    images = trial_images(model, shape or image_shape(model))
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    outputs: dict[str, Tensor] = {}
    expected = TRIAL_IMAGES * int(model.config.num_labels or 0)

    def cut(name: str) -> Any:
        def hook(layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            whole_image = bool(args) and args[0].numel() == TRIAL_IMAGES * layer.weight[0].numel()
            if not whole_image or output.numel() != expected:
                return None
            outputs[name] = output.detach().requires_grad_()
            return outputs[name].clone()  # the model may change it in place

        return hook

    hooks = [layer.register_forward_hook(cut(name)) for name, layer in layers.items()]
    was_training = model.training
    try:
        with torch.enable_grad():
            logits = model.eval()(pixel_values=images).logits
    finally:
        model.train(was_training)
        for each in hooks:
            each.remove()
    return {name: layers[name] for name in _averaged(outputs, logits)}


def _averaged(outputs: Mapping[str, Tensor], logits: Tensor) -> list[str]:
    """Names of the outputs of which the logits are the mean; empty where they are not the mean of any."""
    if not outputs or not logits.requires_grad:
        return []
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    slopes = torch.autograd.grad(logits, list(outputs.values()), weights, allow_unused=True)
    used = {name: slope for name, slope in zip(outputs, slopes, strict=True) if slope is not None}
    if not used:
        return []
    mean = torch.stack([outputs[name].detach().flatten().float() for name in used]).mean(0)
    same = [_close(slope * len(used), weights) for slope in used.values()]
    return list(used) if all(same) and _close(mean, logits.detach()) else []


def _close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of as many values are equal up to rounding in the coarser of their types."""
    rounding = 16 * max(torch.finfo(each.dtype).eps for each in (found, expected))
    found, expected = found.flatten().double().cpu(), expected.flatten().double().cpu()
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(found, expected, rtol=rounding, atol=rounding * scale, equal_nan=True)


class Penultimate:
    """Takes what a classifier reads, and what named modules give, out of a forward that runs anyway.

        with Penultimate(classifier_of(model).values()) as penultimate:
            model(pixel_values=images)
        features = penultimate.take()

    The features have a gradient where the forward has one. In training mode they are what is left by a dropout in
    front of the classifier, for that is what it reads.

    Args:
        layers: the layers that give the logits; without any, nothing is taken of what they read.
        modules: the modules whose outputs are taken too, by name, for supervision points that are named after them.
    """

    def __init__(self, layers: Iterable[Layer], modules: Mapping[str, nn.Module] | None = None) -> None:
        self.layers, self.modules = tuple(layers), dict(modules or {})
        self._inputs: dict[Layer, Tensor] = {}
        self._outputs: dict[nn.Module, Any] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Take the features of each forward from now on."""
        self._handles = [
            *(layer.register_forward_pre_hook(self._keep) for layer in self.layers),
            *(module.register_forward_hook(self._keep_output) for module in self.modules.values()),
        ]

    def detach(self) -> None:
        """Leave the layers as they were."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> Tensor | None:
        """The features (batch, width) of the last forward, once; None without one, or without a classifier.

        Inputs of several layers stand side by side, in the order of the layers.
        """
        inputs = [self._inputs.pop(layer).flatten(1) for layer in self.layers if layer in self._inputs]
        return torch.cat(inputs, dim=1) if inputs else None

    def after(self, hidden_states: Sequence[Any] | None) -> tuple[Any, ...]:
        """The hidden states of the last forward, the outputs of named modules, and the penultimate features, if any.

        Raises:
            RuntimeError: a named module did not run.
        """
        if silent := [name for name, module in self.modules.items() if self._outputs.get(module) is None]:
            raise RuntimeError(
                f"{len(silent)} of the {len(self.modules)} modules that points are named after did not run, or gave "
                f"nothing: {', '.join(map(repr, silent[:4]))}. A model may leave a module out while it trains, or "
                "call its weights without the module. Name the module around it, or one behind it, in `points` (of an "
                "audit in `layers`); `dict(model.named_modules())` shows the names."
            )
        outputs = [self._outputs.pop(module) for module in self.modules.values()]
        features = self.take()
        return (*(hidden_states or ()), *outputs, *(() if features is None else (features,)))

    def _keep(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        self._inputs[layer] = args[0]

    def _keep_output(self, module: nn.Module, _args: tuple, output: Any) -> None:
        self._outputs[module] = tensor_of(output)

    def __enter__(self) -> Penultimate:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


def penultimate_point(layers: Iterable[Layer], index: int) -> list[SupervisionPoint]:
    """The penultimate layer as a supervision point, in a list that is empty without a classifier.

    Args:
        layers: the layers that give the logits.
        index: number of hidden states and named modules, behind which the features stand in what `Penultimate.after`
            gives.
    """
    width = sum(layer.weight[0].numel() for layer in layers)
    return [SupervisionPoint(index, VECTOR, width, height=1, width=1)] if width else []
