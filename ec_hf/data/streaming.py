"""Paired batches of a retain set that no machine holds: its shards are streamed, the forget set lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from ec_hf.data.pairing import forget_rounds

__all__ = ["PairedStream"]


class PairedStream(torch.utils.data.IterableDataset):
    """Batches ``[forget ; retain]`` without end, the retain rows from a stream.

    Each process reads its own shards. Rows are shuffled inside blocks of `block_size`, the only ones in memory; the
    order of the shards is that of the stream, so files should hold all classes. A pass over the stream leaves out the
    rows that do not fill its last batch. Processes may have different numbers of rows, and none waits for another: let
    the number of steps end the run. Read it with ``DataLoader(stream, batch_size=None, collate_fn=collator)``.

    A run goes on to the bit from `state_dict`, which holds the place in the stream at the start of the block: at most
    `block_size` rows are read again.

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
        block_size: int = 1024,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if not isinstance(retain, IterableDataset):
            raise TypeError(f"retain is a {type(retain).__name__}: give a datasets.IterableDataset (streaming=True)")
        sizes = {"len(forget)": len(forget), "forget_batch_size": forget_batch_size, "processes": processes}
        sizes["retain_batch_size"] = retain_batch_size
        if bad := [name for name, size in sizes.items() if size < 1]:
            raise ValueError(f"{bad[0]} must be at least 1, got {sizes[bad[0]]}")
        if block_size < retain_batch_size:
            raise ValueError(f"block_size={block_size} holds no batch of {retain_batch_size}: use a larger one")
        self.forget = forget
        self.retain = split_dataset_by_node(retain, process, processes) if processes > 1 else retain
        self.forget_batch_size, self.retain_batch_size = forget_batch_size, retain_batch_size
        self.block_size = block_size // retain_batch_size * retain_batch_size
        self.seed, self.process, self.processes = seed, process, processes
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
            of_forget = [self.forget[int(row)] for row in forget[own]]
            of_retain = next(retain)
            self._batches += 1
            yield [{**row, "is_forget": True} for row in of_forget] + [
                {**row, "is_forget": False} for row in of_retain
            ]

    def _retain_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Batches of retain rows, one pass over the stream after another."""
        while True:
            self.retain.set_epoch(self._epoch)
            if self._start_of_block is not None:
                self.retain.load_state_dict(deepcopy(self._start_of_block))
            rows = iter(self.retain)
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
        block = list(islice(rows, self.block_size))
        order = np.random.default_rng([self.seed, 1, self._epoch, self._block]).permutation(len(block))
        return [block[place] for place in order]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, after the batch that it gave last; JSON values."""
        return {
            "epoch": self._epoch,
            "block": self._block,
            "in_block": self._in_block,
            "batches": self._batches,
            "start_of_block": deepcopy(self._start_of_block),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the next iteration begins there."""
        self._epoch, self._block, self._in_block = state["epoch"], state["block"], state["in_block"]
        self._batches, self._start_of_block = state["batches"], deepcopy(state["start_of_block"])
