"""Erasing with a retain set that is streamed from Parquet shards: resident memory while steps go by.

    python recipes/benchmarks/stream.py                    # 8 and then 32 shards of the same size
    python recipes/benchmarks/stream.py --shards 8 64 --rows 500 --steps 400

Writes the shards into a temporary folder (a Hub repository is streamed in the same way), and erases a tiny ViT with
the forget set in memory. Memory that grows with the steps, or with the number of shards, would show.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import psutil
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil
from torch.utils.data import DataLoader

from ec_hf import Eraser, EraserConfig
from ec_hf.data.streaming import PairedStream
from ec_hf.models.inputs import ImageCollator

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


def erase(files: list[str], steps: int, every: int) -> list[float]:
    """Resident megabytes after each few steps of an erasure on a stream."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=SIDE, patch_size=8, num_labels=CLASSES, **sizes)
    )
    eraser = Eraser(model, EraserConfig("contrastive"), forget_classes=FORGOTTEN)
    eraser.heads_fitted = True
    stream = PairedStream(
        make_rows(200, FORGOTTEN, seed=10**6),
        datasets.load_dataset("parquet", data_files=files, split="train", streaming=True),
        forget_batch_size=16,
        retain_batch_size=16,
        block_size=256,
    )
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    loader = DataLoader(stream, batch_size=None, collate_fn=ImageCollator(processor))
    process, found = psutil.Process(), []
    with eraser.attached():
        model.train()
        optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-4)
        for step, batch in enumerate(islice(loader, steps)):
            optimizer.zero_grad()
            eraser(batch).total.backward()
            optimizer.step()
            if (step + 1) % every == 0:
                found.append(round(process.memory_info().rss / 1e6, 1))
    return found


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
            found[shards] = erase(files, arguments.steps, arguments.every)
        print(f"{shards} shards, {shards * arguments.rows:,} rows, {size:.0f} MB on disk")
        print(f"  resident MB every {arguments.every} steps: " + json.dumps(found[shards]), flush=True)
    return found


if __name__ == "__main__":
    main()
