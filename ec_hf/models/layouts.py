"""Layouts in which other code stores classifiers: how to know one, and what transformers calls its tensors.

The names on the right are those of the files that `save_pretrained` writes; transformers' own loading brings them to
whatever the modules are called in memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, ResNetConfig, SwinConfig, TimmWrapperConfig, ViTConfig

__all__ = ["LAYOUTS", "Layout", "layout_of", "timm_layout"]

State = Mapping[str, Tensor]
Target = str | Callable[[re.Match], str]
QKV = ("query", "key", "value")
"""What a fused projection holds, one above the other, in this order."""
CHANNELS_A_HEAD = 64
STEM = (7, 7)
SMALL_STEM = (3, 3)
SMALL_IMAGE = 32
"""The side of CIFAR's images."""
MAGNIFIED = 4
"""How many times as high and wide as its images a ResNet for small images takes them."""
BATCH_NORM_EPS = 1e-5


def always(_state: State) -> bool:
    """Whether weights fit a layout that is known by its keys alone."""
    return True


def as_they_are(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that need nothing but new names."""
    return tensors


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
        fits: whether weights with these keys are of this layout, where shapes decide it.
        remade: makes the tensors of transformers' network from those that have their new names, where it has others.
        magnified: how many times as high and wide as they are the network takes its images.
    """

    name: str
    about: str
    classifier: str
    has: tuple[str, ...]
    renames: Mapping[str, Target]
    left_out: str
    config: Callable[[State, int | None], PreTrainedConfig]
    fits: Callable[[State], bool] = always
    remade: Callable[[dict[str, Tensor]], dict[str, Tensor]] = as_they_are
    magnified: int = 1

    def renamed(self, key: str) -> str | None:
        """What transformers calls a tensor; empty for one to leave out, None for a key that the layout lacks."""
        if re.fullmatch(self.left_out, key):
            return ""
        for pattern, target in self.renames.items():
            if match := re.fullmatch(pattern, key):
                return target(match) if callable(target) else match.expand(target)
        return None


def layout_of(state: State) -> Layout:
    """The layout that has such tensors.

    Raises:
        ValueError: none has.
    """
    keys = list(state)
    for layout in LAYOUTS.values():
        if {layout.classifier, *layout.has} <= set(keys) and layout.fits(state):
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


def _resnet_stages(state: State) -> list[int]:
    """Numbers of blocks."""
    return [count(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 1 + count(state, r"layer(\d+)\."))]


def _convolutions_a_block(state: State) -> int:
    return max(int(match[1]) for key in state if (match := re.fullmatch(r"layer1\.0\.conv(\d)\.weight", key)))


def _resnet_config(state: State, _heads: int | None) -> PreTrainedConfig:
    stem = state["conv1.weight"]
    if tuple(stem.shape[2:]) != STEM:
        raise ValueError(
            f"conv1.weight is a {_sides(stem)} convolution, and the layout torchvision_resnet has one of 7x7. For "
            "3x3, the stem of ResNets for small images as of CIFAR, leave the layout out; neither transformers nor "
            "timm has a ResNet for other kernels: use the code that trained them, and ec_hf.as_classifier."
        )
    depths, last = _resnet_stages(state), _convolutions_a_block(state)
    return ResNetConfig(
        num_channels=stem.shape[1],
        embedding_size=stem.shape[0],
        hidden_sizes=[state[f"layer{stage + 1}.0.conv{last}.weight"].shape[0] for stage in range(len(depths))],
        depths=depths,
        layer_type="bottleneck" if last == 3 else "basic",
    )


def _sides(kernel: Tensor) -> str:
    return "x".join(map(str, kernel.shape[2:]))


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
    fits=lambda state: tuple(state["conv1.weight"].shape[2:]) != SMALL_STEM,
)


# ResNet for small images


