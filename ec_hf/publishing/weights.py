"""The weights of a folder that is published: that they are there, can be read, and are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ec_hf.files import WEIGHTS, WEIGHTS_INDEX, ModelFolder, first_line

__all__ = ["SHARDS", "metadata_of", "require_finite", "weight_files"]

SHARDS = "model-*-of-*.safetensors"


def weight_files(folder: ModelFolder) -> list[str]:
    """The safetensors files that `from_pretrained` would load, without their index.

    Raises:
        FileNotFoundError: the folder holds no such file.
        ValueError: the index is none, or names files that no index of a model names.
    """
    if folder.has(WEIGHTS):
        return [WEIGHTS]
    if folder.has(WEIGHTS_INDEX):
        places = folder.read(WEIGHTS_INDEX).get("weight_map")
        if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError(f"{WEIGHTS_INDEX} has no weight_map from weights to files: save the model again")
        if strange := sorted(name for name in places.values() if "/" in name or not fnmatch(name, SHARDS)):
            raise ValueError(f"{WEIGHTS_INDEX} names {strange[0]!r}: expected names such as {SHARDS}")
    return [name for name in folder.weights() if name != WEIGHTS_INDEX]


def require_finite(folder: ModelFolder) -> None:
    """Refuse weights that are NaN or infinite: a run that diverged has no model to publish.

    A folder without weights has none that could be wrong.

    Raises:
        ValueError: for such weights, and for a file that cannot be read.
    """
    if not folder.has(WEIGHTS) and not folder.has(WEIGHTS_INDEX):
        return
    for name in weight_files(folder):
        try:
            with safe_open(folder.path / name, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                    if not _is_finite(tensors.get_tensor(key)):
                        raise ValueError(f"{key} in {name} is NaN or infinite: the run that made this model diverged")
        except SafetensorError as error:
            raise _unreadable(folder.path / name, error) from error


def metadata_of(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors."""
    try:
        with safe_open(path, "pt") as tensors:
            return dict(tensors.metadata() or {})
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _is_finite(tensor: torch.Tensor) -> bool:
    whole = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor  # 8-bit floats
    return bool(torch.isfinite(whole).all())


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{str(path)!r} cannot be read ({first_line(error)}): copy or save the model again")
