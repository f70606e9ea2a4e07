"""What a rewind goes back to, and how deep, where nobody says: the card's base model, else as deep as comes back."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ec_hf.files import RECORD, ModelFolder, first_line
from ec_hf.objectives.rewind import FROM_NEW_WEIGHTS, new_weights
from ec_hf.publishing.bases import named_base
from ec_hf.training.checkpoints import checkpoints, last_whole
from ec_hf.training.coming_back import NotComingBackError
from ec_hf.training.config import ECConfig
from ec_hf.training.trainer import ECTrainer

__all__ = ["as_resumed", "resumed_from", "trained", "with_base"]

LEAST_DEPTH = 0.125


def with_base(config: ECConfig, model: Any, name: str | None, history: Sequence[Any]) -> ECConfig:
    """The settings with the base model that a rewind goes back to, which is loaded once to see that it serves.

    Where the settings say nothing of a base, the card of the model may name one. A model that has met a request before
    is not taken back to its base, which knows what it has forgotten.

    Args:
        config: settings of the erasure.
        model: the original model.
        name: what it was loaded by; None for a model in memory, which has no card.
        history: manifests of the requests that it met before.

    Raises:
        OSError: the base that the settings name is not there.
        ValueError: the base that the settings name is another network.
    """
    given: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type] # text became a dict
    if config.objective != "rewind" or ("base" in given and given["base"] is None):
        return config
    if "base" in given:
        new_weights(model, given["base"])
        return config
    if name is None or history or not (base := named_base(name)):
        return config
    say = PartialState().print
    try:
        new_weights(model, base)
    except (OSError, ValueError) as error:
        say(
            f"The model's card names the base model {base}, which cannot be gone back to ({first_line(error)}). The "
            "deep part starts from new weights."
        )
        return config
    say(f"The model's card names the base model {base}: its weights are gone back to. --base_model none prevents it.")
    return replace(config, objective_kwargs={**given, "base": base})


def trained(
    trainer: ECTrainer, config: ECConfig, depth_is_chosen: bool, again: Callable[[ECConfig], ECTrainer]
) -> ECTrainer:
    """Train, and where half of a run shows that it does not come back, start over with half the depth.

    Args:
        trainer: of the first try.
        config: its settings.
        depth_is_chosen: whether its depth is the user's, and is not to be changed.
        again: makes the trainer of another try.

    Returns:
        The trainer of the last try, with the images of the lost ones in its cost.

    Raises:
        NotComingBackError: no smaller depth is left to try.
    """
    lost: Counter[str] = Counter()
    while True:
        try:
            trainer.train(resume_from_checkpoint=resumed_from(config))
        except NotComingBackError as error:
            given: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type] # text became a dict
            depth = given.get("depth", FROM_NEW_WEIGHTS["depth"]) / 2
            if depth_is_chosen or given.get("base") or depth < LEAST_DEPTH:
                raise
            trainer.accelerator.print(f"{error}\nIt starts over with half the depth, {depth:g}.")
            lost.update(trainer.images_seen())
            _take_away_checkpoints(config)
            config = replace(config, objective_kwargs={**given, "depth": depth}, resume_from_checkpoint=None)
            trainer = again(config)
        else:
            break
    for name, images in lost.items():
        trainer.cost[f"{name}_images_seen"] += images
    return trainer


def _take_away_checkpoints(config: ECConfig) -> None:
    """Those of a run that was lost are no state to go on from."""
    state = PartialState()
    if state.is_main_process:
        for folder in checkpoints(Path(config.output_dir or "")):
            shutil.rmtree(folder)
    state.wait_for_everyone()


def resumed_from(config: ECConfig) -> str | bool | None:
    """The checkpoint that the settings name, or True for the last whole one."""
    named = config.resume_from_checkpoint
    return True if named and named.lower() == "true" else named


def as_resumed(config: ECConfig) -> ECConfig:
    """The settings with the depth of the checkpoint that a run goes on from, where nobody chose one."""
    given: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type]
    named = resumed_from(config)
    if not named or config.objective != "rewind" or "depth" in given:
        return config
    folder = last_whole(Path(config.output_dir or "")) if named is True else Path(named)
    record = ModelFolder(folder).read(RECORD) if folder else {}
    before = (record.get("settings", {}).get("objective_kwargs") or {}).get("depth")
    return config if before is None else replace(config, objective_kwargs={**given, "depth": before})
