"""Train an image classifier with the plain Trainer: the model that is to unlearn, or its retrained reference."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset
from PIL.Image import Image
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.hf_argparser import HfArg

from ec_hf.data.columns import find_image_column, find_label_column
from ec_hf.data.fingerprint import fingerprint
from ec_hf.files import AUDIT, CONFIG, MANIFEST, RECORD, WEIGHTS, ModelFolder, explained_writing, move_files
from ec_hf.models.inputs import collator_for
from ec_hf.models.loading import load_with_new_head, new_like, weights_hash
from ec_hf.training.architectures import build
from ec_hf.training.augmentation import COLOUR, GRAY, Batches
from ec_hf.training.checkpoints import UNFINISHED
from ec_hf.training.progress import ProgressTable
from ec_hf.training.trainer import accuracy

__all__ = ["ClassifierConfig", "class_names", "seed_folders", "train_classifier", "train_once", "train_seeds"]

FROM_NEW_WEIGHTS = {"learning_rate": 3e-3, "num_train_epochs": 24}
FROM_PRETRAINED = {"learning_rate": 1e-4, "num_train_epochs": 4}


@dataclass
class ClassifierConfig(TrainingArguments):
    """`TrainingArguments` with what to train from, and with these defaults changed.

    64 images a step (over all processes), warm-up over a tenth of the steps and cosine decay, weight decay 0.05, a
    log line an epoch, no checkpoints, no search for unused parameters. From new weights 24 epochs at a learning rate
    of 3e-3, which suits small networks; from pretrained ones 4 epochs at 1e-4.
    """

    output_dir: str | None = HfArg(default="outputs/original", help="Folder for the trained model.")
    base_model: str | None = HfArg(
        default=None,
        help="Hub id, folder or timm name of a pretrained network to start from, with a new head for the classes of "
        "the data; default: the architecture with random weights.",
    )
    architecture: str = HfArg(
        default="vit",
        help="Without a base model: vit, vit12, resnet, resnet34_narrow, or a timm name; all start from random "
        "weights.",
    )
    image_column: str | None = HfArg(default=None, help="Image column, where it cannot be told.")
    label_column: str | None = HfArg(default=None, help="Label column, where it cannot be told.")
    classes: list[str] | None = HfArg(
        default=None, help="Class names in the order of their ids; default: those that the data names or holds."
    )
    augment: bool = HfArg(
        default=True, help="Move training images at random: shift and mirror colour images, turn and zoom gray ones."
    )
    overwrite: bool = HfArg(default=False, help="Replace the model that output_dir holds.")
    num_train_epochs: float | None = HfArg(
        default=None, help="Passes over the training images. Default: 24 from new weights, 4 from a base model."
    )
    per_device_train_batch_size: int = HfArg(
        default=max(1, 64 // int(os.environ.get("WORLD_SIZE", "1"))), help="Images a step and process."
    )
    per_device_eval_batch_size: int = HfArg(default=256, help="Images a step and process in evaluation.")
    learning_rate: float | None = HfArg(
        default=None, help="Peak learning rate of AdamW. Default: 3e-3 from new weights, 1e-4 from a base model."
    )
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.1, help="Warm-up steps; below 1, their share of all steps.")
    weight_decay: float = HfArg(default=0.05, help="Weight decay of AdamW.")
    logging_strategy: str = HfArg(default="epoch", help="When to log.")
    save_strategy: str = HfArg(default="no", help="When to save checkpoints.")
    remove_unused_columns: bool = HfArg(default=False, help="Must stay off: batches are made from the image column.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Look for parameters without gradient.")
    dataloader_pin_memory: bool = HfArg(default=torch.cuda.is_available(), help="Pin batches in memory.")

    def __post_init__(self) -> None:
        for name, value in (FROM_PRETRAINED if self.base_model else FROM_NEW_WEIGHTS).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()


def train_classifier(
    config: ClassifierConfig,
    train_dataset: Dataset,
    eval_dataset: Dataset,
    *,
    like: PreTrainedModel | None = None,
    processor: Any = None,
) -> tuple[PreTrainedModel, Any]:
    """Train a classifier, save it with its image processor, print its accuracy on both datasets.

    Nothing is chosen by `eval_dataset`. Image size is read off the first image; class names are those of `like` or
    the settings, else of both datasets: a class that was taken out of the training part alone keeps its place in the
    head.

    Args:
        config: settings, and what to start from.
        train_dataset: images, or `pixel_values` that are used as they are, with labels.
        eval_dataset: the same, to measure on.
        like: a model whose classes the new one has, in the same order. Without a base model, its architecture with
            new weights is where training starts, in place of `config.architecture`.
        processor: image processor of `like`; a base model of the same architecture gets it too.

    Returns:
        The model in evaluation mode, and its processor; None where the data holds `pixel_values`.

    Raises:
        FileExistsError: when output_dir holds a model, and overwrite is not set.
        OSError: for a base model that is not there.
        ValueError: for an unknown architecture, a base model that is no image classifier, and for columns or labels
            that cannot be told.
    """
    check_output(config)
    columns = [
        find_image_column(train_dataset, config.image_column),
        find_label_column(train_dataset, config.label_column),
    ]
    parts = {"train": train_dataset.select_columns(columns), "test": eval_dataset.select_columns(columns)}
    of_data = class_names([part.select_columns(columns[1:]) for part in parts.values()])
    names = config.classes or (_names_of(like) if like is not None else of_data)
    first = parts["train"].with_format(None)[0][columns[0]]
    is_image = isinstance(first, Image)

    set_seed(config.seed)
    model, processor = _start(config, names, first, like, processor)
    collator = collator_for(
        model, processor if is_image else None, parts, image_column=columns[0], label_column=columns[1]
    )
    moves = (GRAY if _is_gray(first) else COLOUR) if config.augment else None
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=parts["train"].with_transform(Batches(collator, moves)),
        data_collator=default_data_collator,
        preprocess_logits_for_metrics=lambda logits, _labels: logits.argmax(-1),
        compute_metrics=accuracy,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressTable(doing="training", accuracies=False))
    trainer.train()
    plain = {name: part.with_transform(Batches(collator)) for name, part in parts.items()}
    reached = {name: trainer.evaluate(part)["eval_accuracy"] for name, part in plain.items()}
    if trainer.is_world_process_zero():
        _save(Path(str(config.output_dir)), model, processor if is_image else None)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.print(
        f"{_origin(config, like)}, {model.num_parameters():,} parameters: accuracy {reached['train']:.2%} on the "
        f"training images, {reached['test']:.2%} on the test images; saved in {config.output_dir}"
    )
    return model.eval(), processor if is_image else None


def train_seeds(
    config: ClassifierConfig, seeds: int, train_dataset: Dataset, eval_dataset: Dataset, **kwargs: Any
) -> list[str]:
    """Train one model, or several with the seeds from `config.seed` on; the folders that they are saved in.

    Args:
        config: settings of the first one.
        seeds: number of models.
        train_dataset: as for `train_classifier`.
        eval_dataset: as for `train_classifier`.
        **kwargs: `like` and `processor` of `train_classifier`.

    Raises:
        FileExistsError: one of the folders holds a model, and `overwrite` is not set; before anything is trained.
        ValueError: as `train_classifier`.
    """
    folders = seed_folders(str(config.output_dir), seeds)
    runs = [replace(config, output_dir=folder, seed=config.seed + k) for k, folder in enumerate(folders)]
    for one in runs:
        check_output(one)
    for one in runs:
        train_classifier(one, train_dataset, eval_dataset, **kwargs)
    return folders


def train_once(
    config: ClassifierConfig, seeds: int, train_dataset: Dataset, eval_dataset: Dataset, **kwargs: Any
) -> list[str]:
    """`train_seeds` into folders that are named after settings and data too, where those that are there are used.

    Args:
        config: settings; a hash is added to `output_dir`.
        seeds: number of models.
        train_dataset: as for `train_classifier`.
        eval_dataset: as for `train_classifier`.
        **kwargs: as for `train_seeds`.
    """
    told = {name: value for name, value in config.to_dict().items() if name not in ("output_dir", "logging_dir")}
    like = kwargs.get("like")
    made_of = [told, fingerprint(train_dataset), None if like is None else weights_hash(like)]
    name = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:12]
    state, output_dir = PartialState(), f"{config.output_dir}-{name}"
    there = [ModelFolder(folder).damage() is None for folder in seed_folders(output_dir, seeds)]
    state.wait_for_everyone()
    if not all(there):
        return train_seeds(
            replace(config, output_dir=output_dir, overwrite=True), seeds, train_dataset, eval_dataset, **kwargs
        )
    state.print(f"Using the retrained models {' '.join(seed_folders(output_dir, seeds))}")
    return seed_folders(output_dir, seeds)


def seed_folders(output_dir: str, seeds: int) -> list[str]:
    """The folder of one model, or FOLDER-1, FOLDER-2 and so on of several."""
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: expected 1 or more models to train")
    return [output_dir] if seeds == 1 else [f"{output_dir}-{number}" for number in range(1, seeds + 1)]


def check_output(config: ClassifierConfig) -> None:
    """Refuse a folder that holds a model, unless it may be replaced; an unlearned model never is."""
    folder = ModelFolder(str(config.output_dir))
    if (folder.has(CONFIG) or folder.has(WEIGHTS)) and not config.overwrite:
        raise FileExistsError(f"{config.output_dir!r} holds a model: load it, name another folder, or set overwrite")
    if told := [name for name in (RECORD, MANIFEST, AUDIT) if folder.has(name)]:
        raise FileExistsError(
            f"{config.output_dir!r} holds an unlearned model, of which its {told[0]} tells: another model beside that "
            "file would pass for it, so name another folder"
        )


def _save(folder: Path, model: PreTrainedModel, processor: Any) -> None:
    """Write a model aside, then move it to its place: a save that is cut short leaves the earlier model as it was."""
    aside = folder / UNFINISHED
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with explained_writing(folder, "What lay there before is unchanged."):
            for each in filter(None, (model, processor)):
                each.save_pretrained(str(aside))
            move_files(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def class_names(labels: Sequence[Dataset]) -> list[str]:
    """Names in the order of the label ids, from datasets that hold the label column alone."""
    (column,) = labels[0].column_names
    found = {label for part in labels for label in part.unique(column)}
    if any(label is None or (isinstance(label, int) and label < 0) for label in found):
        raise ValueError(f"{column!r} has rows without a label (null or below 0): filter them out first")
    if isinstance(labels[0].features[column], ClassLabel):
        return labels[0].features[column].names
    if all(isinstance(label, int) for label in found):
        return [str(label) for label in range(max(found) + 1)]
    return sorted(found)


def _names_of(model: PreTrainedModel) -> list[str]:
    names = {int(key): name for key, name in (model.config.id2label or {}).items()}
    return [names[key] for key in sorted(names)]


def _start(
    config: ClassifierConfig, names: Sequence[str], first: Any, like: PreTrainedModel | None, processor: Any
) -> tuple[PreTrainedModel, Any]:
    """The model as it is before training, and its image processor."""
    if config.base_model:
        return _as_prepared_for(like, processor, *load_with_new_head(config.base_model, names))
    if like is not None:
        return new_like(like), processor
    # Gray images become RGB ones: pipelines and the Hub's widget hand RGB to every model.
    channels, *sides = (3, *first.size) if isinstance(first, Image) else torch.as_tensor(first).shape
    return build(config.architecture, min(*sides, 224), channels, names)


def _as_prepared_for(
    like: PreTrainedModel | None, processor: Any, model: PreTrainedModel, its_own: Any
) -> tuple[PreTrainedModel, Any]:
    """A base model with the image processor of the model fine-tuned from it, which sees images in that way."""
    if type(like) is not type(model) or not hasattr(processor, "save_pretrained"):
        return model, its_own
    if hasattr(like.config, "pretrained_cfg"):  # where timm's processors are saved
        if getattr(like.config, "architecture", None) != getattr(model.config, "architecture", None):
            return model, its_own
        model.config.pretrained_cfg = like.config.pretrained_cfg
    return model, processor


def _is_gray(first: Any) -> bool:
    return first.mode in ("1", "L") if isinstance(first, Image) else torch.as_tensor(first).shape[0] == 1


def _origin(config: ClassifierConfig, like: PreTrainedModel | None) -> str:
    if config.base_model:
        return f"from {config.base_model}"
    return config.architecture if like is None else f"{type(like).__name__} from new weights"
