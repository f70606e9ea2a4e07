"""Architectures to train from new weights: a few that learn on small images within minutes, and all of timm's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ec_hf.models.loading import new_like

__all__ = ["ARCHITECTURES", "build"]


def build(architecture: str, size: int, channels: int, names: Sequence[str]) -> tuple[PreTrainedModel, Any]:
    """A classifier with random weights for square images, and its image processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if architecture in ARCHITECTURES:
        model = ARCHITECTURES[architecture](size, num_channels=channels, num_labels=len(names), **labels)
        pixels: dict[str, Any] = {
            "image_mean": [0.5] * channels,
            "image_std": [0.5] * channels,
            "do_convert_rgb": channels == 3,
        }
        return model, ViTImageProcessor(size={"height": size, "width": size}, **pixels)
    return build_timm(architecture, size, channels, labels)


def build_vit(size: int, blocks: int = 10, **config: Any) -> ViTForImageClassification:
    """Narrow blocks on 16 patches: depth to unlearn in, at the cost of a few seconds an epoch."""
    patch = size // 4 if size <= 32 else 8 if size <= 64 else 16
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=48,
            num_hidden_layers=blocks,
            num_attention_heads=3,
            intermediate_size=96,
            image_size=size,
            patch_size=patch,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.07,  # the usual 0.02 is meant for hundreds of channels: here it costs half the epochs
            **config,
        )
    )


def build_resnet(_size: int, **config: Any) -> ResNetForImageClassification:
    """Three stages of one basic block, 312,000 parameters: fit for images of 32 x 32."""
    sizes: dict[str, Any] = {
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }
    return ResNetForImageClassification(ResNetConfig(**sizes, **config))


def build_resnet34_narrow(_size: int, **config: Any) -> ResNetForImageClassification:
    """ResNet-34 at a quarter of its width, 1.3 million parameters: sixteen blocks to unlearn in."""
    sizes: dict[str, Any] = {
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [3, 4, 6, 3],
        "layer_type": "basic",
    }
    return ResNetForImageClassification(ResNetConfig(**sizes, **config))


ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "resnet": build_resnet,
    "resnet34_narrow": build_resnet34_narrow,
    "vit": build_vit,
    "vit12": partial(build_vit, blocks=12),
}


def build_timm(architecture: str, size: int, channels: int, labels: Mapping[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Any timm model, through the wrapper that AutoModelForImageClassification loads."""
    import timm  # slow to import
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    if not timm.is_model(architecture):
        raise ValueError(f"unknown architecture {architecture!r}: neither in {sorted(ARCHITECTURES)} nor a timm model")
    arguments: dict[str, Any] = {"in_chans": channels}
    if getattr(timm.get_pretrained_cfg(architecture), "fixed_input_size", False):
        arguments["img_size"] = size
    pixels = {"input_size": [channels, size, size], "mean": [0.5] * channels, "std": [0.5] * channels, "crop_pct": 1.0}
    of_any_model: dict[str, Any] = {"num_labels": len(labels["id2label"]), "pretrained_cfg": pixels, **labels}
    config = TimmWrapperConfig(architecture=architecture, model_args=arguments, **of_any_model)
    model = new_like(TimmWrapperForImageClassification(config))
    return model, TimmWrapperImageProcessor(pixels, architecture)
