"""Adapters of PEFT on a classifier, such as LoRA: the model without them is the original, and merging makes it plain.

This is the one place that knows PEFT. Everything else works on `base_of(model)`, an ordinary `PreTrainedModel` with
adapter layers inside it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.data.columns import shown
from ec_hf.files import ADAPTER_CONFIG, HEADS, read_json
from ec_hf.models.trial import trial_images

__all__ = [
    "adapters_off",
    "base_name",
    "base_of",
    "check_adapters",
    "describe_adapters",
    "is_adapted",
    "load_adapted",
    "load_adapters",
    "merged",
    "original_state",
]

ROUNDING = 1e-4
"""How far a logit may move, against the largest one, when adapters that change nothing are switched off."""


def is_adapted(model: Any) -> bool:
    """Whether a model carries adapters of PEFT, which is not imported for the question."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def base_of(model: Any) -> PreTrainedModel:
    """The `PreTrainedModel` inside a PEFT model, with the adapters in it; any other model as it is."""
    return model.get_base_model() if is_adapted(model) else model


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The original model: adapters switched off, and every layer in evaluation mode.

    Args:
        model: a PEFT model; afterwards it is in the modes that it was in.
    """
    modes = {module: module.training for module in model.modules()}
    with model.disable_adapter():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def original_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of the original by their names in a plain model: without adapters, if there are any."""
    if not is_adapted(model):
        return model.state_dict()
    prefix = f".{model.base_model.prefix}"  # type: ignore[union-attr] # "lora_" and the like
    return {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): value
        for name, value in base_of(model).state_dict().items()
        if prefix not in f".{name}" and ".modules_to_save." not in name
    }


def describe_adapters(model: Any) -> dict[str, Any]:
    """What kind of adapters a PEFT model has, as JSON values; empty for any other model."""
    if not is_adapted(model):
        return {}
    config = model.peft_config[model.active_adapter].to_dict()
    kind = config["peft_type"]
    targets = config.get("target_modules")
    rest = {
        name: config.get(name) for name in ("r", "lora_alpha", "use_rslora", "modules_to_save") if config.get(name)
    }
    return {
        "peft_type": str(getattr(kind, "value", kind)),
        "target_modules": sorted(targets) if isinstance(targets, (set, list, tuple)) else targets,
        **rest,
    }


def check_adapters(model: Any, image_shape: tuple[int, int, int]) -> None:
    """Refuse adapters through which nothing can be erased.

    Args:
        model: a PEFT model.
        image_shape: (channels, height, width) of its images.

    Raises:
        ValueError: the adapters are no layers of the model or cannot be merged into them, none of their weights is
            trainable, or they change what the model answers, so that the model without them is not the original.
    """
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ValueError(
            f"model: adapters of type {describe_adapters(model)['peft_type']} cannot be merged into its layers; use "
            "adapters of layers, such as peft.LoraConfig."
        )
    if grouped := grouped_convolutions(model):
        raise ValueError(
            f"model: its adapters on {shown(grouped)} cannot be merged, because PEFT merges none into a convolution "
            "in groups, such as a depthwise one: leave these out of target_modules."
        )
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(
            "model: none of its adapters' weights is trainable; make them with peft.get_peft_model(model, config)."
        )
    base = base_of(model)
    images = trial_images(base, image_shape)
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad():
        on = model.eval()(pixel_values=images).logits
        with adapters_off(model):
            off = model(pixel_values=images).logits
    for module, mode in modes.items():
        module.training = mode
    if (on - off).abs().max() > ROUNDING * off.abs().max():
        raise ValueError(
            "model: its adapters change what it answers, so the model without them is not the one to erase from. "
            "Merge them (model.merge_and_unload()) and put new ones on with peft.get_peft_model. A resumed run "
            "begins with new ones too, and loads those of the checkpoint."
        )


def grouped_convolutions(model: Any) -> list[str]:
    """Names of the convolutions in groups that have a LoRA adapter."""
    return [
        name
        for name, module in base_of(model).named_modules()
        if hasattr(module, "lora_A") and getattr(module.get_base_layer(), "groups", 1) > 1
    ]


def load_adapters(model: Any, folder: str | Path) -> None:
    """Load the weights of adapters into a PEFT model that has adapters of the same kind.

    Raises:
        ValueError: the folder holds no adapters, or those of other layers.
    """
    import peft  # an optional extra; a PEFT model is there, so it is installed

    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder} holds no {ADAPTER_CONFIG}: name a folder that a model with adapters was saved into."
        )
    weights = peft.load_peft_weights(str(folder), device="cpu")
    mine = set(peft.get_peft_model_state_dict(model))
    if odd := sorted(mine ^ set(weights)):
        raise ValueError(f"{folder} does not fit the model's adapters: they differ in {', '.join(odd[:4])}.")
    peft.set_peft_model_state_dict(model, weights)


def load_adapted(folder: Path, base: PreTrainedModel) -> PreTrainedModel:
    """A plain model from a folder of adapters and the model that they belong to, which is changed.

    Raises:
        ImportError: PEFT is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(f"{folder} holds adapters: `pip install ec_hf[peft]` loads them.") from error
    return merged(peft.PeftModel.from_pretrained(base, str(folder)), in_place=True)


def base_name(folder: Path) -> str:
    """Name of the model to which the adapters in a folder belong.

    Raises:
        ValueError: the folder does not say it.
    """
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{folder}: its {ADAPTER_CONFIG} names no base_model_name_or_path, so write its name there.")
    return str(name)


def merged(model: Any, *, in_place: bool = False) -> PreTrainedModel:
    """A plain model that does what the adapted one does; a model without adapters as it is.

    Args:
        model: a PEFT model, or any other.
        in_place: whether the given model may be used up for it; else it is copied, and stays as it is.

    Raises:
        ValueError: EC heads are attached to it.
    """
    if not is_adapted(model):
        return model
    if hasattr(base_of(model), HEADS):
        raise ValueError("model: EC heads are attached to it; merge its adapters after the training.")
    plain = (model if in_place else copy.deepcopy(model)).merge_and_unload()
    return plain.requires_grad_(True)
