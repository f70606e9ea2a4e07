"""What an audit costs: the whole of it against bare forward passes, a pass for each metric, and CKA in UUEF's way.

    python recipes/benchmarks/audit.py                              # ViT-S/16 at 224 pixels, 300 images
    python recipes/benchmarks/audit.py --model tiny --images 5000   # the demonstration's ViT, at 28 pixels

Original, unlearned and retrained model have random weights: the cost does not depend on them. All are measured in one
run, in seconds of processor time on one thread, so that other work on the machine does not distort the ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import datasets
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pil
from torch.utils.data import DataLoader

from ec_hf import ForgetRequest, metrics
from ec_hf.auditing.audit import audit
from ec_hf.auditing.subjects import Subject
from ec_hf.data.splitting import four_splits
from ec_hf.models.inputs import ImageCollator
from ec_hf.models.points import describe_hidden_states

Result = TypeVar("Result")
SHAPES = {
    "small": {"image_size": 224, "patch_size": 16, "hidden_size": 384, "num_hidden_layers": 12},
    "tiny": {"image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 96, "num_hidden_layers": 10},
}
HEADS = {"small": 6, "tiny": 4}
LABELS = [f"class {k}" for k in range(10)]
FORGOTTEN = LABELS[:3]


def make_model(shape: str, seed: int) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    sizes = SHAPES[shape]
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: k for k, name in enumerate(LABELS)}}
    config = transformers.ViTConfig(
        **sizes, **names, intermediate_size=4 * sizes["hidden_size"], num_attention_heads=HEADS[shape]
    )
    return transformers.ViTForImageClassification(config).eval()


def make_images(count: int, side: int, mode: str, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (count, 8, 8) if mode == "L" else (count, 8, 8, 3), dtype=np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=LABELS)})
    images = [Pil.fromarray(each).resize((side, side)) for each in small]
    return Dataset.from_dict({"image": images, "label": [k % len(LABELS) for k in range(count)]}, features=features)


class Passes:
    """Forward passes over a split, as a script would write them."""

    def __init__(self, subjects: dict[str, Subject], splits: dict[str, Dataset], batch_size: int) -> None:
        self.subjects, self.splits, self.batch_size = subjects, splits, batch_size

    def batches(self, split: str, batch_size: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """Pixels and labels, prepared anew each time."""
        collator = next(iter(self.subjects.values())).collator
        yield from DataLoader(self.splits[split], batch_size=batch_size or self.batch_size, collate_fn=collator)

    @torch.inference_mode()
    def bare(self) -> None:
        """All three models on all images, which are read once; nothing is measured."""
        for split in self.splits:
            for batch in self.batches(split):
                for subject in self.subjects.values():
                    subject.model(pixel_values=batch["pixel_values"])

    @torch.inference_mode()
    def logits(self, name: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of a split."""
        parts = [
            (self.subjects[name].model(pixel_values=batch["pixel_values"]).logits, batch["labels"])
            for batch in self.batches(split)
        ]
        return torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts])

    @torch.inference_mode()
    def features(self, name: str, split: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled features of all layers, and labels, of a split."""
        parts = [
            (self.subjects[name].run(batch["pixel_values"], "all"), batch["labels"]) for batch in self.batches(split)
        ]
        layers = [torch.cat(each) for each in zip(*(layers for layers, _ in parts), strict=True)]
        return layers, torch.cat([labels for _, labels in parts])

    def per_metric(self) -> None:
        """Every metric by itself, each with the passes it needs."""
        for name in self.subjects:
            for split in self.splits:
                metrics.hits(*self.logits(name, split))
                metrics.masked_hits(*self.logits(name, split), [0, 1, 2])
                metrics.confidence(self.logits(name, split)[0])
                metrics.entropy(self.logits(name, split)[0])
            for hits in (metrics.probe_hits, metrics.knn_hits):
                known = [self.features(name, split) for split in ("forget_train", "retain_train")]
                asked = [self.features(name, split) for split in ("forget_test", "retain_test")]
                labels = [torch.cat([y for _, y in side]) for side in (known, asked)]
                for i in range(len(known[0][0])):
                    x, query = (torch.cat([layers[i] for layers, _ in side]) for side in (known, asked))
                    hits(x, labels[0], query, labels[1])
            for score in (metrics.loss, lambda logits, _: metrics.confidence(logits)):
                metrics.membership_auc(
                    score(*self.logits(name, "forget_train")), score(*self.logits(name, "forget_test"))
                )
        for name, reference in (("unlearned", "original"), ("retrained", "original"), ("unlearned", "retrained")):
            for split in self.splits:
                pairs = zip(self.features(name, split)[0], self.features(reference, split)[0], strict=True)
                for ours, theirs in pairs:
                    metrics.linear_cka(ours, theirs)
        for name in ("original", "unlearned"):
            for split in self.splits:
                for distance in (metrics.js_divergence, metrics.activation_distance, metrics.agreement):
                    distance(self.logits(name, split)[0].softmax(-1), self.logits("retrained", split)[0].softmax(-1))

    @torch.inference_mode()
    def uuef(self) -> None:
        """CKA alone as UUEF's scripts have it: two models a run, biased, by n x n Gram matrices of batches of 512."""
        for name, reference in (("unlearned", "original"), ("retrained", "original"), ("unlearned", "retrained")):
            for split in self.splits:
                for batch in self.batches(split, 512):
                    pixels = batch["pixel_values"].split(self.batch_size)
                    both = [
                        [
                            torch.cat(layer)
                            for layer in zip(*(self.subjects[each].run(x, "all") for x in pixels), strict=True)
                        ]
                        for each in (name, reference)
                    ]
                    for x, y in zip(*both, strict=True):
                        gram_cka(x, y)


def gram_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    centre = torch.eye(len(x)) - 1 / len(x)
    k, m = (centre @ (each @ each.T) @ centre for each in (x, y))
    return (k * m).sum() / (k.norm() * m.norm())


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of processor time, and what the run returns."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="small")
    parser.add_argument("--images", type=int, default=300, help="two thirds of them for training")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--only_audit", action="store_true", help="leave out the per-metric passes and UUEF's way")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)

    sizes = SHAPES[arguments.model]
    side, channels = sizes["image_size"], sizes.get("num_channels", 3)
    models = {
        name: make_model(arguments.model, seed) for seed, name in enumerate(("original", "unlearned", "retrained"))
    }
    processor = transformers.ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )
    train, test = (
        make_images(count, side, "RGB" if channels == 3 else "L", seed)
        for seed, count in enumerate((arguments.images * 2 // 3, arguments.images // 3))
    )
    request = ForgetRequest(classes=FORGOTTEN)
    collator = ImageCollator(processor, num_channels=channels)
    points = describe_hidden_states(models["original"])
    subjects = {name: Subject(model, collator, points, depth=len(points)) for name, model in models.items()}
    passes = Passes(subjects, four_splits(train, test, request), arguments.batch_size)
    whole = partial(
        audit,
        **models,
        train=train,
        test=test,
        request=request,
        processor=processor,
        batch_size=arguments.batch_size,
    )

    next(iter(passes.batches("retain_test")))  # what is imported at the first use is no cost of either
    first, _ = timed(passes.bare)
    in_audit, report = timed(whole)
    rows = {"the whole audit": in_audit}
    if not arguments.only_audit:
        rows["one pass for each metric"], _ = timed(passes.per_metric)
        rows["CKA alone, in UUEF's way"], _ = timed(passes.uuef)
    last, _ = timed(passes.bare)
    bare = (first + last) / 2
    print(
        f"{arguments.model}, {arguments.images} images, three models; seconds of one thread, and times the bare passes"
    )
    print(f"  {'bare forward passes':<28} {bare:8.1f}   (first {first:.1f}, last {last:.1f})")
    for name, value in rows.items():
        print(f"  {name:<28} {value:8.1f}   {value / bare:5.2f} x")
    print(f"  parts of the audit, wall time: {report.seconds}; {len(report.measurements)} measurements")


if __name__ == "__main__":
    main()
