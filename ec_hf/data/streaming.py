"""Paired batches of a retain set that no machine holds: its shards are streamed, the forget set lies in memory."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Features, IterableDataset
from datasets.distributed import split_dataset_by_node

from ec_hf.data.images import DECODING_ERRORS, told
from ec_hf.data.pairing import forget_rounds, random_states_from

__all__ = ["Head", "MixedStream", "NumberedBatches", "PairedStream", "StreamedBatch", "StreamedRows", "is_stream"]

BLOCK = 1024
"""Rows that are shuffled together, and lie in memory as they are stored."""


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is one that `datasets` streams."""
    return isinstance(dataset, IterableDataset)


class PairedStream(torch.utils.data.IterableDataset):
    """Batches ``[forget ; retain]`` without end, the retain rows from a stream.

    Each process reads its own shards. Rows are shuffled inside blocks of `block_size`, the only ones in memory, where
    images wait as they are stored; the order of the shards is that of the stream, so files should hold all classes. A
    pass over the stream leaves out the rows that do not fill its last batch. Processes may have different numbers of
    rows, and none waits for another: let the number of steps end the run. Read it with
    ``DataLoader(stream, batch_size=None, collate_fn=collator)``.

    A run goes on to the bit from `state_dict`, which holds the place in the stream at the start of the block: at most
    `block_size` rows are read again. Random transforms draw from states that are set from the seed and the place.

    Args:
        forget: map-style dataset of dicts, in memory.
        retain: `datasets.IterableDataset` of dicts, such as ``load_dataset("parquet", ..., streaming=True)``, without
            a shuffle buffer of its own, whose rows would be lost by a resume.
        forget_batch_size: forget rows in a batch.
        retain_batch_size: retain rows in a batch.
        seed: of both orders.
        block_size: retain rows that are shuffled together.
        process: number of this process.
        processes: number of processes, each with a part of the shards.
        leave_out: rows at the head of this process's shards that no batch holds.

    Raises:
        TypeError: `retain` is no `datasets.IterableDataset`.
        ValueError: a number is below 1, a block holds no batch, or more than one worker reads it.

    Example:
        >>> stream = PairedStream(forget, load_dataset("me/images", split="train", streaming=True),
        ...                       forget_batch_size=32, retain_batch_size=32)  # doctest: +SKIP
        >>> for batch in DataLoader(stream, batch_size=None, collate_fn=collator):  # doctest: +SKIP
        ...     eraser(batch).total.backward()
    """

    def __init__(
        self,
        forget: Any,
        retain: IterableDataset,
        *,
        forget_batch_size: int,
        retain_batch_size: int,
        seed: int = 0,
        block_size: int = BLOCK,
        process: int = 0,
        processes: int = 1,
        leave_out: int = 0,
    ) -> None:
        if not is_stream(retain):
            raise TypeError(f"retain is a {type(retain).__name__}: give a datasets.IterableDataset (streaming=True)")
        sizes = {"len(forget)": len(forget), "forget_batch_size": forget_batch_size, "processes": processes}
        sizes["retain_batch_size"] = retain_batch_size
        if bad := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{bad[0]} must be at least 1, got {sizes[bad[0]]}")
        if block_size < retain_batch_size:
            raise ValueError(f"block_size={block_size} holds no batch of {retain_batch_size}: use a larger one")
        self.forget = forget
        self.retain, self._decoded = _as_stored(retain)
        if processes > 1:
            self.retain = split_dataset_by_node(self.retain, process, processes)
        self.forget_batch_size, self.retain_batch_size = forget_batch_size, retain_batch_size
        self.block_size = block_size // retain_batch_size * retain_batch_size
        self.seed, self.process, self.processes, self.leave_out = seed, process, processes, leave_out
        self._epoch = self._block = self._in_block = self._batches = 0
        self._start_of_block: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ValueError(f"{worker.num_workers} workers would each bring the same forget rows: use one, or none")
        size = self.processes * self.forget_batch_size
        rounds = forget_rounds(len(self.forget), size, np.random.default_rng([self.seed, 0]))
        own = slice(self.process * self.forget_batch_size, (self.process + 1) * self.forget_batch_size)
        retain = self._retain_batches()
        for forget in islice(rounds, self._batches, None):
            of_retain = next(retain)
            with random_states_from(self.seed, self.process, "batch", self._batches):
                of_forget = [{**self.forget[int(row)], "paired_row": int(row)} for row in forget[own]]
                of_retain = self._decode(of_retain)
            self._batches += 1
            yield [{**row, "is_forget": True} for row in of_forget] + [
                {**row, "is_forget": False, "paired_row": -1} for row in of_retain
            ]

    @property
    def batches(self) -> int:
        """Batches that were given so far."""
        return self._batches

    def _retain_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Batches of retain rows, one pass over the stream after another."""
        while True:
            self.retain.set_epoch(0 if self.leave_out else self._epoch)  # what is left out must be the same each time
            if self._start_of_block is not None:
                self.retain.load_state_dict(deepcopy(self._start_of_block))
            rows = iter(self.retain)
            if self._start_of_block is None:
                deque(islice(rows, self.leave_out), maxlen=0)
            found = False
            while len(block := self._next_block(rows)) >= self.retain_batch_size:
                found = True
                for first in range(self._in_block, len(block) // self.retain_batch_size):
                    self._in_block = first + 1
                    yield block[first * self.retain_batch_size :][: self.retain_batch_size]
                self._block, self._in_block = self._block + 1, 0
            if not found and not self._block:
                raise ValueError(
                    f"process {self.process} finds fewer than {self.retain_batch_size} retain rows in its shards: "
                    "use smaller batches, fewer processes, or more shards"
                )
            self._epoch, self._block, self._in_block, self._start_of_block = self._epoch + 1, 0, 0, None

    def _next_block(self, rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        self._start_of_block = deepcopy(self.retain.state_dict())
        with random_states_from(self.seed, self.process, "block", self._epoch, self._block):
            block = list(islice(rows, self.block_size))
        order = np.random.default_rng([self.seed, 1, self._epoch, self._block]).permutation(len(block))
        return [block[place] for place in order]

    def _decode(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return _decode(rows, self._decoded)
        except DECODING_ERRORS as error:
            raise ValueError(
                f"a retain row of the stream cannot be read: {told(error)}. It is in block {self._block}, of "
                f"{self.block_size} rows, of the shards of process {self.process}; filter it out, or mend its file."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, after the batch that it gave last; JSON values."""
        return {
            "epoch": self._epoch,
            "block": self._block,
            "in_block": self._in_block,
            "batches": self._batches,
            "start_of_block": deepcopy(self._start_of_block),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the next iteration begins there."""
        self._epoch, self._block, self._in_block = state["epoch"], state["block"], state["in_block"]
        self._batches, self._start_of_block = state["batches"], deepcopy(state["start_of_block"])


class StreamedBatch(list):
    """The examples of a paired batch, and where the stream was after it.

    Attributes:
        place: as `PairedStream.state_dict`.
    """

    place: dict[str, Any]


class NumberedBatches(torch.utils.data.Dataset):
    """The batches of a `PairedStream` by number, for loaders that skip what was trained on before a resume.

    They come in order. Another process may read them, such as the worker of a loader: tell the one in this process by
    `keep_up` how far it came, so that both can be asked for the next ones.

    Args:
        stream: the stream, once it is where the run goes on.
    """

    def __init__(self, stream: PairedStream) -> None:
        self.stream = stream
        self._reading: Iterator[list[dict[str, Any]]] | None = None

    def __getitems__(self, numbers: Sequence[int]) -> StreamedBatch:
        (number,) = numbers
        if number != self.stream.batches:
            raise RuntimeError(
                f"batch {number} of the stream was asked for, and batch {self.stream.batches} is next: to go on with "
                "a run, keep its gradient_accumulation_steps."
            )
        if self._reading is None:
            self._reading = iter(self.stream)
        batch = StreamedBatch(next(self._reading))
        batch.place = self.stream.state_dict()
        return batch

    def keep_up(self, place: Mapping[str, Any]) -> None:
        """Go on after the batch that came last, whichever process read it."""
        if self._reading is None:
            self.stream.load_state_dict(place)


class MixedStream(torch.utils.data.IterableDataset):
    """Batches of forget and retain rows in their shares of the whole, without end, for the fitting of heads.

    Args:
        stream: brings as many forget rows a batch as the share may ask for.
        share: of forget rows among all.
    """

    def __init__(self, stream: PairedStream, share: float) -> None:
        self.stream = stream
        self.a_batch = share * (stream.forget_batch_size + stream.retain_batch_size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number, batch in enumerate(self.stream):
            forget = math.floor((number + 1) * self.a_batch) - math.floor(number * self.a_batch)
            yield batch[:forget] + batch[self.stream.forget_batch_size :]


class Head(torch.utils.data.Dataset):
    """The first rows of a stream, in memory as they are stored.

    Args:
        stream: the stream; its place stays as it is.
        rows: so many at most.
        process: number of the process whose shards are read.
        processes: number of processes, each with a part of the shards.
    """

    def __init__(self, stream: IterableDataset, rows: int, *, process: int = 0, processes: int = 1) -> None:
        stored, self._decoded = _as_stored(stream)
        if processes > 1:
            stored = split_dataset_by_node(stored, process, processes)
        self.stored = list(islice(iter(stored), rows))

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return _decode([self.stored[int(index)] for index in indices], self._decoded)


class StreamedRows(torch.utils.data.Dataset):
    """A streamed retain set with its number of rows, where that is known; else with that of the rows a run sees.

    Args:
        stream: the stream.
        rows: its number of rows.
        seen: what stands for that number where it is not known.
    """

    def __init__(self, stream: IterableDataset, rows: int | None, seen: int) -> None:
        self.stream, self.rows, self.seen = stream, rows, seen

    def __len__(self) -> int:
        return self.seen if self.rows is None else self.rows

    def __getitem__(self, index: int) -> Any:
        raise TypeError("a streamed retain set has no rows by index: its rows come from `stream`.")


def _as_stored(stream: IterableDataset) -> tuple[IterableDataset, Features | None]:
    """The stream with images as they are stored, and what decodes them; nothing where its columns are not known."""
    if stream.features is None:
        return stream, None
    stored = stream.decode(False)
    return (stored, stream.features) if stored.features != stream.features else (stream, None)


def _decode(rows: Sequence[dict[str, Any]], features: Features | None) -> list[dict[str, Any]]:
    """Rows with their images decoded, by several threads, as PIL decodes beside other Python code."""
    if features is None:
        return list(rows)
    with ThreadPoolExecutor(min(8, len(rows), os.cpu_count() or 1) or 1) as pool:
        return list(pool.map(features.decode_example, rows))
