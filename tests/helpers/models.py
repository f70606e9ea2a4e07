"""Tiny models of every family and a tiny data set that can be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil

NAMES = ["ant", "bee", "cat", "dog", "elk"]
LABELS = {"num_labels": 5, "id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
_VIT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
_PATCHES = {"image_size": 32, "patch_size": 8, **LABELS}
_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], **LABELS}
_WINDOWS = {"image_size": 32, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], **LABELS}

FAMILIES = {
    "ViT": lambda **kw: transformers.ViTConfig(**_VIT, **_PATCHES, **kw),
    "DeiT": lambda **kw: transformers.DeiTConfig(**_VIT, **_PATCHES, **kw),
    "Beit": lambda **kw: transformers.BeitConfig(**_VIT, **_PATCHES, **kw),
    "Dinov2": lambda **kw: transformers.Dinov2Config(**_VIT, **_PATCHES, **kw),
    "Dinov2WithRegisters": lambda **kw: transformers.Dinov2WithRegistersConfig(**_VIT, **_PATCHES, **kw),
    "Siglip": lambda **kw: transformers.SiglipConfig(vision_config={**_VIT, **_PATCHES}, **LABELS, **kw),
    "Swin": lambda **kw: transformers.SwinConfig(patch_size=2, window_size=2, **_WINDOWS, **kw),
    "Swinv2": lambda **kw: transformers.Swinv2Config(patch_size=2, window_size=2, **_WINDOWS, **kw),
    "FocalNet": lambda **kw: transformers.FocalNetConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1, 1], **LABELS, **kw
    ),
    "ConvNext": lambda **kw: transformers.ConvNextConfig(image_size=32, patch_size=2, **_PYRAMID, **kw),
    "ResNet": lambda **kw: transformers.ResNetConfig(embedding_size=8, layer_type="basic", **_PYRAMID, **kw),
    "RegNet": lambda **kw: transformers.RegNetConfig(embedding_size=8, groups_width=4, **_PYRAMID, **kw),
    "MobileNetV2": lambda **kw: transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.25, **LABELS, **kw),
    "PvtV2": lambda **kw: transformers.PvtV2Config(
        image_size=32, num_attention_heads=[1, 1, 2, 2], num_encoder_blocks=4, **_PYRAMID, **kw
    ),
    "PoolFormer": lambda **kw: transformers.PoolFormerConfig(num_encoder_blocks=4, **_PYRAMID, **kw),
}
TIMM = {
    "timm ViT": ("test_vit", {"img_size": 32}),
    "timm ViT registers": (
        "vit_little_patch16_reg4_gap_256",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2},
    ),
    "timm ResNet": ("test_resnet", None),
    "timm ConvNeXt": ("test_convnext", None),
    "timm EfficientNet": ("test_efficientnet", None),
}


def make_model(family: str, seed: int = 0, **config):
    """A randomly initialised classifier of five classes."""
    torch.manual_seed(seed)
    if family in TIMM:
        architecture, arguments = TIMM[family]
        config = transformers.TimmWrapperConfig(
            architecture=architecture,
            num_labels=5,
            id2label=LABELS["id2label"],
            label2id=LABELS["label2id"],
            model_args=arguments,
        )
        model = transformers.TimmWrapperForImageClassification(config)
        model.config.pretrained_cfg = {**model.timm_model.pretrained_cfg, "input_size": (3, 32, 32)}
        return model
    return getattr(transformers, f"{family}ForImageClassification")(FAMILIES[family](**config))


def make_processor():
    """32x32 RGB, scaled to [-1, 1]."""
    return transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def make_images(count: int = 100, seed: int = 0) -> Dataset:
    """Noise in the colour of one of five classes, the same number of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    colours = np.random.default_rng(7).integers(0, 200, (len(NAMES), 3))
    pixels = colours[labels][:, None, None, :] + rng.integers(0, 50, (count, 32, 32, 3))
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    images = [Pil.fromarray(array.astype(np.uint8)) for array in pixels]
    return Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features)


def save_as_folder(folder: Path, **splits: Dataset) -> None:
    """Write each split as PNG files, in a folder for each class."""
    for split, images in splits.items():
        for number, row in enumerate(images):
            file = folder / split / NAMES[row["label"]] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(file)
