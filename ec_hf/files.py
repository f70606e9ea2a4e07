"""A model folder: what its files are called, how they are read and written whole, and where they lie on the Hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

__all__ = [
    "AUDIT",
    "CARD",
    "CONFIG",
    "FIGURES",
    "HEADS",
    "MANIFEST",
    "PAGE",
    "PROCESSOR",
    "RECORD",
    "WEIGHTS",
    "WEIGHTS_INDEX",
    "ModelFolder",
    "find_file",
    "read_json",
    "write_json",
    "write_text",
]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
RECORD, MANIFEST, AUDIT = "ec_config.json", "forget_manifest.json", "audit.json"
CARD, PAGE = "README.md", "report.html"
FIGURES, HEADS = "figures", "ec_heads"
"""Folders inside it. `HEADS` is also the name of the submodule on the model while the heads ride on it."""


class ModelFolder:
    """A folder that holds a model, finished or on the way, by the names above.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def require_model(self) -> None:
        """Make sure that there is a model in it.

        Raises:
            FileNotFoundError: it holds no config.json.
        """
        if not self.has(CONFIG):
            raise FileNotFoundError(f"{str(self.path)!r} holds no {CONFIG}: name the folder of a finished model")

    def has(self, name: str) -> bool:
        """Whether the file of this name is there."""
        return (self.path / name).is_file()

    def read(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; empty where there is no such file.

        Raises:
            ValueError: the file holds no JSON object.
        """
        return read_json(self.path / name) if self.has(name) else {}

    def write(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Put a JSON object or a text into a file, whole or not at all; see `write_text`."""
        if isinstance(content, str):
            write_text(self.path / name, content)
        else:
            write_json(self.path / name, content)

    def weights(self) -> list[str]:
        """Names of the safetensors files that `from_pretrained` would load, with their index where there are several.

        Raises:
            FileNotFoundError: there are none.
        """
        if self.has(WEIGHTS):
            return [WEIGHTS]
        if not self.has(WEIGHTS_INDEX):
            raise FileNotFoundError(f"{str(self.path)!r} holds no {WEIGHTS}: save the model with save_pretrained")
        return [WEIGHTS_INDEX, *sorted(set(self.read(WEIGHTS_INDEX)["weight_map"].values()))]


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file holds no JSON, or something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def write_json(path: str | Path, content: Any, *, indent: int = 2) -> None:
    """Write a JSON value, whole or not at all; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all: beside its place first, so that a failure leaves what was there.

    The folder is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    with NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", newline="\n", delete=False
    ) as aside:
        try:
            aside.write(text)
            aside.flush()
            os.fsync(aside.fileno())
            os.chmod(aside.name, mode)  # temporary files are for their owner alone
        except BaseException:
            os.unlink(aside.name)
            raise
    os.replace(aside.name, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_file(
    name_or_path: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> Path | None:
    """Where a file of a local folder or of a Hub repository lies on this machine; None where it has no such file.

    Args:
        name_or_path: a folder or a Hub id.
        filename: path of the file inside it.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.
        **kwargs: passed on to `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: for a folder that is not there, and for an id that the Hub does not give.
    """
    path = as_path(name_or_path)
    if path.is_dir():
        return path / filename if (path / filename).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), filename, revision=revision, token=token, **kwargs))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"no {str(name_or_path)!r}: it is no local folder, and {filename} of it could not be had from the Hub "
            f"({first_line(error)}). A private or gated repository needs token=."
        ) from error


def as_path(name_or_path: str | Path) -> Path:
    """The name as a path; a mistyped folder is caught before it is looked for on the Hub, whose ids have one slash."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is a file: name the folder that holds it")
    looks_local = path.is_absolute() or len(path.parts) > 2 or str(name_or_path).startswith(".")
    if looks_local and not path.exists():
        raise FileNotFoundError(f"no folder {str(path)!r}; the current folder is {str(Path.cwd())!r}")
    return path


def first_line(error: Exception) -> str:
    """What an error says, without what follows after its first line; its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
