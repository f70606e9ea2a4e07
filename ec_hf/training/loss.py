"""The loss of an erasure, from what the model returned to named and weighted terms. No trainer is needed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ec_hf.losses.calibrated import global_guided
from ec_hf.losses.contrast import global_contrast
from ec_hf.losses.distillation import cross_entropy, distillation, hide_classes
from ec_hf.losses.schedules import PointWeights
from ec_hf.models.heads import ECImageClassifierOutput
from ec_hf.models.points import SupervisionPoint
from ec_hf.objectives.base import Objective, Part, Progress, Step
from ec_hf.training.adversary import Adversary
from ec_hf.training.config import EraserConfig
from ec_hf.training.teacher import Teacher

__all__ = ["DivergedError", "ECLoss", "LossTerms", "Term"]


class DivergedError(RuntimeError):
    """A run whose numbers are no numbers any more; what it holds is no result."""


class Term(NamedTuple):
    """One component of a loss: the weight that it has in the sum, and its value, a scalar with a graph."""

    weight: float
    value: Tensor


@dataclass(frozen=True)
class LossTerms:
    """What one batch costs.

    Attributes:
        parts: the components by name, "objective/component" or "hidden_states.3/component".
        log: scalars that are worth a line in the log. They are no part of the loss, so none of them can spoil it.
    """

    parts: dict[str, Term]
    log: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The weighted sum of the parts, a scalar."""
        return torch.stack([term.weight * term.value for term in self.parts.values()]).sum()

    def finite_total(self, step: int) -> Tensor:
        """`total`, where it is a number.

        Args:
            step: number of the optimiser step, for the error.

        Raises:
            DivergedError: it is NaN or infinite; the message names the parts that are.
        """
        total = self.total
        if torch.isfinite(total):
            return total
        broken = [name for name, term in self.parts.items() if not torch.isfinite(term.value)]
        raise DivergedError(
            f"step {step}: the loss is {total.item()}, by {', '.join(broken) or 'the weights of its parts'}. The run "
            "has diverged and its model is no result; checkpoints that were saved before stay. Lower learning_rate or "
            "ec_weight, and see that pixel values are finite."
        )

    def logged(self) -> dict[str, Tensor]:
        """Every value by name, parts without their weights, detached."""
        return {name: term.value.detach() for name, term in self.parts.items()} | {
            name: value.detach().float() for name, value in self.log.items()
        }


