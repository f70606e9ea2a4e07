"""Where the time of a whole run of `ECTrainer` goes, by phase, and whether the loader keeps up.

    python recipes/benchmarks/run.py                  # ViT-Ti at 112 pixels, 2,000 images of 256 pixels as JPEG
    python recipes/benchmarks/run.py --workers 1      # decoding beside the training, in a process of its own

Processor time of the training process on one thread. What a worker does is not in it: with workers the line "loader"
is what the training process still waits for and copies.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split

CLASSES, FORGOTTEN = 20, 2
PHASES = {
    "check_images": "looking at all images once",
    "fit_heads": "fitting heads",
    "_prepare": "preparing (remembered teacher)",
    "evaluate": "evaluation",
    "_save_checkpoint": "checkpoints",
    "get_batch_samples": "loader",
    "training_step": "steps",
}
"""A method of the trainer -> the phase that it is; a phase does not count another one inside it."""


def make_images(count: int, side: int) -> Dataset:
    """JPEG files of smooth noise."""
    rng, names = np.random.default_rng(0), [f"class {k}" for k in range(CLASSES)]
    files = []
    for pixels in rng.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Pil.fromarray(pixels).resize((side, side)).save(buffer, "JPEG")
        files.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": files, "label": [k % CLASSES for k in range(count)]}, features=features)


@contextmanager
def clock(trainer: Any, spent: dict[str, float]) -> Any:
    """Add up the processor time of each phase."""
    running: list[str] = []
    last = time.process_time()

    def tick() -> None:
        nonlocal last
        now = time.process_time()
        name = running[-1] if running else "other"
        spent[name], last = spent.get(name, 0.0) + now - last, now

    def watch(method: str, phase: str) -> None:
        plain = getattr(trainer, method)

        def run(*args: Any, **kwargs: Any) -> Any:
            tick()
            running.append(phase)
            try:
                return plain(*args, **kwargs)
            finally:
                tick()
                running.pop()

        setattr(trainer, method, run)

    for method, phase in PHASES.items():
        watch(method, phase)
    yield
    tick()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run, and print the share of each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256, help="of the files")
    parser.add_argument("--pixels", type=int, default=112, help="that the model sees")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = {f"class {k}": k for k in range(CLASSES)}
    config = transformers.ViTConfig(
        image_size=arguments.pixels,
        hidden_size=arguments.width,
        num_attention_heads=max(1, arguments.width // 64),
        intermediate_size=4 * arguments.width,
        label2id=names,
        id2label={k: name for name, k in names.items()},
    )
    model = transformers.ViTForImageClassification(config)
    images = make_images(arguments.images, arguments.side)
    request = ForgetRequest(classes=list(range(FORGOTTEN)))
    held_out = images.select(range(arguments.images // 5))
    parts = split(images.select(range(arguments.images // 5, arguments.images)), request)
    size = {"height": arguments.pixels, "width": arguments.pixels}
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trainer = ECTrainer(
            model,
            ECConfig(
                folder,
                objective="delete",
                objective_kwargs={"retain_weight": 1.0},
                calibrated=True,
                use_cpu=True,
                per_device_train_batch_size=arguments.batch,
                dataloader_num_workers=arguments.workers,
                num_train_epochs=1,
                heads_epochs=1,
                retain_floor=1.0,
                forget_target=-1.0,
                report_to="none",
                disable_tqdm=True,
            ),
            forget_dataset=parts["forget"],
            retain_dataset=parts["retain"],
            eval_dataset=dict(split(held_out, request)),
            processing_class=transformers.ViTImageProcessor(size=size),
        )
        stack.enter_context(clock(trainer, spent))
        trainer.train()
        stack.close()
    whole = sum(spent.values())
    shares = {name: round(value / whole, 3) for name, value in sorted(spent.items(), key=lambda item: -item[1])}
    print(f"{trainer.state.global_step} steps, {whole:.1f} s of one thread, {arguments.workers} workers")
    print(json.dumps(shares, indent=1))
    return shares


if __name__ == "__main__":
    main()
