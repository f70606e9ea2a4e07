"""`ECTrainer`: the Hugging Face `Trainer` that erases a forget set through the depth of a vision classifier."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as HFDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, get_last_checkpoint

from ec_hf.data.columns import find_label_column, read_column
from ec_hf.data.fingerprint import fingerprint
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.data.splitting import shared_rows
from ec_hf.files import HEADS, RECORD, ModelFolder
from ec_hf.models.heads import ECHeads
from ec_hf.models.inputs import ImageCollator, collator_for
from ec_hf.models.loading import load_model
from ec_hf.objectives.base import Progress
from ec_hf.training.config import ECConfig
from ec_hf.training.eraser import Eraser
from ec_hf.training.hub_trainer import PublishingTrainer
from ec_hf.training.loss import LossTerms
from ec_hf.training.plan import RunPlan, StoppingPlan, settings_in_effect
from ec_hf.training.record import peak_memory_mb, run_record
from ec_hf.training.stopping import StoppingRule

ADVERSARIES = "adversaries.pt"
"""The file of a checkpoint from which the adversaries of calibrated erasure go on."""
EVALUATION_TIMES = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")


class ECTrainer(PublishingTrainer):
    """Erase at the Core (arXiv 2602.05375) for any `AutoModelForImageClassification`.

    Stage 1 fits one auxiliary head a supervision point on the frozen original model, unless fitted heads are given.
    Stage 2 trains on paired batches ``[forget ; retain]``, one forward a step. What is erased and with which loss is
    the part of `eraser`, an `Eraser`; what will be done stands in `plan`, a `RunPlan`.

    Between the stages the objective looks at the original model and the data, or edits the model
    (`Objective.prepare`). A closed form is then done; with supervision points, EC trains on from there with its own
    objective, "contrastive". An objective whose terms alternate (SCRUB) shares every step with EC, whose two terms
    balance each other. Where the objective contrasts the last point itself (`covers_last_point`), EC leaves that
    point to it.

    Args:
        model: the original classifier, or the Hub id, folder or timm name to load it from.
        args: settings; `ECConfig` with its defaults if left out.
        forget_dataset: what must be forgotten, rows with an image (or ``pixel_values``) and a label.
        retain_dataset: what must be kept, in the same form; no row of it may stand in the forget set.
        eval_dataset: ``{"forget": ..., "retain": ...}``, better held out; the stopping rule works on these two.
            Further keys are evaluated too.
        processing_class: the model's image processor; comes with the model when that is loaded by name.
        heads: fitted `ECHeads`, or a folder or Hub id of such.
        data_collator: replaces `ImageCollator`; must give ``pixel_values``, ``labels`` and, for paired batches,
            ``num_forget``.
        compute_metrics: replaces top-1 accuracy; the stopping rule needs a metric called ``accuracy``.
        callbacks: further `TrainerCallback`s.
        **kwargs: passed on to `Trainer`.

    Raises:
        ValueError: for empty or overlapping sets, labels that the model does not know, heads or points that do not fit
            the model, supervision points beside an objective that starts from new weights, or several GPUs in one
            process. All before anything is trained.
    """

    loss_is_scaled_for_ga = False
    args: ECConfig
    model: Any
    train_dataset: PairedDataset
    eval_dataset: dict[str, Dataset] | None
    data_collator: Any
    push_in_progress: Any

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        args: ECConfig | None = None,
        *,
        forget_dataset: Dataset,
        retain_dataset: Dataset,
        eval_dataset: dict[str, Dataset] | None = None,
        processing_class: Any = None,
        heads: ECHeads | str | Path | None = None,
        data_collator: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        args = ECConfig() if args is None else args
        _check_settings(args, eval_dataset)
        _check_sets(forget_dataset, retain_dataset)
        if not isinstance(model, nn.Module):
            model, loaded = load_model(model)
            processing_class = processing_class or loaded
        _check_precision(model, args)
        eval_dataset = {name: part for name, part in (eval_dataset or {}).items() if len(part)}  # type: ignore[arg-type]
        sets = {"forget": forget_dataset, "retain": retain_dataset}
        sets |= {f"evaluation {name}": part for name, part in eval_dataset.items()}
        columns = {"image_column": args.image_column, "label_column": args.label_column}
        if compute_metrics is None:
            compute_metrics = accuracy
            kwargs["preprocess_logits_for_metrics"] = lambda logits, labels: logits.argmax(-1)
        super().__init__(
            model,
            _evaluating(args, bool(eval_dataset)),
            data_collator=data_collator or collator_for(model, processing_class, sets, **columns),
            train_dataset=PairedDataset(forget_dataset, retain_dataset, seed=args.seed),
            eval_dataset=eval_dataset or None,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[_Loop(self), *callbacks],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        image = self.data_collator([self.train_dataset[0]])["pixel_values"]
        self.eraser = Eraser(
            self.model,
            args,
            heads=heads or args.heads,
            image_shape=tuple(image.shape[1:]),
            **self._forgotten_classes(),
        )
        args.check_batch_norm(self.eraser.batch_norm)
        self.stopping_rule = StoppingRule(self._forget_target(), args.retain_floor, args.min_steps)
        self.add_callback(self.stopping_rule)
        self.plan = self._plan()
        self.cost: dict[str, float] = {}
        self.images_looked_at = {"forget": 0, "retain": 0}  # by the objective, before training
        self.log_of_original: list[dict[str, float]] = []  # where it was evaluated before the objective looked at it
        self._sums: dict[str, Tensor] = {}  # of the loss components since the last log line
        self._batches = self._all_batches = 0  # since the last log line, and in this call of `train`

    # What is known before anything is trained

    @property
    def heads(self) -> ECHeads:
        """The EC heads."""
        return self.eraser.heads

    def _forgotten_classes(self) -> dict[str, Any]:
        """Of `Eraser`'s arguments those on the forget set; none where only reading every image would tell."""
        forget, retain = map(self._labels_of, (self.train_dataset.forget, self.train_dataset.retain))
        if forget is None or retain is None:
            return {}
        return {"num_forget_classes": len(forget), "forget_classes": None if forget & retain else sorted(forget)}

    def _labels_of(self, dataset: Dataset) -> set[int] | None:
        """The model's ids of the classes in a dataset, or None where only reading every image would tell."""
        collator = self.data_collator
        if not (isinstance(dataset, HFDataset) and isinstance(collator, ImageCollator)):
            return None
        values = read_column(dataset, find_label_column(dataset, self.args.label_column)).unique().to_pylist()
        return {value if collator.label_ids is None else collator.label_ids[value] for value in values}

    def _forget_target(self) -> float:
        if self.eraser.objective.from_scratch:
            return -1.0  # new weights train to the end of the schedule
        return 1 / self.model.config.num_labels if self.args.forget_target is None else self.args.forget_target

    def _plan(self) -> RunPlan:
        args, sets = self.args, {"forget": self.train_dataset.forget, "retain": self.train_dataset.retain}
        watches = {"forget", "retain"} <= set(self.eval_dataset or ()) and args.eval_on_start
        rule = self.stopping_rule
        stopping = StoppingPlan(rule.target, rule.floor, rule.min_steps, watches and args.eval_strategy != "no")
        return RunPlan.of(
            self.eraser,
            images={name: len(part) for name, part in sets.items()},
            fingerprints={name: fingerprint(part) for name, part in sets.items()},
            batch={"forget": args.per_device_forget_batch_size, "retain": args.per_device_train_batch_size},
            processes=args.world_size,
            device=str(args.device),
            stopping=stopping if self.eraser.host.trains else None,
            settings=settings_in_effect(args, self.eraser),
        )

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Batches of `per_device_forget_batch_size` forget images followed by the retain images."""
        data, args = self.train_dataset, self.args
        self._sampler = PairedBatchSampler(
            len(data.forget),
            len(data.retain),
            forget_batch_size=args.per_device_forget_batch_size,
            retain_batch_size=args.per_device_train_batch_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            num_processes=args.world_size,
        )
        return self.accelerator.prepare(self._loader(data, batch_sampler=self._sampler))

    def _loader(self, dataset: Dataset, **kwargs: Any) -> DataLoader:
        return DataLoader(
            dataset,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            **kwargs,
        )

    def _look_at(self, name: str, rows: range, every: int = 1) -> Iterator[dict[str, Tensor]]:
        """Batches of one set in the order of its rows, the same in every process; what is looked at is counted."""
        rows = rows[::every]
        for batch in self._loader(Subset(self.train_dataset, rows), batch_size=self.args.per_device_train_batch_size):
            self.images_looked_at[name] += len(batch["labels"])
            yield {key: batch[key].to(self.args.device) for key in ("pixel_values", "labels")}

    # The stages

    def fit_heads(self) -> dict[str, float]:
        """Fit EC heads on the frozen model with all images, forget and retain, whatever the request.

        `train` does it where no fitted heads were given. The heads are in `self.heads`.

        Returns:
            Accuracy of each head, by supervision point, over the last pass.
        """
        args, data = self.args, self.train_dataset
        loader = self._loader(
            ConcatDataset([data.forget, data.retain]),
            batch_size=args.per_device_train_batch_size + args.per_device_forget_batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(args.seed),
        )
        accuracies = self.eraser.fit_heads(self.accelerator.prepare(loader), self.accelerator)
        for point in self.eraser.points:
            self.accelerator.print(f"EC head at {point}: accuracy {accuracies[point.name]:.1%}")
        return accuracies

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Fit the heads if need be, attach them, erase, and take them off again.

        Where retain accuracy ends below its floor, the last checkpoint that was above it is put back.

        Args:
            resume_from_checkpoint: a checkpoint to go on from, or True for the last one in the output folder.
            **kwargs: passed on to `Trainer.train`.

        Raises:
            ValueError: for a checkpoint that is not there, or that belongs to a run on other data or with other
                settings.
        """
        checkpoint = self._checkpoint_of(resume_from_checkpoint)
        if not checkpoint and not self.eraser.heads_fitted:  # a checkpoint brings its own
            self.fit_heads()
        self.accelerator.print(self.plan)
        self._sums, self._batches, self._all_batches = {}, 0, 0
        start = time.perf_counter()
        evaluates_first = self.args.eval_on_start
        self._prepare(evaluate=evaluates_first and not checkpoint)
        self._let_training_wrap_the_model()
        try:
            if self.eraser.host.trains:
                self.args.eval_on_start = evaluates_first and not self.log_of_original
                with self.eraser.attached():
                    result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
                    self._put_last_good_back()
            else:  # the objective has edited the model, and nothing is left to train
                if self.args.eval_strategy != "no":
                    self._evaluate_now()
                result = TrainOutput(0, 0.0, {})
        finally:
            self.args.eval_on_start = evaluates_first
        self.cost = self._cost(time.perf_counter() - start)
        return result

    def _checkpoint_of(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """The checkpoint to go on from, once it is known to belong to this run."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir) or True  # `Trainer` says so where there is none
        if checkpoint and not self.eraser.host.trains:
            name = self.eraser.objective.name
            raise ValueError(f"objective {name!r} trains nothing, so there is no checkpoint to resume.")
        if isinstance(checkpoint, str):
            self.plan.check_resumed(ModelFolder(checkpoint).read(RECORD))
        return checkpoint

    def _prepare(self, evaluate: bool) -> None:
        """Let the objective look at the original model, or edit it. Once a trainer: state and edits stay."""
        self.log_of_original, self.images_looked_at = [], {"forget": 0, "retain": 0}
        if self.eraser.prepared:
            return
        if self.eraser.looks and evaluate:
            self.log_of_original = self._evaluate_now()
        data = self.train_dataset
        boundary = len(data.forget)
        self.eraser.prepare(
            partial(self._look_at, "forget", range(boundary)),
            partial(self._look_at, "retain", range(boundary, len(data))),
            take=lambda rows: self.data_collator(data.__getitems__(rows)),
            autocast=self.compute_loss_context_manager,
        )

    def _evaluate_now(self) -> list[dict[str, float]]:
        """Evaluate outside the training loop; the new lines of the log."""
        before = len(self.state.log_history)
        self.is_in_train = True  # else full_eval settings would round the weights
        self.evaluate()
        self.is_in_train = False
        return self.state.log_history[before:]

    def _let_training_wrap_the_model(self) -> None:
        """Accelerate takes a model that was evaluated before for one that is wrapped for several processes already.

        Each of them would then train on its own.
        """
        if vars(self.model).pop("_is_accelerate_prepared", False):
            self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _put_last_good_back(self) -> None:
        good = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end or self.stopping_rule.is_good(self.state.log_history) is not False:
            return
        if good and Path(good).is_dir():
            self.accelerator.print(f"Retain accuracy ended below its floor: the model of {good} is put back.")
            self._restore(good)
        else:
            self.accelerator.print(
                "Retain accuracy ended below its floor and no checkpoint above it was saved: the model stays as it is."
            )

    # The loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The unlearning loss of a paired batch in training; plain cross-entropy in evaluation."""
        if model.training:
            terms = self.eraser(inputs, self._progress(), model=model)
            self._note(terms)
            return terms.total
        logits = model(pixel_values=inputs["pixel_values"]).logits
        loss = F.cross_entropy(logits.float(), inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _progress(self) -> Progress:
        args = self.args
        batches_a_step = args.world_size * args.gradient_accumulation_steps
        forget_images_a_step = batches_a_step * args.per_device_forget_batch_size
        return Progress(
            index=self.state.global_step,
            total=self.state.max_steps,
            epoch_steps=math.ceil(len(self._sampler) / batches_a_step),
            forget_steps=math.ceil(len(self.train_dataset.forget) / forget_images_a_step),
        )

    def _note(self, terms: LossTerms) -> None:
        self._batches += 1
        self._all_batches += 1
        for name, value in terms.logged().items():
            self._sums[name] = self._sums.get(name, 0) + value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss component since the last line, over all processes; leave out evaluation times."""
        if "loss" in logs and self._sums:
            means = torch.stack(list(self._sums.values())) / self._batches
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= {name: round(mean, 5) for name, mean in zip(self._sums, means.tolist(), strict=True)}
            self._sums, self._batches = {}, 0
        timed = {name for name in logs if name.startswith("eval_") and name.endswith(EVALUATION_TIMES)}
        super().log({name: value for name, value in logs.items() if name not in timed}, start_time)

    def _cost(self, seconds: float) -> dict[str, float]:
        """Steps in all; of this call of `train`: images seen by all processes, minutes, peak memory of this one in MB.

        What the objective looked at before training counts too, once for all processes.
        """
        batches, args = self._all_batches * self.args.world_size, self.args
        return {
            "steps": self.state.global_step,
            "forget_images_seen": self.images_looked_at["forget"] + batches * args.per_device_forget_batch_size,
            "retain_images_seen": self.images_looked_at["retain"] + batches * args.per_device_train_batch_size,
            "minutes": round(seconds / 60, 2),
            "peak_memory_mb": peak_memory_mb(args.device),
        }

    # Saving and resuming. What is private here is so in `Trainer`, which has no public place for it.

    def end(self) -> None:
        """Close trackers and process group together: gloo may abort a process that leaves while another works."""
        self.accelerator.wait_for_everyone()
        super().end()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Also write the record and the heads, and no pickle but in a checkpoint, which is for this machine alone."""
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = ModelFolder(output_dir or self.args.output_dir or "")
        (folder.path / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        folder.write(RECORD, run_record(self.plan, self.model.config, self.cost))
        if self.eraser.points:
            self.heads.save_pretrained(folder.path / HEADS)
        is_checkpoint = folder.path.name.startswith(PREFIX_CHECKPOINT_DIR)
        if is_checkpoint and self.eraser.loss.adversaries and not self.args.save_only_model:
            torch.save(self.eraser.loss.state_dict(), folder.path / ADVERSARIES)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """`Trainer` reads the file into the model in memory, whose keys have other names in several families."""
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, for the same reason."""
        assert self.state.best_model_checkpoint is not None  # Trainer calls this only then
        self._restore(self.state.best_model_checkpoint)

    def _restore(self, checkpoint: str) -> None:
        """Load model, heads and adversaries from a checkpoint; every key of the model must be there."""
        saved = type(self.model).from_pretrained(checkpoint).state_dict()
        missing, unexpected = self.model.load_state_dict(saved, strict=False)
        missing = [key for key in missing if not key.startswith(f"{HEADS}.")]
        if missing or unexpected:
            raise ValueError(f"{checkpoint} does not fit the model: {missing} are missing, {unexpected} unexpected.")
        if self.eraser.points:
            self.heads.load_state_dict(ECHeads.from_pretrained(checkpoint).state_dict())
        adversaries = Path(checkpoint) / ADVERSARIES
        if self.eraser.loss.adversaries and adversaries.is_file():  # else they start anew, as an optimiser does
            self.eraser.loss.load_state_dict(torch.load(adversaries, map_location="cpu", weights_only=True))


class _Loop(TrainerCallback):
    """What the trainer has to do at points of the loop that `Trainer` offers to callbacks alone."""

    def __init__(self, trainer: ECTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the evaluation of the original model at the head of the log."""
        state.log_history[:0] = self.trainer.log_of_original

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the sampler its epoch; after a resume in the middle of one no loader in between passes it on."""
        self.trainer._sampler.set_epoch(int(state.epoch or 0))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Let the eraser put masked weights back."""
        self.trainer.eraser.after_step(optimizer)


def accuracy(prediction: Any) -> dict[str, float]:
    """Top-1 accuracy of predicted classes, as `compute_metrics` wants it."""
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def _evaluating(args: ECConfig, evaluates: bool) -> ECConfig:
    """The trainer's own copy of the settings; `Trainer` refuses evaluation without data to evaluate on."""
    args = copy.copy(args)
    if not evaluates:
        args.eval_strategy, args.eval_on_start = "no", False
    return args


def _check_settings(args: Any, eval_dataset: Any) -> None:
    if not isinstance(args, ECConfig):
        raise TypeError(f"args: expected an ECConfig, got {type(args).__name__}; it takes the same settings and more.")
    if not isinstance(eval_dataset, (Mapping, type(None))):
        raise TypeError(
            f"eval_dataset: expected {{'forget': ..., 'retain': ...}}, got {type(eval_dataset).__name__}; "
            "dict(split(test_dataset, request)) makes one."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs. EC needs one process a GPU: start the script with "
            "`accelerate launch`, or set CUDA_VISIBLE_DEVICES to one of them."
        )


def _check_precision(model: Any, args: ECConfig) -> None:
    if model.dtype in (torch.float16, torch.bfloat16) and not (args.bf16 or args.fp16):
        raise ValueError(
            f"model: its weights are {model.dtype}, in which small updates are lost. Load it with "
            "dtype=torch.float32, and set bf16=True for mixed precision."
        )


def _check_sets(forget: Any, retain: Any) -> None:
    for name, dataset in (("forget_dataset", forget), ("retain_dataset", retain)):
        if dataset is not None and not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{name}: expected a dataset with rows by index, got {type(dataset).__name__}; no streaming."
            )
        if dataset is None or len(dataset) == 0:
            raise ValueError(f"{name} is empty; `split(dataset, request)` gives both parts.")
    shared = shared_rows(forget, retain)
    if shared:
        raise ValueError(
            f"retain_dataset: {shared} of its rows stand in forget_dataset too, so they would be kept and forgotten "
            "at once. Use both parts of `split(dataset, request)`."
        )
