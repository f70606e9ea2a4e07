"""What a rewind goes back to, and how deep, where nobody says: the card's base model, else as deep as comes back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ec_hf.files import RECORD, ModelFolder, first_line
from ec_hf.objectives.rewind import FROM_NEW_WEIGHTS, new_weights
from ec_hf.publishing.bases import named_base
from ec_hf.training.checkpoints import checkpoints, last_whole
from ec_hf.training.config import ECConfig

__all__ = ["as_resumed", "less_deep", "with_base"]

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


def less_deep(config: ECConfig, chosen: bool) -> ECConfig | None:
    """The settings for half the depth of a rewind that did not come back; None where there is none to try.

    The checkpoints of the run that was lost are taken away.

    Args:
        config: settings of the run that was lost.
        chosen: whether its depth is the user's.
    """
    given: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type]
    depth = given.get("depth", FROM_NEW_WEIGHTS["depth"]) / 2
    if chosen or given.get("base") or depth < LEAST_DEPTH:
        return None
    state = PartialState()
    if state.is_main_process:
        for folder in checkpoints(Path(config.output_dir or "")):
            shutil.rmtree(folder)
    state.wait_for_everyone()
    return replace(config, objective_kwargs={**given, "depth": depth}, resume_from_checkpoint=None)


def as_resumed(config: ECConfig) -> ECConfig:
    """The settings with the depth of the checkpoint that a run goes on from, where nobody chose one."""
    given: dict[str, Any] = dict(config.objective_kwargs or {})  # type: ignore[arg-type]
    if not config.resume_from_checkpoint or config.objective != "rewind" or "depth" in given:
        return config
    named = str(config.resume_from_checkpoint)
    folder = last_whole(Path(config.output_dir or "")) if named.lower() == "true" else Path(named)
    record = ModelFolder(folder).read(RECORD) if folder else {}
    before = (record.get("settings", {}).get("objective_kwargs") or {}).get("depth")
    return config if before is None else replace(config, objective_kwargs={**given, "depth": before})
