"""A run whose retain set is streamed: its loaders, and its place in the stream beside each checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset

from ec_hf.data.streaming import BLOCK, Head, MixedStream, NumberedBatches, PairedStream, StreamedBatch
from ec_hf.files import read_json, write_json
from ec_hf.training.config import ECConfig
from ec_hf.training.fitting import HELD_OUT, ROUND
from ec_hf.training.run_length import RunLength

__all__ = ["HeadBatches", "StreamedRun", "rows_seen"]

PLACE = "stream_place"
"""What a batch calls the place of the stream after it."""
LOOKED_AT = 2048
"""Rows at the head of a stream whose labels tell whether it holds classes of the forget set."""


def rows_seen(args: ECConfig) -> int:
    """Retain images that a run of `max_steps` sees, in place of a number of rows that nobody knows."""
    a_step = args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
    return max(args.max_steps, 1) * a_step


class StreamedRun:
    """What an `ECTrainer` reads of a streamed retain set, and where in it the run is.

    Args:
        args: settings of the run.
        forget: the forget set.
        retain: the stream.
        collator: makes a batch of examples.
    """

    def __init__(self, args: ECConfig, forget: Dataset, retain: IterableDataset, collator: Any) -> None:
        self.args, self.forget, self.retain, self.collator = args, forget, retain, collator
        self.forgotten: frozenset[int] = frozenset()
        self._numbered: NumberedBatches | None = None
        self._place: Mapping[str, Any] | None = None
        self._resumed_from: Path | None = None

    def classes_at_head(self) -> set[int]:
        """The model's ids of the classes of the first rows; of all where the stream has their `labels` beside it."""
        if (labels := getattr(self.retain, "labels", None)) is not None:
            (column,) = labels.column_names
            return set(self.collator.labels_of([{column: value} for value in labels.unique(column)]))
        return set(self.collator.labels_of(Head(self.retain, LOOKED_AT).stored))

    # The batches of the erasure

    def loader(self, length: RunLength) -> DataLoader:
        """Paired batches of this process, from where the run is."""
        args = self.args
        stream = self._paired(args.per_device_forget_batch_size, args.per_device_train_batch_size)
        place = self._place_to_go_on_from(length)
        if place is not None:
            stream.load_state_dict(place)
        self._numbered, self._place = NumberedBatches(stream), place
        return DataLoader(
            self._numbered,
            batch_sampler=BatchNumbers(length.epoch_batches),
            collate_fn=_Collate(self.collator, self.forgotten),  # type: ignore[arg-type] # examples come as one object
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def keep_up(self, batch: dict[str, Any]) -> None:
        """Take the place of the stream off a batch that is trained on."""
        place = batch.pop(PLACE, None)
        if place is not None and self._numbered is not None:
            self._place = place
            self._numbered.keep_up(place)

    def save(self, folder: Path) -> None:
        """Write the place of this process's stream into a checkpoint."""
        if self._place is not None:
            write_json(folder / self._file(self.args.process_index), {**self._sizes(), "place": self._place})

    def resume_from(self, folder: Path | None) -> None:
        """Name the checkpoint that the next loader goes on from; None for a new run."""
        self._resumed_from = folder

    def _place_to_go_on_from(self, length: RunLength) -> Mapping[str, Any] | None:
        folder, self._resumed_from = self._resumed_from, None
        if folder is None:
            return None
        paths = sorted(folder.glob(self._file("*")))
        if not paths:
            raise ValueError(
                f"resume_from_checkpoint: {folder} holds no place in a stream, so its retain set was not streamed. "
                "Give the retain set as it was then."
            )
        own = folder / self._file(self.args.process_index)
        if len(paths) == self.args.world_size and own in paths:
            saved = read_json(own)
            if {name: saved.get(name) for name in self._sizes()} == self._sizes():
                return saved["place"]
        return self._next_pass(folder, [read_json(path)["place"] for path in paths], length)

    def _next_pass(self, folder: Path, places: Sequence[Mapping[str, Any]], length: RunLength) -> dict[str, Any]:
        """A pass that begins anew, for a run whose shards or batches are shared out otherwise than before."""
        if self.args.process_index == 0:
            print(f"{folder} was saved with other processes or batch sizes: the stream is read from its head again.")
        step = read_json(folder / "trainer_state.json")["global_step"]
        passes, rest = divmod(step, length.epoch_steps)
        batches = passes * length.epoch_batches + rest * length.batches_a_step
        epoch = max(place["epoch"] for place in places) + 1
        return {"epoch": epoch, "block": 0, "in_block": 0, "batches": batches, "start_of_block": None}

    def _sizes(self) -> dict[str, int]:
        args = self.args
        return {
            "processes": args.world_size,
            "forget_batch_size": args.per_device_forget_batch_size,
            "retain_batch_size": args.per_device_train_batch_size,
        }

    @staticmethod
    def _file(process: int | str) -> str:
        return f"stream-{process}.json"

    def _paired(self, forget_rows: int, retain_rows: int, forget: Any = None, leave_out: int = 0) -> PairedStream:
        args = self.args
        return PairedStream(
            self.forget if forget is None else forget,
            self.retain,
            forget_batch_size=forget_rows,
            retain_batch_size=retain_rows,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            block_size=max(BLOCK, retain_rows),
            process=args.process_index,
            processes=args.world_size,
            leave_out=leave_out,
        )

    # What is looked at before it

    def batches_for_heads(self, rows: int, epochs: int) -> tuple[HeadBatches, _OnDevice | None]:
        """Batches to fit heads on, and those that tell when the fit is done, where it is long.

        Forget and retain rows come in their shares of the whole. A fit of more than one round leaves out the head of
        each process's shards, and as large a share of the forget set.

        Args:
            rows: number of retain rows, or what stands for it.
            epochs: passes at most.
        """
        args, count = self.args, len(self.forget)  # type: ignore[arg-type]
        size = args.per_device_train_batch_size + args.per_device_forget_batch_size
        share, a_pass = count / (count + rows), math.ceil((count + rows) / (size * args.world_size))
        kept, held_out, left_out = self.forget, None, 0
        if epochs * a_pass > ROUND and count + rows >= 10:
            images = min(HELD_OUT, (count + rows) // 10)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(args.seed)).tolist()
            of_forget = min(round(images * share), count - 1)
            left_out = math.ceil((images - of_forget) / args.world_size)
            own = order[:of_forget][args.process_index :: args.world_size]
            kept = Subset(self.forget, order[of_forget:])
            head = Head(self.retain, left_out, process=args.process_index, processes=args.world_size)
            images_left_out: ConcatDataset[Any] = ConcatDataset([Subset(self.forget, own), head])
            held_out = _OnDevice(DataLoader(images_left_out, size, collate_fn=self.collator), args.device)
        most = min(math.ceil(size * share), size - 1)
        stream = self._paired(most, size - most, leave_out=left_out, forget=kept)
        loader = DataLoader(
            MixedStream(stream, share),
            batch_size=None,
            collate_fn=self.collator,
            num_workers=args.dataloader_num_workers,
        )
        return HeadBatches(loader, a_pass, args.device), held_out

    def few(self, rows: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of rows drawn from the head of the stream, the same in every process.

        Args:
            rows: so many at most are read; where the stream has fewer they come again.
            size: rows of a batch.
        """
        head = Head(self.retain, rows)
        order = np.resize(np.random.default_rng(self.args.seed).permutation(len(head)), rows)
        yield from _OnDevice(
            DataLoader(Subset(head, order.tolist()), size, collate_fn=self.collator), self.args.device
        )

    def all(self, every: int) -> Iterator[dict[str, Tensor]]:
        """Batches of the whole stream in its order, or of each `every`-th row; the same in every process."""
        rows = islice(iter(self.retain), 0, None, every)
        while batch := list(islice(rows, self.args.per_device_train_batch_size)):
            yield _moved(self.collator(batch), self.args.device)


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    return {name: batch[name].to(device) for name in ("pixel_values", "labels")}


class _OnDevice:
    """Images and labels of a loader's batches on a device.

    Args:
        loader: the loader.
        device: the device.
    """

    def __init__(self, loader: DataLoader, device: torch.device) -> None:
        self._loader, self._device = loader, device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._loader:
            yield _moved(batch, self._device)


class HeadBatches:
    """Batches of a stream without end, so many a pass; one pass goes on where the last one ended.

    Args:
        loader: of the stream.
        length: batches of a pass.
        device: where they go.
    """

    def __init__(self, loader: DataLoader, length: int, device: torch.device) -> None:
        self._batches, self._length, self._device = iter(loader), length, device

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in islice(self._batches, self._length):
            yield _moved(batch, self._device)


class BatchNumbers(Sampler[list[int]]):
    """Numbers of the batches of one epoch after another, each alone.

    Args:
        count: batches of an epoch.
    """

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.epoch * self.count, (self.epoch + 1) * self.count):
            yield [number]


class _Collate:
    """A batch of a stream with its place; no row of it may be of a class that is forgotten as a whole."""

    def __init__(self, collator: Any, forgotten: frozenset[int]) -> None:
        self.collator, self.forgotten = collator, forgotten

    def __call__(self, examples: StreamedBatch) -> dict[str, Any]:
        batch = self.collator(examples)
        if wrong := self.forgotten & set(batch["labels"][batch["num_forget"] :].tolist()):
            raise ValueError(
                f"retain_dataset: a row of the stream has label {min(wrong)}, which is a class of the forget set, "
                f"though none of the first {LOOKED_AT:,} rows had one. Filter such rows out of the stream where whole "
                "classes are forgotten; where single rows are, let its first rows hold some of their classes."
            )
        return {**batch, PLACE: examples.place}
