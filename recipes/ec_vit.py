"""Erase classes, rows or people from an image classifier, and show layer by layer what is left.

    accelerate launch recipes/ec_vit.py                                    # digits 3, 5 and 8 of MNIST-5k
    accelerate launch recipes/ec_vit.py --with_retrained --retrain_seeds 3 --with_delete     # beside retrained models
    accelerate launch recipes/ec_vit.py settings.yaml --seed 1             # settings from a file, flags override them
    accelerate launch recipes/ec_vit.py --model_name_or_path ID --dataset_name ID --forget_classes cat dog
    accelerate launch recipes/ec_vit.py ... --push_to_hub --hub_model_id NAME/REPOSITORY     # with its card

It is `ec-hf erase` with a demonstration. Every field of `ECConfig` is a flag. Where neither settings file, model nor
dataset is named, `ec_vit.yaml` beside this file gives the settings. Without a model, an original one is trained first
and cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from ec_hf import ECConfig
from ec_hf.commands.erase import OFTEN, EraseArguments, run
from ec_hf.commands.parsing import parse
from ec_hf.data.columns import find_label_column
from ec_hf.data.erasure import ErasureData
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.files import ModelFolder
from ec_hf.models.loading import load_model
from ec_hf.pipeline import Original
from ec_hf.training.classifier import ClassifierConfig, train_classifier

DEMONSTRATION = str(Path(__file__).with_suffix(".yaml"))
DATA = "mnist5k"
CACHE = Path(os.environ.get("EC_HF_CACHE", Path.home() / ".cache" / "ec_hf"))
FOLDERS = "outputs/ec_vit"


def main() -> int:
    what, config = settings()
    if what.model_name_or_path:
        return run(what, config, folders=FOLDERS)
    images = load_images(what.dataset_name, config=what.dataset_config)
    config = replace(config, label_column=find_label_column(next(iter(images.values())), config.label_column))
    train, test = train_and_test(images, label_column=config.label_column)
    folder = cached("original", train, config)

    def retrained(original: Original, data: ErasureData) -> list[PreTrainedModel]:
        retain, test = data.splits["retain_train"], data.splits["retain_test"]
        classes = list(original.model.config.id2label.values())  # of text labels the retain set holds some only
        seeds = [replace(config, seed=config.seed + k) for k in range(what.retrain_seeds)]
        return [train_once(cached("retrained", retain, one), retain, test, one, classes=classes)[0] for one in seeds]

    reference = {"retrained": retrained} if what.with_retrained and not what.retrained_name_or_path else {}
    return run(
        what,
        config,
        folders=FOLDERS,
        model=lambda config: Original(*train_once(folder, train, test, config)),
        heads_cache=folder / f"heads-{digest(how_heads_are_fitted(what, config))}",
        **reference,
    )


def settings() -> tuple[EraseArguments, ECConfig]:
    """The settings of the command line; those of the demonstration where nothing else is named."""
    described: dict[str, Any] = {"description": __doc__, "often": OFTEN}
    what, config = parse(EraseArguments, ECConfig, **described)
    own_settings = sys.argv[1:] and sys.argv[1].endswith((".yaml", ".yml"))
    if not own_settings and what.model_name_or_path is None and what.dataset_name in (None, DATA):
        what, config = parse(EraseArguments, ECConfig, argv=[DEMONSTRATION, *sys.argv[1:]], **described)
    return replace(what, dataset_name=what.dataset_name or DATA), config


def how_heads_are_fitted(what: EraseArguments, config: ECConfig) -> tuple:
    """What fitted heads depend on, beside the model and its training set."""
    return (
        config.objective,
        config.points,
        config.pooling,
        config.heads_epochs,
        config.heads_learning_rate,
        what.hold_out,
    )


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def cached(kind: str, train: Dataset, config: ECConfig) -> Path:
    """Folder of a model that this recipe trains, one for each training set and seed."""
    return CACHE / f"{kind}-{digest([train._fingerprint, config.label_column, config.image_column, config.seed])}"


def train_once(
    folder: Path, train: Dataset, test: Dataset, config: ECConfig, **settings: Any
) -> tuple[PreTrainedModel, Any]:
    """Train a model into `folder`, or load the one that is there."""
    state = PartialState()
    there = ModelFolder(folder).damage() is None  # else it was cut short, and is made again
    state.wait_for_everyone()
    if there:
        state.print(f"Using the model in {folder}")
        return load_model(folder)
    columns = {"label_column": config.label_column, "image_column": config.image_column}
    settings |= {"seed": config.seed, "use_cpu": config.use_cpu, **columns}
    return train_classifier(ClassifierConfig(output_dir=str(folder), overwrite=True, **settings), train, test)


if __name__ == "__main__":
    if code := main():
        sys.exit(code)
