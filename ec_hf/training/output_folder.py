"""What an output folder may not be: that of another run, of cached heads, or of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ec_hf.files import CONFIG, PILOT, ModelFolder
from ec_hf.training.config import ECConfig

__all__ = ["check_apart", "check_new_folder"]


def check_new_folder(config: ECConfig) -> None:
    """Refuse an output folder with a model, with files that would be replaced, or with checkpoints of another run.

    Raises:
        FileExistsError: it does.
    """
    folder = Path(str(config.output_dir))
    if config.resume_from_checkpoint:
        return
    if (folder / CONFIG).exists():
        raise FileExistsError(f"--output_dir {folder} holds a model already: name another folder.")
    if there := ModelFolder(folder).present():
        raise FileExistsError(f"--output_dir {folder} holds {there[0]}, which would be replaced: name another folder.")
    if folder.is_dir() and (get_last_checkpoint(str(folder)) or (folder / PILOT).exists()):
        raise FileExistsError(
            f"--output_dir {folder} holds a run that did not end: --resume_from_checkpoint true goes "
            "on with it; for a new run name another folder."
        )


def check_apart(output_dir: str | Path, dataset: Any, heads_cache: str | Path | None) -> None:
    """Refuse an output folder in which the model would take the place of cached heads, or its figures join the data.

    Raises:
        ValueError: it is such a folder.
    """
    folder = Path(output_dir).resolve()
    if heads_cache and Path(heads_cache).resolve() == folder:
        raise ValueError(
            f"heads_cache and --output_dir are both {folder}: the heads would be replaced, name two folders"
        )
    if isinstance(dataset, (str, Path)) and Path(dataset).is_dir() and folder.is_relative_to(Path(dataset).resolve()):
        raise ValueError(
            f"--output_dir {folder} lies in the data's folder: the figures in it would be read as images of the data "
            "later. Name a folder elsewhere."
        )
