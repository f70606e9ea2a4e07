"""The interclass-confusion test: does forgetting mislabelled images undo what they taught?

    python recipes/interclass_confusion.py

Half of the training images of two digits get the other one's label, and a small network learns from all of them. Then
the mislabelled images are forgotten. A model that never saw them tells the two digits apart; how many test images of
one are still taken for the other is what was not forgotten. Only answers are needed for it, and no score of the model
(Goel et al. 2022, arXiv 2201.06640: IC test). It takes about a minute of one core.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from ec_hf.data.sources import load_images
from ec_hf.metrics import bootstrap_mean
from ec_hf.models.inputs import collator_for
from ec_hf.training.classifier import ClassifierConfig, train_classifier

DIGITS = ("2", "3", "5", "8")
PAIR = ("3", "5")
MISLABELLED = 0.5
TRAINING: dict[str, Any] = {"architecture": "resnet", "num_train_epochs": 12}
ERASING: dict[str, Any] = {"num_train_epochs": 4, "learning_rate": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "fine-tuned on the rest": {"objective": "finetune", "points": "none"},
    "SCRUB": {"objective": "scrub", "points": "none"},
    "SCRUB + EC": {"objective": "scrub"},
    "SCRUB + calibrated EC": {"objective": "scrub", "calibrated": True},
}


def confused(images: Dataset, pair: tuple[int, int], share: float, seed: int = 0) -> tuple[Dataset, list[int]]:
    """Images of which a share of either class of a pair has the other one's label, and the rows of these.

    Args:
        images: with a `ClassLabel` column "label".
        pair: label ids.
        share: of the images of each of the two classes.
        seed: of the random draw.
    """
    labels = np.array(images["label"])
    draw, changed = np.random.default_rng(seed), labels.copy()
    for own, other in (pair, pair[::-1]):
        rows = np.flatnonzero(labels == own)
        changed[draw.choice(rows, round(share * len(rows)), replace=False)] = other
    features = images.features
    mixed = (
        images.remove_columns("label").add_column("label", changed.tolist()).cast_column("label", features["label"])
    )
    return mixed, np.flatnonzero(changed != labels).tolist()


def confusion_error(predictions: np.ndarray, labels: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """For each image of the pair's classes whether it is taken for the other one; the mean is the IC error.

    Args:
        predictions: `(n,)` label ids.
        labels: `(n,)` true label ids.
        pair: label ids.
    """
    other = {pair[0]: pair[1], pair[1]: pair[0]}
    asked = np.isin(labels, pair)
    return predictions[asked] == [other[label] for label in labels[asked]]


def answers(model: PreTrainedModel, processor: Any, images: Dataset) -> np.ndarray:
    """`(n,)` predicted label ids."""
    loader = DataLoader(images, batch_size=256, collate_fn=collator_for(model, processor, {"test": images}))
    with torch.inference_mode():
        found = [
            model(pixel_values=batch["pixel_values"].to(model.device)).logits.argmax(-1).cpu() for batch in loader
        ]
    return torch.cat(found).numpy()


def _config(folder: Path, training: Mapping[str, Any]) -> ClassifierConfig:
    return ClassifierConfig(output_dir=str(folder), **QUIET, **training)


def compare(
    train: Dataset,
    test: Dataset,
    pair: tuple[int, int],
    folder: Path,
    *,
    methods: Mapping[str, Mapping[str, Any]] = METHODS,
    training: Mapping[str, Any] = TRAINING,
    erasing: Mapping[str, Any] = ERASING,
) -> dict[str, np.ndarray]:
    """Model -> predictions on the test images, of an original, what methods made of it, and a retrained model.

    Args:
        train: correctly labelled training images.
        test: test images.
        pair: label ids of the two classes.
        folder: for the models.
        methods: name -> fields of `ECConfig`.
        training: fields of `ClassifierConfig`.
        erasing: fields of `ECConfig` that all methods have.
    """
    mixed, rows = confused(train, pair, MISLABELLED)
    parts = split(mixed, ForgetRequest(rows=rows))
    original, processor = train_classifier(_config(folder / "original", training), mixed, test)
    found = {"original": answers(original, processor, test)}
    for name, settings in methods.items():
        trainer = ECTrainer(
            model=copy.deepcopy(original),
            args=ECConfig(
                str(folder / "erased"),
                save_strategy="no",
                eval_strategy="no",
                eval_on_start=False,
                **QUIET,
                **{**erasing, **settings},
            ),
            forget_dataset=parts["forget"],
            retain_dataset=parts["retain"],
            processing_class=processor,
        )
        trainer.train()
        found[name] = answers(trainer.model.eval(), processor, test)
    retrained, _ = train_classifier(_config(folder / "retrained", training), parts["retain"], test)
    return found | {"retrained": answers(retrained, processor, test)}


def table(found: Mapping[str, np.ndarray], labels: np.ndarray, pair: tuple[int, int], names: Sequence[str]) -> str:
    """Markdown: the IC error of each model with its 95 % interval, and its accuracy on all test images."""
    a, b = (names[label] for label in pair)
    lines = [f"| model | {a} taken for {b}, or {b} for {a} | right, of all test images |", "| --- | ---: | ---: |"]
    for name, predictions in found.items():
        wrong = confusion_error(predictions, labels, pair)
        low, high = bootstrap_mean(wrong)
        told = f"{100 * wrong.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        lines.append(f"| {name} | {told} | {100 * (predictions == labels).mean():.1f} % |")
    return "\n".join(lines)


QUIET: dict[str, Any] = {"disable_tqdm": True, "report_to": "none", "logging_strategy": "no"}


def main() -> None:
    """Run the recipe."""
    transformers.logging.set_verbosity_error()
    images = load_images("mnist5k")
    names = images["train"].features["label"].names
    kept = [names.index(digit) for digit in DIGITS]
    train, test = (
        images[part].filter(lambda label: label in kept, input_columns="label") for part in ("train", "test")
    )
    pair = names.index(PAIR[0]), names.index(PAIR[1])
    with tempfile.TemporaryDirectory() as folder:
        found = compare(train, test, pair, Path(folder))
    print(table(found, np.array(test["label"]), pair, names))


if __name__ == "__main__":
    main()
