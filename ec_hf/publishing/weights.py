"""The weights of a folder that is published: that they are there, can be read, and are numbers."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ec_hf.auditing.report import AuditReport
from ec_hf.files import AUDIT, RECORD, WEIGHTS, WEIGHTS_INDEX, ModelFolder, first_line
from ec_hf.models.loading import contents_hash

__all__ = ["SHARDS", "require_audited", "require_finite", "tensor_names", "texts_of", "weight_files"]

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


def require_audited(folder: ModelFolder) -> None:
    """Refuse an audit of other weights than those beside it, as a later run in the same folder leaves one.

    Where the audit does not tell the weights, or the logits were finished since, nothing can be checked.

    Raises:
        ValueError: the audit is of other weights, or a file cannot be read.
    """
    if not folder.has(AUDIT) or folder.read(RECORD).get("finish", "keep") != "keep":
        return
    models = AuditReport.load(folder.path / AUDIT).models.values()
    known = next((info.weights for info in models if info.role == "unlearned"), None)
    if known and (folder.has(WEIGHTS) or folder.has(WEIGHTS_INDEX)) and known != _hash_of(folder):
        raise ValueError(
            f"{AUDIT} is of other weights than those in {str(folder.path)!r}: audit this model again, or take the "
            "file away"
        )


def _hash_of(folder: ModelFolder) -> str:
    tensors = []
    for name in weight_files(folder):
        try:
            with safe_open(folder.path / name, "pt") as file:
                tensors += [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118 - it is no mapping
        except SafetensorError as error:
            raise _unreadable(folder.path / name, error) from error
    return contents_hash(tensors)


def texts_of(path: Path) -> list[str]:
    """The texts that a safetensors file carries beside its tensors, keys too."""
    try:
        with safe_open(path, "pt") as tensors:
            beside = tensors.metadata() or {}
            return [*(key for key in beside if key != "format"), *beside.values()]
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file."""
    try:
        with safe_open(path, "pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def _is_finite(tensor: torch.Tensor) -> bool:
    whole = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor  # 8-bit floats
    return bool(torch.isfinite(whole).all())


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{str(path)!r} cannot be read ({first_line(error)}): copy or save the model again")
