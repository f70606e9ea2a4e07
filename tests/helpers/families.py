"""Tiny networks of as many families as transformers and timm have, each with the smallest images that it takes."""

from __future__ import annotations

import contextlib

import torch
import transformers

from helpers.models import FAMILIES, LABELS, TIMM, make_model

_WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_SIZE = {"image_size": 32, "patch_size": 8}
_VIT = {**_WIDTH, **_SIZE}
_PYRAMID = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_ATTENTION = {"num_attention_heads": [1, 1, 2, 2], "num_encoder_blocks": 4}
_CLIP = {"vision_config": _VIT, "text_config": {**_WIDTH, "vocab_size": 8, "eos_token_id": 1, "bos_token_id": 0}}
_LATENTS = {"num_latents": 4, "d_latents": 16, "num_self_attends_per_block": 2, "num_self_attention_heads": 2}

TRANSFORMERS = {
    "Bit": {"embedding_size": 8, "num_groups": 4, **_PYRAMID},
    "CLIP": _CLIP,
    "ConvNextV2": {"patch_size": 2, **_PYRAMID},
    "Cvt": {"embed_dim": [8, 16, 16], "num_heads": [1, 2, 2], "depth": [1, 1, 2]},
    "Data2VecVision": _VIT,
    "Dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "DonutSwin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "EfficientNet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "depth_divisor": 4, "hidden_dim": 32},
    "HGNetV2": {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 16, 16],
        "stage_mid_channels": [4, 4, 8, 8],
        "stage_out_channels": [8, 16, 16, 32],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 2, 1],
        "embedding_size": 8,
    },
    "Hiera": {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "query_stride": [2, 2],
              "num_query_pool": 2, "masked_unit_size": [4, 4], "patch_stride": [2, 2], "patch_size": [3, 3], "patch_padding": [1, 1]},
    "IJepa": _VIT,
    "ImageGPT": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 17, "n_positions": 64},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 16, 32], "num_attention_heads": [2, 2, 2], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8], "stride": 2},
    "MetaClip2": _CLIP,
    "MobileNetV1": {"image_size": 32, "depth_multiplier": 0.25},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [4, 8, 8, 16, 16, 16, 32]},
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
    "PPLCNet": {"scale": 0.25},
    "Pvt": {"image_size": 32, "patch_sizes": [4, 2, 2, 2], **_PYRAMID, **_ATTENTION},
    "Segformer": {**_PYRAMID, **_ATTENTION, "decoder_hidden_size": 16},
    "Siglip2": {"vision_config": {**_WIDTH, "patch_size": 8, "num_patches": 16}},
    "SwiftFormer": {"image_size": 32, "embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "TextNet": {"hidden_sizes": [8, 8, 16, 16, 16], "stem_hidden_sizes": 8},
    "ViTMSN": _VIT,
}
