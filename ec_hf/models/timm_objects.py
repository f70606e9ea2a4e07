"""Objects of timm, as the checkpoints that transformers loads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TimmWrapperConfig, TimmWrapperForImageClassification

from ec_hf.files import first_line
from ec_hf.models.trial import trial_images

__all__ = ["as_timm_wrapper", "is_timm", "timm_image_shape", "timm_processor"]

MADE_WRONG = (RuntimeError, TypeError, ValueError, AssertionError, KeyError, AttributeError, NotImplementedError)
"""What timm raises where it cannot make a network of such arguments."""


def is_timm(module: Any) -> bool:
    """Whether a module is a classifier that timm made."""
    told = getattr(module, "pretrained_cfg", None)
    return type(module).__module__.startswith("timm.") and isinstance(told, Mapping) and bool(told.get("architecture"))


def timm_image_shape(module: Any) -> tuple[int, int, int]:
    """``(channels, height, width)`` of the images that a timm object was made for."""
    channels, height, width = module.pretrained_cfg["input_size"]
    first = next((each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)), channels)
    made_for = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return (first, *(made_for or (height, width)))


def timm_processor(module: Any, shape: tuple[int, int, int] | None) -> Any:
    """The image processor that the ``pretrained_cfg`` of a timm object describes.

    Args:
        module: the object.
        shape: of its images; its own if left out.
    """
    from transformers import TimmWrapperImageProcessor  # slow to import

    config = {**module.pretrained_cfg, "input_size": tuple(shape or timm_image_shape(module))}
    return TimmWrapperImageProcessor(pretrained_cfg=config, architecture=config["architecture"])


def as_timm_wrapper(
    module: Any,
    shape: tuple[int, int, int],
    labels: Mapping[str, Any],
    processor: Any,
    model_args: Mapping[str, Any],
) -> tuple[PreTrainedModel | None, str]:
    """A timm object inside the class of transformers that will load it again.

    timm does not keep the arguments that an object was made with. The image size is read off it; whether all others
    are the defaults is tried out: a network that is made anew must take the weights and answer the same.

    Args:
        module: the object, which becomes a part of the model.
        shape: of its images.
        labels: ``num_labels``, ``id2label`` and ``label2id``.
        processor: prepares its images.
        model_args: further arguments that it was made with.

    Returns:
        The model; or None, and why not.
    """
    architecture = module.pretrained_cfg["architecture"]
    arguments = {**_told(module), **model_args}
    pooling = getattr(module, "global_pool", None)
    tries = [arguments]
    if isinstance(pooling, str) and pooling and "global_pool" not in arguments:
        tries.append({**arguments, "global_pool": pooling})
    why = "it has no forward_intermediates, so transformers shows none of its layers"
    for each in tries if hasattr(module, "forward_intermediates") else []:
        config = TimmWrapperConfig(architecture=architecture, model_args=each or None, **labels)
        try:
            if why := _other_names(module, config):
                continue
            with torch.random.fork_rng(devices=[]):
                wrapper = TimmWrapperForImageClassification(config)
            why = _other_logits(wrapper.timm_model, module, shape)
        except MADE_WRONG as error:
            why = first_line(error)
        if not why:
            config.pretrained_cfg = _described(module, shape, processor)
            wrapper.timm_model = module
            wrapper.image_processor = processor
            return wrapper.train(module.training), ""
    return None, (
        f"model: timm's {architecture!r}, made with {dict(arguments) or 'no further arguments'}, is another network "
        f"than the given one: {why}. So its state dict is what will be saved, and transformers will not load it. "
        "Where the network can be made by its name, give its arguments: ec_hf.as_classifier(network, "
        "model_args={...})."
    )


def _told(module: Any) -> dict[str, Any]:
    """Arguments that can be read off an object where they are not the defaults."""
    channels, height, width = module.pretrained_cfg["input_size"]
    own_channels, *size = timm_image_shape(module)
    told: dict[str, Any] = {"in_chans": own_channels} if own_channels != channels else {}
    return told | ({"img_size": size} if tuple(size) != (height, width) else {})


def _other_names(module: nn.Module, config: TimmWrapperConfig) -> str:
    """How the weights of a network made of a configuration differ from an object's in name or shape; empty if not."""
    import timm  # slow to import

    with torch.device("meta"):  # takes no time and no memory
        made = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
    ours, theirs = module.state_dict(), made.state_dict()
    odd = [name for name in {**ours, **theirs} if _shape(ours.get(name)) != _shape(theirs.get(name))]
    return f"they differ in {', '.join(sorted(odd)[:3])}" if odd else ""


def _other_logits(made: nn.Module, module: nn.Module, shape: tuple[int, int, int]) -> str:
    """Whether a network that was made anew answers otherwise than an object whose weights it gets; empty if not."""
    made.load_state_dict(module.state_dict())
    weight = next(module.parameters())
    images = trial_images(module, shape)
    was_training = module.training
    try:
        with torch.no_grad():
            found, expected = made.to(weight).eval()(images), module.eval()(images)
    finally:
        module.train(was_training)
    return "" if torch.allclose(found, expected, rtol=1e-4, atol=1e-5) else "their logits differ"


def _shape(value: Any) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def _described(module: Any, shape: tuple[int, int, int], processor: Any) -> dict[str, Any]:
    """The object's ``pretrained_cfg`` with the images that it takes, by which its checkpoint prepares them."""
    config = {**copy.deepcopy(module.pretrained_cfg), "input_size": list(shape)}
    config.pop("num_classes", None)
    mean, std = (getattr(processor, name, None) for name in ("image_mean", "image_std"))
    return config | ({"mean": list(mean), "std": list(std)} if mean and std else {})