class ECLoss(nn.Module):
    """The host objective, and EC's terms at each supervision point.

        loss = w_host · objective(last layer) + Σ_k w_k · (contrast_k(forget, retain) + λ · CE_k(retain))

    λ is `retain_weight`. With `calibrated` the contrast is that of `ec_hf.losses.calibrated`, and the bracket gains
    ρ · adversary_k(forget) of `ec_hf.training.adversary`, with ρ = `probe_weight`. The adversaries are its only
    state; each forward takes a few steps of theirs, ahead of the model's own step.

    Under several processes the contrast sees the batches of all of them, with gradient. It belongs to a micro-batch:
    gradient accumulation is not the same as a larger batch.

    Source: Erase at the Core, arXiv 2602.05375; the forms of the contrast name theirs.

    Args:
        host: the host objective.
        points: the supervision points, shallow to deep.
        weights: of the host objective and of each point.
        config: form of the contrast and its settings.
        num_labels: number of classes of the model.
        forget_classes: label ids, where the forget set is whole classes.
        teacher: the original model, where the objective or calibrated erasure asks for it.
    """

    def __init__(
        self,
        host: Objective,
        points: Sequence[SupervisionPoint],
        weights: PointWeights,
        config: EraserConfig,
        *,
        num_labels: int,
        forget_classes: Sequence[int] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.host, self.points, self.weights, self.config = host, tuple(points), weights, config
        self.forget_classes = None if forget_classes is None else tuple(forget_classes)
        self.teacher = teacher
        fooled = self.points if config.calibrated and config.probe_weight else ()
        self.adversaries = nn.ModuleList(Adversary(point.channels, num_labels) for point in fooled)

    def forward(
        self,
        outputs: ECImageClassifierOutput,
        batch: Mapping[str, Any],
        progress: Progress | None = None,
        model: nn.Module | None = None,
    ) -> LossTerms:
        """The terms of one paired batch.

        Args:
            outputs: what a model with attached heads returned for the pixel values of the batch.
            batch: ``pixel_values`` (n, channels, height, width), forget images first, then retain images, then those
                that the objective added; ``labels`` of the forget and retain images, int64; ``num_forget``, an int.
                A teacher that remembers its logits also needs ``rows``.
            progress: where in the run the step is, for objectives with a schedule.
            model: the model itself, for objectives with a penalty on its weights.
        """
        step = self._step(outputs, batch, progress or Progress(), model)
        target_logits = self._target_logits(step)
        parts = {f"{self.host.name}/{name}": Term(self.weights.host, value) for name, value in self.host(step).items()}
        for place, (point, weight) in enumerate(zip(self.points, self.weights.points, strict=True)):
            if weight:
                for name, term in self._at_point(place, outputs, step, target_logits).items():
                    parts[f"{point.name}/{name}"] = Term(weight * term.weight, term.value)
        return LossTerms(parts, step.log)

    def _step(
        self, outputs: ECImageClassifierOutput, batch: Mapping[str, Any], progress: Progress, model: nn.Module | None
    ) -> Step:
        """The batch as the host objective sees it."""
        pixel_values, count, total = batch["pixel_values"], batch["num_forget"], len(batch["labels"])
        added = len(pixel_values) - total
        labels = torch.cat([batch["labels"], batch["labels"].new_full((added,), -100)])
        assert outputs.logits is not None and outputs.last_features is not None  # a model with heads gives both
        forget, retain, extra = (
            Part(outputs.logits[rows], outputs.last_features[rows], labels[rows], pixel_values[rows])
            for rows in (slice(count), slice(count, total), slice(total, None))
        )
        remembered = None if self.teacher is None else self.teacher.remembered(batch)
        return Step(
            forget,
            retain,
            teacher=self.teacher,
            forget_classes=self.forget_classes,
            model=model,
            progress=progress,
            extra=extra if added else None,
            known_teacher_logits={} if remembered is None else {"forget": remembered},
        )

    def _target_logits(self, step: Step) -> Tensor | None:
        """The original's logits on the forget images with what must be forgotten hidden; None without calibration."""
        if not (self.config.calibrated and any(self.weights.points)):
            return None
        return hide_classes(step.teacher_logits("forget"), step.forget.labels, self.forget_classes)

    def _at_point(
        self, place: int, outputs: ECImageClassifierOutput, step: Step, target_logits: Tensor | None
    ) -> dict[str, Term]:
        """EC's terms at one supervision point, weighted against its contrast."""
        config, count = self.config, len(step.forget.labels)
        total = count + len(step.retain.labels)
        features, logits = (outputs.features or ())[place], (outputs.head_logits or ())[place]
        assert features is not None and logits is not None  # a head of a point with a weight runs
        retained = features[count:total].detach() if config.detach_retain else features[count:total]
        rows = (features[:count], retained, step.forget.labels, step.retain.labels)
        if target_logits is None:
            contrast, fallbacks = global_contrast(config.contrast, *rows, config.temperature)
            step.log["fallbacks"] = fallbacks / count  # labels decide it, so it is the same at every point
        else:
            contrast = global_guided(
                *rows, target_logits.softmax(dim=1), temperature=config.temperature, repulsion=config.repulsion
            )
        terms = {
            "contrast": Term(1.0, contrast),
            "retain_ce": Term(config.retain_weight, cross_entropy(logits[count:total], step.retain.labels)),
        }
        if self.adversaries and target_logits is not None:
            adversary: Any = self.adversaries[place]
            pooled = (outputs.pooled or ())[place]
            adversary.fit(pooled[:total], torch.cat([step.forget.labels, step.retain.labels]))
            terms["probe"] = Term(config.probe_weight, distillation(adversary(pooled[:count]), target_logits))
        return terms
