"""Paired batches: forget images first, then retain images, in an order that a resume finds again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL.Image import Image as PILImage
from transformers import PreTrainedModel

from ec_hf.data import IMAGE_COLUMNS, LABEL_COLUMNS, find_image_column, find_label_column, label_ids, shown
from ec_hf.points import image_shape

__all__ = ["ImageCollator", "PairedBatchSampler", "PairedDataset", "collator_for"]

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class PairedDataset(torch.utils.data.Dataset):
    """Map-style dataset over [forget ; retain]; each example gets `"is_forget": bool` and its `"paired_row": int`.

    Examples are fetched a batch at a time under random states (torch CPU, NumPy, `random`) set from the seed and the
    indices, and the states are put back afterwards. Random transforms that draw from these therefore give the same
    images after a resume, whatever was prefetched, and fetching leaves no trace on training.

    Args:
        forget: map-style dataset of dicts.
        retain: map-style dataset of dicts.
        seed: of the transforms.
    """

    def __init__(self, forget: Any, retain: Any, *, seed: int = 0) -> None:
        self.forget, self.retain, self.seed = forget, retain, seed

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        indices, boundary = [int(index) for index in indices], len(self.forget)
        if outside := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"index {outside[0]} is outside the {len(self)} rows of forget and retain")
        with _random_states_from(self.seed, indices):
            forget = iter(_fetch(self.forget, [index for index in indices if index < boundary]))
            retain = iter(_fetch(self.retain, [index - boundary for index in indices if index >= boundary]))
        return [
            {**next(forget if i < boundary else retain), "is_forget": i < boundary, "paired_row": i} for i in indices
        ]


class PairedBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of `forget_batch_size` forget and then `retain_batch_size` retain indices into a `PairedDataset`.

    An epoch is one pass over retain; the forget rows are gone through again and again, in a fresh order each time.
    `num_processes` consecutive batches, one for each process as Accelerate deals them, are together the batch that
    one process with `num_processes` times the batch sizes would get. No batch, nor these together, repeats a forget
    row while there are enough of them; otherwise each takes all rows and cycles. Retain rows are cycled only when
    they do not fill the first such round; rows that would not fill the last round are left out of the epoch.

    The order depends on `(seed, epoch)` alone: call `set_epoch` at the start of each epoch, also after a resume.

    Raises:
        ValueError: when a size is below 1.
    """

    drop_last = True

    def __init__(
        self,
        num_forget_rows: int,
        num_retain_rows: int,
        *,
        forget_batch_size: int,
        retain_batch_size: int,
        seed: int = 0,
        num_processes: int = 1,
    ) -> None:
        sizes = {
            "num_forget_rows": num_forget_rows,
            "num_retain_rows": num_retain_rows,
            "forget_batch_size": forget_batch_size,
            "retain_batch_size": retain_batch_size,
            "num_processes": num_processes,
        }
        if bad := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{bad[0]} must be at least 1, got {sizes[bad[0]]}")
        self.num_forget_rows, self.num_retain_rows = num_forget_rows, num_retain_rows
        self.forget_batch_size, self.retain_batch_size = forget_batch_size, retain_batch_size
        self.batch_size = forget_batch_size + retain_batch_size
        self.seed, self.epoch, self.num_processes = seed, 0, num_processes

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        rounds = self.num_retain_rows // (self.num_processes * self.retain_batch_size)
        return max(rounds, 1) * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        retain_order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.num_retain_rows)
        retain = np.resize(retain_order, (len(self), self.retain_batch_size)) + self.num_forget_rows
        forget_rounds = self._forget_rounds()
        for first in range(0, len(self), self.num_processes):
            forget = next(forget_rounds).reshape(self.num_processes, self.forget_batch_size)
            for process in range(self.num_processes):
                yield [*forget[process].tolist(), *retain[first + process].tolist()]

    def _forget_rounds(self) -> Iterator[np.ndarray]:
        generator = np.random.default_rng([self.seed, self.epoch, 0])
        size = self.num_processes * self.forget_batch_size
        queue = generator.permutation(self.num_forget_rows)
        while True:
            if size > self.num_forget_rows:
                yield np.resize(generator.permutation(self.num_forget_rows), size)
                continue
            if len(queue) < size:
                order = generator.permutation(self.num_forget_rows)
                waiting = np.isin(order, queue)  # rows of the old pass go last in the new one: none twice in a round
                queue = np.concatenate([queue, order[~waiting], order[waiting]])
            yield queue[:size]
            queue = queue[size:]


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
    """

    processor: Any = None
    _: KW_ONLY
    image_column: str | None = None
    label_column: str | None = None
    label_ids: Mapping[Any, int] | None = None
    num_channels: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates.

        Raises:
            TypeError: for integer pixel values, or labels that are no integers.
            ValueError: for missing images, labels or processor, labels unknown to `label_ids`, `pixel_values` of
                different shapes, and retain examples ahead of forget ones.
        """
        batch: dict[str, Any] = {"pixel_values": self._pixel_values(examples)}
        key = _key(examples[0], self.label_column, LABEL_COLUMNS, "label_column")
        batch["labels"] = torch.tensor([self._label(example[key]) for example in examples], dtype=torch.int64)
        if "is_forget" in examples[0]:
            flags = [bool(example["is_forget"]) for example in examples]
            batch["num_forget"] = sum(flags)
            batch["rows"] = torch.tensor([example.get("paired_row", -1) for example in examples])
            if not all(flags[: sum(flags)]):
                raise ValueError("forget examples must come first in a batch: sample with PairedBatchSampler")
        return batch

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
        parts: the datasets by name, all with the same columns; the first one is looked at for these.
        image_column: as for `find_image_column`.
        label_column: as for `find_label_column`.

    Raises:
        ValueError: as `find_image_column`, `find_label_column` and `label_ids`, and for label columns that differ.
    """
    channels = image_shape(model)[0]
    first = next(iter(parts.values()))
    parts = {name: part for name, part in parts.items() if isinstance(part, Dataset)}
    if not isinstance(first, Dataset):
        return ImageCollator(processor, image_column=image_column, label_column=label_column, num_channels=channels)
    label_column = find_label_column(first, label_column)
    kinds = {name: part.features.get(label_column) for name, part in parts.items()}
    if odd := [name for name, kind in kinds.items() if kind != first.features[label_column]]:
        raise ValueError(
            f"column {label_column!r} is {kinds[odd[0]]} in the {odd[0]} set, but {first.features[label_column]} in "
            f"the {next(iter(parts))} set: bring all to one form with cast_column"
        )
    ids: dict[Any, int] = {}  # of text labels each part knows those alone that it holds
    for part in parts.values():
        ids |= label_ids(part, label_column, model.config.id2label or {}) or {}
    example = first[0]
    return ImageCollator(
        processor,
        image_column=None if "pixel_values" in example else find_image_column(first, image_column),
        label_column=label_column if label_column in example else None,  # a transform may have renamed it
        label_ids=ids or None,
        num_channels=channels,
    )


@contextmanager
def _random_states_from(*key: Any) -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also set every GPU's state
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _fetch(part: Any, indices: list[int]) -> list[Mapping[str, Any]]:
    if not indices:
        return []
    examples = part.__getitems__(indices) if hasattr(part, "__getitems__") else [part[index] for index in indices]
    if not isinstance(examples[0], Mapping):
        raise TypeError(f"datasets to unlearn from must give dicts (image, label), got {type(examples[0]).__name__}")
    return examples


def _key(example: Mapping[str, Any], named: str | None, candidates: Sequence[str], argument: str) -> str:
    for key in candidates if named is None else [named]:
        if key in example:
            return key
    raise ValueError(f"{argument}: none of {named or candidates} among the example's keys {sorted(example)}; name one")
