"""What an unlearning run sets out to do and what it has done, in words and as plain values."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import psutil
import torch
import transformers

from ec_hf._version import __version__
from ec_hf.command import command, public, without_paths
from ec_hf.publishing.licenses import base_license

if TYPE_CHECKING:
    from ec_hf.training.trainer import ECTrainer

TRAINING_ARGUMENTS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "seed",
    "bf16",
    "fp16",
)
"""What of `TrainingArguments` goes into the record, beside all of `ECConfig`'s own settings."""


def announcement(trainer: ECTrainer) -> str:
    """The choices of a run before it starts: sets, batches, supervision points with shapes and weights, stopping."""
    args, data, points, objective = trainer.args, trainer.train_dataset, trainer.points, trainer.objective
    lines = [
        f"Unlearning with objective {objective.name!r} on {args.world_size} process(es), {args.device}",
        f"  the losses use: {data_used(trainer)}",
        f"  forget set {len(data.forget):,} images, retain set {len(data.retain):,} images",
        f"  a step and process: {args.per_device_forget_batch_size} forget + "
        f"{args.per_device_train_batch_size} retain images",
        f"  supervision points (EC heads {'train on' if args.train_heads else 'are frozen'}):"
        if points
        else "  no supervision points",
    ]
    for point, weight in zip(points, trainer.layer_weights, strict=True):
        covered = trainer.host_covers_last_point and point == points[-1]
        lines.append(f"    {point}, weight {weight:g}{' (the objective itself)' if covered else ''}")
    if points and objective.conflict and not (objective.covers_last_point and trainer.last not in points):
        lines.append(f"  where objective and EC meet: {objective.conflict}")
    if not objective.trains:
        then = f"then EC trains with objective {trainer.host.name!r}" if points else "nothing is trained"
        lines.append(f"  the objective edits the model in closed form, {then}")
    if trainer.saliency is not None:
        lines.append(
            f"  SalUn mask: {trainer.saliency:.0%} of the model's weights may move"
            f"{', by the gradient of EC too; EC heads are not masked' if points else ''}"
        )
    evaluates = args.eval_on_start and args.eval_strategy != "no"
    if not trainer.host.trains:
        return "\n".join(lines)
    if trainer.stopping_rule.target < 0:
        lines.append("  no stopping rule: the forget target is below 0")
    elif {"forget", "retain"} <= set(trainer.eval_dataset or ()) and evaluates:
        lines.append(
            f"  stops after {args.min_steps} steps or later, once forget accuracy is at most "
            f"{trainer.stopping_rule.target:.1%} and retain accuracy has fallen by at most {args.retain_floor:.1%}"
        )
    else:
        lines.append(
            "  no stopping rule: it needs eval_dataset={'forget': ..., 'retain': ...}, eval_on_start, eval_strategy"
        )
    return "\n".join(lines)


def data_used(trainer: ECTrainer) -> str:
    """The sets that the objective uses as published, and with a + the one that this run adds to it."""
    objective = trainer.objective
    adds_retain = bool(trainer.points) or getattr(objective, "retain_weight", 0) > 0
    if objective.uses == "forget" and adds_retain:
        return "forget +retain"
    if objective.uses == "retain" and trainer.points:
        return "retain +forget"
    return {"both": "forget and retain"}.get(objective.uses, objective.uses)


def method(trainer: ECTrainer) -> str:
    """The method by name and source; EC where there are supervision points, on its host objective."""
    host = (
        f"{trainer.objective.name} ({trainer.objective.source})"
        if trainer.objective.source
        else trainer.objective.name
    )
    return f"Erase at the Core (arXiv 2602.05375), host objective {host}" if trainer.points else host


def run_record(trainer: ECTrainer) -> dict[str, Any]:
    """Settings, points, weights, versions, cost and command of a run as JSON values. No local path is in it."""
    args, config = trainer.args, trainer.model.config
    settings = args.own_settings() | {name: args.to_dict()[name] for name in TRAINING_ARGUMENTS}
    packages = {"ec_hf": __version__, "torch": torch.__version__}
    packages |= {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    base = getattr(config, "_name_or_path", None)
    return {
        "method": method(trainer),
        "date": datetime.now(UTC).date().isoformat(),
        "base_model": public(base),
        "base_model_revision": getattr(config, "_commit_hash", None),
        "base_model_license": base_license(base) if base and Path(base).is_dir() else {},
        "command": command(),
        "settings": without_paths(settings | {"heads": public(args.heads), "saliency": trainer.saliency}),
        "uses": data_used(trainer),
        "points": [point.to_dict() for point in trainer.points],
        "layer_weights": trainer.layer_weights,
        "processes": args.world_size,
        "cost": trainer.cost,
        "versions": packages,
    }


def cost(trainer: ECTrainer, seconds: float) -> dict[str, float]:
    """Steps in all; of this call of `train`: images seen by all processes, minutes, peak memory of this one in MB.

    What the objective looked at before training counts too, once for all processes.
    """
    args = trainer.args
    batches = trainer.batches_seen * args.world_size
    if args.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    elif sys.platform == "win32":
        peak = psutil.Process().memory_info().peak_wset / 2**20
    else:
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)
    return {
        "steps": trainer.state.global_step,
        "forget_images_seen": trainer.looked_at["forget"] + batches * args.per_device_forget_batch_size,
        "retain_images_seen": trainer.looked_at["retain"] + batches * args.per_device_train_batch_size,
        "minutes": round(seconds / 60, 2),
        "peak_memory_mb": round(peak),
    }
