"""What is expected of a layer below the cut, and what is there? Held against retrained models.

    python recipes/benchmarks/separability.py recipes/positions/cifar10.yaml --runs DIR

A file is one of `recipes/positions`; DIR holds unlearned models, such as `recipes/positions.py` leaves. A row a model
has the relative separability (`ec_hf.metrics.relative_separability`) of the layers that `strength="auto"` looks at,
with its standard error, and of unlearned models what `ec_hf.training.steering.expected` makes of the layer above the
cut.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from datasets import concatenate_datasets
from torch.utils.data import DataLoader

from ec_hf import EraserConfig, ForgetRequest, split
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.files import ModelFolder
from ec_hf.models.inputs import collator_for, label_ids_of
from ec_hf.models.loading import load_model
from ec_hf.training.eraser import Eraser
from ec_hf.training.steering import Steering, expected, few_of_each_class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of a case")
    parser.add_argument("--runs", type=Path, required=True, help="folder with unlearned models")
    parser.add_argument("--seed", type=int, default=1, help="of the images that are looked at")
    options = parser.parse_args()
    case = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    train, _ = train_and_test(load_images(case["dataset_name"]), seed=0)
    parts = split(train, ForgetRequest(case["forget_classes"]))
    original, processor = load_model(case["original"])
    collator = collator_for(original, processor, parts)
    few, classes = [], []
    for name in ("forget", "retain"):
        labels = label_ids_of(parts[name], collator)
        few.append(parts[name].select(few_of_each_class(labels, options.seed)))
        classes.append(sorted(set(labels.tolist())))
    loader = DataLoader(concatenate_datasets(few), batch_size=64, collate_fn=collator)

    def steering_of(model):
        eraser = Eraser(model, EraserConfig(), forget_classes=classes[0])
        return Steering(eraser, lambda: loader)

    first = steering_of(original)
    depths = {point.name: point.index for point in (*first.points, first.cut)}
    before = first.measured()
    print(f"| model | {' | '.join(before)} |", f"| --- |{' ---: |' * len(before)}", sep="\n")
    print(_row("original", before))
    for number, name in enumerate(case["retrained"], 1):
        print(_row(f"retrained {number}", steering_of(load_model(name)[0]).measured()))
    for folder in sorted(options.runs.iterdir()):
        if not folder.is_dir() or ModelFolder(folder).damage() is not None:
            continue
        found = steering_of(load_model(folder)[0]).measured()
        *_, cut = found
        target = expected({layer: each.value for layer, each in before.items()}, found[cut].value, depths)
        print(_row(folder.name, found))
        print(f"| expected | {' | '.join(f'{value:.2f}' for value in target.values())} |")


def _row(name, found):
    return f"| {name} | {' | '.join(f'{each.value:.2f} ± {each.error:.2f}' for each in found.values())} |"


if __name__ == "__main__":
    main()
