"""`RunLength`: how many steps a run takes, and how many images these see, by its settings and the size of its sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ec_hf.data.pairing import PairedBatchSampler
from ec_hf.training.config import ECConfig

__all__ = ["RunLength", "paired_sampler"]

PASSES, LEAST_STEPS = 3, 100
"""Length of a run that nobody names: passes over the retain set, and steps where that is small."""


def paired_sampler(args: ECConfig, forget_rows: int, retain_rows: int, processes: int) -> PairedBatchSampler:
    """The sampler of a run's batches.

    Args:
        args: settings of the run.
        forget_rows: images of the forget set.
        retain_rows: images of the retain set.
        processes: number of processes among which the batches are dealt.
    """
    return PairedBatchSampler(
        forget_rows,
        retain_rows,
        forget_batch_size=args.per_device_forget_batch_size,
        retain_batch_size=args.per_device_train_batch_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        num_processes=processes,
    )


@dataclass(frozen=True)
class RunLength:
    """The length of a run.

    Attributes:
        steps: optimiser steps of the whole run, if nothing stops it sooner.
        epoch_steps: optimiser steps of one pass over the retain set.
        epoch_batches: paired batches of one process in that pass.
        batches_a_step: paired batches of one process that make a step.
        processes: number of processes.
        batch: images of each set in a paired batch, "forget" and "retain".
    """

    steps: int
    epoch_steps: int
    epoch_batches: int
    batches_a_step: int
    processes: int
    batch: dict[str, int]

    @classmethod
    def of(cls, args: ECConfig, forget_rows: int, retain_rows: int, processes: int) -> RunLength:
        """The length of a run with these settings; arguments as for `paired_sampler`."""
        accumulated = args.gradient_accumulation_steps
        batches = len(paired_sampler(args, forget_rows, retain_rows, processes)) // processes
        epoch = math.ceil(batches / accumulated)
        batch = {"forget": args.per_device_forget_batch_size, "retain": args.per_device_train_batch_size}
        if args.forget_epochs:
            a_pass = math.ceil(forget_rows / (batch["forget"] * processes * accumulated))
            steps = math.ceil(args.forget_epochs * a_pass)
        elif args.max_steps > 0:
            steps = args.max_steps
        elif args.num_train_epochs is None:
            steps = max(PASSES * epoch, LEAST_STEPS)
        else:
            steps = math.ceil(args.num_train_epochs * epoch)
        return cls(steps, epoch, batches, accumulated, processes, batch)

    @property
    def batches(self) -> int:
        """Paired batches of one process in the whole run; the last step of a pass may be made of fewer."""
        passes, rest = divmod(self.steps, self.epoch_steps)
        return passes * self.epoch_batches + min(rest * self.batches_a_step, self.epoch_batches)

    def images(self) -> dict[str, int]:
        """Images of each set that all processes train on, each time it comes round counted."""
        return {name: self.batches * self.processes * size for name, size in self.batch.items()}
