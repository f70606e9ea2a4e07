"""Tiny networks of as many families as transformers and timm have, each with the smallest images that it takes."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from helpers.models import FAMILIES, LABELS, TIMM, make_model

_WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_VIT = {**_WIDTH, "image_size": 32, "patch_size": 8}
_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_HEADS = {"num_attention_heads": [1, 1, 2, 2], "num_encoder_blocks": 4}
_WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2]}
_CLIP = {"vision_config": _VIT, "text_config": {**_WIDTH, "vocab_size": 8, "eos_token_id": 1, "bos_token_id": 0}}
_LATENTS = {
    "image_size": 32,
    "num_latents": 4,
    "d_latents": 16,
    "num_blocks": 1,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 2,
    "num_cross_attention_heads": 1,
}
_HGNET = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 16, 16],
    "stage_mid_channels": [4, 4, 8, 8],
    "stage_out_channels": [8, 16, 16, 32],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 2, 1],
    "embedding_size": 8,
}
_HIERA = {
    "image_size": [32, 32],
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "query_stride": [2, 2],
    "num_query_pool": 2,
    "masked_unit_size": [4, 4],
    "patch_stride": [2, 2],
    "patch_size": [3, 3],
    "patch_padding": [1, 1],
}
_LEVIT = {
    "image_size": 64,
    "hidden_sizes": [16, 16, 32],
    "num_attention_heads": [2, 2, 2],
    "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}
_EFFICIENT = {"width_coefficient": 0.1, "depth_coefficient": 0.1, "depth_divisor": 4, "hidden_dim": 128}
_MOBILE = {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32]}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bit": {"embedding_size": 8, "num_groups": 4, **_PYRAMID},
    "CLIP": _CLIP,
    "ConvNextV2": {"patch_size": 2, **_PYRAMID},
    "Cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "Data2VecVision": _VIT,
    "DonutSwin": _WINDOWS,
    "EfficientNet": {"image_size": 32, **_EFFICIENT},
    "HGNetV2": _HGNET,
    "Hiera": _HIERA,
    "IJepa": _VIT,
    "Levit": _LEVIT,
    "MetaClip2": _CLIP,
    "MobileNetV1": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileViT": _MOBILE,
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "PerceiverForImageClassificationConvProcessing": _LATENTS,
    "PerceiverForImageClassificationLearned": _LATENTS,
    "Pvt": {"image_size": 32, "patch_sizes": [4, 2, 2, 2], **_PYRAMID, **_HEADS},
    "Segformer": {**_PYRAMID, **_HEADS, "decoder_hidden_size": 16},
    "SwiftFormer": {"image_size": 32, "embed_dims": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "TextNet": {"hidden_sizes": [8, 8, 16, 16, 16], "stem_out_channels": 8},
    "ViTMSN": _VIT,
}
"""Name of the class, or what stands before "ForImageClassification" -> arguments of its configuration."""

_TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
_FOUR = {"depths": (1, 1, 2, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 2, 2)}
_TIMM_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (1, 1, 2, 1)}
_RESNET = {"channels": (8, 16, 16, 32), "layers": (1, 1, 2, 1)}
_TIMM_HIERA = {"img_size": (64, 64), "embed_dim": 8, "stages": (1, 1, 2), "q_pool": 2, "mask_unit_size": (4, 4)}

MORE_TIMM: dict[str, dict[str, Any]] = {
    # transformers
    "beit_base_patch16_224": _TIMM_VIT,
    "cait_xxs24_224": _TIMM_VIT,
    "convit_tiny": _TIMM_VIT,
    "crossvit_tiny_240": {"img_size": 240, "embed_dim": (16, 16), "num_heads": (2, 2), "depth": ((1, 2, 0),)},
    "deit3_small_patch16_224": _TIMM_VIT,
    "deit_tiny_distilled_patch16_224": _TIMM_VIT,
    "eva02_tiny_patch14_224": _TIMM_VIT,
    "naflexvit_base_patch16_gap": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},
    "naflexvit_base_patch16_siglip": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},  # SigLIP 2
    "vit_base_patch16_dinov3": _TIMM_VIT,
    "vit_base_patch16_siglip_224": _TIMM_VIT,
    "vit_base_patch16_siglip_gap_224": _TIMM_VIT,
    "test_vit3": {"img_size": 32},
    "test_vit_relpos": {"img_size": 32},
    "xcit_nano_12_p8_224": _TIMM_VIT,
    # transformers in stages
    "davit_tiny": _FOUR,
    "hiera_tiny_224": {**_TIMM_HIERA, "num_heads": 1},
    "pit_ti_224": {"img_size": 64, "base_dims": (8, 8, 8), "depth": (1, 2, 1), "heads": (1, 2, 2)},
    "pvt_v2_b0": _FOUR,
    "swin_tiny_patch4_window7_224": {**_TIMM_SWIN, "num_heads": (1, 2, 2, 2)},
    "swinv2_tiny_window8_256": {**_TIMM_SWIN, "num_heads": (1, 2, 2, 2)},
    "twins_svt_small": {"img_size": 32, **_FOUR},
    # convolutions with attention
    "edgenext_xx_small": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1)},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "mobilevit_xxs": {},
    "test_coatnet": {"img_size": 64},
    "test_maxvit": {"img_size": 64},
    # convolutions
    "densenet121": {"growth_rate": 4, "block_config": (2, 2, 2, 2)},
    "dla46_c": {},
    "fasternet_t0": {},
    "ghostnet_050": {},
    "inception_next_atto": {},
    "lcnet_035": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small_035": {},
    "mobilenetv5_base": {"channel_multiplier": 0.05},
    "regnetx_002": {},
    "repghostnet_050": {},
    "resnet18": _RESNET,
    "resnetv2_50": _RESNET,
    "starnet_s050": {},
    "test_byobnet": {},
    "test_efficientnet_gn": {},
    "test_mambaout": {},
    "test_nfnet": {},
}
"""timm name -> arguments of the model."""

ROWS = [*FAMILIES, *TIMM, *TRANSFORMERS, *MORE_TIMM]

CANNOT = {
    "DeiTForImageClassificationWithTeacher": "is made for inference alone, and takes no labels",
    "LevitForImageClassificationWithTeacher": "is made for inference alone, and takes no labels",
    "Dinat": "needs natten, a compiled library that is not a dependency",
    "ImageGPT": "reads the colours of pixels as words, and takes no pixel values",
    "PPLCNet": "returns its logits as last_hidden_state, and no logits",
    "ShieldGemma2": "is a language model that answers about an image",
    "Siglip2": "takes patches that are cut already, with masks and shapes beside them",
}
"""Classes of transformers that EC does not take, and why."""


def make_family(family: str, seed: int = 0) -> tuple[Any, int]:
    """A randomly initialised classifier of five classes, and the side of the images that it takes."""
    if family in TRANSFORMERS:
        torch.manual_seed(seed)
        arguments = TRANSFORMERS[family]
        kind = getattr(transformers, family if "ForImage" in family else f"{family}ForImageClassification")
        model = kind(kind.config_class(**arguments, **LABELS))
        size = arguments.get("image_size", 32)
        return model, size if isinstance(size, int) else size[0]
    if family in MORE_TIMM:
        torch.manual_seed(seed)
        arguments = MORE_TIMM[family]
        config = transformers.TimmWrapperConfig(architecture=family, model_args=arguments, **LABELS)
        model = transformers.TimmWrapperForImageClassification(config)
        size = arguments.get("img_size", 32)
        size = size if isinstance(size, int) else size[0]
        model.config.pretrained_cfg = {**model.timm_model.pretrained_cfg, "input_size": (3, size, size)}
        return model, size
    return make_model(family, seed), 32