def _small_resnet_config(state: State, _heads: int | None) -> PreTrainedConfig:
    stem, depths = state["conv1.weight"], _resnet_stages(state)
    if tuple(stem.shape[2:]) != SMALL_STEM or len(stem) != 64 or len(depths) != 4:
        raise ValueError(
            f"a ResNet for small images is expected to begin with a 3x3 convolution of 64 channels and to have four "
            f"stages; conv1.weight is a {_sides(stem)} convolution of {len(stem)} channels, and there are "
            f"{len(depths)} stages. timm's ResNet, which is to hold the weights, cannot be made like that: use the "
            "code that trained them, and ec_hf.as_classifier."
        )
    classifier = next(state[key] for key in ("fc.weight", "linear.weight") if key in state)
    labels: dict[str, Any] = {"num_labels": len(classifier)}
    config = TimmWrapperConfig(
        architecture="resnet50" if _convolutions_a_block(state) == 3 else "resnet18",
        model_args={"layers": depths, "replace_stem_pool": True, "in_chans": stem.shape[1]},
        **labels,
    )
    side = SMALL_IMAGE * MAGNIFIED
    config.pretrained_cfg = {
        "input_size": (stem.shape[1], side, side),
        "interpolation": "nearest",
        "crop_pct": 1.0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": config.num_labels,
    }
    return config


