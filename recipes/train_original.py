"""Train an original image classifier from scratch with the plain Trainer: the model that is to unlearn.

    accelerate launch recipes/train_original.py                            # a small ViT on the digits of MNIST-5k
    accelerate launch recipes/train_original.py --architecture resnet --dataset_name uoft-cs/cifar10 --output_dir out
    accelerate launch --multi_gpu --num_processes 2 recipes/train_original.py --use_cpu

Every field of `TrainingArguments` is a flag. `--without_classes cat dog` gives the retrained model of a request, and
`--seeds 3` three of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import ClassLabel, Dataset
from PIL.Image import Image
from torch.nn import functional as F
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    default_data_collator,
    set_seed,
)
from transformers.hf_argparser import HfArg

from ec_hf import ForgetRequest, split
from ec_hf.cli import parse
from ec_hf.data.columns import find_image_column, find_label_column
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.models.inputs import ImageCollator
from ec_hf.models.loading import new_like


@dataclass
class RecipeArguments:
    """What to train on."""

    dataset_name: str = HfArg(
        default="mnist5k", help="Hub id, local folder, or mnist5k, which comes with the package."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of the dataset on the Hub.")
    without_classes: list[str] | None = HfArg(
        default=None, help="Classes to leave out of both parts: a retrained model, the reference for unlearning them."
    )
    seeds: int = HfArg(
        default=1,
        help="Train so many models, with the seeds from --seed on, into OUTPUT_DIR-1, OUTPUT_DIR-2 and so on; the "
        "spread of retrained models is the unit of an audit.",
    )


@dataclass
class OriginalConfig(TrainingArguments):
    """`TrainingArguments` with what to train, and with these defaults changed.

    24 epochs of 64 images a step (over all processes), learning rate 3e-3 with warm-up over a tenth of the steps and
    cosine decay, weight decay 0.05, a log line an epoch, no checkpoints, no search for unused parameters.
    """

    output_dir: str | None = HfArg(default="outputs/original", help="Folder for the trained model.")
    architecture: str = HfArg(
        default="vit", help="vit, vit12, resnet, resnet34_narrow, or a timm name; all start from random weights."
    )
    image_column: str | None = HfArg(default=None, help="Image column, where it cannot be told.")
    label_column: str | None = HfArg(default=None, help="Label column, where it cannot be told.")
    classes: list[str] | None = HfArg(
        default=None, help="Class names in the order of their ids; default: those that the data names or holds."
    )
    overwrite: bool = HfArg(default=False, help="Replace the model that output_dir holds.")
    num_train_epochs: float = HfArg(default=24, help="Passes over the training images.")
    per_device_train_batch_size: int = HfArg(
        default=max(1, 64 // int(os.environ.get("WORLD_SIZE", "1"))), help="Images a step and process."
    )
    per_device_eval_batch_size: int = HfArg(default=256, help="Images a step and process in evaluation.")
    learning_rate: float = HfArg(default=3e-3, help="Peak learning rate of AdamW.")
    lr_scheduler_type: str = HfArg(default="cosine", help="Schedule of the learning rate.")
    warmup_steps: float = HfArg(default=0.1, help="Warm-up steps; below 1, their share of all steps.")
    weight_decay: float = HfArg(default=0.05, help="Weight decay of AdamW.")
    logging_strategy: str = HfArg(default="epoch", help="When to log.")
    save_strategy: str = HfArg(default="no", help="When to save checkpoints.")
    remove_unused_columns: bool = HfArg(default=False, help="Must stay off: batches are made from the image column.")
    ddp_find_unused_parameters: bool | None = HfArg(default=False, help="Look for parameters without gradient.")
    dataloader_pin_memory: bool = HfArg(default=torch.cuda.is_available(), help="Pin batches in memory.")


def train_original(
    output_dir: str | Path, train_dataset: Dataset, eval_dataset: Dataset, **settings: Any
) -> tuple[PreTrainedModel, ViTImageProcessor | None]:
    """Train a classifier, save it with its image processor, print its accuracy on both datasets.

    Image size is read off the first image, class names off both datasets: a class that was taken out of the training
    part alone keeps its place in the head.

    Args:
        output_dir: folder for the model, which AutoModelForImageClassification and AutoImageProcessor load.
        train_dataset: images, or `pixel_values` that are used as they are, with labels.
        eval_dataset: the same, to measure on.
        settings: fields of `OriginalConfig`, such as architecture, num_train_epochs, seed, use_cpu.

    Returns:
        The model in evaluation mode, and its processor; None where the data holds `pixel_values`.

    Raises:
        FileExistsError: when output_dir holds a model, and overwrite is not set.
        ValueError: for an unknown architecture, and for columns or labels that cannot be told.
    """
    return train(OriginalConfig(output_dir=str(output_dir), **settings), train_dataset, eval_dataset)


def train(
    config: OriginalConfig, train_dataset: Dataset, eval_dataset: Dataset
) -> tuple[PreTrainedModel, ViTImageProcessor | None]:
    """`train_original` with its settings as one object."""
    if (Path(config.output_dir) / "config.json").exists() and not config.overwrite:
        raise FileExistsError(f"{config.output_dir!r} holds a model: load it, name another folder, or set overwrite")
    columns = [
        find_image_column(train_dataset, config.image_column),
        find_label_column(train_dataset, config.label_column),
    ]
    parts = {"train": train_dataset.select_columns(columns), "test": eval_dataset.select_columns(columns)}
    names = config.classes or class_names([part.select_columns(columns[1:]) for part in parts.values()])
    first = parts["train"].with_format(None)[0][columns[0]]
    is_image = isinstance(first, Image)
    # Gray images become RGB ones: pipelines and the Hub's widget hand RGB to every model.
    channels, *sides = (3, *first.size) if is_image else torch.as_tensor(first).shape
    is_gray = first.mode in ("1", "L") if is_image else channels == 1

    set_seed(config.seed)
    model, processor = build(config.architecture, min(*sides, 224), channels, names)
    collator = ImageCollator(
        processor,
        image_column=columns[0],
        label_column=columns[1],
        label_ids={label: i for i, name in enumerate(names) for label in (i, name)},
        num_channels=channels,
    )
    plain = {name: part.with_transform(Batches(collator)) for name, part in parts.items()}
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=parts["train"].with_transform(Batches(collator, GRAY if is_gray else COLOUR)),
        data_collator=default_data_collator,
        compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()},
    )
    trainer.train()
    accuracy = {name: trainer.evaluate(part)["eval_accuracy"] for name, part in plain.items()}
    if trainer.is_world_process_zero():
        model.save_pretrained(config.output_dir)
        if is_image:
            processor.save_pretrained(config.output_dir)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.print(
        f"{config.architecture}, {model.num_parameters():,} parameters: accuracy {accuracy['train']:.2%} on the "
        f"training images, {accuracy['test']:.2%} on the test images; saved in {config.output_dir}"
    )
    return model.eval(), processor if is_image else None


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


def build(architecture: str, size: int, channels: int, names: Sequence[str]) -> tuple[PreTrainedModel, Any]:
    """A classifier with random weights for square images, and its image processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    if architecture in ARCHITECTURES:
        model = ARCHITECTURES[architecture](size, num_channels=channels, num_labels=len(names), **labels)
        pixels = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, "do_convert_rgb": channels == 3}
        return model, ViTImageProcessor(size={"height": size, "width": size}, **pixels)
    return build_timm(architecture, size, channels, labels)


