"""Splitting a dataset by class: `ec_hf.split` against `Dataset.filter`, side by side in one run.

    python recipes/benchmarks/split.py --rows 100000

Prints seconds of each (median of three) and their ratio, on in-memory rows that hold a 32x32 PNG each.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil

from ec_hf import ForgetRequest, split


def make_images(rows: int) -> Dataset:
    buffer = io.BytesIO()
    Pil.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {i}" for i in range(100)])})
    image = {"bytes": buffer.getvalue(), "path": None}
    return Dataset.from_dict({"image": [image] * rows, "label": [i % 100 for i in range(rows)]}, features=features)


def by_filter(images: Dataset, label: int) -> None:
    images.filter(lambda row: row["label"] == label, load_from_cache_file=False)
    images.filter(lambda row: row["label"] != label, load_from_cache_file=False)


def by_column(images: Dataset, label: int) -> None:
    images.filter(lambda value: value == label, input_columns="label", load_from_cache_file=False)
    images.filter(lambda value: value != label, input_columns="label", load_from_cache_file=False)


def by_split(images: Dataset, label: int) -> None:
    split(images, ForgetRequest(classes=[label]))


def seconds(run: Callable[[Dataset, int], None], images: Dataset) -> float:
    times = []
    for label in range(3):
        start = time.perf_counter()
        run(images, label)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    images = make_images(arguments.rows)
    ours = seconds(by_split, images)
    print(f"{arguments.rows:,} rows, seconds for both parts, median of 3")
    for name, run in (("filter on whole rows", by_filter), ("filter on the label column", by_column)):
        other = seconds(run, images)
        print(f"  {name:<28} {other:8.3f}   {other / ours:6.0f} x ec_hf.split")
    print(f"  {'ec_hf.split':<28} {ours:8.3f}")


if __name__ == "__main__":
    main()
