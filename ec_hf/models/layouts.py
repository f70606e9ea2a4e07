"""Layouts in which other code stores classifiers: how to know one, and what transformers calls its tensors.

The names on the right are those of the files that `save_pretrained` writes; transformers' own loading brings them to
whatever the modules are called in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig, SwinConfig, TimmWrapperConfig, ViTConfig

__all__ = ["LAYOUTS", "Layout", "layout_of", "timm_layout"]

State = Mapping[str, Tensor]
Target = str | Callable[[re.Match], str]
QKV = ("query", "key", "value")
"""What a fused projection holds, one above the other, in this order."""
CHANNELS_A_HEAD = 64
STEM = (7, 7)


@dataclass(frozen=True)
class Layout:
    """One way to store the weights of a classifier.

    Attributes:
        name: what it is called on the command line.
        about: where such files come from.
        classifier: key of the weight that gives the logits.
        has: keys that every file of this layout has, beside that one, and by which it is known.
        renames: pattern of whole keys -> name in transformers; `{}` in it stands for each of `QKV` in turn, into which
            the tensor is then cut.
        left_out: pattern of whole keys that carry nothing which is learned.
        config: makes the configuration from the shapes of the tensors and from the number of attention heads, where
            that is given.
    """

    name: str
    about: str
    classifier: str
    has: tuple[str, ...]
    renames: Mapping[str, Target]
    left_out: str
    config: Callable[[State, int | None], PreTrainedConfig]

    def renamed(self, key: str) -> str | None:
        """What transformers calls a tensor; empty for one to leave out, None for a key that the layout lacks."""
        if re.fullmatch(self.left_out, key):
            return ""
        for pattern, target in self.renames.items():
            if match := re.fullmatch(pattern, key):
                return target(match) if callable(target) else match.expand(target)
        return None


def layout_of(keys: Iterable[str]) -> Layout:
    """The layout that has such keys.

    Raises:
        ValueError: none has.
    """
    keys = list(keys)
    for layout in LAYOUTS.values():
        if {layout.classifier, *layout.has} <= set(keys):
            return layout
    marks = {each.name: ", ".join([*each.has, each.classifier]) for each in LAYOUTS.values()}
    known = "; ".join(f"{layout.name} ({layout.about}) by {marks[layout.name]}" for layout in LAYOUTS.values())
    raise ValueError(
        f"the weights are in no layout that is known here: their keys begin {', '.join(keys[:4])}. Known are: "
        f"{known}. For the state dict of any other timm model give its name as timm_architecture."
    )


def count(keys: Iterable[str], pattern: str) -> int:
    """How many numbers, from 0 or 1 on, the first group of a pattern takes among the keys."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


# ResNet


def _in_stage(match: re.Match) -> str:
    """`layer1.0.conv2.weight` -> `resnet.encoder.stages.0.layers.0.layer.1.convolution.weight`."""
    stage, block, kind, number, rest = match.groups()
    part = {"conv": "convolution", "bn": "normalization"}[kind]
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{part}.{rest}"


def _resnet_config(state: State, _heads: int | None) -> PreTrainedConfig:
    stem = state["conv1.weight"]
    if tuple(stem.shape[2:]) != STEM:
        height, width = stem.shape[2:]
        raise ValueError(
            f"conv1.weight is a {height}x{width} convolution: the stem of ResNets for small images, as of CIFAR. The "
            "ResNets of transformers and timm begin with a 7x7 convolution of stride 2 and a pooling, so no "
            "checkpoint that AutoModelForImageClassification loads can hold these weights: use the code that trained "
            "them."
        )
    stages = range(1, 1 + count(state, r"layer(\d+)\."))
    last = max(int(match[1]) for key in state if (match := re.fullmatch(r"layer1\.0\.conv(\d)\.weight", key)))
    return ResNetConfig(
        num_channels=stem.shape[1],
        embedding_size=stem.shape[0],
        hidden_sizes=[state[f"layer{stage}.0.conv{last}.weight"].shape[0] for stage in stages],
        depths=[count(state, rf"layer{stage}\.(\d+)\.") for stage in stages],
        layer_type="bottleneck" if last == 3 else "basic",
    )


