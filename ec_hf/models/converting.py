"""From the weights that other code stored to a checkpoint that `AutoModelForImageClassification` loads."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import BitImageProcessor, PreTrainedConfig, PreTrainedModel, TimmWrapperConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ec_hf.data.columns import shown
from ec_hf.files import first_line
from ec_hf.models.layouts import LAYOUTS, QKV, Layout, layout_of, timm_layout

__all__ = ["Converted", "convert", "read_state"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPPED = 224 / 256
"""The share of the shorter side that is looked at, as torchvision, Swin's and the EC group's evaluation do."""
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training scripts keep the weights in a file, first found first taken."""
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Converted:
    """A classifier of transformers, made of weights that other code stored.

    Attributes:
        model: the classifier, in evaluation mode.
        processor: its image processor.
        layout: name of the layout that the weights were in.
        left_out: keys that were not taken over, since they carry nothing that is learned.
    """

    model: PreTrainedModel
    processor: Any
    layout: str
    left_out: tuple[str, ...]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by their plain names.

    Training scripts wrap the weights (``{"state_dict": ..., "epoch": ...}``) and prefix their names
    (``module.conv1.weight``); both are taken off. A pickle is read with ``weights_only=True``, so that no code in it
    runs.

    Args:
        path: a ``.safetensors`` file, or one that `torch.save` wrote, whatever it is called.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read so, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as tensors alone ({first_line(error)}). Where the file is whole and you trust it, "
            "load it with the code that wrote it and save its state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    while isinstance(found, Mapping) and (wrapper := next((key for key in WRAPPERS if _wraps(found, key)), None)):
        found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(isinstance(each, Tensor) for each in found.values()):
        held = shown(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"{path} holds no state dict: expected names with tensors, alone or under one of {', '.join(WRAPPERS)}; "
            f"found {held}"
        )
    return {_plain(name): tensor for name, tensor in found.items()}


