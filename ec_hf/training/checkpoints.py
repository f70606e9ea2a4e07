"""Checkpoints as folders that are whole or not there, and which of them can be gone on from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ec_hf.files import read_json, sync_folder, write_json

__all__ = ["MARKER", "UNFINISHED", "checkpoints", "damage", "finish", "last_whole", "tidy", "why_not_resumed"]

MARKER = "checkpoint_files.json"
"""The file that is written last into a checkpoint; it holds the sizes of all others."""
UNFINISHED = ".unfinished"
"""The folder, inside that of the run, in which checkpoints are written until they are whole."""


def finish(aside: Path, final: Path, marks: dict[str, Any]) -> None:
    """Give a written checkpoint its marker and its place; one of the same step makes way."""
    files = {path.relative_to(aside).as_posix(): path.stat().st_size for path in aside.rglob("*") if path.is_file()}
    sync_folder(aside)
    write_json(aside / MARKER, {"files": files, **marks})
    if final.exists():
        final.rename(aside.with_name(f"replaced-{final.name}"))
    aside.rename(final)
    sync_folder(final.parent / UNFINISHED)
    shutil.rmtree(final.parent / UNFINISHED, ignore_errors=True)


def tidy(run: Path) -> None:
    """Clear away what a killed save has left; a checkpoint that lacked nothing but its place gets it."""
    for aside in (run / UNFINISHED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if damage(aside) is None and not (run / aside.name).exists():
            aside.rename(run / aside.name)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the latest step first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")
    found = {path: match for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (match := pattern.match(path.name))}
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(found[path][1]))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its marker; None where it is whole."""
    if not (folder / MARKER).is_file():
        return f"it holds no {MARKER}, which is written last, so its save did not end"
    try:
        sizes = dict(read_json(folder / MARKER)["files"])
    except (KeyError, TypeError, ValueError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is {path.stat().st_size:,} bytes long and was saved with {size:,}"
    return None


def why_not_resumed(folder: Path) -> str | None:
    """What stands against going on from a checkpoint; None where nothing does."""
    if wrong := damage(folder):
        return wrong
    if not read_json(folder / MARKER).get("resumable", True):
        return "it was saved with save_only_model, without the optimizer"
    return None


def last_whole(run: Path, passed_over: list[str] | None = None) -> Path | None:
    """The latest checkpoint of a run that can be gone on from.

    Args:
        run: the output folder.
        passed_over: takes a sentence on each later checkpoint that cannot.
    """
    for folder in checkpoints(run):
        wrong = why_not_resumed(folder)
        if wrong is None:
            return folder
        if passed_over is not None:
            passed_over.append(f"{folder} is passed over: {wrong}.")
    return None