def build_vit(size: int, blocks: int = 10, **config: Any) -> ViTForImageClassification:
    """Narrow blocks on 16 patches: depth to unlearn in, at the cost of a few seconds an epoch."""
    patch = size // 4 if size <= 32 else 8 if size <= 64 else 16
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=48,
            num_hidden_layers=blocks,
            num_attention_heads=3,
            intermediate_size=96,
            image_size=size,
            patch_size=patch,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.07,  # the usual 0.02 is meant for hundreds of channels: here it costs half the epochs
            **config,
        )
    )


def build_resnet(_size: int, **config: Any) -> ResNetForImageClassification:
    """Three stages of one basic block, 312,000 parameters: fit for images of 32 x 32."""
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, **config))


def build_resnet34_narrow(_size: int, **config: Any) -> ResNetForImageClassification:
    """ResNet-34 at a quarter of its width, 1.3 million parameters: sixteen blocks to unlearn in."""
    sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "depths": [3, 4, 6, 3], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sizes, **config))


ARCHITECTURES = {
    "resnet": build_resnet,
    "resnet34_narrow": build_resnet34_narrow,
    "vit": build_vit,
    "vit12": partial(build_vit, blocks=12),
}


def build_timm(architecture: str, size: int, channels: int, labels: Mapping[str, Any]) -> tuple[PreTrainedModel, Any]:
    """Any timm model, through the wrapper that AutoModelForImageClassification loads."""
    import timm  # slow to import
    from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

    if not timm.is_model(architecture):
        raise ValueError(f"unknown architecture {architecture!r}: neither in {sorted(ARCHITECTURES)} nor a timm model")
    arguments: dict[str, Any] = {"in_chans": channels}
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        arguments["img_size"] = size
    pixels = {"input_size": [channels, size, size], "mean": [0.5] * channels, "std": [0.5] * channels, "crop_pct": 1.0}
    config = TimmWrapperConfig(
        architecture=architecture,
        num_labels=len(labels["id2label"]),
        model_args=arguments,
        pretrained_cfg=pixels,
        **labels,
    )
    model = new_like(TimmWrapperForImageClassification(config))
    return model, TimmWrapperImageProcessor(pixels, architecture)


