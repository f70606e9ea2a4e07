"""What `ECTrainer` refuses before anything is loaded or trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ec_hf.data.splitting import shared_rows
from ec_hf.models.adapters import is_adapted
from ec_hf.models.loading import require_finite
from ec_hf.training.config import ECConfig

__all__ = ["check_model", "check_sets", "check_settings"]


def check_settings(args: Any, eval_dataset: Any) -> None:
    """Refuse settings or evaluation data of the wrong kind, and several GPUs in one process."""
    if not isinstance(args, ECConfig):
        raise TypeError(f"args: expected an ECConfig, got {type(args).__name__}; it takes the same settings and more.")
    if not isinstance(eval_dataset, (Mapping, type(None))):
        raise TypeError(
            f"eval_dataset: expected {{'forget': ..., 'retain': ...}}, got {type(eval_dataset).__name__}; "
            "dict(split(test_dataset, request)) makes one."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. EC needs one process a GPU: start the script with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def check_model(model: Any, args: ECConfig) -> None:
    """Refuse weights that are not finite, or in half precision without mixed precision, and a push of adapters."""
    require_finite("model", model)
    if is_adapted(model) and args.push_to_hub:
        raise ValueError(
            "push_to_hub=True would publish adapters without their model: leave it out, write a plain model with "
            "save_merged(folder) after the training, and push that with ec_hf.push(folder, repo_id)."
        )
    if model.dtype in (torch.float16, torch.bfloat16) and not (args.bf16 or args.fp16):
        raise ValueError(
            f"model: its weights are {model.dtype}, in which small updates are lost. Load it with "
            "dtype=torch.float32, and set bf16=True for mixed precision."
        )


def check_sets(forget: Any, retain: Any) -> None:
    """Refuse sets that are streamed, empty, or share a row."""
    for name, dataset in (("forget_dataset", forget), ("retain_dataset", retain)):
        if dataset is not None and not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{name}: expected a dataset with rows by index, got {type(dataset).__name__}; no streaming."
            )
        if dataset is None or len(dataset) == 0:
            raise ValueError(f"{name} is empty; `split(dataset, request)` gives both parts.")
    shared = shared_rows(forget, retain)
    if shared:
        raise ValueError(
            f"retain_dataset: {shared} of its rows stand in forget_dataset too, so they would be kept and forgotten "
            "at once. Use both parts of `split(dataset, request)`."
        )
