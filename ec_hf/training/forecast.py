"""What a run will cost on so many devices: arithmetic on measured steps, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ec_hf.training.config import ECConfig
from ec_hf.training.run_length import RunLength

__all__ = ["Forecast", "Measured", "Sizes", "evaluations", "forecast", "shared_out"]


@dataclass(frozen=True)
class Measured:
    """Seconds that one device takes.

    Attributes:
        step: forward, losses and backward of an erasure step, for each image in it.
        update: the optimiser's part of a step.
        plain: forward, cross-entropy and backward of plain training, for each image.
        fitting: fitting the EC heads, for each image.
        inference: a forward without gradient, for each image.
    """

    step: float
    update: float
    plain: float
    fitting: float
    inference: float

    def elsewhere(self, images_per_second: float) -> Measured:
        """The same on a device of which only the images a second of whole erasure steps are known.

        Everything else is taken to be faster by the same factor, and the optimiser's part is within the step.

        Args:
            images_per_second: forget and retain images.
        """
        faster = self.step * images_per_second
        return Measured(
            1 / images_per_second, 0.0, self.plain / faster, self.fitting / faster, self.inference / faster
        )


@dataclass(frozen=True)
class Sizes:
    """Bytes, and what they come from.

    Attributes:
        weights: the model's parameters and buffers, in bytes.
        gradients: gradients of all parameters that train, in bytes.
        optimizer: state of the optimiser, in bytes.
        teacher: the copy of the original model, in bytes; 0 where none is asked.
        heads: the EC heads, in bytes.
        activations: what a step keeps for its backward pass, for each image, in bytes.
        features: the features that the contrast looks at across devices, for each image, in bytes.
    """

    weights: int
    gradients: int
    optimizer: int
    teacher: int
    heads: int
    activations: float
    features: float


@dataclass(frozen=True)
class Forecast:
    """The cost of a run on so many devices.

    Attributes:
        devices: number of devices.
        batch: images of each set in a batch of one device.
        steps: optimiser steps.
        images: images of each set that all devices train on, each time it comes round counted.
        seconds_a_step: of one device, communication included.
        communication: the part of it in which devices exchange gradients and features.
        exchanged: bytes that one device sends, and receives, in a step.
        hours: by phase: "heads", "erasure", "evaluation" and "retraining", the last None where its length is unknown.
        memory: bytes on one device, by what takes them.
    """

    devices: int
    batch: Mapping[str, int]
    steps: int
    images: Mapping[str, int]
    seconds_a_step: float
    communication: float
    exchanged: float
    hours: Mapping[str, float | None]
    memory: Mapping[str, float]

    @property
    def total_hours(self) -> float:
        """Heads, erasure and evaluation together."""
        return sum(self.hours[name] or 0.0 for name in ("heads", "erasure", "evaluation"))

    @property
    def share_of_retraining(self) -> float | None:
        """Hours of all against those of training anew on the retain set; None where these are not known."""
        retraining = self.hours["retraining"]
        return self.total_hours / retraining if retraining else None


def shared_out(args: ECConfig, devices: int) -> ECConfig:
    """The settings of one of several devices that share the batch of one, so that the steps stay the same.

    Where the batch cannot be shared out evenly, each device takes its part rounded up.

    Args:
        args: settings for one device.
        devices: number of devices.
    """
    shared = copy.copy(args)
    shared.per_device_forget_batch_size = math.ceil(args.per_device_forget_batch_size / devices)
    shared.per_device_train_batch_size = math.ceil(args.per_device_train_batch_size / devices)
    return shared


def evaluations(args: ECConfig, length: RunLength) -> int:
    """How often a run evaluates, if nothing stops it sooner."""
    if args.eval_strategy == "no":
        return 0
    if args.eval_strategy == "epoch":
        rounds = math.ceil(length.steps / length.epoch_steps)
    else:
        every = args.eval_steps or args.logging_steps
        every = math.ceil(every * length.steps) if every < 1 else every
        rounds = length.steps // int(every)
    return rounds + bool(args.eval_on_start)


def forecast(
    length: RunLength,
    measured: Measured,
    sizes: Sizes,
    *,
    fitted: int,
    evaluated: int,
    retrained: int | None,
    bytes_per_second: float,
) -> Forecast:
    """The cost of a run of this length, shared out among its processes, one a device.

    Each device is taken to work at the measured rate, to be fed fast enough, and to wait for the exchange of a step's
    gradients (ring all-reduce, 2 (n - 1) / n of their bytes) and features before the next step.

    Args:
        length: length of the run, with its number of processes.
        measured: seconds of one device.
        sizes: bytes.
        fitted: images that the fitting of the heads sees, all passes together.
        evaluated: images that all evaluations see.
        retrained: images of a training anew, all passes together; None where its length is not known.
        bytes_per_second: what one device sends to the next, and receives from another, at the same time.
    """
    devices, per_batch = length.processes, sum(length.batch.values())
    images_a_step = length.batches_a_step * per_batch
    ring = (devices - 1) / devices
    gathered = ring * sizes.features * images_a_step * devices  # all devices' features, and once more their gradients
    exchanged = 2 * ring * sizes.gradients + 2 * gathered
    communication = exchanged / bytes_per_second
    computing = length.batches * per_batch * measured.step
    erasure = computing + length.steps * (measured.update + communication)
    retraining = None
    if retrained is not None:
        updates = retrained / (devices * length.batch["retain"])
        all_reduce = 2 * ring * sizes.gradients / bytes_per_second
        retraining = retrained / devices * measured.plain + updates * (measured.update + all_reduce)
    seconds = {
        "heads": fitted / devices * measured.fitting,
        "erasure": erasure,
        "evaluation": evaluated / devices * measured.inference,
        "retraining": retraining,
    }
    return Forecast(
        devices,
        length.batch,
        length.steps,
        length.images(),
        erasure / length.steps if length.steps else 0.0,
        communication,
        exchanged,
        {name: None if value is None else value / 3600 for name, value in seconds.items()},
        {
            "weights": sizes.weights,
            "gradients": sizes.gradients,
            "optimiser": sizes.optimizer,
            "teacher": sizes.teacher,
            "EC heads": sizes.heads,
            "activations": sizes.activations * per_batch,
        },
    )
