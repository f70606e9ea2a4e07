"""Erasing with a retain set that is streamed from Parquet shards: resident memory while steps go by.

    python recipes/benchmarks/stream.py                    # 8 and then 32 shards of the same size
    python recipes/benchmarks/stream.py --shards 8 64 --rows 500 --steps 400

Writes the shards into a temporary folder (a Hub repository is streamed in the same way), and erases a tiny ViT by
`ECTrainer` with the forget set in memory. Memory that grows with the steps, or with the number of shards, would show.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil

from ec_hf import ECConfig, ECTrainer

CLASSES, FORGOTTEN, SIDE = 10, (0, 1), 32


def make_rows(count: int, labels: Sequence[int], seed: int) -> Dataset:
    """Noise as PNG files, each different."""
    rng = np.random.default_rng(seed)
    images = [Pil.fromarray(each) for each in rng.integers(0, 255, (count, SIDE, SIDE, 3), dtype=np.uint8)]
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {k}" for k in range(CLASSES)])})
    rows = {"image": images, "label": [labels[k % len(labels)] for k in range(count)]}
    return Dataset.from_dict(rows, features=features)


def write_shards(folder: Path, shards: int, rows: int) -> list[str]:
    """Parquet files of retain rows."""
    kept = [label for label in range(CLASSES) if label not in FORGOTTEN]
    paths = [folder / f"{shard:04}.parquet" for shard in range(shards)]
    for seed, path in enumerate(paths):
        make_rows(rows, kept, seed).to_parquet(str(path))
    return [str(path) for path in paths]


class Resident(transformers.TrainerCallback):
    """Notes resident megabytes after each few steps."""

    def __init__(self, every: int) -> None:
        self.every, self.process = every, psutil.Process()
        self.found: list[float] = []

    def on_step_end(self, _args: Any, state: Any, *_rest: Any, **_kwargs: Any) -> None:
        """Look at this process's memory."""
        if state.global_step % self.every == 0:
            self.found.append(round(self.process.memory_info().rss / 1e6, 1))


def erase(files: list[str], rows: int, steps: int, every: int) -> list[float]:
    """Resident megabytes after each few steps of an erasure on a stream, at this package's defaults."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    resident = Resident(every)
    with tempfile.TemporaryDirectory() as folder:
        config = ECConfig(
            folder,
            max_steps=steps,
            retain_rows=rows,
            per_device_train_batch_size=16,
            per_device_forget_batch_size=8,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = ECTrainer(
            transformers.ViTForImageClassification(
                transformers.ViTConfig(image_size=SIDE, patch_size=8, num_labels=CLASSES, **sizes)
            ),
            config,
            forget_dataset=make_rows(200, FORGOTTEN, seed=10**6),
            retain_dataset=datasets.load_dataset("parquet", data_files=files, split="train", streaming=True),
            processing_class=transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}),
            callbacks=[resident],
        )
        trainer.train()
    return resident.found


def main(argv: Sequence[str] | None = None) -> dict[int, list[float]]:
    """Print resident memory over the steps, a line a number of shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rows", type=int, default=250, help="rows of a shard")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--every", type=int, default=25)
    arguments = parser.parse_args(argv)
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    found = {}
    for shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            files = write_shards(Path(folder), shards, arguments.rows)
            size = sum(Path(each).stat().st_size for each in files) / 1e6
            found[shards] = erase(files, shards * arguments.rows, arguments.steps, arguments.every)
        print(f"{shards} shards, {shards * arguments.rows:,} rows, {size:.0f} MB on disk")
        print(f"  resident MB every {arguments.every} steps: " + json.dumps(found[shards]), flush=True)
    return found


if __name__ == "__main__":
    main()
