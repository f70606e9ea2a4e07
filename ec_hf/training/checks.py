"""What `ECTrainer` refuses before anything is loaded or trained."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ec_hf.data.fingerprint import same_images
from ec_hf.data.splitting import shared_rows
from ec_hf.data.streaming import is_stream
from ec_hf.models.adapters import is_adapted
from ec_hf.models.loading import require_finite
from ec_hf.training.config import ECConfig

__all__ = ["check_classes", "check_model", "check_sets", "check_settings", "check_streamed"]


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

    output = Path(args.output_dir or "")
    if output.exists() and not output.is_dir():
        raise ValueError(f"output_dir={str(output)!r} is a file: name a folder.")


def check_model(model: Any, args: ECConfig) -> None:
    """Refuse what is no plain classifier of transformers in one precision, with weights that are finite and may move.

    Raises:
        ValueError: it is something else.
    """
    _check_kind(model)
    if is_adapted(model) and args.push_to_hub:
        raise ValueError(
            "push_to_hub=True would publish adapters without their model: leave it out, write a plain model with "
            "save_merged(folder) after the training, and push that with ec_hf.push(folder, repo_id)."
        )
    require_finite("model", model)
    weights = list(model.parameters())
    types = sorted({str(each.dtype).removeprefix("torch.") for each in weights})
    if getattr(model, "is_quantized", False) or not all(each.is_floating_point() for each in weights):
        raise ValueError(
            f"model: it is quantized, with weights of type {', '.join(types)}, which cannot be trained. Load the "
            "original without quantization, erase from it, and quantize what comes out."
        )
    if len(types) > 1:
        raise ValueError(
            f"model: its weights are of several types, {', '.join(types)}. Load it with dtype=torch.float32, and set "
            "bf16=True for mixed precision."
        )
    movable = sum(each.numel() for each in weights if each.requires_grad)
    if not movable:
        raise ValueError(
            "model: all of its parameters are frozen (requires_grad is False), so nothing can be erased. Call "
            "model.requires_grad_(True), or leave some layers free."
        )
    if args.saliency is not None and round(args.saliency * movable) < 1:
        raise ValueError(
            f"saliency={args.saliency}: of {movable:,} weights that may move this leaves none. Give a share such as "
            "0.5."
        )
    if model.dtype in (torch.float16, torch.bfloat16) and not (args.bf16 or args.fp16):
        raise ValueError(
            f"model: its weights are {model.dtype}, in which small updates are lost. Load it with "
            "dtype=torch.float32, and set bf16=True for mixed precision."
        )


def check_sets(forget: Any, retain: Any, *, may_stream: bool = False) -> None:
    """Refuse sets that are empty, share a row, or are streamed where they may not be.

    Args:
        forget: the forget set, which is never streamed.
        retain: the retain set.
        may_stream: whether the retain set may be a `datasets.IterableDataset`.
    """
    streamed = may_stream and is_stream(retain)
    for name, dataset in (("forget_dataset", forget), ("retain_dataset", retain)):
        if streamed and dataset is retain:
            continue
        if dataset is not None and not hasattr(dataset, "__len__"):
            hint = (
                "the retain set alone may be streamed, by a datasets.IterableDataset" if may_stream else "no streaming"
            )
            raise TypeError(f"{name}: expected a dataset with rows by index, got {type(dataset).__name__}; {hint}.")
        if dataset is None or len(dataset) == 0:
            raise ValueError(f"{name} is empty; `split(dataset, request)` gives both parts.")
    if not streamed:
        _check_shared(forget, retain)


def check_streamed(args: ECConfig) -> None:
    """Refuse settings that do not go with a streamed retain set."""
    if args.max_steps <= 0 and not args.forget_epochs and args.retain_rows is None:
        a_step = args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
        raise ValueError(
            "retain_dataset: a stream does not tell how many rows it has, so nothing says how long the run is. Give "
            f"retain_rows, the number of its rows; or give max_steps, which is passes * rows / {a_step:,}, as a step "
            f"sees {a_step:,} retain images."
        )
    if args.dataloader_num_workers > 1:
        raise ValueError(
            f"dataloader_num_workers={args.dataloader_num_workers}: a streamed retain set is read by one worker a "
            "process, which decodes in several threads. Set it to 1, or to 0 to read between the steps."
        )


def _check_shared(forget: Any, retain: Any) -> None:
    shared = shared_rows(forget, retain)
    if shared:
        raise ValueError(
            f"retain_dataset: {shared} of its rows stand in forget_dataset too, so they would be kept and forgotten "
            "at once. Use both parts of `split(dataset, request)`."
        )
    found, looked_for = same_images(forget, retain)
    if found:
        warnings.warn(
            f"retain_dataset: {found} of {looked_for} images of the forget set that were looked for stand in it too, "
            "byte for byte, so they would be kept and forgotten at once. Is it a second load of the same data? Use "
            "both parts of one `split(dataset, request)`, with id_column where images come more than once.",
            stacklevel=3,
        )


def check_classes(classes: set[int] | None) -> None:
    """Refuse data of one class alone, in which every answer is right."""
    if classes is not None and len(classes) == 1:
        raise ValueError(
            f"forget_dataset and retain_dataset hold images of one class alone, label {next(iter(classes))}: no loss "
            "tells them apart. Retain images of other classes too."
        )


def _check_kind(model: Any) -> None:
    """Refuse models that are no classifiers of images."""
    if is_adapted(model):
        return
    if "pixel_values" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"model: {type(model).__name__} takes no pixel_values, the images as numbers, so EC cannot run it. Use a "
            "classifier that does."
        )
    labels = getattr(model.config, "num_labels", 0)
    if not labels or "labels" not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"model: {type(model).__name__} has no classification head. Load it by "
            "AutoModelForImageClassification.from_pretrained, and train the head before you erase."
        )
    if any(each.is_meta for each in model.parameters()):
        raise ValueError("model: its weights are on the meta device, so they hold nothing. Load it on a real device.")
