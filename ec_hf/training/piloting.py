"""Rows in two runs: a rewound pilot tells what is left to know of them, and the original learns to answer like it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, release_memory

from ec_hf.files import PILOT, RECORD, ModelFolder
from ec_hf.training.checkpoints import last_whole
from ec_hf.training.config import REWIND, ECConfig
from ec_hf.training.rewinding import as_resumed, resumed_from, trained
from ec_hf.training.trainer import ECTrainer

__all__ = ["erased", "forgets_rows"]

PILOT_STEPS = 2 / 3
SLOWER = 0.5
"""Share of the steps that the pilot gets, and the follower's learning rate by the pilot's: its weights are trained
ones. Chosen on 500 rows of CIFAR-10 (`recipes/results/README.md`)."""

Maker = Callable[[ECConfig], ECTrainer]


def erased(config: ECConfig, first: Maker, again: Maker) -> ECTrainer:
    """Train by these settings, over as many runs as that takes.

    Args:
        config: settings of the erasure.
        first: makes the trainer of a rewind, or of whatever objective the settings name.
        again: makes any further trainer; each starts from the original model.

    Returns:
        The trainer that has the unlearned model, with the images of all runs in its cost.

    Raises:
        NotComingBackError: as `ec_hf.training.rewinding.trained`.
        ValueError: for a pilot beside another objective than "rewind", or one of another run in the output folder.
    """
    if config.pilot and config.objective != "rewind":
        raise ValueError(f"pilot=True goes with objective 'rewind', not {config.objective!r}: leave out one of them")
    depth_is_chosen = "depth" in (config.objective_kwargs or {})
    alone = as_resumed(replace(config, pilot=False))
    trainer = first(alone)
    if not (forgets_rows(trainer) if config.pilot is None else config.pilot):
        return trained(trainer, alone, depth_is_chosen, again)
    steps = trainer.total_steps()
    of_pilot = max(round(PILOT_STEPS * steps), 1)
    of_follower = max(steps - of_pilot, 1)
    PartialState().print(
        f"It takes two runs: a pilot is rewound in {of_pilot:,} steps, and the original follows it for "
        f"{of_follower:,}. pilot=False rewinds the model itself."
    )
    folder = ModelFolder(Path(str(config.output_dir)) / PILOT)
    if (record := _record_of(folder)) is None:
        del trainer  # its memory is the pilot's
        alone = as_resumed(_for_pilot(config, folder.path, of_pilot))
        pilot = trained(first(alone), alone, depth_is_chosen, again)
        pilot.save_model(_internal_call=True)
        pilot.accelerator.wait_for_everyone()
        pilot.accelerator.print(f"The model so far is a pilot, in {folder.path}. Now the original follows it.")
        del pilot
        record = _record_of(folder)
    else:
        starts_over = not depth_is_chosen and "depth" in (record["settings"].get("objective_kwargs") or {})
        trainer.plan.check_resumed({name: record[name] for name in ("original", "data")} if starts_over else record)
    assert record is not None, f"{folder.path} was written just now"
    release_memory()
    rate = SLOWER * record["settings"]["learning_rate"]
    trainer = again(_for_follower(config, folder.path, of_follower, rate))
    trainer.on_record["pilot"] = {name: record[name] for name in ("settings", "cost")}
    trainer.train(resume_from_checkpoint=resumed_from(trainer.args))
    for name in ("steps", "minutes", "forget_images_seen", "retain_images_seen"):
        trainer.cost[name] += record["cost"][name]
    return trainer


def _record_of(folder: ModelFolder) -> dict[str, Any] | None:
    """The record of a whole model, as the first process finds it; None where there is none."""
    whole = PartialState().is_main_process and folder.damage() is None
    (record,) = broadcast_object_list([folder.read(RECORD) if whole else None])
    return record


def forgets_rows(trainer: ECTrainer) -> bool:
    """Whether a rewind is to forget rows of classes that stay."""
    classes = trainer.forgotten_classes()
    return trainer.args.objective == "rewind" and bool(classes) and classes["forget_classes"] is None


def _for_pilot(config: ECConfig, folder: Path, steps: int) -> ECConfig:
    """The settings of the run that rewinds."""
    return replace(
        config,
        pilot=False,
        output_dir=str(folder),
        max_steps=steps,
        forget_epochs=None,
        push_to_hub=False,
        resume_from_checkpoint=_of_pilot(config, folder)
        or ("true" if config.resume_from_checkpoint and last_whole(folder) else None),
    )


def _for_follower(config: ECConfig, pilot: Path, steps: int, rate: float) -> ECConfig:
    """The settings of the run that follows: no supervision points, and nothing of a rewind's but its optimiser."""
    settings: dict[str, Any] = {
        "pilot": False,
        "objective": "follow",
        "objective_kwargs": {"pilot": str(pilot)},
        "points": [],
        "heads": None,
        "calibrated": False,
        "learning_rate": rate,
        "max_steps": steps,
        "forget_epochs": None,
        "forget_target": -1.0,  # it stops where the pilot is, not at a share
    }
    if config.per_device_forget_batch_size == REWIND["per_device_forget_batch_size"]:
        settings["per_device_forget_batch_size"] = config.per_device_train_batch_size
    lost = resumed_from(config) is True and last_whole(Path(str(config.output_dir))) is None
    if lost or _of_pilot(config, pilot):
        settings["resume_from_checkpoint"] = None  # it was the pilot that was interrupted
    return replace(config, **settings)


def _of_pilot(config: ECConfig, pilot: Path) -> str | None:
    """The checkpoint that a run is to go on from, where it is one of the pilot's."""
    named = resumed_from(config)
    inside = isinstance(named, str) and Path(named).resolve().is_relative_to(pilot.resolve())
    return named if inside else None  # type: ignore[return-value] # only a text is inside
