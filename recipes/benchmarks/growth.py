"""How time and memory of a step, a split and an audit grow with batch, rows, images and classes.

    python recipes/benchmarks/growth.py --output recipes/results/growth

Each point runs in a process of its own (Linux): its processor time on one thread, and how far its resident memory
rose. Images and network are tiny, so that what a method adds shows beside the network. A split reads no image. Writes
growth.json, and growth.png where each line stands beside one of slope 1.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import matplotlib as mpl
import numpy as np
import pyarrow as pa
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil
from step import make_batch

from ec_hf import Eraser, EraserConfig, ForgetRequest, audit, split

SIDE = 16
CLASSES, BATCHES, ROWS, IMAGES = (10, 100, 1000), (32, 128, 512), (10**4, 10**5, 10**6), (500, 1000, 2000, 4000)
SMALL = {"CLASSES": (10, 100), "BATCHES": (8, 16), "ROWS": (100, 200), "IMAGES": (60, 120)}
LINEAR = 1.15
"""A slope of logarithms up to here counts as linear."""


def make_model(classes: int, seed: int = 0) -> transformers.PreTrainedModel:
    """A tiny ViT with random weights."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    names = {f"class {k}": k for k in range(classes)}
    config = transformers.ViTConfig(
        image_size=SIDE, patch_size=4, label2id=names, id2label={k: name for name, k in names.items()}, **sizes
    )
    return transformers.ViTForImageClassification(config)


def make_rows(rows: int, classes: int) -> Dataset:
    """Rows that share eight images."""
    rng, files = np.random.default_rng(0), []
    for pixels in rng.integers(0, 255, (8, SIDE, SIDE, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Pil.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    images = pa.StructArray.from_arrays(
        [pa.array([files[k % 8] for k in range(rows)], pa.binary()), pa.nulls(rows, pa.string())], ["bytes", "path"]
    )
    table = pa.table({"image": images, "label": np.arange(rows) % classes})
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {k}" for k in range(classes)])})
    return Dataset(table).cast(features)


def forgotten(classes: int) -> list[int]:
    """A tenth of the classes."""
    return list(range(classes // 10))


def step(classes: int, batch: int) -> Callable[[], Any]:
    """A step of calibrated EC."""
    model = make_model(classes)
    config = EraserConfig(objective="delete", objective_kwargs={"retain_weight": 1.0}, calibrated=True)
    eraser = Eraser(model, config, forget_classes=forgotten(classes))
    eraser.heads_fitted = True
    paired = make_batch(SIDE, batch // 2, batch // 2, classes)

    def run() -> None:
        with eraser.attached():
            eraser.model.train()
            eraser(paired).total.backward()

    return run


def splitting(classes: int, rows: int) -> Callable[[], Any]:
    """`ec_hf.split` by class."""
    images = make_rows(rows, classes)
    request = ForgetRequest(classes=forgotten(classes))
    return lambda: split(images, request)


def auditing(classes: int, images: int) -> Callable[[], Any]:
    """An audit of three models; two thirds of the images are for training."""
    train, test = make_rows(2 * images // 3, classes), make_rows(images // 3, classes)
    names = ("original", "unlearned", "retrained")
    models = {name: make_model(classes, seed).eval() for seed, name in enumerate(names)}
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    request = ForgetRequest(classes=forgotten(classes))
    return lambda: audit(**models, train=train, test=test, request=request, processor=processor)


def measured(make: Callable[[], Callable[[], Any]], repeats: int) -> tuple[float, float]:
    """Processor seconds of the last of some runs, and megabytes by which the first one raised resident memory."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    run = make()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    before, times, highest = resident("VmRSS"), [], 0.0
    for number in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
        highest = highest if number else resident("VmHWM")
    return min(times), highest - before


def resident(name: str) -> float:
    """Resident memory of this process in MB, now ("VmRSS") or at its peak ("VmHWM"); on Linux."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def in_a_process(make: Callable[[], Callable[[], Any]], repeats: int) -> tuple[float, float]:
    """`measured` in a process of its own, which starts from the memory of this one."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measured, (make, repeats))


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of logarithms between the two largest sizes; 1 is linear."""
    (a, b), (low, high) = sizes[-2:], (max(value, 1e-9) for value in values[-2:])
    return round(math.log(high / low) / math.log(b / a), 2)


def figure(found: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Time above and memory below, a column a subject, a line a number of classes."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 6.4), layout="constrained", squeeze=False)
    for column, (subject, lines) in zip(axes.T, found.items(), strict=True):
        for axis, name, unit in zip(column, ("seconds", "megabytes"), ("processor s", "MB"), strict=True):
            for classes, line in lines.items():
                axis.loglog(line["sizes"], [max(value, 1e-4) for value in line[name]], marker="o", label=classes)
            sizes, first = line["sizes"], max(next(iter(lines.values()))[name][0], 1e-4)
            axis.loglog(sizes, [first * size / sizes[0] for size in sizes], ":", color="grey", label="slope 1")
            axis.set_ylabel(unit)
            axis.set_xlabel({"step": "images of a batch", "split": "rows", "audit": "images"}[subject])
            axis.grid(alpha=0.3)
            axis.minorticks_off()
            axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        column[0].set_title(subject)
    axes[0, 0].legend(title="classes", fontsize="small")
    drawn.savefig(path, dpi=110)
    plt.close(drawn)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all points, print what grows faster than linear, and write data and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("growth"))
    parser.add_argument("--small", action="store_true", help="few and small points, for a test")
    arguments = parser.parse_args(argv)
    sizes = SMALL if arguments.small else {"CLASSES": CLASSES, "BATCHES": BATCHES, "ROWS": ROWS, "IMAGES": IMAGES}
    subjects = {"step": (step, sizes["BATCHES"], 3), "split": (splitting, sizes["ROWS"], 2)}
    subjects["audit"] = (auditing, sizes["IMAGES"], 1)
    found: dict[str, Any] = {}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for subject, (make, values, repeats) in subjects.items():
        for classes in sizes["CLASSES"]:
            points = [in_a_process(partial(make, classes, value), repeats) for value in values]
            seconds, megabytes = ([round(each, 4) for each in column] for column in zip(*points, strict=True))
            line = {"sizes": list(values), "seconds": seconds, "megabytes": megabytes}
            line["slopes"] = [slope(values, seconds), slope(values, megabytes)]
            found.setdefault(subject, {})[str(classes)] = line
            faster = " <- faster than linear" if max(line["slopes"]) > LINEAR else ""
            print(f"{subject}, {classes} classes: {line}{faster}", flush=True)
            (arguments.output / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
            figure(found, arguments.output / "growth.png")  # anew, so that what was measured stays where it is ended
    return found


if __name__ == "__main__":
    main()
