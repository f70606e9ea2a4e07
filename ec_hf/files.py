"""Names of files, and where they lie: in a local folder or in a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

__all__ = ["find_file"]


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
    return str(error).strip().split("\n")[0]
