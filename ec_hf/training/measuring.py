"""What a step of an erasure takes on this machine, measured on a few images of noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ec_hf.objectives.base import Progress
from ec_hf.training.forecast import Measured, Sizes
from ec_hf.training.trainer import ECTrainer

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """What was measured, and how.

    Attributes:
        seconds: seconds of one device.
        sizes: bytes.
        images: forget and retain images of the measured step together.
        repeats: measured steps, of which the median counts.
        clock: "process time" or "wall time".
        device: what it was measured on.
        threads: of torch, on a CPU.
    """

    seconds: Measured
    sizes: Sizes
    images: int
    repeats: int
    clock: str
    device: str
    threads: int


def measure(trainer: ECTrainer, *, images: int = 2, repeats: int = 3) -> Measurement:
    """Take a few steps on noise: fit the heads, erase, train plainly, and look without gradient.

    The learning rate is 0, so that the weights stay as they are; a step takes as long with any other. On a CPU with
    one thread of torch, process time is taken, which other programs on the machine do not disturb much.

    Args:
        trainer: a trainer that has not trained; its heads are fitted to noise and it is of no use afterwards.
        images: images of each half of the batch.
        repeats: steps of each kind; one more goes before them to warm up.
    """
    clock = _Clock(trainer.args.device)
    batch = _batch(trainer, images)
    eraser, model = trainer.eraser, trainer.eraser.model
    fitting = clock.once(lambda: _fit(trainer, batch)) / (2 * images * eraser.config.heads_epochs)
    inference = clock.median(lambda: _look(trainer, batch), repeats) / (2 * images)
    _prepare(trainer, batch)
    model.train()
    with eraser.attached():
        optimizer = _optimizer(trainer)
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        activations = _bytes_for_backward(lambda: _loss(trainer, batch), model)
        step = clock.median(lambda: _backward(_loss, trainer, batch), repeats) / (2 * images)
        update = clock.median(optimizer.step, repeats)
        optimizer.zero_grad()
    plain = clock.median(lambda: _backward(_plain_loss, trainer, batch), repeats) / (2 * images)
    teacher = eraser.teacher.model if eraser.teacher is not None and not eraser.teacher.adapted else nn.Module()
    sizes = Sizes(
        weights=_bytes(model),
        gradients=sum(each.numel() * each.element_size() for each in parameters),
        optimizer=sum(_size(value) for state in optimizer.state.values() for value in state.values()),
        teacher=_bytes(teacher),
        heads=_bytes(eraser.heads),
        activations=activations / (2 * images),
        features=4.0 * eraser.last.channels * len(eraser.points),
    )
    seconds = Measured(step, update, plain, fitting, inference)
    device = torch.cuda.get_device_name(trainer.args.device) if clock.cuda else "CPU"
    return Measurement(seconds, sizes, 2 * images, repeats, clock.name, device, torch.get_num_threads())


class _Clock:
    """Process time where torch has one thread on a CPU, else wall time."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.name, self.now = ("process time", time.process_time) if alone else ("wall time", time.perf_counter)

    def median(self, work: Callable[[], Any], repeats: int) -> float:
        """Seconds of some work: the median, after one time that does not count."""
        work()
        return statistics.median(self.once(work) for _ in range(repeats))

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of some work."""
        start = self._moment()
        work()
        return self._moment() - start

    def _moment(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self.now()


def _batch(trainer: ECTrainer, images: int) -> dict[str, Any]:
    """A paired batch of noise under the labels of the first rows of both sets."""
    data = trainer.train_dataset
    boundary, few = len(data.forget), min(images, len(data.forget), len(data.retain))
    rows = [row % few for row in range(images)]
    batch = trainer.data_collator(data.__getitems__([*rows, *(boundary + row for row in rows)]))
    generator = torch.Generator().manual_seed(0)
    batch["pixel_values"] = torch.randn(batch["pixel_values"].shape, generator=generator)
    device = trainer.args.device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _halves(batch: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    count = batch["num_forget"]
    parts = {"forget": slice(0, count), "retain": slice(count, None)}
    return {name: {key: batch[key][part] for key in ("pixel_values", "labels")} for name, part in parts.items()}


def _fit(trainer: ECTrainer, batch: Mapping[str, Any]) -> None:
    trainer.eraser.fit_heads([{key: batch[key] for key in ("pixel_values", "labels")}], trainer.accelerator)


def _look(trainer: ECTrainer, batch: Mapping[str, Any]) -> None:
    model = trainer.eraser.model.eval()
    with torch.inference_mode(), trainer.compute_loss_context_manager():
        model(pixel_values=batch["pixel_values"])


def _prepare(trainer: ECTrainer, batch: Mapping[str, Any]) -> None:
    """Let the objective look at the few images as if they were all there are."""
    halves = _halves(batch)

    def batch_of_rows(rows: list[int]) -> dict[str, Tensor]:
        return {key: halves["forget"][key][rows] for key in ("pixel_values", "labels")}

    trainer.eraser.prepare(
        lambda _every=1: iter([halves["forget"]]),
        lambda _every=1: iter([halves["retain"]]),
        images={name: len(part["labels"]) for name, part in halves.items()},
        batch_of_rows=batch_of_rows if trainer.remembers_teacher() else None,
        autocast=trainer.compute_loss_context_manager,
    )


def _optimizer(trainer: ECTrainer) -> torch.optim.Optimizer:
    asked, trainer.args.learning_rate = trainer.args.learning_rate, 0.0
    optimizer = trainer.create_optimizer()
    trainer.args.learning_rate = asked
    return optimizer


def _loss(trainer: ECTrainer, batch: Mapping[str, Any]) -> Tensor:
    with trainer.compute_loss_context_manager():
        return trainer.eraser(batch, Progress()).total


def _plain_loss(trainer: ECTrainer, batch: Mapping[str, Any]) -> Tensor:
    with trainer.compute_loss_context_manager():
        logits = trainer.eraser.model(pixel_values=batch["pixel_values"]).logits
        return F.cross_entropy(logits.float(), batch["labels"])


def _backward(
    loss: Callable[[ECTrainer, Mapping[str, Any]], Tensor], trainer: ECTrainer, batch: Mapping[str, Any]
) -> None:
    trainer.eraser.model.zero_grad()
    loss(trainer, batch).backward()


def _bytes_for_backward(loss: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that the graph of a loss keeps until its backward pass, without the model's own tensors."""
    own = {each.untyped_storage().data_ptr() for each in model.state_dict(keep_vars=True).values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()  # while it is held, so are all of its tensors, and no address comes twice
    del held
    return sum(kept.values())


def _bytes(module: nn.Module) -> int:
    return sum(map(_size, module.state_dict().values()))


def _size(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
