"""How a model is wrapped for several processes: what was asked for, what really happens, and what DDP must know."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers.utils import ModelOutput

from ec_hf.models.batch_norm import clean_statistics
from ec_hf.models.trial import trial_images

__all__ = ["check_strategy", "strategy_of", "unused_parameters"]

ASKED = {"FSDP": ("fsdp", "ACCELERATE_USE_FSDP"), "DeepSpeed": ("deepspeed", "ACCELERATE_USE_DEEPSPEED")}
"""A strategy -> where it may be asked for, in `TrainingArguments` and by `accelerate launch`."""
REAL = {"FSDP": DistributedType.FSDP, "DeepSpeed": DistributedType.DEEPSPEED}


def check_strategy(args: Any, distributed_type: DistributedType) -> None:
    """Refuse a run that asks for sharding and would not get it.

    Args:
        args: the arguments of the run.
        distributed_type: what Accelerate makes of them on this machine.

    Raises:
        ValueError: FSDP or DeepSpeed was asked for, and Accelerate wraps the model in another way. On processes
            without a GPU that is DDP, whatever the configuration says.
    """
    for name, (argument, variable) in ASKED.items():
        asked = bool(getattr(args, argument, None)) or os.environ.get(variable, "false").lower() == "true"
        if asked and distributed_type != REAL[name]:
            raise ValueError(
                f"{name} was asked for, but Accelerate runs this as {distributed_type.value}: every process would "
                f"hold the whole model. {name} needs a GPU a process; without GPUs use recipes/accelerate/ddp.yaml, "
                f"and no `{argument}` in the arguments."
            )


def strategy_of(wrapped: nn.Module, processes: int) -> str:
    """What wraps a model, in words.

    Args:
        wrapped: the model as `Trainer` trains it.
        processes: number of processes.
    """
    together = f"{processes} processes"
    if isinstance(wrapped, DistributedDataParallel):
        looks = "looks for" if wrapped.find_unused_parameters else "expects no"
        return f"DDP over {together}, each with the whole model; it {looks} parameters without a gradient"
    if isinstance(wrapped, FSDPModule):
        return f"FSDP2 (fully_shard) over {together}, each with a share of the weights"
    if processes == 1:
        return "nothing wraps the model, which trains in one process"
    return f"{type(wrapped).__name__} over {together}"


def unused_parameters(model: nn.Module, shape: tuple[int, int, int], **kwargs: Any) -> list[str]:
    """Names of the parameters that require a gradient and have no part in what a forward in training mode returns.

    DDP waits for the gradient of all others, so it must look for these at each step; without any it need not.

    Args:
        model: the model, with its heads attached; it is left as it was, and so is the random state.
        shape: ``(channels, height, width)`` of an image.
        **kwargs: of its forward.
    """
    images = trial_images(model, shape)
    was_training = model.training
    model.train()
    gpus = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.enable_grad(), clean_statistics(model, 1, update=False):
        outputs = [each for each in _tensors(model(pixel_values=images, **kwargs)) if each.requires_grad]
    model.train(was_training)
    wanted = {name: each for name, each in model.named_parameters() if each.requires_grad}
    slopes = torch.autograd.grad([each.sum() for each in outputs], list(wanted.values()), allow_unused=True)
    return [name for name, slope in zip(wanted, slopes, strict=True) if slope is None]


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in what a model returned."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, ModelOutput):
        output = tuple(output.values())
    return [each for part in output for each in _tensors(part)] if isinstance(output, (tuple, list)) else []
