"""`Eraser`: Erase at the Core on one model, for any loop that trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ec_hf.files import HEADS
from ec_hf.losses.contrast import check_contrast
from ec_hf.losses.schedules import PointWeights
from ec_hf.models.adapters import base_of, check_adapters, describe_adapters, is_adapted, load_adapters
from ec_hf.models.batch_norm import clean_statistics
from ec_hf.models.heads import ECHeads
from ec_hf.models.inputs import normalisation
from ec_hf.models.loading import weights_hash
from ec_hf.models.modules import with_modules
from ec_hf.models.penultimate import Penultimate, classifier_of, penultimate_point
from ec_hf.models.points import (
    SupervisionPoint,
    classifier_pooling,
    describe_hidden_states,
    hidden_state_kwargs,
    pool,
    select_points,
    take,
)
from ec_hf.models.points import (
    image_shape as configured_shape,
)
from ec_hf.models.twins import twins
from ec_hf.models.wrapping import as_classifier, saved_state
from ec_hf.objectives.base import Objective, Progress, Setting
from ec_hf.objectives.registry import get_objective
from ec_hf.training.config import EraserConfig
from ec_hf.training.fitting import fit_heads
from ec_hf.training.loss import ECLoss, LossTerms
from ec_hf.training.saliency import SaliencyMask, saliency_mask
from ec_hf.training.teacher import Teacher

__all__ = ["Eraser"]

ADVERSARIES = "adversaries.pt"
"""The file of a checkpoint from which the adversaries of calibrated erasure go on."""
Batches = Callable[..., Iterable[Mapping[str, Tensor]]]
"""Gives batches of one set, from its first row to its last; see `Setting.forget`."""


class Eraser:
    """Erase at the Core (arXiv 2602.05375) on one model.

    It chooses the supervision points, holds the EC heads, the objective, the original model where that is asked for,
    and the loss. A loop brings the batches and the optimiser, as in the example; after it the model is a plain
    classifier again. A paired batch holds ``pixel_values`` (n, channels, height, width), forget images first and
    retain images after them, ``labels`` (n,) int64 and ``num_forget``, an int: `ec_hf.data.pairing` and
    `ec_hf.models.inputs` make such.

    Args:
        model: the original classifier; it is changed in place. With adapters of PEFT on it, such as LoRA, these are
            what is changed, and the model without them is the original. A module that is no model of transformers is
            taken as `ec_hf.as_classifier` does, and needs `image_shape`.
        config: settings; the defaults of `EraserConfig` if left out. They are read, never changed.
        forget_classes: label ids, where the forget set is whole classes; None where it is single images.
        num_forget_classes: number of classes that have an image in the forget set, where that is known.
        heads: fitted heads, or a folder or Hub id of such; they belong to the same points and pooling.
        image_shape: (channels, height, width) of the images; those that the model is configured for if left out.

    Attributes:
        model: the classifier, which a Trainer or a loop runs; of a PEFT model the one inside, with the adapters in it.
        adapters: kind and place of the adapters, empty without any.
        points: the supervision points, shallow to deep.
        hidden: the hidden states, shallow to deep.
        last: the deepest hidden state.
        classifier: the layers that give the logits, by name; host objectives see what these read, the penultimate
            features. Without such layers they see the pooled features of the deepest hidden state.
        weights: of the host objective and of EC at each point.
        objective: what was asked for.
        host: what trains beside EC: the objective, or "contrastive" after one that edits the model in closed form.
        loss: the `ECLoss`.
        heads: the `ECHeads`.
        heads_fitted: whether stage 1 is done.
        batch_norm: "frozen" or "retain"; new weights need the second, whatever the settings say.
        saliency: share of the model's weights that may move, None for all.
        original: hash of the model's weights as they were given.
        hidden_state_kwargs: what the model's forward must be called with.

    Raises:
        ValueError: for points or heads that do not fit the model, objectives and settings that do not go together, and
            a forget set that the objective cannot forget.

    Example:
        >>> eraser = Eraser(model, EraserConfig(objective="delete"), forget_classes=[3, 5])  # doctest: +SKIP
        >>> eraser.fit_heads(batches)  # stage 1, on the frozen model  # doctest: +SKIP
        >>> eraser.prepare(forget, retain)  # the objective looks at the original, or edits it  # doctest: +SKIP
        >>> with eraser.attached():  # stage 2, in training mode  # doctest: +SKIP
        ...     eraser(batch).total.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        config: EraserConfig | None = None,
        *,
        forget_classes: Sequence[int] | None = None,
        num_forget_classes: int | None = None,
        heads: ECHeads | str | Path | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        self.config = config = config or EraserConfig()
        model = as_classifier(model, image_shape=image_shape)
        self.original, self.adapters = weights_hash(model), describe_adapters(model)
        self._given = model
        if is_adapted(model):
            check_adapters(model, image_shape or configured_shape(model))
        self.model = model = base_of(model)
        self.num_labels = int(model.config.num_labels or 0)
        hidden = describe_hidden_states(model, image_shape)
        states = with_modules(model, hidden, config.points, image_shape)
        self.classifier = classifier_of(model, image_shape)
        penultimate = penultimate_point(self.classifier.values(), len(states))
        self.points, self.hidden = select_points(model, [*states, *penultimate], config.points), tuple(hidden)
        self.last = hidden[-1]
        self.objective, self.host = objectives_of(config, with_points=bool(self.points))
        if config.points == "auto":
            self.points = tuple(p for p in self.points if self.objective.leaves_to_ec(p.index, len(hidden)))
        self.heads_fitted = heads is not None or not self.points
        self.heads = self._new_heads() if heads is None else self._given_heads(heads)
        self._check(forget_classes, num_forget_classes)
        self.forget_classes = None if forget_classes is None else tuple(sorted(forget_classes))
        new = self.objective.from_scratch or self.objective.renews
        self.batch_norm = "retain" if new else config.batch_norm
        self.saliency = config.saliency if config.saliency is not None else self.objective.saliency
        self.weights = PointWeights.of(
            config.layer_weights,  # type: ignore[arg-type] # numbers of a command line are text
            config.ec_weight or 0.0,
            len(self.points),
            host_is_last_point=self._is_at_the_end(penultimate, image_shape) and self.host.covers_last_point,
        )
        needs_teacher = self.host.needs_teacher or (config.calibrated and bool(self.points))
        self.teacher = Teacher(self._given) if needs_teacher else None
        self.loss = ECLoss(
            self.host,
            self.points,
            self.weights,
            config,
            num_labels=self.num_labels,
            forget_classes=self.forget_classes,
            teacher=self.teacher,
        ).to(model.device, torch.promote_types(model.dtype, torch.float32))
        self.mask: SaliencyMask | None = None
        self.prepared = False
        self._trainable = {name: each.requires_grad for name, each in model.named_parameters()}
        self.hidden_state_kwargs = hidden_state_kwargs(model)

    @property
    def looks(self) -> bool:
        """Whether the objective looks at the original model and the data, or edits the model, before training."""
        return type(self.objective).prepare is not Objective.prepare

    @property
    def leaves_forget_out(self) -> bool:
        """Whether no loss looks at forget images, so that they need not go through the model."""
        return self.host.uses == "retain" and not any(self.weights.points)

    def weigh(self, points: Sequence[float]) -> None:
        """Give EC other weights at the supervision points from now on, shallow to deep, 0 for none."""
        self.weights = self.loss.weights = replace(self.weights, points=tuple(points))
        self.heads.active = tuple(weight > 0 for weight in points)

    def fit_heads(
        self,
        batches: Iterable[dict[str, Tensor]],
        accelerator: Accelerator | None = None,
        *,
        held_out: Iterable[dict[str, Tensor]] | None = None,
    ) -> dict[str, float]:
        """Stage 1: fit the heads on the frozen model, with images of forget and retain alike, whatever the request.

        Args:
            batches: ``pixel_values`` and ``labels``, with a length; of several processes each gives its share.
            accelerator: that of the run; a new one if left out.
            held_out: batches of other images, by which a long fit sees that it is done; see
                `ec_hf.training.fitting.fit_heads`.

        Returns:
            Accuracy of each head by supervision point, over the last pass or on the held-out images.
        """
        self.heads_fitted = True
        if not self.points:
            return {}
        return fit_heads(
            self.heads,
            self.model,
            batches,
            accelerator or Accelerator(),
            epochs=self.config.heads_epochs,
            learning_rate=self.config.heads_learning_rate,
            classifier=self.classifier.values(),
            held_out=held_out,
        )

    def prepare(
        self,
        forget: Batches,
        retain: Batches,
        *,
        processor: Any = None,
        images: Mapping[str, int | None] | None = None,
        batch_of_rows: Callable[[list[int]], Mapping[str, Tensor]] | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """Between the stages: let the objective look at the original model or edit it, and choose the saliency mask.

        Call it once, before the first step, also of a run that is resumed. A second call does nothing. The random
        state is set from the seed, and put back afterwards.

        Args:
            forget: gives batches of the forget set, as `Setting.forget` says.
            retain: gives batches of the retain set.
            processor: the image processor, for objectives that must know how it normalises.
            images: number of images of the "forget" and the "retain" set, which else are counted where that matters.
            batch_of_rows: makes a batch of the forget rows of these numbers; with it the original model's logits on
                the forget set are computed once, unless `cache_teacher` is False.
            autocast: the precision in which training asks the original model, for `cache_teacher`.

        Raises:
            ValueError: `cache_teacher` without `batch_of_rows`, or with images that differ from one look to the next.
        """
        if self.prepared:
            return
        was_training = self.model.training
        self.model.eval()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)  # torch.manual_seed would set every GPU's state too
            if self.saliency is not None:
                self.mask = SaliencyMask(saliency_mask(self.model, forget(), self.saliency))
            if self.config.cache_teacher and self.teacher is not None and batch_of_rows is None:
                raise ValueError("cache_teacher=True: give prepare(batch_of_rows=...), for forget rows.")
            if self.config.cache_teacher is not False and self.teacher is not None and batch_of_rows is not None:
                with autocast():
                    self.teacher.remember(forget(), batch_of_rows)
            if self.looks:
                self.objective.prepare(
                    Setting(
                        self.model,
                        forget,
                        retain,
                        self.features,
                        self.forget_classes,
                        self.config.seed,
                        images=images,
                        normalisation=normalisation(processor),
                    )
                )
        self.model.train(was_training)
        self.prepared = True

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Stage 2: the heads ride on the model, and the saliency mask holds its weights.

        The optimiser is made inside, so that it sees the heads where `train_heads` lets them go on training.
        """
        for head, weight in zip(self.heads.heads, self.weights.points, strict=True):
            head.requires_grad_(self.config.train_heads and weight > 0)  # DDP wants a gradient of all that require one
        self.loss.to(self.model.device)
        self.heads.attach(
            self.model,
            self.classifier,
            active=[weight > 0 for weight in self.weights.points],
            pooled=bool(self.loss.adversaries),
        )
        if self.mask is not None:
            self.mask.hold(self.model)
        try:
            yield
        finally:
            self.heads.detach()
            self.heads.requires_grad_(True)
            for name, each in self.model.named_parameters():
                each.requires_grad_(self._trainable.get(name, each.requires_grad))  # an objective may freeze some
            if self.mask is not None:
                self.mask.release()

    def __call__(
        self, batch: Mapping[str, Any], progress: Progress | None = None, *, model: nn.Module | None = None
    ) -> LossTerms:
        """One forward over ``[forget ; retain]``, and the terms of its loss.

        Args:
            batch: a paired batch on the model's device.
            progress: where in the run the step is; objectives with a schedule need it.
            model: the model as it is wrapped for several processes; the model itself if left out.
        """
        if self.leaves_forget_out:
            batch = retain_of(batch)
        pixel_values, count = batch["pixel_values"], batch["num_forget"]
        added = self.host.extra_pixels(pixel_values[:count], pixel_values[count:])
        if added is not None:
            batch = {**batch, "pixel_values": torch.cat([pixel_values, added])}
        model = self.model if model is None else model
        with clean_statistics(model, count, len(pixel_values), update=self.batch_norm == "retain"):
            outputs = model(pixel_values=batch["pixel_values"], **self.hidden_state_kwargs)
        return self.loss(outputs, batch, progress, self.model)

    def after_step(self, optimizer: Any) -> None:
        """Call it after each optimiser step: masked weights stay where they were."""
        if self.mask is not None:
            self.mask.put_back(optimizer)

    def features(self, pixel_values: Tensor) -> Tensor:
        """What host objectives see of images (n, channels, height, width): (n, width), with gradient."""
        with Penultimate(self.classifier.values()) as penultimate:
            output = self.model(pixel_values=pixel_values, **self.hidden_state_kwargs)
        if (read := penultimate.take()) is not None:
            return read
        return pool(take(output.hidden_states, self.last), self.last, self.heads.last_pooling)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model: heads, and adversaries with their optimisers."""
        return {"heads": self.heads.state_dict(), "loss": self.loss.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.heads.load_state_dict(state["heads"])
        self.loss.load_state_dict(state["loss"])

    def save(self, folder: str | Path, *, resumable: bool = False) -> None:
        """Write the heads beside a model that was saved into a folder.

        Args:
            folder: where `model.save_pretrained` wrote.
            resumable: write the adversaries too, a pickle for this machine alone.
        """
        if self.points:
            self.heads.save_pretrained(Path(folder) / HEADS)
        if resumable and self.loss.adversaries:
            torch.save(self.loss.state_dict(), Path(folder) / ADVERSARIES)

    def load(self, folder: str | Path) -> None:
        """Load model, heads and adversaries from a folder that they were saved into; of a PEFT model its adapters.

        Raises:
            ValueError: for a folder with another model, of which keys are missing or unexpected.
        """
        if self.adapters:
            load_adapters(self._given, folder)
        else:
            missing, unexpected = self.model.load_state_dict(saved_state(self.model, folder), strict=False)
            missing = [key for key in missing if not key.startswith(f"{HEADS}.")]
            if missing or unexpected:
                raise ValueError(f"{folder} does not fit the model: {missing} are missing, {unexpected} unexpected.")
        if self.points:
            self.heads.load_state_dict(ECHeads.from_pretrained(folder).state_dict())
        adversaries = Path(folder) / ADVERSARIES
        if self.loss.adversaries and adversaries.is_file():  # else they start anew, as an optimiser does
            self.loss.load_state_dict(torch.load(adversaries, map_location="cpu", weights_only=True))

    def _check(self, forget_classes: Sequence[int] | None, num_forget_classes: int | None) -> None:
        config, points = self.config, self.points
        if config.pooling == "cls" and points and not self.last.prefix:
            raise ValueError(f"pooling='cls': {points[0]} has no CLS token; use 'mean'.")
        if config.calibrated and self.host.covers_last_point:
            raise ValueError(
                f"calibrated=True does not go with objective {self.host.name!r}, which pulls the last features "
                'towards all other classes: set objective="delete", objective_kwargs={"retain_weight": 1.0}.'
            )
        if self.adapters:
            self._check_with_adapters()
        if num_forget_classes is None and forget_classes is not None:
            num_forget_classes = len(forget_classes)
        if num_forget_classes is not None:
            self.objective.check(num_forget_classes, whole_classes=forget_classes is not None)
            check_contrast(config.contrast, num_forget_classes if points else None)

    def _check_with_adapters(self) -> None:
        config = self.config
        if not self.objective.trains or self.objective.from_scratch or self.objective.renews:
            raise ValueError(
                f"objective {config.objective!r} edits the weights themselves, and with adapters these stay as they "
                "are: choose an objective that trains, such as 'contrastive' or 'delete', or give the model without "
                "adapters."
            )
        if config.batch_norm == "retain":
            raise ValueError(
                "batch_norm='retain' moves the model's statistics, and with adapters all but these stays as it is: "
                "use batch_norm='frozen'."
            )
        if config.saliency is not None or self.objective.saliency is not None:
            raise ValueError(
                "saliency chooses weights by their gradient, which is zero for half of a new adapter's: leave it out, "
                "or give the model without adapters."
            )

    def _new_heads(self) -> ECHeads:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return ECHeads(
                [point.to_dict() for point in self.points],
                self.last.to_dict(),
                self.num_labels,
                pooling=self.config.pooling,
                last_pooling=classifier_pooling(self.model, self.last),
            ).to(self.model.device)

    def _is_at_the_end(
        self, penultimate: Sequence[SupervisionPoint], image_shape: tuple[int, int, int] | None
    ) -> bool:
        """Whether the last point is the deepest hidden state or what is classified, under whatever name.

        Raises:
            ValueError: two points are one layer, which would be pulled twice.
        """
        ends = (self.last, *penultimate)
        if not any(point.module for point in self.points):
            return any(point in ends for point in self.points[-1:])
        looked_at = list(dict.fromkeys((*self.points, *ends)))
        pairs = twins(self.model, looked_at, self.classifier.values(), image_shape)
        if same := [f"{a.name} and {b.name}" for a, b in pairs if a in self.points and b in self.points]:
            raise ValueError(
                f"points={self.config.points}: {', '.join(same)} have the same features, so that layer would be "
                "supervised twice. Name it once."
            )
        return any({self.points[-1]} & {*pair} and {*ends} & {*pair} for pair in pairs) or self.points[-1] in ends

    def _given_heads(self, heads: ECHeads | str | Path) -> ECHeads:
        heads = heads if isinstance(heads, ECHeads) else ECHeads.from_pretrained(heads)
        if (heads.points, heads.last, heads.pooling) != (self.points, self.last, self.config.pooling):
            raise ValueError(
                f"heads: they were built for {_listed(heads.points)} and pooling {heads.pooling!r}, "
                f"this run supervises {_listed(self.points)} with pooling {self.config.pooling!r}. Give `points` "
                "and `pooling` that agree, or leave out `heads` to fit new ones."
            )
        return heads


def objectives_of(config: EraserConfig, *, with_points: bool) -> tuple[Objective, Objective]:
    """The objective that the settings name, and the host that trains beside EC.

    The two are one, but for closed forms: after these EC trains with an objective of its own, "contrastive".

    Raises:
        ValueError: supervision points beside an objective that starts from new weights; and as `get_objective`.
    """
    contrast = {
        "form": config.contrast,
        "temperature": config.temperature,
        "detach_retain": config.detach_retain,
        "retain_weight": config.retain_weight,
    }
    settings: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type] # text became a dict
    if config.objective == "contrastive":
        settings = contrast | settings
    objective = get_objective(config.objective, **settings)
    if objective.from_scratch and with_points:
        raise ValueError(
            f"objective {config.objective!r} starts from new weights, in which there is nothing to erase: set "
            "points=[] ('none' on the command line)."
        )
    if objective.trains or not with_points:
        return objective, objective
    return objective, get_objective("contrastive", **contrast)


def _listed(points: Sequence[Any]) -> str:
    return ", ".join(map(str, points)) or "no point"


def retain_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The retain half of a paired batch, as a paired batch without forget images."""
    count = batch["num_forget"]
    halves = {name: value[count:] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return {**halves, "num_forget": 0}
