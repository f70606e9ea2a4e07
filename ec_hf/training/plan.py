"""`RunPlan`: what an unlearning run will do, printed when it starts, kept on record, and compared when it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from ec_hf.command import public, without_paths
from ec_hf.files import RECORD
from ec_hf.losses.schedules import PointWeights
from ec_hf.models.points import SupervisionPoint
from ec_hf.objectives.base import Objective
from ec_hf.training.config import ECConfig, EraserConfig, from_preset
from ec_hf.training.eraser import Eraser

__all__ = ["RunPlan", "settings_in_effect"]

RECORDED = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "optim_args",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)
"""What of `TrainingArguments` goes on record, beside all of `ECConfig`'s own settings."""
FREE_TO_CHANGE = frozenset({
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "per_device_forget_batch_size",
    "gradient_accumulation_steps", "forget_epochs", "heads", "cache_teacher", "image_column", "label_column",
    "min_steps", "forget_target", "retain_floor", "bf16", "fp16", "points", "layer_weights", "check_images",
})  # fmt: skip
"""Settings that a resumed run may have otherwise: they name the same erasure, go on longer, or move the stop."""
WORTH = 0.3
"""Share of a retraining above which a run says that retraining is the better choice."""


@dataclass(frozen=True)
class RunPlan:
    """What a run will do.

    Attributes:
        method: the method by name and source.
        objective: name of the objective.
        uses: the sets that the objective uses as published, and with a + the one that this run adds.
        notes: what is done between the stages, and where objective and EC meet, in words.
        images: number of images of the "forget" and the "retain" set; None where it is not known.
        fingerprints: hash of each set, "forget" and "retain"; None for what is no `datasets.Dataset`.
        batch: images of each set in a step of one process.
        processes: number of processes.
        device: what the first one trains on.
        points: the supervision points.
        weights: weight of the host objective, and of EC's terms at each point.
        original: hash of the original model's weights.
        heads: "train on" or "are frozen".
        stopping: when it stops, in words; None where nothing is trained.
        settings: all settings as JSON values, as they take effect.
        passes: over the retain set, if nothing stops the run sooner; None where that is not known.
    """

    method: str
    objective: str
    uses: str
    notes: tuple[str, ...]
    images: Mapping[str, int | None]
    fingerprints: Mapping[str, str | None]
    batch: Mapping[str, int]
    processes: int
    device: str
    points: tuple[SupervisionPoint, ...]
    weights: PointWeights
    original: str
    heads: str
    stopping: str | None
    settings: Mapping[str, Any] = field(repr=False)
    passes: float | None = None

    @classmethod
    def of(cls, eraser: Eraser, **rest: Any) -> RunPlan:
        """The plan of an eraser's run; `rest` are the fields that the eraser does not know."""
        return cls(
            method=method(eraser.objective, with_points=bool(eraser.points)),
            objective=eraser.objective.name,
            uses=data_used(eraser.objective, with_points=bool(eraser.points)),
            notes=tuple(_notes(eraser)),
            points=eraser.points,
            weights=eraser.weights,
            original=eraser.original,
            heads="train on" if eraser.config.train_heads else "are frozen",
            **rest,
        )

    def __str__(self) -> str:
        lines = [
            f"Unlearning with objective {self.objective!r} on {self.processes} process(es), {self.device}",
            f"the losses use: {self.uses}",
            f"forget set {self.images['forget']:,} images, retain set {self._retain_images()}",
            f"a step and process: {self.batch['forget']} forget + {self.batch['retain']} retain images",
            *self._cost_lines(),
            f"supervision points (EC heads {self.heads}):" if self.points else "no supervision points",
            *self._point_lines(),
            *self.notes,
        ]
        if self.stopping is not None:
            lines.append(self.stopping)
        return "\n  ".join(lines)

    def _retain_images(self) -> str:
        count = self.images["retain"]
        return "streamed, of a length that is not known" if count is None else f"{count:,} images"

    def _cost_lines(self) -> list[str]:
        if self.passes is None or self.stopping is None:
            return []
        least = math.ceil(self.passes / WORTH)
        return [
            f"{self.passes:.3g} passes over the retain set at most: where your model was trained in fewer than "
            f"{least:,}, this is more than {WORTH:.0%} of a retraining, which is then the safer way"
        ]

    def _point_lines(self) -> list[str]:
        lines = [f"  {p}, weight {w:g}" for p, w in zip(self.points, self.weights.by_point, strict=True)]
        if self.weights.host_is_last_point:
            lines[-1] += " (the objective itself)"
        return lines

    def to_dict(self) -> dict[str, Any]:
        """What of the plan belongs on record, as JSON values."""
        return {
            "method": self.method,
            "settings": dict(self.settings),
            "uses": self.uses,
            "points": [point.to_dict() for point in self.points],
            "layer_weights": list(self.weights.by_point),
            "original": self.original,
            "processes": self.processes,
            "data": {
                name: {"images": self.images[name], "fingerprint": self.fingerprints[name]} for name in self.images
            },
        }

    def check_resumed(self, record: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that was another one.

        Args:
            record: of the checkpoint, as `to_dict` gave it.

        Raises:
            ValueError: for other data, points or settings, each named with both values.
        """
        mine = self.to_dict()
        if not record:
            raise ValueError(
                f"the checkpoint holds no {RECORD}, so it is not known which run it belongs to: resume from one that "
                "ECTrainer saved"
            )
        before = record.get("settings", {})
        changes = [
            _change(name, before[name], value)
            for name, value in mine["settings"].items()
            if name in before
            and name not in FREE_TO_CHANGE
            and (before[name] or None) != (value or None)
            and not (name == "learning_rate" and value is None)  # it is taken from the record
        ]
        changes += [
            _change(name, record[name], mine[name])
            for name in ("points", "layer_weights", "original")  # as they take effect, however they were typed
            if record.get(name, mine[name]) != mine[name]
        ]
        for name, now in mine["data"].items():
            if _other_data(recorded := record.get("data", {}).get(name, {}), now):
                changes.append(_change(f"the {name} set", recorded, now))
        if changes:
            raise ValueError(
                f"the checkpoint belongs to another run: {'; '.join(changes)}. To go on with it, give the "
                "request, data and settings of that run; a new run goes into a new folder."
            )


def settings_in_effect(config: TrainingArguments, eraser: Eraser) -> dict[str, Any]:
    """All settings of a run as JSON values, with what the objective decides in place of what was left to it.

    Args:
        config: an `ECConfig`, or the arguments of another `Trainer`, in which the eraser has its own settings.
        eraser: the eraser of the run.
    """
    own = {each.name: getattr(eraser.config, each.name) for each in fields(EraserConfig)}
    own = config.own_settings() if isinstance(config, ECConfig) else own
    settings = own | {name: config.to_dict()[name] for name in RECORDED}
    heads = public(getattr(config, "heads", None))
    decided = {"heads": heads, "saliency": eraser.saliency, "batch_norm": eraser.batch_norm}
    adapters = {"adapters": eraser.adapters} if eraser.adapters else {}
    return without_paths(settings | decided | adapters)


def method(objective: Objective, *, with_points: bool) -> str:
    """The method by name and source; EC where there are supervision points, on its host objective."""
    host = f"{objective.name} ({objective.source})" if objective.source else objective.name
    return f"Erase at the Core (arXiv 2602.05375), host objective {host}" if with_points else host


def data_used(objective: Objective, *, with_points: bool) -> str:
    """The sets that an objective uses as published, and with a + the one that a run with these points adds to it."""
    adds_retain = with_points or (getattr(objective, "retain_weight", 0) or 0) > 0
    if objective.uses == "forget" and adds_retain:
        return "forget +retain"
    if objective.uses == "retain" and with_points:
        return "retain +forget"
    return {"both": "forget and retain"}.get(objective.uses, objective.uses)


def _notes(eraser: Eraser) -> list[str]:
    objective, points, notes = eraser.objective, eraser.points, []
    if taken := from_preset(eraser.config):
        listed = ", ".join(f"{name}={_plain(value)}" for name, value in taken.items())
        notes.append(f"by preset {eraser.config.preset!r}: {listed}")
    if points and objective.conflict and not (objective.covers_last_point and eraser.last not in points):
        notes.append(f"where objective and EC meet: {objective.conflict}")
    if not objective.trains:
        then = f"then EC trains with objective {eraser.host.name!r}" if points else "nothing is trained"
        notes.append(f"the objective edits the model in closed form, {then}")
    if points and not any(eraser.weights.by_point):
        notes.append("EC sets in at a point that tells the forgotten classes better than is expected after retraining")
    if eraser.saliency is not None:
        unmasked = ", by the gradient of EC too; EC heads are not masked" if points else ""
        notes.append(f"SalUn mask: {eraser.saliency:.0%} of the model's weights may move{unmasked}")
    return notes


def _plain(value: Any) -> Any:
    """A setting as one types it."""
    return f"{value:g}" if isinstance(value, float) else value


def _other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two descriptions of a set differ; a set without a fingerprint is known by its size alone."""
    names: Sequence[str] = [name for name in ("images", "fingerprint") if before.get(name) and now.get(name)]
    return any(before[name] != now[name] for name in names)


def _change(name: str, before: Any, now: Any) -> str:
    return f"{name} was {before!r} and is {now!r}"
