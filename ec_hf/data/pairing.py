"""Paired batches: forget images first, then retain images, in an order that a resume finds again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ec_hf.data.images import DECODING_ERRORS, told

__all__ = ["PairedBatchSampler", "PairedDataset", "PairedRows", "forget_rounds", "random_states_from"]


class PairedDataset(torch.utils.data.Dataset):
    """Map-style dataset over [forget ; retain]; each example gets `"is_forget": bool` and its `"paired_row": int`.

    While a batch is fetched, the random states (torch CPU, NumPy, `random`) are set from the seed and the indices, and
    afterwards they are put back. Random transforms that draw from these states therefore give the same images after a
    resume, whatever was prefetched, and fetching does not change what training draws.

    Args:
        forget: map-style dataset of dicts.
        retain: map-style dataset of dicts.
        seed: what random transforms draw depends on it and on the batch's indices alone.
    """

    def __init__(self, forget: Any, retain: Any, *, seed: int = 0) -> None:
        self.forget, self.retain, self.seed = forget, retain, seed

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def place(self, index: int) -> str:
        """In words, which row of which set an index means."""
        boundary = len(self.forget)
        return f"forget row {index}" if index < boundary else f"retain row {index - boundary}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        indices, boundary = [int(index) for index in indices], len(self.forget)
        if outside := [index for index in indices if not 0 <= index < len(self)]:
            raise IndexError(f"index {outside[0]} is outside the {len(self)} rows of forget and retain")
        with random_states_from(self.seed, indices):
            forget = iter(_fetch("forget", self.forget, [index for index in indices if index < boundary]))
            retain = iter(_fetch("retain", self.retain, [index - boundary for index in indices if index >= boundary]))
        return [
            {**next(forget if i < boundary else retain), "is_forget": i < boundary, "paired_row": i} for i in indices
        ]


class PairedBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of `forget_batch_size` forget and then `retain_batch_size` retain indices into a `PairedDataset`.

    An epoch is one pass over retain; the forget rows are gone through again and again, in a new order each time. A
    round is `num_processes` consecutive batches, one for each process as Accelerate deals them; together they are the
    batch that one process with `num_processes` times the batch sizes would get. No round repeats a forget row while
    there are enough of them; otherwise it takes all of them and cycles. Retain rows are cycled only when they do not
    fill the first round; rows that would not fill the last round are left out of the epoch.

    The order depends on `(seed, epoch)` alone: call `set_epoch` at the start of each epoch, also after a resume.

    Args:
        num_forget_rows: rows of the forget dataset.
        num_retain_rows: rows of the retain dataset.
        forget_batch_size: forget rows in a batch.
        retain_batch_size: retain rows in a batch.
        seed: seed of the order.
        num_processes: processes among which the batches are dealt.

    Raises:
        ValueError: a number is below 1.
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
        """Choose the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        rounds = self.num_retain_rows // (self.num_processes * self.retain_batch_size)
        return max(rounds, 1) * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        retain_order = np.random.default_rng([self.seed, self.epoch, 1]).permutation(self.num_retain_rows)
        retain = np.resize(retain_order, (len(self), self.retain_batch_size)) + self.num_forget_rows
        generator = np.random.default_rng([self.seed, self.epoch, 0])
        rounds = forget_rounds(self.num_forget_rows, self.num_processes * self.forget_batch_size, generator)
        for first in range(0, len(self), self.num_processes):
            forget = next(rounds).reshape(self.num_processes, self.forget_batch_size)
            for process in range(self.num_processes):
                yield [*forget[process].tolist(), *retain[first + process].tolist()]


def forget_rounds(rows: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Row numbers of the forget set for one round after another, without end.

    Args:
        rows: rows of the forget set, which are gone through again and again in a new order.
        size: rows of a round; none comes twice in one while there are enough.
        generator: of the order.
    """
    queue = generator.permutation(rows)
    while True:
        if size > rows:
            yield np.resize(generator.permutation(rows), size)
            continue
        if len(queue) < size:
            order = generator.permutation(rows)
            queued = np.isin(order, queue)  # these go last in the new pass, so that no round has one twice
            queue = np.concatenate([queue, order[~queued], order[queued]])
        yield queue[:size]
        queue = queue[size:]


class PairedRows(torch.utils.data.Dataset):
    """Map-style dataset over the retain rows, which brings as many forget rows along with each batch.

    For loaders that have a sampler of their own, such as those of a `Trainer` or of Lightning: they draw the rows of a
    batch, and `__getitems__` gives the examples ``[forget ; retain]``, twice as many. Its forget rows are drawn at
    random, none twice while there are enough of them; the seed and the batch's retain rows decide which, so that a
    resume and any number of loader workers give the same. `PairedBatchSampler` also sees to it that no forget row
    comes round more often than another.

    Args:
        forget: map-style dataset of dicts.
        retain: map-style dataset of dicts.
        seed: what is drawn depends on it and on the batch's rows alone.
    """

    def __init__(self, forget: Any, retain: Any, *, seed: int = 0) -> None:
        self.pairs = PairedDataset(forget, retain, seed=seed)

    def __len__(self) -> int:
        return len(self.pairs.retain)

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise TypeError(
            "PairedRows gives whole batches, forget rows first: read it with a DataLoader, or with "
            "__getitems__([row, ...])."
        )

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = [int(index) for index in indices]
        if outside := [row for row in rows if not 0 <= row < len(self)]:
            raise IndexError(f"index {outside[0]} is outside the {len(self)} rows of retain")
        count = len(self.pairs.forget)
        order = np.random.default_rng([self.pairs.seed, *rows]).permutation(count)
        return self.pairs.__getitems__([*np.resize(order, len(rows)).tolist(), *(count + row for row in rows)])


@contextmanager
def random_states_from(*key: Any) -> Iterator[None]:
    """Random states (torch CPU, NumPy, `random`) that a key decides, put back afterwards.

    Args:
        *key: what they depend on, such as the seed and the rows of a batch.
    """
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


def _fetch(name: str, part: Any, indices: list[int]) -> list[Mapping[str, Any]]:
    if not indices:
        return []
    try:
        examples = part.__getitems__(indices) if hasattr(part, "__getitems__") else [part[index] for index in indices]
    except DECODING_ERRORS as error:
        raise _named(name, part, indices, error) from error
    if not isinstance(examples[0], Mapping):
        raise TypeError(f"datasets to unlearn from must give dicts (image, label), got {type(examples[0]).__name__}")
    return examples


def _named(name: str, part: Any, indices: list[int], error: Exception) -> Exception:
    """The error with the row that it comes from, where one row alone gives it too."""
    for index in indices:
        try:
            part[index]
        except DECODING_ERRORS as of_row:
            return ValueError(
                f"{name} row {index} cannot be read: {told(of_row)}. Take it out, or mend its file; check_images=True "
                "looks at all images before training."
            )
    return error
