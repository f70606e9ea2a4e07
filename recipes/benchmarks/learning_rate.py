"""Which learning rate brings a rewound network back furthest, and which does the range test find?

    python recipes/benchmarks/learning_rate.py recipes/positions/cifar10.yaml --rates 1e-3 2e-3 4e-3 8e-3

The case is one of `recipes/positions.py`; its methods are not looked at. Rewinding runs without supervision points, as
they do not look at the rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from ec_hf import ECConfig, ECTrainer, ForgetRequest
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.models.loading import load_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from positions import QUIET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of a case")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", type=int, default=5, help="range tests")
    parser.add_argument("--objective_kwargs", type=json.loads, default={}, help="settings of rewind, as JSON")
    options = parser.parse_args()
    case = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    request = ForgetRequest.load(case["request"]) if "request" in case else ForgetRequest(case["forget_classes"])
    splits = four_splits(*train_and_test(load_images(case["dataset_name"]), seed=0), request)
    original, processor = load_model(case["original"])

    def run(**settings: Any) -> ECTrainer:
        common = {**QUIET, **case.get("common", {}), "objective": "rewind", "points": []}
        with tempfile.TemporaryDirectory() as folder:
            trainer = ECTrainer(
                copy.deepcopy(original).to(memory_format=torch.channels_last),
                ECConfig(output_dir=folder, objective_kwargs=options.objective_kwargs, **common, **settings),
                forget_dataset=splits["forget_train"],
                retain_dataset=splits["retain_train"],
                processing_class=processor,
            )
            trainer.train()
        return trainer

    case.get("common", {}).pop("learning_rate", None)
    seed = case.get("common", {}).pop("seed", 1)
    found = [run(seed=seed + k, max_steps=1).args.learning_rate for k in range(options.seeds)]
    print(f"{options.file.stem}: the range test finds {sorted(found)}", flush=True)
    for rate in options.rates:
        accuracy = retain_accuracy(run(seed=seed, learning_rate=rate), splits["retain_test"])
        print(f"{options.file.stem}: {rate:g} ends at {accuracy:.1%} of the retain test images", flush=True)


@torch.no_grad()
def retain_accuracy(trainer: ECTrainer, images: Any) -> float:
    """Share of the images that the trained model names right."""
    model, right = trainer.model.eval(), 0
    for batch in trainer.loader(images, batch_size=256):
        right += int((model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
    return right / len(images)


if __name__ == "__main__":
    main()
