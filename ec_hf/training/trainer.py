"""`ECTrainer`: the Hugging Face `Trainer` that erases a forget set through the depth of a vision classifier."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset as HFDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ec_hf.data.columns import find_label_column, read_column
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.data.splitting import shared_rows
from ec_hf.files import HEADS
from ec_hf.losses.calibrated import global_guided
from ec_hf.losses.contrast import check_contrast, global_contrast
from ec_hf.losses.distillation import cross_entropy, distillation, hide_classes
from ec_hf.losses.schedules import layer_weights
from ec_hf.models.batch_norm import clean_statistics
from ec_hf.models.heads import ECHeads
from ec_hf.models.inputs import ImageCollator, collator_for
from ec_hf.models.loading import load_model
from ec_hf.models.points import (
    SupervisionPoint,
    classifier_pooling,
    describe_hidden_states,
    hidden_state_kwargs,
    pool,
    select_points,
    take,
)
from ec_hf.objectives.base import Objective, Part, Setting, Step
from ec_hf.objectives.registry import get_objective
from ec_hf.training.adversary import LinearProbe
from ec_hf.training.config import ECConfig
from ec_hf.training.fitting import fit_heads
from ec_hf.training.hub_trainer import PublishingTrainer
from ec_hf.training.record import announcement, cost, run_record
from ec_hf.training.saliency import SaliencyMask, saliency_mask
from ec_hf.training.stopping import StoppingRule
from ec_hf.training.teacher import Teacher

PROBES = "probes.pt"
"""The file of a checkpoint that the linear probes of calibrated erasure go on from."""


class ECTrainer(PublishingTrainer):
    """Erase at the Core (arXiv 2602.05375) for any `AutoModelForImageClassification`.

    Stage 1 fits one auxiliary head a supervision point on the frozen original model, unless fitted heads are given.
    Stage 2 trains on paired batches ``[forget ; retain]``, one forward a step:

        loss = objective(last layer) + ω · Σ_k w_k · (contrast_k(forget, retain) + λ · CE_k(retain))

    with ω = `ec_weight`, w_k = `layer_weights` and λ = `retain_weight` of the settings. Unless `detach_retain` says
    otherwise, the contrast moves forget features alone. With `calibrated` the contrast is that of
    `ec_hf.losses.calibrated`, and ρ · probe_k(forget) of `ec_hf.training.adversary` joins the bracket, with
    ρ = `probe_weight`.

    Under several processes the contrast sees the batches of all of them, with gradient. Contrastive terms belong to a
    micro-batch: gradient accumulation is not the same as a larger batch.

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
    heads: ECHeads
    objective: Objective
    host: Objective
    points: tuple[SupervisionPoint, ...]

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
        args = copy.copy(args) if args is not None else ECConfig()
        if not isinstance(args, ECConfig):
            raise TypeError(
                f"args: expected an ECConfig, got {type(args).__name__}; it takes the same settings and more."
            )
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
        _check_sets(forget_dataset, retain_dataset)
        if not isinstance(model, nn.Module):
            model, loaded = load_model(model)
            processing_class = processing_class or loaded
        if model.dtype in (torch.float16, torch.bfloat16) and not (args.bf16 or args.fp16):
            raise ValueError(
                f"model: its weights are {model.dtype}, in which small updates are lost. Load it with "
                "dtype=torch.float32, and set bf16=True for mixed precision."
            )
        eval_dataset = {name: part for name, part in (eval_dataset or {}).items() if len(part)}  # type: ignore[arg-type]
        if not eval_dataset:
            args.eval_strategy, args.eval_on_start = "no", False
        if data_collator is None:
            data_collator = collator_for(
                model,
                processing_class,
                {"forget": forget_dataset, "retain": retain_dataset}
                | {f"evaluation {name}": part for name, part in eval_dataset.items()},
                image_column=args.image_column,
                label_column=args.label_column,
            )
        if compute_metrics is None:
            compute_metrics, kwargs["preprocess_logits_for_metrics"] = (
                accuracy,
                lambda logits, labels: logits.argmax(-1),
            )
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=PairedDataset(forget_dataset, retain_dataset, seed=args.seed),
            eval_dataset=eval_dataset or None,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=[_Begin(self), *callbacks],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        self._components: dict[str, Tensor] = {}  # sums over the batches since the last log line
        self._batches = self.batches_seen = 0
        self.looked_at = {"forget": 0, "retain": 0}  # images that went to `Objective.prepare`
        self._choose_points(heads or args.heads)
        self._choose_objective(forget_dataset, retain_dataset)
        target = args.forget_target if args.forget_target is not None else 1 / self.model.config.num_labels
        self.stopping_rule = StoppingRule(target, args.retain_floor, args.min_steps)
        self.add_callback(self.stopping_rule)
        self.cost: dict[str, float] = {}

    # Setting up

    def _choose_points(self, heads: ECHeads | str | Path | None) -> None:
        """Size the hidden states with a real image, then select the points or take those of the given heads."""
        image = self.data_collator([self.train_dataset[0]])["pixel_values"]
        states = describe_hidden_states(self.model, tuple(image.shape[1:]))
        self.points = select_points(self.model, states, self.args.points)
        self.last = states[-1]
        self._point_kwargs = hidden_state_kwargs(self.model)
        if self.args.pooling == "cls" and self.points and not self.last.prefix:
            raise ValueError(f"pooling='cls': {self.points[0]} has no CLS token; use 'mean'.")
        weights: Any = self.args.layer_weights
        self.layer_weights = layer_weights(weights, len(self.points)) if self.points else []
        self.heads_fitted = heads is not None
        if heads is None:
            self.heads = self._new_heads()
        else:
            self.heads = heads if isinstance(heads, ECHeads) else ECHeads.from_pretrained(heads)
            wanted = (self.points, self.last, self.args.pooling)
            if (self.heads.points, self.heads.last, self.heads.pooling) != wanted:
                raise ValueError(
                    f"heads: they were built for {_listed(self.heads.points)} and pooling {self.heads.pooling!r}, "
                    f"this run supervises {_listed(self.points)} with pooling {self.args.pooling!r}. Give `points` "
                    "and `pooling` that agree, or leave out `heads` to fit new ones."
                )

    def _choose_objective(self, forget: Dataset, retain: Dataset) -> None:
        args = self.args
        settings: dict[str, Any] = dict(args.objective_kwargs or {})  # type: ignore[arg-type]
        same = {
            "form": args.contrast,
            "temperature": args.temperature,
            "detach_retain": args.detach_retain,
            "retain_weight": args.retain_weight,
        }
        if args.objective == "contrastive":
            settings = same | settings
        self.objective = self.host = get_objective(args.objective, **settings)
        if self.points and not self.objective.trains:
            self.host = get_objective("contrastive", **same)  # what is trained after the closed form
        if self.objective.from_scratch:
            if self.points:
                raise ValueError(
                    f"objective {args.objective!r} starts from new weights, in which there is nothing to erase: set "
                    "points=[] ('none' on the command line)."
                )
            # New weights need batch statistics, and are trained to the end of the schedule.
            args.batch_norm, args.forget_target = "retain", -1.0
            args._check()
        of_forget, of_retain = self._labels_of(forget), self._labels_of(retain)
        self._forget_classes = None
        if of_forget is not None and of_retain is not None:
            self._forget_classes = None if of_forget & of_retain else tuple(sorted(of_forget))
            self.objective.check(len(of_forget), whole_classes=self._forget_classes is not None)
            check_contrast(args.contrast, len(of_forget) if self.points else None)
        self._teacher: Teacher | None = None
        if args.calibrated and self.host.covers_last_point:
            raise ValueError(
                f"calibrated=True does not go with objective {self.host.name!r}, which pulls the last features "
                'towards all other classes: set objective="delete", objective_kwargs={"retain_weight": 1.0}.'
            )
        if self.host.needs_teacher or (args.calibrated and self.points):
            self._teacher = Teacher(self.model)
        self._probes: dict[str, LinearProbe] = {}  # a second `train` goes on with them, as with the heads
        if args.calibrated and args.probe_weight:
            precision = torch.promote_types(self.model.dtype, torch.float32)
            for point in self.points:
                probe = LinearProbe(point.channels, self.model.config.num_labels)
                self._probes[point.name] = probe.to(self.args.device, precision)
        assert args.ec_weight is not None  # the configuration has filled it in
        scales = [args.ec_weight] * len(self.points)
        if self.host_covers_last_point:
            scales[-1] = 1.0
        self.layer_weights = [scale * weight for scale, weight in zip(scales, self.layer_weights, strict=True)]
        self.saliency = args.saliency if args.saliency is not None else self.objective.saliency
        self._mask: SaliencyMask | None = None
        self._prepared = False
        self._original: list[dict[str, float]] = []  # log lines of its evaluation, where `prepare` comes between

    def _labels_of(self, dataset: Dataset) -> set[int] | None:
        """The model's ids of the classes in a dataset, or None where only reading every image would tell."""
        collator = self.data_collator
        if not (isinstance(dataset, HFDataset) and isinstance(collator, ImageCollator)):
            return None
        values = read_column(dataset, find_label_column(dataset, self.args.label_column)).unique().to_pylist()
        return {value if collator.label_ids is None else collator.label_ids[value] for value in values}

    def get_train_dataloader(self) -> DataLoader:
        """Batches of `per_device_forget_batch_size` forget images followed by the retain images."""
        data: PairedDataset = self.train_dataset
        args = self.args
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

    # Stage 1

    def _new_heads(self) -> ECHeads:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            return ECHeads(
                [point.to_dict() for point in self.points],
                self.last.to_dict(),
                self.model.config.num_labels,
                pooling=self.args.pooling,
                last_pooling=classifier_pooling(self.model, self.last),
            ).to(self.model.device)

    def fit_heads(self) -> dict[str, float]:
        """Fit EC heads on the frozen model with all images, forget and retain, whatever the request.

        `train` does it where no fitted heads were given. The heads are in `self.heads`.

        Returns:
            Accuracy of each head, by supervision point, over the last pass.
        """
        args = self.args
        self.heads_fitted = True
        if not self.points:
            return {}
        images: Dataset = ConcatDataset([self.train_dataset.forget, self.train_dataset.retain])
        batch_size = args.per_device_train_batch_size + args.per_device_forget_batch_size
        generator = torch.Generator().manual_seed(args.seed)
        loader = self._loader(images, batch_size=batch_size, shuffle=True, generator=generator)
        accuracies = fit_heads(
            self.heads,
            self.model,
            self.accelerator.prepare(loader),
            self.accelerator,
            epochs=args.heads_epochs,
            learning_rate=args.heads_learning_rate,
        )
        for point in self.points:
            self.accelerator.print(f"EC head at {point}: accuracy {accuracies[point.name]:.1%}")
        return accuracies

    # Between the stages

    def _prepare(self, evaluate: bool) -> None:
        """Let the objective look at the original model, or edit it. Once a trainer: state and edits stay."""
        self._original, self.looked_at = [], {"forget": 0, "retain": 0}
        if self._prepared:
            return
        looks = type(self.objective).prepare is not Objective.prepare
        if looks and evaluate:
            self._original = self._evaluate_now()
        data, args = self.train_dataset, self.args
        boundary = len(data.forget)
        forget = partial(self._batches_of, "forget", range(boundary))
        retain = partial(self._batches_of, "retain", range(boundary, len(data)))
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(args.seed)  # torch.manual_seed would also set every GPU's state
            if self.saliency is not None:
                self._mask = SaliencyMask(saliency_mask(self.model, forget(), self.saliency))
                self.add_callback(self._mask)
            if args.cache_teacher and self._teacher is not None:
                with self.compute_loss_context_manager():
                    self._teacher.remember(
                        forget(), lambda rows: self.data_collator(data.__getitems__(rows)), rows=min(8, boundary)
                    )
            if looks:
                self.objective.prepare(
                    Setting(self.model, forget, retain, self._features, self._forget_classes, args.seed)
                )
        self.model.train(was_training)
        self._prepared = True

    def _batches_of(self, name: str, rows: range, every: int = 1) -> Iterator[dict[str, Tensor]]:
        loader = self._loader(
            Subset(self.train_dataset, rows[::every]), batch_size=self.args.per_device_train_batch_size
        )
        for batch in loader:
            self.looked_at[name] += len(batch["labels"])
            yield {key: batch[key].to(self.args.device) for key in ("pixel_values", "labels")}

    def _features(self, pixel_values: Tensor) -> Tensor:
        states = self.model(pixel_values=pixel_values, **self._point_kwargs).hidden_states
        return pool(take(states, self.last), self.last, self.heads.last_pooling)

    def _evaluate_now(self) -> list[dict[str, float]]:
        """Evaluate outside the training loop; the new lines of the log."""
        before = len(self.state.log_history)
        self.is_in_train = True  # else full_eval settings would round the weights
        self.evaluate()
        self.is_in_train = False
        return self.state.log_history[before:]

    def _forget_evaluation(self) -> None:
        """Let training wrap the model: Accelerate takes one that was evaluated before for one that is wrapped already.

        Each of several processes would then train on its own.
        """
        if vars(self.model).pop("_is_accelerate_prepared", False):
            self.model_wrapped = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    # Stage 2

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Fit the heads if need be, attach them, erase, and take them off again.

        Where retain accuracy ends below its floor, the last checkpoint that was above it is put back.
        """
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:  # Trainer says so when there is none
            checkpoint = get_last_checkpoint(self.args.output_dir) or True
        if not (trains := self.host.trains) and checkpoint:
            raise ValueError(f"objective {self.objective.name!r} trains nothing, so there is no checkpoint to resume.")
        if not checkpoint and not self.heads_fitted:  # a checkpoint brings its own
            self.fit_heads()
        self.accelerator.print(announcement(self))
        evaluate_first = self.args.eval_on_start
        for head, weight in zip(self.heads.heads, self._weights()[1], strict=True):
            head.requires_grad_(self.args.train_heads and weight > 0)  # DDP wants a gradient of all that require one
        self._components, self._batches, self.batches_seen = {}, 0, 0
        start = time.perf_counter()
        self._prepare(evaluate=evaluate_first and not checkpoint)
        self._forget_evaluation()
        try:
            if trains:
                self.args.eval_on_start = evaluate_first and not self._original
                self.heads.attach(self.model)
                result = super().train(resume_from_checkpoint=checkpoint, **kwargs)
                self._keep_last_good()
            else:
                result = self._closed_form()
        finally:
            self.args.eval_on_start = evaluate_first
            self.heads.detach()
            self.heads.requires_grad_(True)
            if self._mask is not None:
                self._mask.release()
        self.cost = cost(self, time.perf_counter() - start)
        return result

    def _closed_form(self) -> TrainOutput:
        """What is left to do where the objective has edited the model and nothing is trained."""
        if self.args.eval_strategy != "no":
            self._evaluate_now()
        return TrainOutput(0, 0.0, {})

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The unlearning loss of a paired batch in training; plain cross-entropy in evaluation."""
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        if not model.training:
            logits = model(pixel_values=pixel_values).logits
            loss = F.cross_entropy(logits.float(), labels)
            return (loss, {"logits": logits}) if return_outputs else loss
        count = inputs["num_forget"]
        extra = self.host.extra_pixels(pixel_values[:count], pixel_values[count:])
        if extra is not None:
            pixel_values = torch.cat([pixel_values, extra])
            labels = torch.cat([labels, labels.new_full((len(extra),), -100)])
        with clean_statistics(model, count, len(inputs["labels"]), update=self.args.batch_norm == "retain"):
            outputs = model(pixel_values=pixel_values, **self._point_kwargs)
        terms = self._loss_terms(outputs, pixel_values, labels, inputs)
        loss = torch.stack([weight * term for weight, term in terms.values()]).sum()
        self._batches += 1
        self.batches_seen += 1
        for name, (_, term) in terms.items():
            self._components[name] = self._components.get(name, 0) + term.detach()
        return (loss, outputs) if return_outputs else loss

    def _loss_terms(
        self, outputs: Any, pixel_values: Tensor, labels: Tensor, inputs: dict[str, Any]
    ) -> dict[str, tuple[float, Tensor]]:
        """Every component of the loss with its weight, by name; what is only worth logging has weight 0."""
        args = self.args
        count, total = inputs["num_forget"], len(inputs["labels"])
        of_forget, of_retain, of_extra = slice(count), slice(count, total), slice(total, None)
        forget, retain, extra = (
            Part(outputs.logits[rows], outputs.last_features[rows], labels[rows], pixel_values[rows])
            for rows in (of_forget, of_retain, of_extra)
        )
        step = self._step(forget, retain, extra if len(extra.labels) else None, inputs)
        if args.calibrated and self.points:
            hidden = hide_classes(step.teacher_logits("forget"), forget.labels, self._forget_classes)
            targets = hidden.softmax(dim=1)
        host_weight, weights = self._weights()
        terms = {f"{self.host.name}/{name}": (host_weight, t) for name, t in self.host(step).items()}
        for point, weight, features, logits, pooled in zip(
            self.points, weights, outputs.features, outputs.head_logits, outputs.pooled, strict=True
        ):
            if not weight:
                continue
            pulled_to = features[of_retain].detach() if args.detach_retain else features[of_retain]
            rows = (features[of_forget], pulled_to, forget.labels, retain.labels)
            if args.calibrated:
                loss = global_guided(*rows, targets, temperature=args.temperature, repulsion=args.repulsion)
            else:
                loss, fallbacks = global_contrast(args.contrast, *rows, args.temperature)
                step.log["fallbacks"] = fallbacks / count  # labels decide it, so it is the same at every point
            terms[f"{point.name}/contrast"] = (weight, loss)
            retain_ce = cross_entropy(logits[of_retain], retain.labels)
            terms[f"{point.name}/retain_ce"] = (weight * args.retain_weight, retain_ce)
            if probe := self._probes.get(point.name):
                probe.fit(pooled[:total], labels[:total])
                read = distillation(probe(pooled[of_forget]), hidden)
                terms[f"{point.name}/probe"] = (weight * args.probe_weight, read)
        return terms | {name: (0.0, value.float()) for name, value in step.log.items()}

    def _step(self, forget: Part, retain: Part, extra: Part | None, inputs: dict[str, Any]) -> Step:
        batches_a_step = self.args.world_size * self.args.gradient_accumulation_steps
        step = Step(
            forget,
            retain,
            teacher=self._teacher,
            forget_classes=self._forget_classes,
            model=self.model,
            index=self.state.global_step,
            total=self.state.max_steps,
            epoch_steps=math.ceil(len(self._sampler) / batches_a_step),
            forget_steps=math.ceil(
                len(self.train_dataset.forget) / (batches_a_step * self.args.per_device_forget_batch_size)
            ),
            extra=extra,
        )
        known = self._teacher.remembered(inputs) if self._teacher is not None else None
        if known is not None:
            step._teacher_logits["forget"] = known
        return step

    def _weights(self) -> tuple[float, list[float]]:
        """Weight of the host objective and of the EC loss at each point."""
        if self.host_covers_last_point:
            return self.layer_weights[-1], [*self.layer_weights[:-1], 0.0]  # the host is the loss of the last point
        return 1.0, self.layer_weights

    @property
    def host_covers_last_point(self) -> bool:
        """Whether the host objective takes the place of EC at the last supervision point."""
        return self.host.covers_last_point and self.points[-1:] == (self.last,)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss component since the last line, over all processes; leave out evaluation times."""
        if "loss" in logs and self._components:
            means = torch.stack(list(self._components.values())) / self._batches
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= {name: round(mean, 5) for name, mean in zip(self._components, means.tolist(), strict=True)}
            self._components, self._batches = {}, 0
        timings = ("_runtime", "_samples_per_second", "_steps_per_second", "_preparation_time")
        logs = {
            name: value for name, value in logs.items() if not (name.startswith("eval_") and name.endswith(timings))
        }
        super().log(logs, start_time)

    def _keep_last_good(self) -> None:
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

    # Saving, resuming, reporting

    def end(self) -> None:
        """Close trackers and process group together: gloo may abort a process that leaves while another works."""
        self.accelerator.wait_for_everyone()
        super().end()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir or "")
        (folder / transformers.trainer.TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nobody needs
        if self.args.should_save:
            (folder / "ec_config.json").write_text(json.dumps(run_record(self), indent=2) + "\n")
            if self.points:
                self.heads.save_pretrained(folder / HEADS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._probes and self.args.should_save:
            torch.save({name: probe.state() for name, probe in self._probes.items()}, Path(output_dir) / PROBES)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        file = Path(checkpoint or "") / PROBES
        if self._probes and file.is_file():  # else they start anew, as the optimizer does where it was not saved
            states = torch.load(file, map_location="cpu", weights_only=True)
            for name, probe in self._probes.items():
                probe.load_state(states[name])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._restore(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None  # Trainer calls this only then
        self._restore(self.state.best_model_checkpoint)

    def _restore(self, checkpoint: str) -> None:
        """Load model and heads from a checkpoint, every key of them.

        `Trainer` reads the file into the model in memory, whose keys have other names in several families, and
        goes on with what did not match; `from_pretrained` knows the names.
        """
        saved = type(self.model).from_pretrained(checkpoint).state_dict()
        missing, unexpected = self.model.load_state_dict(saved, strict=False)
        missing = [key for key in missing if not key.startswith(f"{HEADS}.")]
        if missing or unexpected:
            raise ValueError(f"{checkpoint} does not fit the model: {missing} are missing, {unexpected} unexpected.")
        if self.points:
            self.heads.load_state_dict(ECHeads.from_pretrained(checkpoint).state_dict())


class _Begin(TrainerCallback):
    """Tells the log what was evaluated before, and the paired sampler its epoch.

    After a mid-epoch resume no loader in between passes the epoch on.
    """

    def __init__(self, trainer: ECTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[:0] = self.trainer._original

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._sampler.set_epoch(int(state.epoch or 0))


def accuracy(prediction: Any) -> dict[str, float]:
    """Top-1 accuracy of predicted classes, as `compute_metrics` wants it."""
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


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


def _listed(points: Sequence[Any]) -> str:
    return ", ".join(map(str, points)) or "no point"