RESNET = Layout(
    "torchvision_resnet",
    "ResNet-18 to -152 of torchvision and timm, and those of the EC and UUEF checkpoints",
    classifier="fc.weight",
    has=("conv1.weight", "layer1.0.conv1.weight"),
    renames={
        r"conv1\.(\w+)": r"resnet.embedder.embedder.convolution.\1",
        r"bn1\.(\w+)": r"resnet.embedder.embedder.normalization.\1",
        r"layer(\d+)\.(\d+)\.(conv|bn)(\d)\.(\w+)": _in_stage,
        r"layer(\d+)\.(\d+)\.downsample\.0\.(\w+)": lambda match: (
            f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.shortcut.convolution.{match[3]}"
        ),
        r"layer(\d+)\.(\d+)\.downsample\.1\.(\w+)": lambda match: (
            f"resnet.encoder.stages.{int(match[1]) - 1}.layers.{match[2]}.shortcut.normalization.{match[3]}"
        ),
        r"fc\.(\w+)": r"classifier.1.\1",
    },
    left_out=r"normalize\.(mean|std)",
    config=_resnet_config,
)


# Swin


def _swin_config(state: State, _heads: int | None) -> PreTrainedConfig:
    stages = range(count(state, r"layers\.(\d+)\.blocks"))
    first = state["layers.0.blocks.0.attn.relative_position_bias_table"]
    window = (math.isqrt(len(first)) + 1) // 2
    patches = state["patch_embed.proj.weight"]
    return SwinConfig(
        image_size=_swin_image_size(state, window, patches.shape[-1]),
        patch_size=patches.shape[-1],
        num_channels=patches.shape[1],
        embed_dim=patches.shape[0],
        depths=[count(state, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in stages],
        num_heads=[state[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"].shape[1] for stage in stages],
        window_size=window,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / patches.shape[0],
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in state,
        use_absolute_embeddings="absolute_pos_embed" in state,
    )


def _swin_image_size(state: State, window: int, patch: int) -> int:
    """The images' side, by the windows that the mask of the first shifted block holds; else the usual one."""
    mask = state.get("layers.0.blocks.1.attn_mask")
    return 32 * window if mask is None else math.isqrt(len(mask)) * window * patch


def _swin_renames(stage_of_downsample: int, head: str) -> dict[str, Target]:
    block = r"layers\.(\d+)\.blocks\.(\d+)\."
    to = r"swin.encoder.layers.\1.blocks.\2."
    return {
        r"patch_embed\.proj\.(\w+)": r"swin.embeddings.patch_embeddings.projection.\1",
        r"patch_embed\.norm\.(\w+)": r"swin.embeddings.norm.\1",
        r"absolute_pos_embed": r"swin.embeddings.position_embeddings",
        block + r"norm1\.(\w+)": to + r"layernorm_before.\3",
        block + r"norm2\.(\w+)": to + r"layernorm_after.\3",
        block + r"attn\.qkv\.(\w+)": to + r"attention.self.{}.\3",
        block + r"attn\.relative_position_bias_table": to + r"attention.self.relative_position_bias_table",
        block + r"attn\.proj\.(\w+)": to + r"attention.output.dense.\3",
        block + r"mlp\.fc1\.(\w+)": to + r"intermediate.dense.\3",
        block + r"mlp\.fc2\.(\w+)": to + r"output.dense.\3",
        r"layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)": lambda match: (
            f"swin.encoder.layers.{int(match[1]) + stage_of_downsample}.downsample.{match[2]}.{match[3]}"
        ),
        r"norm\.(\w+)": r"swin.layernorm.\1",
        head + r"\.(\w+)": r"classifier.\1",
    }


SWIN_LEFT_OUT = r"normalize\.(mean|std)|layers\.\d+\.blocks\.\d+\.(attn_mask|attn\.relative_position_index)"
MICROSOFT_SWIN = Layout(
    "microsoft_swin",
    "Swin of Microsoft's repository and of the EC and UUEF checkpoints, which merge patches at the end of a stage",
    classifier="head.weight",
    has=("layers.0.blocks.0.attn.qkv.weight",),
    renames=_swin_renames(0, "head"),
    left_out=SWIN_LEFT_OUT,
    config=_swin_config,
)
TIMM_SWIN = Layout(
    "timm_swin",
    "Swin of timm, which merges patches at the beginning of a stage",
    classifier="head.fc.weight",
    has=("layers.0.blocks.0.attn.qkv.weight",),
    renames=_swin_renames(-1, r"head\.fc"),
    left_out=SWIN_LEFT_OUT,
    config=_swin_config,
)


# ViT


def _vit_config(patches: Tensor, positions: Tensor, mlp: Tensor, blocks: int, heads: int | None, bias: bool) -> Any:
    width = patches.shape[0]
    return ViTConfig(
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads or max(1, width // CHANNELS_A_HEAD),
        intermediate_size=len(mlp),
        image_size=math.isqrt(positions.shape[1] - 1) * patches.shape[-1],
        patch_size=patches.shape[-1],
        num_channels=patches.shape[1],
        qkv_bias=bias,
        layer_norm_eps=1e-6,  # of timm, torchvision and DeiT; transformers' default is another
    )


def _timm_vit_config(state: State, heads: int | None) -> PreTrainedConfig:
    return _vit_config(
        state["patch_embed.proj.weight"],
        state["pos_embed"],
        state["blocks.0.mlp.fc1.weight"],
        count(state, r"blocks\.(\d+)\."),
        heads,
        "blocks.0.attn.qkv.bias" in state,
    )


def _torchvision_vit_config(state: State, heads: int | None) -> PreTrainedConfig:
    blocks = "encoder.layers.encoder_layer_"
    mlp = state[f"{blocks}0.mlp.0.weight"]
    number = count(state, r"encoder\.layers\.encoder_layer_(\d+)\.")
    return _vit_config(state["conv_proj.weight"], state["encoder.pos_embedding"], mlp, number, heads, bias=True)


def _vit_renames(block: str, names: Mapping[str, str]) -> dict[str, Target]:
    """Of the parts of a block, given by the names that transformers has for them."""
    to = r"vit.encoder.layer.\1."
    return {rf"{block}{pattern}(\w+)": rf"{to}{name}\2" for name, pattern in names.items()}


TIMM_VIT = Layout(
    "timm_vit",
    "ViT of timm and DeiT, with a CLS token that is classified",
    classifier="head.weight",
    has=("blocks.0.attn.qkv.weight", "pos_embed", "cls_token"),
    renames={
        r"cls_token": r"vit.embeddings.cls_token",
        r"pos_embed": r"vit.embeddings.position_embeddings",
        r"patch_embed\.proj\.(\w+)": r"vit.embeddings.patch_embeddings.projection.\1",
        **_vit_renames(
            r"blocks\.(\d+)\.",
            {
                "layernorm_before.": r"norm1\.",
                "layernorm_after.": r"norm2\.",
                "attention.attention.{}.": r"attn\.qkv\.",
                "attention.output.dense.": r"attn\.proj\.",
                "intermediate.dense.": r"mlp\.fc1\.",
                "output.dense.": r"mlp\.fc2\.",
            },
        ),
        r"norm\.(\w+)": r"vit.layernorm.\1",
        r"head\.(\w+)": r"classifier.\1",
    },
    left_out=r"normalize\.(mean|std)",
    config=_timm_vit_config,
)
TORCHVISION_VIT = Layout(
    "torchvision_vit",
    "ViT of torchvision",
    classifier="heads.head.weight",
    has=("encoder.layers.encoder_layer_0.ln_1.weight",),
    renames={
        r"class_token": r"vit.embeddings.cls_token",
        r"encoder\.pos_embedding": r"vit.embeddings.position_embeddings",
        r"conv_proj\.(\w+)": r"vit.embeddings.patch_embeddings.projection.\1",
        **_vit_renames(
            r"encoder\.layers\.encoder_layer_(\d+)\.",
            {
                "layernorm_before.": r"ln_1\.",
                "layernorm_after.": r"ln_2\.",
                "attention.attention.{}.": r"self_attention\.in_proj_",
                "attention.output.dense.": r"self_attention\.out_proj\.",
                "intermediate.dense.": r"mlp\.0\.",
                "output.dense.": r"mlp\.3\.",
            },
        ),
        r"encoder\.ln\.(\w+)": r"vit.layernorm.\1",
        r"heads\.head\.(\w+)": r"classifier.\1",
    },
    left_out=r"normalize\.(mean|std)",
    config=_torchvision_vit_config,
)

LAYOUTS = {each.name: each for each in (RESNET, MICROSOFT_SWIN, TIMM_SWIN, TIMM_VIT, TORCHVISION_VIT)}


# Any model of timm


def timm_layout(architecture: str) -> Layout:
    """The layout of one of timm's models, which transformers has in a wrapper under the same names.

    Raises:
        ValueError: timm has no such model.
    """
    import timm  # slow to import

    if not timm.is_model(architecture):
        raise ValueError(f"timm_architecture={architecture!r}: timm has no such model")
    own = timm.get_pretrained_cfg(architecture)
    settings = own.to_dict() if own else {}
    classifier = settings.get("classifier") or "fc"
    classifier = classifier if isinstance(classifier, str) else classifier[0]

    def config(state: State, _heads: int | None) -> PreTrainedConfig:
        labels: dict[str, Any] = {"num_labels": len(state[f"{classifier}.weight"])}
        made = TimmWrapperConfig(architecture=architecture, **labels)
        made.pretrained_cfg = {**settings, "num_classes": made.num_labels}
        return made

    return Layout(
        f"timm {architecture}",
        f"timm's {architecture}",
        classifier=f"{classifier}.weight",
        has=(),
        renames={r"(.+)": r"timm_model.\1"},
        left_out=r"normalize\.(mean|std)",
        config=config,
    )
