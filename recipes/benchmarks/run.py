"""Where the time of a whole run of `ec_hf.erase` at its defaults goes, by phase, and whether the loader keeps up.

    python recipes/benchmarks/run.py                  # ViT-Ti at 64 pixels, 1,000 JPEG files of 224 pixels, no worker
    python recipes/benchmarks/run.py --workers 2      # decoding beside the training, in processes of their own

Processor time of the training process on one thread. What a worker does is not in it: with workers the phase "waiting
for data" is what the training process itself still does for it. Weights are random and images are noise, since the
cost does not depend on them; the retain floor is low for that reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from PIL import Image as Pil
from step import versions

from ec_hf import ECConfig, ECHeads, ECTrainer, Eraser, ForgetRequest, pipeline
from ec_hf.data.erasure import ErasureData
from ec_hf.training.loss import ECLoss

CLASSES, FORGOTTEN = 20, 2
STEPS, WAITING = "steps: the rest", "steps: waiting for data"
PHASES: dict[str, list[tuple[Any, str]]] = {
    "loading": [(pipeline, "images_of")],
    "splitting": [(ErasureData, "of")],
    "looking at the original": [(pipeline, "retain_floor_for"), (pipeline, "lead_of_original")],
    "decoding all images once": [(ECTrainer, "check_images")],
    "fitting heads": [(ECTrainer, "fit_heads")],
    "preparing": [(ECTrainer, "_prepare")],
    "range test": [(ECTrainer, "_find_learning_rate")],
    WAITING: [(ECTrainer, "get_batch_samples")],
    STEPS: [(ECTrainer, "training_step"), (ECTrainer, "_clip_grad_norm")],
    "steps: model": [(Eraser, "__call__")],
    "steps: heads": [(ECHeads, "forward")],
    "steps: losses": [(ECLoss, "forward")],
    "steps: backward": [(Accelerator, "backward")],
    "steps: optimiser": [(AcceleratedOptimizer, "step")],
    "evaluation": [(ECTrainer, "evaluate")],
    "checkpoints and model": [(ECTrainer, "_save_checkpoint"), (ECTrainer, "save_model")],
    "audit": [(pipeline, "_audited")],
    "report and card": [(pipeline, "write_audit"), (pipeline, "card")],
}
"""A phase -> the functions that it is. Of two that run at once the inner one counts, but that the parts of a step have
no part in any other phase."""


def make_files(folder: Path, count: int, side: int) -> None:
    """JPEG files of smooth noise, a folder a class."""
    for part, rows in (("train", count), ("test", count // 4)):
        rng = np.random.default_rng(len(part))
        for k, pixels in enumerate(rng.integers(0, 255, (rows, 16, 16, 3), dtype=np.uint8)):
            path = folder / part / f"class {k % CLASSES:02}" / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Pil.fromarray(pixels).resize((side, side)).save(path, "JPEG")


@contextmanager
def clock(spent: dict[str, float]) -> Any:
    """Add up the processor time of each phase."""
    running: list[str] = []
    last = time.process_time()

    def tick() -> None:
        nonlocal last
        now = time.process_time()
        name = running[-1] if running else "other"
        spent[name], last = spent.get(name, 0.0) + now - last, now

    def timed(plain: Any, phase: str) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            inside = phase in (WAITING, STEPS) or not phase.startswith("steps: ")
            inside = inside or STEPS in running or (phase == "steps: optimiser" and not running)
            if not inside:
                return plain(*args, **kwargs)
            tick()
            running.append(phase)
            try:
                return plain(*args, **kwargs)
            finally:
                tick()
                running.pop()

        return run

    with ExitStack() as stack:
        for phase, functions in PHASES.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), phase)))
        yield
        tick()


def make_model(pixels: int, width: int) -> transformers.PreTrainedModel:
    """A ViT of 12 layers with random weights."""
    names = {f"class {k:02}": k for k in range(CLASSES)}
    config = transformers.ViTConfig(
        image_size=pixels,
        hidden_size=width,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        label2id=names,
        id2label={k: name for name, k in names.items()},
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run, and print the seconds and the share of each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=224, help="of the files")
    parser.add_argument("--pixels", type=int, default=64, help="that the model sees")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=64, help="retain images a step; forget images are half as many")
    parser.add_argument("--max_steps", type=int, default=-1, help="default: as long as a run is by itself")
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    size = {"height": arguments.pixels, "width": arguments.pixels}
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder, "images"), arguments.images, arguments.side)
        config = ECConfig(
            use_cpu=True,
            per_device_train_batch_size=arguments.batch,
            per_device_forget_batch_size=arguments.batch // 2,
            dataloader_num_workers=arguments.workers,
            max_steps=arguments.max_steps,
            retain_floor=0.99,
            report_to="none",
            disable_tqdm=True,
        )
        with clock(spent):
            done = pipeline.erase(
                make_model(arguments.pixels, arguments.width),
                Path(folder, "images"),
                ForgetRequest(classes=list(range(FORGOTTEN))),
                output_dir=Path(folder, "out"),
                args=config,
                processor=transformers.ViTImageProcessor(size=size),
            )
    report(spent, done.trainer, arguments)
    return spent


def report(spent: dict[str, float], trainer: ECTrainer, arguments: argparse.Namespace) -> None:
    """Print what was measured."""
    whole = sum(spent.values())
    of_steps = sum(value for name, value in spent.items() if name.startswith("steps: "))
    steps = trainer.state.global_step
    print(versions())
    print(f"{steps} steps of {arguments.batch} + {arguments.batch // 2} images, {arguments.workers} workers")
    print(f"{whole:.1f} s of one thread, of which {of_steps:.1f} s are steps, {of_steps / steps:.2f} s each; of these")
    print(f"{spent[WAITING] / of_steps:.1%} go into the data\n\n| phase | s | share |\n| --- | ---: | ---: |")
    for name in [*PHASES, "other"]:
        print(f"| {name} | {spent.get(name, 0.0):.1f} | {spent.get(name, 0.0) / whole:.1%} |")
    print(json.dumps({name: round(value, 3) for name, value in spent.items()}))


if __name__ == "__main__":
    main()