def as_large_stem(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The stem of a ResNet for small images, in that of timm's: the same answers, on images magnified by 4.

    Published unlearning code begins with a 3x3 convolution of stride 1 and no pooling (SalUn's, UUEF's), timm's
    ResNet with a 7x7 convolution of stride 2 and, with `replace_stem_pool`, a 3x3 convolution of stride 2, each with
    batch norm and ReLU. Where each pixel stands there 4 times each way, the 7x7 kernel around place 4q + 2 sees the
    pixels q - 1, q and q + 1 at its places 0, 3 and 6; the second convolution takes every other of its answers, and
    its batch norm does nothing.

    Args:
        tensors: of the network for small images, in the names of transformers.
    """
    small = tensors["timm_model.conv1.weight"]
    large = F.pad(small.new_zeros(*small.shape[:2], 1, 1), (3, 3, 3, 3))
    large[:, :, ::3, ::3] = small
    channels = len(small)
    taken = torch.zeros(channels, channels, *SMALL_STEM, dtype=small.dtype)
    taken[range(channels), range(channels), 2, 2] = 1
    ones, zeros = torch.ones(channels, dtype=small.dtype), torch.zeros(channels, dtype=small.dtype)
    return tensors | {
        "timm_model.conv1.weight": large,
        "timm_model.maxpool.0.weight": taken,
        "timm_model.maxpool.1.weight": ones * math.sqrt(1 + BATCH_NORM_EPS),
        "timm_model.maxpool.1.bias": zeros,
        "timm_model.maxpool.1.running_mean": zeros.clone(),
        "timm_model.maxpool.1.running_var": ones,
        "timm_model.maxpool.1.num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }


def _small_resnet(name: str, about: str, classifier: str, shortcut: str) -> Layout:
    return Layout(
        name,
        about,
        classifier=f"{classifier}.weight",
        has=("conv1.weight", "layer1.0.conv1.weight"),
        renames={
            rf"(layer\d+\.\d+)\.{shortcut}\.(\d\.\w+)": r"timm_model.\1.downsample.\2",
            r"((?:conv1|bn1|layer\d+\.\d+\.(?:conv|bn)\d)\.\w+)": r"timm_model.\1",
            rf"{classifier}\.(\w+)": r"timm_model.fc.\1",
        },
        left_out=r"normalize\.(mean|std)",
        config=_small_resnet_config,
        fits=lambda state: tuple(state["conv1.weight"].shape[2:]) == SMALL_STEM,
        remade=as_large_stem,
        magnified=MAGNIFIED,
    )


SMALL_RESNET = _small_resnet(
    "small_image_resnet",
    "ResNets with a 3x3 stem of stride 1 and no pooling, as of the EC, UUEF and SalUn code for CIFAR",
    classifier="fc",
    shortcut="downsample",
)
SMALL_RESNET_LINEAR = _small_resnet(
    "small_image_resnet_linear",
    "the same with `linear` and `shortcut` for `fc` and `downsample`, as of the pytorch-cifar repository",
    classifier="linear",
    shortcut="shortcut",
)


# Swin


def _swin_config(state: State, _heads: int | None) -> PreTrainedConfig:
    stages = [f"layers.{stage}.blocks." for stage in range(count(state, r"layers\.(\d+)\.blocks"))]
    return _swin_config_of(state, stages, "patch_embed.proj.weight", "mlp.fc1.weight")


def _swin_config_of(state: State, stages: Sequence[str], patch_embedding: str, mlp: str) -> PreTrainedConfig:
    """The configuration of a Swin.

    Args:
        state: its tensors.
        stages: what the keys of the blocks of each stage begin with, up to the number of the block.
        patch_embedding: key of its weight.
        mlp: what the key of the first linear layer of a block's MLP ends with.
    """
    tables = [state[f"{stage}0.attn.relative_position_bias_table"] for stage in stages]
    window = (math.isqrt(len(tables[0])) + 1) // 2
    patches = state[patch_embedding]
    return SwinConfig(
        image_size=_swin_image_size(state, window, patches.shape[-1]),
        patch_size=patches.shape[-1],
        num_channels=patches.shape[1],
        embed_dim=patches.shape[0],
        depths=[count(state, rf"{re.escape(stage)}(\d+)\.") for stage in stages],
        num_heads=[table.shape[1] for table in tables],
        window_size=window,
        mlp_ratio=len(state[f"{stages[0]}0.{mlp}"]) / patches.shape[0],
        qkv_bias=f"{stages[0]}0.attn.qkv.bias" in state,
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


def _torchvision_swin_config(state: State, _heads: int | None) -> PreTrainedConfig:
    """Its stages stand at the odd numbers, and between them what merges the patches."""
    numbers = range(1, 2 * count(state, r"features\.(\d+)\.0\.attn"), 2)
    return _swin_config_of(state, [f"features.{number}." for number in numbers], "features.0.0.weight", "mlp.0.weight")


def _torchvision_swin_renames() -> dict[str, Target]:
    def in_block(name: str) -> Target:
        return lambda match: f"swin.encoder.layers.{int(match[1]) // 2}.blocks.{match[2]}.{name}{match[3]}"

    parts = {
        r"norm1\.(\w+)": "layernorm_before.",
        r"norm2\.(\w+)": "layernorm_after.",
        r"attn\.qkv\.(\w+)": "attention.self.{}.",
        r"attn\.(relative_position_bias_table)": "attention.self.",
        r"attn\.proj\.(\w+)": "attention.output.dense.",
        r"mlp\.0\.(\w+)": "intermediate.dense.",
        r"mlp\.3\.(\w+)": "output.dense.",
    }
    return {
        r"features\.0\.0\.(\w+)": r"swin.embeddings.patch_embeddings.projection.\1",
        r"features\.0\.2\.(\w+)": r"swin.embeddings.norm.\1",
        **{rf"features\.(\d+)\.(\d+)\.{pattern}": in_block(name) for pattern, name in parts.items()},
        r"features\.(\d+)\.(norm|reduction)\.(\w+)": lambda match: (
            f"swin.encoder.layers.{int(match[1]) // 2 - 1}.downsample.{match[2]}.{match[3]}"
        ),
        r"norm\.(\w+)": r"swin.layernorm.\1",
        r"head\.(\w+)": r"classifier.\1",
    }


TORCHVISION_SWIN = Layout(
    "torchvision_swin",
    "Swin of torchvision, of the first version",
    classifier="head.weight",
    has=("features.0.0.weight", "features.1.0.attn.relative_position_bias_table"),
    renames=_torchvision_swin_renames(),
    left_out=r"normalize\.(mean|std)|features\.\d+\.\d+\.attn\.relative_position_index",
    config=_torchvision_swin_config,
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

LAYOUTS = {
    each.name: each
    for each in (
        RESNET,
        SMALL_RESNET,
        SMALL_RESNET_LINEAR,
        MICROSOFT_SWIN,
        TIMM_SWIN,
        TORCHVISION_SWIN,
        TIMM_VIT,
        TORCHVISION_VIT,
    )
}


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
