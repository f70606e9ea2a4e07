"""A model folder: what its files are called, how they are read and written, and where they lie on this machine."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

__all__ = [
    "ADAPTER_CONFIG",
    "AUDIT",
    "CARD",
    "CONFIG",
    "FIGURES",
    "HEADS",
    "MANIFEST",
    "PAGE",
    "PILOT",
    "PROCESSOR",
    "RECORD",
    "WEIGHTS",
    "WEIGHTS_INDEX",
    "ModelFolder",
    "explained_writing",
    "find_file",
    "first_line",
    "local_folder",
    "move_files",
    "read_json",
    "sync_folder",
    "write_json",
    "write_text",
]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
ADAPTER_CONFIG = "adapter_config.json"
"""The file in which PEFT says what the adapters beside it are; a folder of these is no model folder."""
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
RECORD, MANIFEST, AUDIT = "ec_config.json", "forget_manifest.json", "audit.json"
CARD, PAGE = "README.md", "report.html"
FIGURES, HEADS, PILOT = "figures", "ec_heads", "pilot"
"""Folders in it. `HEADS` is also the name of the heads as a submodule of the model."""


class ModelFolder:
    """A folder with a model in it, finished or in training; its files go by the names above.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def require_model(self) -> None:
        """Check that a model is there.

        Raises:
            FileNotFoundError: the folder holds no config.json.
        """
        if self.has(ADAPTER_CONFIG) and not self.has(CONFIG):
            raise FileNotFoundError(
                f"{str(self.path)!r} holds adapters and no model: name the folder that ECTrainer.save_merged wrote"
            )
        if not self.has(CONFIG):
            raise FileNotFoundError(f"{str(self.path)!r} holds no {CONFIG}: name the folder of a finished model")

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.path / name).is_file()

    def present(self) -> list[str]:
        """Names of files that saving, auditing and describing a model write, as far as they are there."""
        files = (CONFIG, ADAPTER_CONFIG, PROCESSOR, WEIGHTS, WEIGHTS_INDEX, RECORD, MANIFEST, AUDIT, CARD, PAGE)
        folders = [
            name for name in (FIGURES, HEADS) if (self.path / name).is_dir() and any((self.path / name).iterdir())
        ]
        return [*filter(self.has, files), *folders]

    def read(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; empty if there is no such file.

        Raises:
            ValueError: the file holds no JSON object.
        """
        return read_json(self.path / name) if self.has(name) else {}

    def write(self, name: str, content: Mapping[str, Any] | str) -> None:
        """Write a JSON object or a text to a file, whole or not at all; see `write_text`."""
        if isinstance(content, str):
            write_text(self.path / name, content)
        else:
            write_json(self.path / name, content)

    def weights(self) -> list[str]:
        """Names of the safetensors files that `from_pretrained` would load; their index comes first if there is one.

        Raises:
            FileNotFoundError: the folder holds no such file.
        """
        if self.has(WEIGHTS):
            return [WEIGHTS]
        if not self.has(WEIGHTS_INDEX):
            raise FileNotFoundError(f"{str(self.path)!r} holds no {WEIGHTS}: save the model with save_pretrained")
        return [WEIGHTS_INDEX, *sorted(set(self.read(WEIGHTS_INDEX)["weight_map"].values()))]

    def damage(self) -> str | None:
        """What is wrong with the model in it, seen without reading a weight; None where it is whole.

        A file of weights that a full disk or a kill cut short is shorter than its header says.
        """
        if not self.has(CONFIG):
            return f"{CONFIG} is missing"
        try:
            self.read(CONFIG)
            names = self.weights()
        except (FileNotFoundError, KeyError, ValueError) as error:
            return first_line(error)
        return next(
            filter(None, (_safetensors_damage(self.path / name) for name in names if name != WEIGHTS_INDEX)), None
        )


def _safetensors_damage(path: Path) -> str | None:
    """How a safetensors file differs from what its header says; None where it does not."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return f"{path.name} is cut short: {size:,} bytes"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return f"{path.name} has no safetensors header"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{path.name} is {size:,} bytes long where its header says {expected:,}"


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: the file holds no JSON, or something other than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content


def write_json(path: str | Path, content: Any, *, indent: int = 2) -> None:
    """Write a value as JSON, whole or not at all; see `write_text`.

    Raises:
        TypeError: the value holds something that JSON has no form for.
        ValueError: the value holds NaN or infinity, which are not JSON.
    """
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all: if it fails, what was there before is still there.

    The text is written to a file beside `path`, which then takes its place. A missing folder is made, a file that is
    replaced keeps its permissions, and a link is replaced by a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # without it, a power cut can leave the new name on an empty file
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have all files of a folder on the disk itself, so that a power cut cannot take them back."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir() and os.name == "nt":  # Windows opens no folders
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_files(source: Path, target: Path) -> None:
    """Move all files below a folder into another one, each of them whole: a reader sees the old one or the new one."""
    sync_folder(source)
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    shutil.rmtree(source)


DISK_ERRORS = {
    errno.ENOSPC: "there is no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not write there",
    errno.EPERM: "this user may not write there",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",
}


@contextmanager
def explained_writing(folder: str | Path, left: str = "") -> Iterator[None]:
    """Say what stands against writing into a folder, whichever library wrote: some hide a full disk well.

    Args:
        folder: what was written into.
        left: a sentence on what is left and what to do.

    Raises:
        OSError: with the reason, in place of the library's own error.
    """
    try:
        yield
    except Exception as error:
        number = _disk_errno(error)
        if number is None:
            raise
        text = f"{str(folder)!r} cannot be written: {DISK_ERRORS[number]}. {left}".strip()
        raise OSError(number, text) from error


def _disk_errno(error: BaseException | None) -> int | None:
    """The system's number for what an error, or one that led to it, says of a disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return error.errno
        if match := re.search(r"os error (\d+)", str(error)):  # as safetensors says it
            return int(match[1]) if int(match[1]) in DISK_ERRORS else None
        if "unexpected pos" in str(error) or "file write failed" in str(error):  # as torch.save says it
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def find_file(
    name_or_path: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> Path | None:
    """The path on this machine of a file from a local folder or a Hub repository, which is downloaded if needed.

    Args:
        name_or_path: a folder or a Hub id.
        filename: path of the file inside it.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.
        **kwargs: passed on to `huggingface_hub.hf_hub_download`.

    Returns:
        The path; None if the folder or repository has no such file.

    Raises:
        FileNotFoundError: there is no such folder, or the Hub does not give the file.
    """
    if folder := local_folder(name_or_path):
        return folder / filename if (folder / filename).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), filename, revision=revision, token=token, **kwargs))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"no {str(name_or_path)!r}: it is no local folder, and the Hub did not give its {filename} "
            f"({first_line(error)}). A private or gated repository needs token=."
        ) from error


def local_folder(name_or_path: str | Path) -> Path | None:
    """The local folder that a name stands for; None if the name can only be a Hub id, which has at most one slash.

    Raises:
        FileNotFoundError: the name is that of a file, or of a folder that does not exist.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is a file: name the folder that holds it")
    if path.is_absolute() or len(path.parts) > 2 or str(name_or_path).startswith("."):
        raise FileNotFoundError(f"no folder {str(path)!r}; the current folder is {str(Path.cwd())!r}")
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type if it has no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__
