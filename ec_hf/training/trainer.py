"""`ECTrainer`: the Hugging Face `Trainer` that erases a forget set through the depth of a vision classifier."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, Dataset, Subset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput

from ec_hf.data.fingerprint import fingerprint
from ec_hf.data.pairing import PairedDataset
from ec_hf.data.streaming import StreamedRows, is_stream
from ec_hf.files import RECORD, ModelFolder
from ec_hf.models.adapters import merged
from ec_hf.models.heads import ECHeads
from ec_hf.models.inputs import collator_for, label_ids_of
from ec_hf.models.loading import load_model, require_finite
from ec_hf.models.wrapping import classifier_for
from ec_hf.training.checkpoints import damage, last_whole
from ec_hf.training.checks import check_model, check_sets, check_settings, check_streamed
from ec_hf.training.coming_back import ComingBack
from ec_hf.training.config import ECConfig
from ec_hf.training.divergence import finite_loss, parts_without_gradient, require_finite_logits
from ec_hf.training.eraser import Eraser
from ec_hf.training.fitting import with_held_out
from ec_hf.training.interruption import Interruption
from ec_hf.training.learning_rate import STEPS, batch_for, rate_of, tried_rates
from ec_hf.training.loop import Loop
from ec_hf.training.memory import explained_memory
from ec_hf.training.paired_trainer import PairedTrainer
from ec_hf.training.plan import RunPlan, settings_in_effect
from ec_hf.training.progress import ProgressTable
from ec_hf.training.record import peak_memory_mb
from ec_hf.training.run_length import RunLength
from ec_hf.training.steering import Steering, few_of_each_class, is_due, steers
from ec_hf.training.stopping import StoppingRule
from ec_hf.training.strategy import check_strategy, strategy_of, unused_parameters
from ec_hf.training.streamed import rows_seen


class ECTrainer(PairedTrainer):
    """Erase at the Core (arXiv 2602.05375) for any `AutoModelForImageClassification`.

    Stage 1 fits one auxiliary head a supervision point on the frozen original model, unless fitted heads are given.
    Stage 2 trains on paired batches ``[forget ; retain]``, one forward a step. What is erased and with which loss is
    the part of `eraser`, an `Eraser`; what will be done stands in `plan`, a `RunPlan`.

    A step: the loader of `PairedTrainer` gives a paired batch; `compute_loss` hands it to the `Eraser`, whose forward
    runs the heads by a hook on the model; `ECLoss` makes weighted terms of what came out; `Trainer` takes the gradient
    of their sum and steps; `Eraser.after_step` puts masked weights back.

    Between the stages the objective looks at the original model and the data, or edits the model
    (`Objective.prepare`). A closed form is then done; with supervision points, EC trains on from there with its own
    objective, "contrastive". An objective whose terms alternate (SCRUB) shares every step with EC, whose two terms
    balance each other. Where the objective contrasts the last point itself (`covers_last_point`), EC leaves that
    point to it.

    Args:
        model: the original classifier, or the Hub id, folder or timm name to load it from. A PEFT model is erased
            through its adapters; `save_model` then writes these, and `save_merged` a plain model. Any other module
            that gives logits is taken as `ec_hf.as_classifier` does, with the class names of the forget set.
        args: settings; `ECConfig` with its defaults if left out.
        forget_dataset: what must be forgotten, rows with an image (or ``pixel_values``) and a label.
        retain_dataset: what must be kept, in the same form; no row of it may stand in the forget set. It may be
            streamed (`datasets.IterableDataset`), as `ec_hf.data.streaming.PairedStream` says, with `retain_rows` or
            `max_steps` for the length of the run. Its first rows are looked at for the learning rate, tell when the
            fit of the heads is done, and whether whole classes are forgotten.
        eval_dataset: ``{"forget": ..., "retain": ...}``, better held out; the stopping rule works on these two.
            Where rows of classes that stay are forgotten, "matched" holds images that stay of the same classes, and
            their accuracy is the forget accuracy at which to stop. Further keys are evaluated too.
        processing_class: the model's image processor; comes with the model when that is loaded by name. A function
            from a PIL image to a tensor, such as torchvision's transforms, will do.
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

    Example:
        >>> parts = split(train_dataset, ForgetRequest(classes=["cat"]))  # doctest: +SKIP
        >>> sets = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"]}  # doctest: +SKIP
        >>> trainer = ECTrainer("me/vit", ECConfig("out"), **sets)  # doctest: +SKIP
        >>> trainer.train(); trainer.save_model()  # out/ is a plain model  # doctest: +SKIP
    """

    loss_is_scaled_for_ga = False
    model: Any
    eval_dataset: dict[str, Dataset] | None

    def __init__(
        self,
        model: nn.Module | str | Path,
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
        check_settings(args, eval_dataset)
        check_sets(forget_dataset, retain_dataset, may_stream=True)
        if not isinstance(model, nn.Module):
            model, loaded = load_model(model)
            processing_class = processing_class or loaded
        columns = {"image_column": args.image_column, "label_column": args.label_column}
        taken, processing_class = classifier_for(model, processing_class, forget_dataset, **columns)
        check_model(taken, args)
        eval_dataset = {name: part for name, part in (eval_dataset or {}).items() if len(part)}  # type: ignore[arg-type]
        sets = {"forget": forget_dataset, "retain": retain_dataset}
        sets |= {f"evaluation {name}": part for name, part in eval_dataset.items()}
        retain: Any = retain_dataset
        if is_stream(retain_dataset):
            check_streamed(args)
            retain = StreamedRows(retain_dataset, args.retain_rows, rows_seen(args))
        if compute_metrics is None:
            compute_metrics = accuracy
            kwargs["preprocess_logits_for_metrics"] = lambda logits, _labels: logits.argmax(-1)
        super().__init__(
            taken,
            _own(args, forget_dataset, retain, evaluates=bool(eval_dataset)),
            data_collator=data_collator or collator_for(taken, processing_class, sets, **columns),
            train_dataset=PairedDataset(forget_dataset, retain, seed=args.seed),
            eval_dataset=eval_dataset or None,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[Loop(self), *callbacks],
            **kwargs,
        )
        if args.pilot:
            raise ValueError("pilot=True takes two runs: ec_hf.erase makes both, an ECTrainer is one of them")
        self.image_shape = tuple(self.data_collator([self.train_dataset[0]])["pixel_values"].shape[1:])
        classes = self.forgotten_classes()
        self.eraser = Eraser(self.model, args, heads=heads or args.heads, image_shape=self.image_shape, **classes)
        check_strategy(args, self.accelerator.distributed_type)
        args.check_batch_norm(self.eraser.batch_norm)
        self.stopping_rule = StoppingRule(self._forget_target(), args.retain_floor, args.min_steps, self.total_steps())
        self.interruption = Interruption()
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.steering = self._new_steering()
        self.add_callback(ProgressTable(layers=[p.name for p in self.steering.points] if self.steering else ()))
        self.add_callback(self.stopping_rule)
        self.add_callback(self.interruption)
        if self.eraser.objective.renews and self.total_steps() > 1:
            self.add_callback(ComingBack(args.retain_floor, self.total_steps()))
        self.plan = self._plan()
        self.cost: dict[str, float] = {}
        self.on_record: dict[str, Any] = {}  # what whoever started the run adds to its record
        self.put_back: str | None = None  # the checkpoint that a run below its floor went back to
        self.log_of_original: list[dict[str, float]] = []  # where it was evaluated before the objective looked at it

    # What is known before anything is trained

    @property
    def heads(self) -> ECHeads:
        """The EC heads."""
        return self.eraser.heads

    def _forget_target(self) -> float | None:
        """Chance where classes are forgotten; the accuracy of images of the same classes where rows are."""
        if self.eraser.objective.from_scratch or self.eraser.objective.renews:
            return -1.0  # new weights train to the end of the schedule
        if self.args.forget_target is not None:
            return self.args.forget_target
        return None if "matched" in (self.eval_dataset or ()) else 1 / self.model.config.num_labels

    def _plan(self) -> RunPlan:
        args, sets = self.args, {"forget": self.train_dataset.forget, "retain": self.train_dataset.retain}
        rows = self._rows_of(sets["retain"])
        evaluated = set(self.eval_dataset or ()) if args.eval_on_start and args.eval_strategy != "no" else set()
        stopping = self.stopping_rule.describe(watches={"forget", "retain"} <= evaluated)
        return RunPlan.of(
            self.eraser,
            images={name: self._rows_of(part) for name, part in sets.items()},
            fingerprints={name: fingerprint(part) for name, part in sets.items()},
            batch={"forget": args.per_device_forget_batch_size, "retain": args.per_device_train_batch_size},
            processes=args.world_size,
            device=str(args.device),
            stopping=stopping if self.eraser.host.trains else None,
            settings=settings_in_effect(args, self.eraser) | {"cache_teacher": self.remembers_teacher()},
            passes=rows and self.run_length().images()["retain"] / rows,
        )

    def _rows_of(self, part: Any) -> int | None:
        """Number of rows, where it is known."""
        return part.rows if isinstance(part, StreamedRows) else len(part)

    # The stages

    def fit_heads(self) -> dict[str, float]:
        """Fit EC heads on the frozen model with images of forget and retain, whatever the request.

        `train` does it where no fitted heads were given. The heads are in `self.heads`. Where `heads_epochs` passes
        are many steps, a part of the images is held out, and the fit ends when these tell that it is done.

        Returns:
            Accuracy of each head by supervision point, over the last pass or on the held-out images.
        """
        points, (batches, held_out) = len(self.eraser.points), self._batches_for_heads()
        if points:
            passes = f"in at most {self.args.heads_epochs} passes of {len(batches):,} steps"
            self.accelerator.print(f"Fitting {points} EC heads on the frozen original, {passes}")
        accuracies = self.eraser.fit_heads(batches, self.accelerator, held_out=held_out)
        for point in self.eraser.points:
            self.accelerator.print(f"EC head at {point}: accuracy {accuracies[point.name]:.1%}")
        return accuracies

    def _batches_for_heads(self) -> tuple[Any, Any]:
        """Batches of forget and retain images alike, and those that tell when a long fit is done."""
        args, data = self.args, self.train_dataset
        if self.streamed is not None:
            return self.streamed.batches_for_heads(len(data.retain), args.heads_epochs)
        size = args.per_device_train_batch_size + args.per_device_forget_batch_size
        steps = args.heads_epochs * len(data) / (size * args.world_size)
        images, left_out = with_held_out(ConcatDataset([data.forget, data.retain]), steps=steps, seed=args.seed)
        generator = torch.Generator().manual_seed(args.seed)
        loader = self.loader(images, batch_size=size, shuffle=True, generator=generator)
        held_out = None if left_out is None else self.accelerator.prepare(self.loader(left_out, batch_size=size))
        return self.accelerator.prepare(loader), held_out

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Fit the heads if need be, attach them, erase, and take them off again.

        Where retain accuracy ends below its floor, the last checkpoint that was above it is put back. Where none was
        saved, the run fails: a model that lost more than `retain_floor` allows is never handed out as a result, and
        the original is no result either. Its checkpoints stay, and the error says how to accept the loss.

        SIGTERM ends the run at the end of its step, with a checkpoint.

        Args:
            resume_from_checkpoint: a checkpoint to go on from, or True for the last whole one in the output folder.
            **kwargs: passed on to `Trainer.train`.

        Raises:
            BelowFloorError: as above.
            DivergedError: for a loss, a gradient or an evaluation that is not finite; earlier checkpoints stay.
            Interrupted: after SIGTERM, a `SystemExit` of code 143.
            OSError: for an output folder, or a checkpoint, that cannot be written; earlier checkpoints stay.
            RuntimeError: for an output folder in which another process trains.
            ValueError: for a checkpoint that is not there, not whole, or of a run on other data or with other
                settings; for a new run in a folder with checkpoints of another one; and for weights that are not
                finite at the end.
        """
        with self.folder_held(), explained_memory(self.args):
            checkpoint = self._checkpoint_of(resume_from_checkpoint)
            self.check_images()
            self.start_counting()
            if not checkpoint and not self.eraser.heads_fitted:  # a checkpoint brings its own
                self.fit_heads()
            self.accelerator.print(self.plan)
            start = time.perf_counter()
            self._prepare(evaluate=self.args.eval_on_start and not checkpoint)
            if self.args.learning_rate is None and self.eraser.host.trains:
                self._find_learning_rate(checkpoint)
            self.let_training_wrap_the_model()
            if self.streamed is not None:
                self.streamed.resume_from(Path(checkpoint) if checkpoint else None)
            result = self._erase(checkpoint, **kwargs)
        require_finite("the model at the end of this run", self.model)
        images = self.images_seen()
        self.cost = {
            "steps": self.state.global_step,
            "forget_images_seen": images["forget"],
            "retain_images_seen": images["retain"],
            "minutes": round((time.perf_counter() - start) / 60, 2),
            "peak_memory_mb": peak_memory_mb(self.args.device),
        }
        return result

    def _erase(self, checkpoint: str | None, **kwargs: Any) -> TrainOutput:
        """Train, where there is something to train, and see to the retain floor."""
        if not self.eraser.host.trains:  # the objective has edited the model
            if self.args.eval_strategy != "no":
                self.evaluate_now()
            return TrainOutput(0, 0.0, {})
        evaluates_first = self.args.eval_on_start
        self.args.eval_on_start = evaluates_first and not self.log_of_original
        try:
            with self.eraser.attached():
                self._tell_ddp_what_is_unused()
                if checkpoint and self._has_ended(checkpoint):
                    result = TrainOutput(self.state.global_step, 0.0, {})
                else:
                    result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
                    self.interruption.end_if_it_happened(self.state.global_step, self.args.output_dir)
                self._put_last_good_back()
        finally:
            self.interruption.release()
            self.args.eval_on_start = evaluates_first
        return result

    def _tell_ddp_what_is_unused(self) -> None:
        """`Trainer` would have DDP look for parameters without a gradient at each step, in case there are any."""
        if self.args.world_size == 1 or self.args.ddp_find_unused_parameters is not None:
            return
        if self.accelerator.ddp_handler is not None:
            unused = unused_parameters(self.eraser.model, self.image_shape, **self.eraser.hidden_state_kwargs)
            self.accelerator.ddp_handler.find_unused_parameters = bool(unused)

    def tell_strategy(self) -> None:
        """Print what wraps the model, once it is wrapped."""
        self.accelerator.print(f"strategy: {strategy_of(self.model_wrapped, self.args.world_size)}")

    def _checkpoint_of(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to go on from, if there is one."""
        if not self.eraser.host.trains:
            if resume_from_checkpoint:
                name = self.eraser.objective.name
                raise ValueError(f"objective {name!r} trains nothing, so there is no checkpoint to resume.")
            return None
        return self.checkpoint_to_resume(resume_from_checkpoint)

    def _has_ended(self, checkpoint: str) -> bool:
        """Whether the run had nothing left to train; its last state is then loaded. `Trainer` would train a step."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        step = state.global_step
        if step < self.total_steps() and not self.stopping_rule.is_done(state.log_history, step):
            return False
        self.accelerator.print(f"{checkpoint} is the end of this run: nothing is left to train.")
        self.state = state
        self.eraser.load(checkpoint)
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            self._load_best_model()
        return True

    def _prepare(self, evaluate: bool) -> None:
        """Let the objective look at the original model, or edit it. Once a trainer: state and edits stay."""
        self.log_of_original = []
        if self.eraser.prepared:
            return
        if self.steering is not None:
            self.steering.see_original()
        if self.eraser.looks and evaluate:
            self.log_of_original = self.evaluate_now()
        self.eraser.prepare(
            partial(self.look_at, "forget"),
            partial(self.look_at, "retain"),
            processor=self.processing_class,
            images=self.plan.images,
            batch_of_rows=self._batch_of_rows if self.remembers_teacher() else None,
            autocast=self.compute_loss_context_manager,
        )

    def _find_learning_rate(self, checkpoint: str | None) -> None:
        """Take the peak learning rate of the run that goes on, or find one; it goes on record."""
        if checkpoint:
            rate = ModelFolder(checkpoint).read(RECORD)["settings"]["learning_rate"]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.args.seed)
                tried = tried_rates(self.model, self._few_retain_images(), self._optimizer_at)
            rate = rate_of(tried, new_weights=self.eraser.objective.has_new_weights)
            (rate,) = broadcast_object_list([rate])
            self.accelerator.print(f"learning rate {rate:g}, by a range test on retain images")
        self.args.learning_rate = rate
        self.plan = replace(self.plan, settings={**self.plan.settings, "learning_rate": rate})

    def _few_retain_images(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches for a range test, the same in every process; what is looked at is counted."""
        size = batch_for(self.model.config.num_labels, self.args.per_device_train_batch_size)
        for batch in self.retain_images(STEPS * size, size):
            yield batch["pixel_values"], batch["labels"]

    def _optimizer_at(self, rate: float) -> torch.optim.Optimizer:
        """The run's optimiser on the model's own parameters, at a rate."""
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        return kind([each for each in self.model.parameters() if each.requires_grad], **settings | {"lr": rate})

    def _new_steering(self) -> Steering | None:
        """What chooses EC's weights as the run goes on, where there is something to steer by."""
        if self.args.strength != "auto" or not steers(self.eraser):
            return None
        sets = self.eval_dataset if {"forget", "retain"} <= set(self.eval_dataset or ()) else None
        sets = sets or {"forget": self.train_dataset.forget, "retain": self.train_dataset.retain}
        few: dict[str, Dataset] = {}
        for name in ("forget", "retain"):
            if isinstance(sets[name], StreamedRows) or self._classes_of(sets[name]) is None:
                return None
            labels = label_ids_of(sets[name], self.data_collator, self.args.label_column)
            few[name] = Subset(sets[name], few_of_each_class(labels, self.args.seed).tolist())
        return Steering(self.eraser, partial(self._look_at_few, few))

    def _look_at_few(self, few: dict[str, Dataset]) -> Iterator[dict[str, Tensor]]:
        """Batches of a few images of both sets; what is looked at is counted."""
        for name, part in few.items():
            yield from self._counted(name, self.loader(part, batch_size=self.args.per_device_eval_batch_size))

    def steer(self) -> None:
        """Look at the points every so often, and give each more or less of EC; all processes the same."""
        step = self.state.global_step
        if self.steering is None or not is_due(step, self.state.max_steps):
            return
        before = self.steering.weights()
        (looks,) = broadcast_object_list([self.steering.adjust()])
        self.steering.weigh({name: look.weight for name, look in looks.items()})
        for name, look in looks.items():
            if bool(look.weight) != bool(before[name]):
                does = "sets in" if look.weight else "ends"
                self.accelerator.print(
                    f"step {step}: EC {does} at {name}, where forgotten classes stand apart {look.found.value:.2f} "
                    f"times as well as those that stay ({look.expected:.2f} is expected, {look.original:.2f} before)"
                )
        self.on_record["steering"] = {name: look.told() for name, look in looks.items()}
        told = {f"{key}/{name}": value for name, look in looks.items() for key, value in look.told().items()}
        self.log(told)

    def _batch_of_rows(self, rows: list[int]) -> dict[str, Any]:
        return self.data_collator(self.train_dataset.__getitems__(rows))

    def remembers_teacher(self) -> bool:
        """Whether the original model's logits on the forget set are computed once, ahead of the first step."""
        args, forget = self.args, self.train_dataset.forget
        if self.eraser.leaves_forget_out:
            return False
        if self.eraser.teacher is None or args.cache_teacher is not None:
            return self.eraser.teacher is not None and bool(args.cache_teacher)
        asked = self.total_steps() * args.gradient_accumulation_steps * args.per_device_forget_batch_size
        return self.shows_same_images(forget) and asked >= len(forget)

    def _put_last_good_back(self) -> None:
        good = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end or self.stopping_rule.is_good(self.state.log_history) is not False:
            return
        if not good or damage(Path(good)):
            resumable = last_whole(Path(self.args.output_dir or "")) is not None
            raise self.stopping_rule.harm(self.state.log_history, resumable=resumable)
        self.accelerator.print(f"Retain accuracy ended below its floor: the model of {good} is put back.")
        self.eraser.load(good)
        self.put_back = good

    # The loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The unlearning loss of a paired batch in training; plain cross-entropy in evaluation."""
        if model.training:
            terms = self.eraser(inputs, self.progress(), model=model)
            self.note(terms)
            self._last_inputs = inputs
            return finite_loss(terms, inputs, self.state.global_step, self.train_dataset.place)
        logits = require_finite_logits(model(pixel_values=inputs["pixel_values"]).logits, self.state.global_step)
        loss = F.cross_entropy(logits.float(), inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def culprits(self) -> str:
        """By the gradients on the last batch. Not among several processes, where all would have to take part."""
        if self.args.world_size > 1:
            return ""
        terms = self.eraser(self._last_inputs, self.progress(), model=self.model)
        broken = parts_without_gradient(terms, self.model)
        return f", by {', '.join(broken)}" if broken else ""

    def end(self) -> None:
        """Close trackers and process group together: gloo may abort a process that leaves while another works."""
        self.accelerator.wait_for_everyone()
        super().end()

    def save_merged(self, output_dir: str | Path) -> None:
        """Save the model with its adapters merged in, as `save_model` does with a model that has none.

        Args:
            output_dir: folder for a plain model, with heads and record, that can be audited, described and pushed.
        """
        if self.args.should_save:
            adapted, self.model = self.model, merged(self.model)
            try:
                self._save(str(output_dir))
            finally:
                self.model = adapted


def accuracy(prediction: Any) -> dict[str, float]:
    """Top-1 accuracy of predicted classes, as `compute_metrics` wants it."""
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def _own(args: ECConfig, forget: Any, retain: Any, *, evaluates: bool) -> ECConfig:
    """The trainer's own copy of the settings.

    `Trainer` refuses evaluation without data to evaluate on, and does not know passes over the forget set.
    """
    args = copy.copy(args)
    if not evaluates:
        args.eval_strategy, args.eval_on_start = "no", False
    if args.forget_epochs or args.num_train_epochs is None:
        args.max_steps = RunLength.of(args, len(forget), len(retain), args.world_size).steps
        args.num_train_epochs = args.num_train_epochs or 0.0  # `Trainer` compares it with 0, even beside max_steps
    return args
