"""Absolute figures of a step on one GPU: images a second, memory, MFU. `gpu.sh` runs it and ends it after 10 minutes.

MFU is the share of the card's peak in bf16 that the step's multiplications reach. These are counted in one step that
is not compiled, by torch's own counter, over forward and backward; a multiplication and an addition are two
operations.
The JSON is written anew after each case, so that what was measured stays where time runs out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import accelerate
import torch
import transformers
from accelerate.utils import send_to_device
from step import make_batch, prepared
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ec_hf

CLASSES = 1000
SHAPES: dict[str, Callable[[], Any]] = {
    "vit_b16": lambda: transformers.ViTConfig(num_labels=CLASSES),
    "resnet50": lambda: transformers.ResNetConfig(num_labels=CLASSES),
}
TINY: dict[str, Callable[[], Any]] = {
    "vit_b16": lambda: transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64,
        num_labels=CLASSES,
    ),
    "resnet50": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=CLASSES
    ),
}  # fmt: skip
DELETE: dict[str, Any] = {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}, "cache_teacher": True}
METHODS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "EC": {"objective": "contrastive"},
    "EC calibrated, teacher remembered": {**DELETE, "calibrated": True},
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "T4": 65e12}
"""Operations a second in bf16 without sparsity, from the vendor's data sheets (T4: fp16); by a part of the name."""


def peak_of(device: torch.device) -> float | None:
    """Operations a second that the card could do, None for one that is not in the list."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    found = [value for part, value in PEAKS.items() if part in name]
    return found[0] if found else None


def loss_of(
    model: Any, batch: dict[str, Any], settings: dict[str, Any] | None, compiled: bool, stack: ExitStack
) -> Callable[[], Tensor]:
    """The loss of plain fine-tuning, or of an eraser whose heads stay attached until the stack closes."""
    if settings is None:
        run = torch.compile(model) if compiled else model
        return lambda: F.cross_entropy(run(pixel_values=batch["pixel_values"]).logits.float(), batch["labels"])
    eraser = prepared(model, batch, settings, stack)
    run = torch.compile(model) if compiled else model
    return lambda: eraser(batch, model=run).total


def measure(
    shape: str, name: str, compiled: bool, *, tiny: bool, size: int, steps: int, device: torch.device
) -> dict[str, Any]:
    """One case; seconds a step are the median."""
    torch.manual_seed(0)
    torch.compiler.reset()
    config = (TINY if tiny else SHAPES)[shape]()
    model = transformers.AutoModelForImageClassification.from_config(config).to(device).train()
    batch = send_to_device(make_batch(32 if tiny else 224, size // 2, size // 2, CLASSES), device)
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with ExitStack() as stack:
        loss = loss_of(model, batch, METHODS[name], compiled, stack)
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-4)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                total = loss()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if gpu:
                torch.cuda.synchronize()

        times = []
        operations = 0
        if not compiled:
            with FlopCounterMode(display=False) as counter:
                step()
            operations = counter.get_total_flops()
        for _ in range(3 + steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
    seconds = median(times[3:])
    return {
        "shape": shape,
        "method": name,
        "compiled": compiled,
        "images": size,
        "seconds": round(seconds, 5),
        "images_per_second": round(size / seconds, 1),
        "first_step_seconds": round(times[0], 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
        "operations": operations or None,
    }


def with_ratios(cases: list[dict[str, Any]], peak: float | None) -> list[dict[str, Any]]:
    """The cases with MFU, and with time and memory against plain fine-tuning that is compiled in the same way."""
    counted = {(each["shape"], each["method"]): each["operations"] for each in cases if each["operations"]}
    plain = {(each["shape"], each["compiled"]): each for each in cases if each["method"] == "plain"}
    found = []
    for each in cases:
        base, operations = plain[each["shape"], each["compiled"]], counted.get((each["shape"], each["method"]))
        memory = each["peak_gib"] / base["peak_gib"] if each["peak_gib"] else None
        mfu = operations / each["seconds"] / peak if operations and peak else None
        found.append(
            {
                **each,
                "mfu": None if mfu is None else round(mfu, 3),
                "time_over_plain": round(each["seconds"] / base["seconds"], 3),
                "memory_over_plain": None if memory is None else round(memory, 3),
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all cases that the time allows, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540, help="no case is begun after these")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="tiny networks on the CPU, to try the script")
    arguments = parser.parse_args(argv)
    if not (arguments.tiny or torch.cuda.is_available()):
        raise SystemExit("gpu.py measures a GPU and finds none: use --tiny to try it on the CPU")
    device = torch.device("cpu" if arguments.tiny else "cuda")
    size, steps = (16, 2) if arguments.tiny else (arguments.batch, arguments.steps)
    start, cases, left_out = time.perf_counter(), [], []
    peak = peak_of(device)
    todo = [(shape, name, compiled) for compiled in (False, True) for shape in SHAPES for name in METHODS]
    for shape, name, compiled in [each for each in todo if not (arguments.tiny and each[2])]:
        if time.perf_counter() - start > arguments.seconds:
            left_out.append([shape, name, compiled])
            continue
        case = measure(shape, name, compiled, tiny=arguments.tiny, size=size, steps=steps, device=device)
        cases.append(case)
        result = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, tiny networks: no result",
            "peak_operations_per_second": peak,
            "precision": "bf16 autocast",
            "versions": {each.__name__: each.__version__ for each in (torch, transformers, accelerate, ec_hf)},
            "cases": with_ratios(cases, peak),
            "left_out": left_out,
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result["cases"][-1]), flush=True)
    return result


if __name__ == "__main__":
    main()