def convert(
    state: Mapping[str, Tensor],
    *,
    layout: str | None = None,
    class_names: Sequence[str] | None = None,
    timm_architecture: str | None = None,
    num_attention_heads: int | None = None,
    image_size: int | None = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    ignored: str | None = None,
) -> Converted:
    """Turn a state dict into a classifier of transformers, with an image processor.

    The sizes of the network are read off the tensors' shapes. Every tensor finds its place and every place its tensor,
    else nothing is made.

    Args:
        state: tensors by name, as `read_state` gives them.
        layout: one of `ec_hf.models.layouts.LAYOUTS`; found by the names if left out.
        class_names: names of the classes, in the order of their ids.
        timm_architecture: name of the timm model that the state dict belongs to. It then becomes one of timm's models
            in transformers' wrapper, which needs timm to load; any architecture will do.
        num_attention_heads: of a ViT, where it is not one for each 64 channels; shapes do not tell it.
        image_size: side of the images in pixels, where the weights do not tell it; else 224, what timm says, or 32 for
            a ResNet for small images. The latter takes images of this size alone, which its processor magnifies.
        image_mean: mean of each channel by which pixels from 0 to 1 are normalised; else what the weights hold
            (``normalize.mean``), else ImageNet's, or what timm says.
        image_std: standard deviation, likewise.
        ignored: regular expression of whole keys to leave out, such as those of auxiliary modules.

    Raises:
        ValueError: for an unknown layout, keys that it lacks, weights that are missing or of another shape, a number
            of class names that is not the number of classes, and an image size or a number of heads that cannot be.
    """
    kept = {key: value for key, value in state.items() if not (ignored and re.fullmatch(ignored, key))}
    known = timm_layout(timm_architecture) if timm_architecture else _named(layout) if layout else layout_of(kept)
    names = _names(kept, known)
    if lacking := [key for key in (known.classifier, *known.has) if key not in kept]:
        raise ValueError(f"the weights lack {shown(lacking)}, which the layout {known.name} has")
    if num_attention_heads and "vit" not in known.name:
        raise ValueError(
            f"num_attention_heads={num_attention_heads}: the layout {known.name} tells its heads by itself"
        )
    config: Any = known.config(kept, num_attention_heads)
    _name_classes(config, len(kept[known.classifier]), class_names)
    mean = image_mean or _numbers(state, "normalize.mean")
    std = image_std or _numbers(state, "normalize.std")
    if isinstance(config, TimmWrapperConfig):
        side = image_size and image_size * known.magnified
        shape = side and (config.pretrained_cfg["input_size"][0], side, side)
        own = {"mean": mean, "std": std, "input_size": shape}
        config.pretrained_cfg |= {name: tuple(value) for name, value in own.items() if value}
        processor: Any = TimmWrapperImageProcessor(config.pretrained_cfg, config.architecture)
    else:
        processor = _processor(config, image_size, mean or MEAN, std or STD)
    model = _loaded(config, known.remade(_tensors(kept, names)), known.name)
    left_out = {*state} - {key for key, name in names.items() if name}
    return Converted(model, processor, known.name, tuple(sorted(left_out)))


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _wraps(found: Mapping[str, Any], key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _plain(name: str) -> str:
    while prefix := next((each for each in PREFIXES if name.startswith(each)), None):
        name = name.removeprefix(prefix)
    return name


def _named(layout: str) -> Layout:
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[layout]


def _names(state: Mapping[str, Tensor], layout: Layout) -> dict[str, str]:
    """What transformers calls each tensor; empty for those that are left out."""
    names = {key: layout.renamed(key) for key in state}
    if unknown := [key for key, name in names.items() if name is None]:
        raise ValueError(
            f"the layout {layout.name} has no place for {shown(unknown)}. If these are not needed, as those of "
            "auxiliary modules, leave them out by a regular expression (ignored); if they are a part of the network, "
            "it is another one: for a timm model give its name as timm_architecture."
        )
    return {key: name or "" for key, name in names.items()}


def _tensors(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under the names of transformers, fused projections cut into three."""
    tensors: dict[str, Tensor] = {}
    for key, name in names.items():
        if "{}" in name:
            parts = state[key].chunk(len(QKV))
            tensors |= {name.format(part): each.contiguous() for part, each in zip(QKV, parts, strict=True)}
        elif name:
            tensors[name] = state[key]
    return tensors


def _name_classes(config: PreTrainedConfig, classes: int, names: Sequence[str] | None) -> None:
    """Give the configuration its number of classes, and their names where there are any."""
    config.num_labels = classes
    if names is None:
        return
    if len(names) != classes or len(set(names)) != classes:
        raise ValueError(
            f"class_names: {len(names)} names, {len(set(names))} of them different, for weights of {classes} classes: "
            "give each class a name of its own, in the order of their ids"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}


def _loaded(config: PreTrainedConfig, tensors: dict[str, Tensor], layout: str) -> PreTrainedModel:
    """The classifier with these weights, each in its place."""
    kind: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model, report = kind.from_pretrained(
        None, config=config, state_dict=tensors, ignore_mismatched_sizes=True, output_loading_info=True
    )
    wrong = {
        "are missing": sorted(report["missing_keys"]),
        "have no place": sorted(report["unexpected_keys"]),
        "have another shape": sorted(str(key) for key, *_ in report["mismatched_keys"]),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{shown(keys)} {how}" for how, keys in wrong.items() if keys)
        raise ValueError(
            f"the weights do not make a {kind.__name__}, in the names of transformers: {listed}. Is the file whole, "
            f"and {layout} its layout?"
        )
    return model.float().eval()


def _numbers(state: Mapping[str, Tensor], key: str) -> tuple[float, ...] | None:
    return tuple(state[key].flatten().tolist()) if key in state else None


def _processor(config: Any, size: int | None, mean: Sequence[float], std: Sequence[float]) -> BitImageProcessor:
    """Resize, crop the middle and normalise, as the layouts' own evaluation does."""
    told = getattr(config, "image_size", None)
    if size and told and config.model_type == "vit" and size != told:
        raise ValueError(f"image_size={size}: the position embeddings are those of images of {told} pixels")
    if size and told:
        config.image_size = size
    side = size or told or 224
    return BitImageProcessor(
        size={"shortest_edge": round(side / CROPPED)},
        crop_size={"height": side, "width": side},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=config.num_channels == 3,
    )
