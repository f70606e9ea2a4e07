"""`ECCallback`: an existing `Trainer` erases, whatever script it stands in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ec_hf.data.fingerprint import fingerprint
from ec_hf.data.pairing import PairedRows
from ec_hf.files import RECORD, ModelFolder
from ec_hf.models.adapters import base_of
from ec_hf.objectives.base import Progress
from ec_hf.training.checks import check_sets
from ec_hf.training.eraser import Eraser
from ec_hf.training.fitting import with_held_out
from ec_hf.training.plan import RunPlan, settings_in_effect
from ec_hf.training.record import run_record

__all__ = ["ECCallback"]

UNJOINED = (
    "the Trainer did not take outputs.loss, in which the erasure is: its compute_loss computes a loss of its own. Use "
    "Trainer's (class Erasing(YourTrainer): compute_loss = Trainer.compute_loss); a loss of your own belongs into an "
    "objective (recipes/own_objective.py)."
)


class ECCallback(TrainerCallback):
    """Erase at the Core in any `Trainer`, such as that of a fine-tuning script, which is otherwise left as it is.

        erasing = ECCallback(Eraser(model, config, forget_classes=[3, 5]), **split(dataset["train"], request))
        trainer = Trainer(model, args, train_dataset=erasing.train_dataset, callbacks=[erasing], ...)

    `train_dataset` brings as many forget rows along with each batch as the Trainer draws retain rows, so
    ``per_device_train_batch_size`` counts the retain images, and an epoch is one pass over them. In training mode the
    model answers a batch with its ``logits`` and ``loss``, the loss of the erasure. In evaluation mode it is the
    plain model. The components of the loss stand in the Trainer's log.

    When the training begins, the EC heads are fitted where none were given, the objective looks at the original model,
    and the heads are attached; when it ends they are taken off again. Checkpoints hold a plain model (or adapters of
    PEFT), the heads and the record of the run, and so does the output folder, once the script saves its model there. A
    run is resumed as ever; the checkpoint must lie in the output folder.

    What a callback cannot do is refused when the Trainer is made or when its training begins:

    - Heads that train on (``train_heads``): the optimiser is made before a callback is asked. `ECTrainer` can.
    - A Trainer that computes its own loss, by ``compute_loss``, ``compute_loss_func`` or label smoothing.
    - The stopping rule, and putting the last good checkpoint back: `ECTrainer` has both.
    - Objectives that train nothing; several GPUs in one process, FSDP, DeepSpeed, `torch.compile`, and ``model_init``.

    Args:
        eraser: the `Eraser` of the model that the Trainer trains.
        forget: what must be forgotten; rows as the script's own collator wants them.
        retain: what must be kept, in the same form; no row of it may stand in the forget set.

    Attributes:
        train_dataset: the `PairedRows` to give to the Trainer.

    Raises:
        ValueError: for empty or overlapping sets, and for settings that a callback cannot serve.

    Example:
        >>> erasing = ECCallback(Eraser(model, forget_classes=[3]), **split(train, request))  # doctest: +SKIP
        >>> Trainer(model, args, train_dataset=erasing.train_dataset, callbacks=[erasing]).train()  # doctest: +SKIP
    """

    def __init__(self, eraser: Eraser, forget: Any, retain: Any) -> None:
        check_sets(forget, retain)
        if eraser.config.train_heads:
            raise ValueError(
                "train_heads=True: a Trainer makes its optimiser before a callback is asked, so the heads would stay "
                "as they are. Leave it False, or use ECTrainer."
            )
        if not eraser.host.trains:
            raise ValueError(
                f"objective {eraser.host.name!r} edits the model in closed form and trains nothing, so no Trainer is "
                "needed: call Eraser.prepare(forget, retain)."
            )
        self.eraser = eraser
        self.train_dataset = PairedRows(forget, retain, seed=eraser.config.seed)
        looks = eraser.looks or eraser.saliency is not None
        weights = eraser.model.state_dict() if looks else {}  # of a resumed run the checkpoint's are there before it
        self._original = {name: value.detach().clone() for name, value in weights.items()}
        self._progress = Progress()
        self._attached = ExitStack()
        self._taken = True  # whether the gradient of the last loss was asked for
        self._sums: dict[str, Tensor] = {}  # of the loss components since the last line of the log
        self._batches = 0

    # What the Trainer tells

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what a callback cannot do, before anything is trained."""
        _check_arguments(args, self.eraser)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fit and attach the heads, and join the loss; of a run that is resumed, load them."""
        _check_arguments(args, self.eraser)  # the callback may have been added later
        self.detach()
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        if base_of(model) is not self.eraser.model:
            raise ValueError(
                "the Trainer trains another model than the eraser's; give it `eraser.model`, and no model_init."
            )
        if loader.dataset is not self.train_dataset:
            raise ValueError(
                "the Trainer draws from another dataset: give it train_dataset=erasing.train_dataset, in "
                "which this callback pairs forget with retain rows."
            )
        self._plan = self._planned(args)
        checkpoint = Path(args.output_dir or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.global_step:
            self._check_checkpoint(checkpoint)
        elif not self.eraser.heads_fitted:
            self._fit_heads(args, loader)
        self._prepare(args, loader, kwargs.get("processing_class"))
        if state.global_step:
            self.eraser.load(checkpoint)
            self.eraser.heads_fitted = True
        self._attached.enter_context(self.eraser.attached())
        self._attached.callback(self._join())
        batches_a_step = args.world_size * args.gradient_accumulation_steps
        forget_images = batches_a_step * args.per_device_train_batch_size
        self._progress = Progress(
            index=state.global_step,
            total=state.max_steps,
            epoch_steps=math.ceil(len(loader) / args.gradient_accumulation_steps),
            forget_steps=math.ceil(len(self.train_dataset.pairs.forget) / forget_images),
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note where in the run the step is, for objectives with a schedule."""
        self._progress = Progress(**{**vars(self._progress), "index": state.global_step})

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a step in which the loss of the erasure has no part."""
        if not self._taken:
            raise ValueError(UNJOINED)
        self._taken = False

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the eraser put masked weights back."""
        self.eraser.after_step(kwargs["optimizer"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the mean of every loss component since the last line, over all processes."""
        logs = kwargs.get("logs") or {}
        if "loss" not in logs or not self._sums:
            return
        means = reduce(torch.stack(list(self._sums.values())) / self._batches, reduction="mean")
        added = {name: round(mean, 5) for name, mean in zip(self._sums, means.tolist(), strict=True)}
        logs |= added
        state.log_history[-1] |= added
        self._sums, self._batches = {}, 0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write heads and record beside the model of a checkpoint."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir or "", f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
            self._write(folder, resumable=not args.save_only_model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the heads off; write them and the record into the output folder, where the script saves its model."""
        self.detach()
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best:
            self.eraser.load(best)
        if state.is_world_process_zero:
            self._write(Path(args.output_dir or ""), resumable=False)

    def detach(self) -> None:
        """Take heads and loss off the model, as the end of the training does; for a training that was broken off."""
        self._attached.close()

    # The loss

    def _join(self) -> Callable[[], None]:
        """Make the model's forward answer with the loss of the erasure; a function that undoes it."""
        model: Any = self.eraser.model
        plain = vars(model).get("forward")  # Accelerate sets one for mixed precision
        original = model.forward
        logits: list[Tensor] = []

        @wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not model.training or kwargs.get("labels") is None:
                output = original(*args, **kwargs)
                if model.training:
                    logits[:] = [output.logits.detach()]
                return output
            batch = paired_batch(kwargs)
            terms = self.eraser(batch, self._progress)
            loss = terms.finite_total(self._progress.index)
            self._note(terms.logged())
            self._taken = False
            loss.register_hook(self._take)
            if (
                items := kwargs.get("num_items_in_batch")
            ) is not None:  # of all batches of the step, and all processes
                loss = loss * (len(batch["labels"]) / items)
            return ImageClassifierOutput(loss=loss, logits=logits.pop()[: len(batch["labels"])])

        def undo() -> None:
            if plain is None:
                del model.forward
            else:
                model.forward = plain

        model.forward = forward
        self._taken = False
        return undo

    def _take(self, gradient: Tensor) -> None:
        self._taken = True

    def _note(self, values: Mapping[str, Tensor]) -> None:
        self._batches += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    # The stages before it, and what is written

    def _fit_heads(self, args: TrainingArguments, loader: Any) -> None:
        pairs, accelerator, config = self.train_dataset.pairs, Accelerator(), self.eraser.config
        size = 2 * args.per_device_train_batch_size
        images, left_out = with_held_out(
            ConcatDataset([pairs.forget, pairs.retain]),
            steps=config.heads_epochs * len(pairs) / (size * args.world_size),
            seed=config.seed,
        )

        def prepared(part: Any, **kwargs: Any) -> Any:
            return accelerator.prepare(DataLoader(part, size, collate_fn=loader.collate_fn, **kwargs))

        batches = prepared(images, shuffle=True, generator=torch.Generator().manual_seed(config.seed))
        held_out = None if left_out is None else prepared(left_out)
        for point, accuracy in self.eraser.fit_heads(batches, accelerator, held_out=held_out).items():
            accelerator.print(f"EC head at {point}: accuracy {accuracy:.1%}")

    def _look_at(self, name: str, args: TrainingArguments, loader: Any, every: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches of one set in the order of its rows, the same in every process."""
        data = getattr(self.train_dataset.pairs, name)
        part = Subset(data, range(0, len(data), every))
        for batch in DataLoader(part, args.per_device_train_batch_size, collate_fn=loader.collate_fn):
            yield {key: batch[key].to(args.device) for key in ("pixel_values", "labels")}

    def _planned(self, args: TrainingArguments) -> RunPlan:
        sets = {"forget": self.train_dataset.pairs.forget, "retain": self.train_dataset.pairs.retain}
        return RunPlan.of(
            self.eraser,
            images={name: len(part) for name, part in sets.items()},
            fingerprints={name: fingerprint(part) for name, part in sets.items()},
            batch=dict.fromkeys(sets, args.per_device_train_batch_size),
            processes=args.world_size,
            device=str(args.device),
            stopping=None,
            settings=settings_in_effect(args, self.eraser),
        )

    def _prepare(self, args: TrainingArguments, loader: Any, processor: Any) -> None:
        """Let the objective look at the original model, also before a resume."""
        if self._original and not self.eraser.prepared:
            self.eraser.model.load_state_dict(self._original)

        def batch_of_rows(rows: list[int]) -> Any:
            return loader.collate_fn(self.train_dataset.pairs.__getitems__(rows))

        self.eraser.prepare(
            partial(self._look_at, "forget", args, loader),
            partial(self._look_at, "retain", args, loader),
            processor=processor,
            images=self._plan.images,
            batch_of_rows=batch_of_rows if self.eraser.config.cache_teacher else None,
        )
        self._original = {}

    def _check_checkpoint(self, checkpoint: Path) -> None:
        if not checkpoint.is_dir():
            raise ValueError(
                f"the checkpoint to go on from must lie in output_dir, as {checkpoint}: the heads are read from there."
            )
        self._plan.check_resumed(ModelFolder(checkpoint).read(RECORD))

    def _write(self, folder: Path, *, resumable: bool) -> None:
        ModelFolder(folder).write(RECORD, run_record(self._plan, self.eraser.model.config, {}))
        self.eraser.save(folder, resumable=resumable)


def paired_batch(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The paired batch in what a `Trainer` hands to the model: of `PairedRows` the first half are forget images.

    Args:
        inputs: ``pixel_values`` and ``labels``; whatever else a collator made of the examples' own keys.
    """
    labels = inputs["labels"]
    rows = inputs.get("rows", inputs.get("paired_row"))
    batch = {"pixel_values": inputs["pixel_values"], "labels": labels, "num_forget": len(labels) // 2}
    return batch if rows is None else {**batch, "rows": rows}


def _check_arguments(args: TrainingArguments, eraser: Eraser) -> None:
    """Refuse arguments of a Trainer under which the loss could not be joined, or would not be the one meant."""
    wrappers = {"fsdp": args.fsdp, "deepspeed": args.deepspeed, "torch_compile": args.torch_compile}
    if used := [name for name, value in wrappers.items() if value]:
        raise ValueError(f"{used[0]}: ECCallback works on a model that nothing but DDP wraps; leave {used[0]} out.")
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor}: the Trainer then computes its own loss, and the "
            "erasure would have no part in it; set it to 0."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. EC needs one process a GPU: start the script with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )
    if args.gradient_checkpointing and eraser.batch_norm == "retain":
        raise ValueError("batch_norm='retain' does not work with gradient_checkpointing; use batch_norm='frozen'.")
