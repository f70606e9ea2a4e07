"""A Trainer over paired batches, which logs every component of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset as HFDataset
from torch import Tensor, stack
from torch.utils.data import DataLoader, Dataset, Subset

from ec_hf.data.images import DECODING_ERRORS, require_readable
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.data.streaming import StreamedRows
from ec_hf.models.inputs import ImageCollator, label_ids_of
from ec_hf.objectives.base import Progress
from ec_hf.training.checks import check_classes
from ec_hf.training.config import CHECKED_IMAGES, ECConfig
from ec_hf.training.loss import DivergedError, LossTerms
from ec_hf.training.run_length import RunLength, paired_sampler
from ec_hf.training.saving import SavingTrainer
from ec_hf.training.streamed import BatchNumbers, StreamedRun

__all__ = ["PairedTrainer"]

EVALUATION_TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")


class PairedTrainer(SavingTrainer):
    """A `Trainer` whose training set is a `PairedDataset`.

    Attributes:
        sampler: draws the batches of the run in progress, or numbers those of a stream; a loop tells it its epoch.
        streamed: what is read of a streamed retain set; None where its rows have numbers.
        images_looked_at: images of each set that went through `look_at`, by the set's name.
        batches_seen: paired batches of this process in this call of `train`.
        forget_batches_seen: those of them whose forget images went through the model.
    """

    args: ECConfig
    train_dataset: PairedDataset
    data_collator: Any
    sampler: PairedBatchSampler | BatchNumbers
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        data = self.train_dataset
        streams = isinstance(data.retain, StreamedRows)
        self.streamed = (
            StreamedRun(self.args, data.forget, data.retain.stream, self.data_collator) if streams else None
        )
        self.start_counting()

    def start_counting(self) -> None:
        """Count from zero: images, batches, and what the log is waiting for."""
        self.images_looked_at = {"forget": 0, "retain": 0}
        self.batches_seen = self.forget_batches_seen = self._unlogged_batches = 0
        self._unlogged: dict[str, Tensor] = {}  # sums of the loss components

    def get_train_dataloader(self) -> DataLoader:
        """Batches of `per_device_forget_batch_size` forget images followed by the retain images."""
        if self.streamed is not None:
            loader = self.streamed.loader(self.run_length())
            self.sampler = loader.batch_sampler  # type: ignore[assignment]
            return loader
        self.sampler = self._new_sampler()
        return self.accelerator.prepare(self.loader(self.train_dataset, batch_sampler=self.sampler))

    def _new_sampler(self) -> PairedBatchSampler:
        data = self.train_dataset
        return paired_sampler(self.args, len(data.forget), len(data.retain), self.args.world_size)

    def run_length(self) -> RunLength:
        """How long a whole run is."""
        data = self.train_dataset
        return RunLength.of(self.args, len(data.forget), len(data.retain), self.args.world_size)

    def total_steps(self) -> int:
        """Number of optimiser steps of a whole run."""
        return self.run_length().steps

    def loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        """A loader with the collator and the `dataloader_*` settings of this run; not shared out among processes."""
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            **kwargs,
        )

    def look_at(self, name: str, every: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches of one set in the order of its rows, the same in every process; what is looked at is counted.

        Args:
            name: "forget" or "retain".
            every: 1 for all images, k for each k-th.
        """
        data = self.train_dataset
        if name == "retain" and self.streamed is not None:
            yield from self._counted(name, self.streamed.all(every))
            return
        boundary = len(data.forget)
        rows = (range(boundary) if name == "forget" else range(boundary, len(data)))[::every]
        yield from self._counted(
            name, self.loader(Subset(data, rows), batch_size=self.args.per_device_train_batch_size)
        )

    def _counted(self, name: str, batches: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Images and labels of batches on the device, counted as looked at."""
        for batch in batches:
            self.images_looked_at[name] += len(batch["labels"])
            yield {key: batch[key].to(self.args.device) for key in ("pixel_values", "labels")}

    def retain_images(self, count: int, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches of retain images drawn at random, the same in every process; what is looked at is counted.

        Args:
            count: number of images; where the set, or the head of a stream, has fewer they come again.
            size: images of a batch.
        """
        data, rng = self.train_dataset, np.random.default_rng(self.args.seed)
        if self.streamed is not None:
            yield from self._counted("retain", self.streamed.few(count, size))
            return
        rows = len(data.forget) + np.resize(rng.permutation(len(data.retain)), count)
        yield from self._counted("retain", self.loader(Subset(data, rows.tolist()), batch_size=size))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """As `Trainer`; the place of a stream is taken off the batch."""
        if self.streamed is not None:
            self.streamed.keep_up(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def save_place(self, folder: Path) -> None:
        """Write the place of this process's stream into a checkpoint."""
        if self.streamed is not None:
            self.streamed.save(folder)

    def forgotten_classes(self) -> dict[str, Any]:
        """Of `Eraser`'s arguments those on the forget set; none where only reading every image would tell."""
        forget, retain = map(self._classes_of, (self.train_dataset.forget, self.train_dataset.retain))
        if forget is None or retain is None:
            return {}
        check_classes(forget | retain)
        whole = not forget & retain
        if self.streamed is not None and whole:
            self.streamed.forgotten = frozenset(forget)
        return {"num_forget_classes": len(forget), "forget_classes": sorted(forget) if whole else None}

    def _classes_of(self, dataset: Dataset) -> set[int] | None:
        """The model's ids of the classes in a dataset, or None where only reading every image would tell."""
        collator = self.data_collator
        if isinstance(dataset, StreamedRows) and isinstance(collator, ImageCollator) and self.streamed is not None:
            return self.streamed.classes_at_head()
        if not (isinstance(dataset, HFDataset) and isinstance(collator, ImageCollator)):
            return None
        return set(label_ids_of(dataset, collator, self.args.label_column).tolist())

    def shows_same_images(self, dataset: Dataset) -> bool:
        """Whether it is known that the images of a dataset are the same at each look.

        They are where nothing transforms them, or a transform that says so by its attribute `repeatable`.
        """
        if not isinstance(dataset, HFDataset) or not isinstance(self.data_collator, ImageCollator):
            return False
        transform = dataset.format["format_kwargs"].get("transform")
        return transform is None or getattr(transform, "repeatable", False)

    def check_images(self) -> None:
        """Decode all images of the run once, as `check_images` says; each process looks at its share of the rows.

        Raises:
            ValueError: some cannot be read.
        """
        args, evaluated = self.args, self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {}
        parts = {"forget": self.train_dataset.forget, "retain": self.train_dataset.retain}
        parts |= {f"evaluation {name}": part for name, part in evaluated.items()}
        if self.streamed is not None:
            del parts["retain"]  # each image is decoded when its turn comes
        few = sum(map(len, parts.values())) <= CHECKED_IMAGES
        if few if args.check_images is None else args.check_images:
            share = {"process": args.process_index, "processes": args.world_size}
            require_readable(parts, args.image_column, **share)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """As `Trainer`; where an image cannot be read, the error names the set and the row."""
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except DECODING_ERRORS as error:
            part = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
            require_readable({f"evaluation {metric_key_prefix.removeprefix('eval_')}": part}, self.args.image_column)
            raise error

    def progress(self) -> Progress:
        """Where in the run the next step is."""
        args = self.args
        batches_a_step = args.world_size * args.gradient_accumulation_steps
        forget_images_a_step = batches_a_step * args.per_device_forget_batch_size
        return Progress(
            index=self.state.global_step,
            total=self.state.max_steps,
            epoch_steps=self.run_length().epoch_steps,
            forget_steps=math.ceil(len(self.train_dataset.forget) / forget_images_a_step),
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Stop at a gradient that is NaN or infinite, ahead of the optimiser; under fp16 its scaler skips the step."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None and not math.isfinite(norm):
            raise DivergedError(
                f"step {self.state.global_step}: the gradient is {float(norm)}{self.culprits()}. The run has diverged "
                "and its model is no result; checkpoints that were saved before stay. Lower learning_rate or "
                "ec_weight, or raise temperature."
            )
        return norm

    def culprits(self) -> str:
        """Which components of the loss made the gradient what it is, in words; empty where that is not known."""
        return ""

    def images_seen(self) -> dict[str, int]:
        """Images of each set that all processes saw in training or before it; what was looked at counts once."""
        args, processes = self.args, self.args.world_size
        trained = {
            "forget": self.forget_batches_seen * args.per_device_forget_batch_size * processes,
            "retain": self.batches_seen * args.per_device_train_batch_size * processes,
        }
        return {name: self.images_looked_at[name] + count for name, count in trained.items()}

    def evaluate_now(self) -> list[dict[str, float]]:
        """Evaluate outside the training loop; the new lines of the log."""
        before = len(self.state.log_history)
        self.is_in_train = True  # else full_eval settings would round the weights
        self.evaluate()
        self.is_in_train = False
        return self.state.log_history[before:]

    def let_training_wrap_the_model(self) -> None:
        """Accelerate takes a model that was evaluated before for one that is wrapped for several processes already.

        Each of them would then train on its own.
        """
        if vars(self.model).pop("_is_accelerate_prepared", False):
            self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def note(self, terms: LossTerms) -> None:
        """Keep what a batch cost until the next line of the log."""
        self.batches_seen += 1
        self.forget_batches_seen += not self.eraser.leaves_forget_out
        self._unlogged_batches += 1
        for name, value in terms.logged().items():
            self._unlogged[name] = self._unlogged.get(name, 0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss component since the last line, over all processes; leave out evaluation times."""
        if "loss" in logs and self._unlogged:
            means = stack(list(self._unlogged.values())) / self._unlogged_batches
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= {name: round(mean, 5) for name, mean in zip(self._unlogged, means.tolist(), strict=True)}
            self._unlogged, self._unlogged_batches = {}, 0
        timed = {name for name in logs if name.startswith("eval_") and name.endswith(EVALUATION_TIMES)}
        super().log({name: value for name, value in logs.items() if name not in timed}, start_time)
