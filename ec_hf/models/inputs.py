"""From examples to the tensors that a model takes: the collator of images and labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL.Image import Image as PILImage
from PIL.Image import fromarray
from transformers import PreTrainedModel

from ec_hf.data.columns import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    find_image_column,
    find_label_column,
    label_ids,
    read_column,
    shown,
)
from ec_hf.models.points import image_shape

__all__ = ["ImageCollator", "collator_for", "eight_bits", "label_ids_of", "normalisation", "preparation"]

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass
class ImageCollator:
    """Turns example dicts into a batch: pixel_values (B, C, H, W) float32, labels (B,) int64.

    Examples of a `PairedDataset` also give `num_forget` (int): how many rows at the start of the batch are forget,
    and `rows` (B,) int64: their indices in that dataset.

    Args:
        processor: image processor, called once a batch; not needed when examples hold `pixel_values`, which are used
            as they are.
        image_column: the images' key; image or img when not given.
        label_column: the labels' key; labels or label when not given.
        label_ids: label value -> the model's label id, as from `label_ids()`; None takes them as they are.
        num_channels: channels the model expects, to which PIL images are converted; None leaves their mode alone.
        num_labels: number of the model's labels, beyond which no label may lie; None to take all.
    """

    processor: Any = None
    _: KW_ONLY
    image_column: str | None = None
    label_column: str | None = None
    label_ids: Mapping[Any, int] | None = None
    num_channels: int | None = None
    num_labels: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of examples.

        Raises:
            TypeError: `pixel_values` are integers, or labels are not.
            ValueError: images, labels or the processor are missing, `label_ids` does not know a label, a label lies
                beyond the model's, `pixel_values` have different shapes or are not finite, or a retain example stands
                before a forget example.
        """
        batch: dict[str, Any] = {"pixel_values": self._pixel_values(examples)}
        finite = torch.isfinite(batch["pixel_values"]).flatten(1).all(dim=1)
        if not finite.all():
            bad = ", ".join(_place(examples, place) for place in torch.nonzero(~finite).flatten().tolist()[:5])
            raise ValueError(f"pixel values are NaN or infinite: {bad}. Take these rows out, or mend them.")
        labels = self.labels_of(examples)
        for place, label in enumerate(labels):
            if self.num_labels is not None and not 0 <= label < self.num_labels:
                raise ValueError(
                    f"label {label} of {_place(examples, place)} lies beyond the model's {self.num_labels} labels, "
                    f"0 to {self.num_labels - 1}: is this the model for this dataset?"
                )
        batch["labels"] = torch.tensor(labels, dtype=torch.int64)
        if "is_forget" in examples[0]:
            flags = [bool(example["is_forget"]) for example in examples]
            batch["num_forget"] = sum(flags)
            batch["rows"] = torch.tensor([example.get("paired_row", -1) for example in examples])
            if not all(flags[: sum(flags)]):
                raise ValueError("forget examples must come first in a batch: sample with PairedBatchSampler")
        return batch

    def labels_of(self, examples: Sequence[Mapping[str, Any]]) -> list[int]:
        """The model's label ids of examples, whatever else these hold."""
        if not examples:
            return []
        key = _key(examples[0], self.label_column, LABEL_COLUMNS, "label_column")
        return [self._label(example[key]) for example in examples]

    def _pixel_values(self, examples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        if "pixel_values" in examples[0]:
            tensors = [torch.as_tensor(example["pixel_values"]) for example in examples]
            if not all(tensor.is_floating_point() for tensor in tensors):
                raise TypeError(
                    "pixel_values are integers: scale and normalise them to floats as the model expects, or rename "
                    "the column to 'image' and pass an image processor"
                )
            if len(shapes := {tuple(tensor.shape) for tensor in tensors}) != 1 or tensors[0].ndim != 3:
                raise ValueError(f"pixel_values must all have one shape (C, H, W), got {sorted(shapes)}")
            return torch.stack(tensors).float()
        if self.processor is None:
            raise ValueError(
                f"no image processor, and no 'pixel_values' among {sorted(examples[0])}: pass "
                "processor=AutoImageProcessor.from_pretrained(...) or add 'pixel_values' by with_transform"
            )
        key = _key(examples[0], self.image_column, IMAGE_COLUMNS, "image_column")
        mode = PIL_MODES.get(self.num_channels or 0)
        images = [example[key] for example in examples]
        if missing := [place for place, image in enumerate(images) if image is None]:
            raise ValueError(f"{_place(examples, missing[0])} has no image in {key!r}: filter such rows out first")
        images = [eight_bits(image) if isinstance(image, PILImage) else image for image in images]
        images = [image.convert(mode) if mode and isinstance(image, PILImage) else image for image in images]
        return torch.as_tensor(self.processor(images, return_tensors="pt")["pixel_values"]).float()

    def _label(self, value: Any) -> int:
        value = value.item() if hasattr(value, "item") else value
        if self.label_ids is not None:
            if value not in self.label_ids:
                raise ValueError(f"label {value!r} is not in label_ids, which knows {shown(self.label_ids)}")
            value = self.label_ids[value]
        if not isinstance(value, int):
            raise TypeError(f"label {value!r} is no integer: pass label_ids=label_ids(dataset, column, id2label)")
        return value


def collator_for(
    model: PreTrainedModel,
    processor: Any,
    parts: Mapping[str, Any],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageCollator:
    """The collator that brings datasets' images and labels into the form that a model expects.

    Columns are found, class names matched with the model's, and images converted to its number of channels.

    Args:
        model: the classifier.
        processor: its image processor, or None for data that holds ``pixel_values``.
        parts: the datasets by name, all with the same columns; the first one, which is not streamed, is looked at for
            these.
        image_column: as for `find_image_column`.
        label_column: as for `find_label_column`.

    Raises:
        ValueError: as `find_image_column`, `find_label_column` and `label_ids`, and where the label columns differ.
    """
    channels = image_shape(model)[0]
    first = next(iter(parts.values()))
    streams = {name: part for name, part in parts.items() if isinstance(part, IterableDataset) and part.features}
    parts = {name: part for name, part in parts.items() if isinstance(part, Dataset)}
    if not isinstance(first, Dataset):
        return ImageCollator(
            processor,
            image_column=image_column,
            label_column=label_column,
            num_channels=channels,
            num_labels=model.config.num_labels,
        )
    label_column = find_label_column(first, label_column)
    kinds = {name: part.features.get(label_column) for name, part in (parts | streams).items()}
    if odd := [name for name, kind in kinds.items() if kind != first.features[label_column]]:
        raise ValueError(
            f"column {label_column!r} is {kinds[odd[0]]} in the {odd[0]} set, but {first.features[label_column]} in "
            f"the {next(iter(parts))} set: bring all to one form with cast_column"
        )
    ids: dict[Any, int] = {}  # text labels: each part knows only those that it holds
    for part in [part for part in parts.values() if len(part)] or parts.values():
        ids |= label_ids(part, label_column, model.config.id2label or {}) or {}
    if streams and any(isinstance(value, str) for value in ids):  # a stream holds others, which nobody has seen yet
        ids = {name: int(key) for key, name in (model.config.id2label or {}).items()} | ids
    example = first[0]
    return ImageCollator(
        processor,
        image_column=None if "pixel_values" in example else find_image_column(first, image_column),
        label_column=label_column if label_column in example else None,  # a transform may have renamed it
        label_ids=ids or None,
        num_channels=channels,
        num_labels=model.config.num_labels,
    )


def eight_bits(image: PILImage) -> PILImage:
    """An image of 16-bit gray values scaled to 8 bits, where PIL's own conversion would clip it; others as they are.

    Raises:
        ValueError: 32-bit values of which the range is not known.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16") or (image.format == "PNG" and image.mode == "I"):  # older PIL reads 16 bits as I
        return fromarray(np.rint(values / 257).astype(np.uint8))
    if low < 0 or high > 255 or (image.mode == "F" and 0 < high <= 1):
        raise ValueError(
            f"an image of mode {image.mode!r} holds values from {low:g} to {high:g}, and it is not known what black "
            "and white are: bring images to 8 bits first"
        )
    return image


def label_ids_of(dataset: Dataset, collator: ImageCollator, label_column: str | None = None) -> np.ndarray:
    """The model's label ids ``(n,)`` of all rows of a dataset, found without reading an image.

    Args:
        dataset: the dataset.
        collator: the collator that makes batches of it for the model.
        label_column: as for `find_label_column`.
    """
    values = read_column(dataset, find_label_column(dataset, label_column)).to_pylist()
    ids = collator.label_ids
    return np.array(values if ids is None else [ids[value] for value in values], dtype=np.int64)


def _key(example: Mapping[str, Any], named: str | None, candidates: Sequence[str], argument: str) -> str:
    for key in candidates if named is None else [named]:
        if key in example:
            return key
    raise ValueError(f"{argument}: none of {named or candidates} among the example's keys {sorted(example)}; name one")


def _place(examples: Sequence[Mapping[str, Any]], place: int) -> str:
    """An example of a batch in words; of a `PairedDataset`, by its row."""
    if examples[place].get("paired_row", -1) < 0:  # rows of a stream have no number
        return f"image {place} of the batch"
    row = examples[place]["paired_row"]
    return f"forget row {row}" if examples[place]["is_forget"] else f"row {row} of forget and retain set together"


def preparation(collator: ImageCollator, example: Mapping[str, Any]) -> str:
    """How images go into a model, in a sentence: their size, and by what their pixels are normalised.

    Args:
        collator: that of the model.
        example: a row of the data.
    """
    channels, height, width = collator([example])["pixel_values"].shape[1:]
    size = f"Images go into the model as {channels} x {height} x {width}"
    known = normalisation(collator.processor)
    if "pixel_values" in example or known is None:
        return f"{size}."
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in known)
    return f"{size}, normalised by the mean {mean} and the standard deviation {std}, as its image processor says."


def normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each channel by which an image processor normalises pixels from 0 to 1.

    Returns:
        Both, each with one number a channel or one for all; None without a processor, and for one that scales pixels
        to another range or does not say.
    """
    timm = getattr(processor, "data_config", None) or {}
    mean = getattr(processor, "image_mean", None) or timm.get("mean")
    std = getattr(processor, "image_std", None) or timm.get("std")
    factor = getattr(processor, "rescale_factor", None) if getattr(processor, "do_rescale", True) else 1.0
    if not math.isclose(1 / 255 if factor is None else factor, 1 / 255, rel_tol=1e-3):
        return None
    if processor is not None and getattr(processor, "do_normalize", True) is False:
        return (0.0,), (1.0,)
    if mean is None or std is None:
        return None
    return tuple(map(float, np.atleast_1d(mean))), tuple(map(float, np.atleast_1d(std)))
