"""What to do when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["explained_memory"]

ON_THE_CPU = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


@contextmanager
def explained_memory(args: Any) -> Iterator[None]:
    """Name the settings that need less memory when it runs out.

    Args:
        args: settings of the run.

    Raises:
        RuntimeError: of the kind that was raised, such as `torch.OutOfMemoryError`, with its first line and advice.
        MemoryError: as above.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and not any(text in str(error) for text in ON_THE_CPU):
            raise
        retain, forget = args.per_device_train_batch_size, args.per_device_forget_batch_size
        steps = args.gradient_accumulation_steps
        raise type(error)(
            f"{str(error).strip() or 'out of memory'}\nMemory ran out with {retain} retain and {forget} forget images "
            f"a step and process. Set per_device_train_batch_size={max(1, retain // 2)}, "
            f"per_device_forget_batch_size={max(1, forget // 2)} and gradient_accumulation_steps={2 * steps}, which "
            "takes as many images a step (the contrast sees fewer at once); bf16=True, activation_checkpointing=True "
            "and cache_teacher=True save memory too."
        ) from error