@dataclass
class Batches:
    """Dataset transform: examples to `pixel_values` and `labels`, a batch at once, randomly moved if so asked."""

    collator: ImageCollator
    moves: Mapping[str, float] | None = None

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Collate and move the columns of one batch."""
        batch = self.collator([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        return batch | ({"pixel_values": move(batch["pixel_values"], **self.moves)} if self.moves else {})


GRAY = {"degrees": 10, "zoom": 0.1, "shift": 0.07, "flip": 0.0}
COLOUR = {"degrees": 0, "zoom": 0, "shift": 0.125, "flip": 0.5}


def move(images: torch.Tensor, degrees: float, zoom: float, shift: float, flip: float) -> torch.Tensor:
    """Each image turned, zoomed and shifted by up to as much, and mirrored with the probability `flip`.

    Args:
        images: `(n, channels, height, width)`.
        degrees: angle.
        zoom: share of the size.
        shift: share of the size, in whole pixels, so that it alone blurs nothing.
        flip: probability.
    """
    count, size = len(images), torch.tensor(images.shape[-2:]).flip(0)
    uniform = 2 * torch.rand(count, 4) - 1
    angle, scale = uniform[:, 0] * math.radians(degrees), 1 + zoom * uniform[:, 1]
    mirror = 1 - 2 * (torch.rand(count) < flip).float()
    rows = [mirror * angle.cos() * scale, -angle.sin() * scale, mirror * angle.sin() * scale, angle.cos() * scale]
    turn = torch.stack(rows, dim=1).reshape(count, 2, 2)
    offset = 2 * (uniform[:, 2:] * shift * size).round() / size  # the grid spans -1 to 1
    grid = F.affine_grid(torch.cat([turn, offset[:, :, None]], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def main() -> None:
    """Run the recipe."""
    recipe, config = parse(RecipeArguments, OriginalConfig, description=__doc__)
    state = PartialState(cpu=config.use_cpu)
    state.print(f"{state.num_processes} process(es), backend {state.backend or 'none'}, device {state.device}")
    images = load_images(recipe.dataset_name, config=recipe.dataset_config)
    parts = train_and_test(images, label_column=config.label_column, seed=config.seed)
    if recipe.without_classes:
        column = find_label_column(parts[0], config.label_column)
        config.classes = config.classes or class_names([part.select_columns([column]) for part in parts])
        request = ForgetRequest(classes=recipe.without_classes)
        parts = tuple(split(part, request, label_column=config.label_column)["retain"] for part in parts)
    if recipe.seeds == 1:
        train(config, *parts)
    for number in range(recipe.seeds if recipe.seeds > 1 else 0):
        one = replace(config, output_dir=f"{config.output_dir}-{number + 1}", seed=config.seed + number)
        train(one, *parts)
    state.wait_for_everyone()  # gloo may abort a process that leaves while another still works
    state.destroy_process_group()


if __name__ == "__main__":
    main()
