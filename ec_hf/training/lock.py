"""One run a folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ec_hf.files import explained_writing

try:
    import fcntl
except ImportError:  # Windows has no such locks, and runs without
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "lock"]

LOCK = ".lock"


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[str | None]:
    """Keep other processes from training in a folder.

    The system lets go of the lock when the process ends, however it ends. One process of a run takes it; a second
    trainer in the same process is not kept out.

    Args:
        folder: it is made if need be.

    Yields:
        A sentence where a process ended without letting go of the folder; else None.

    Raises:
        OSError: the folder cannot be written.
        RuntimeError: another process trains in it.
    """
    path = Path(folder) / LOCK
    with explained_writing(folder, "Name a folder that can be written as output_dir."):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open(path)
    before = file.read().strip()
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%d %b %Y %H:%M")}
    try:
        file.seek(0)
        file.truncate()
        file.write(json.dumps(holder))
        file.flush()
        yield f"The folder was left by {_told(before)}, which has ended: this run takes it over." if before else None
    finally:
        path.unlink(missing_ok=True)  # still locked, so no other process has it in between
        file.close()


def _open(path: Path) -> IO[str]:
    """The lock file, locked."""
    while True:
        file = path.open("a+", encoding="utf-8")
        file.seek(0)
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _told(file.read())
            file.close()
            raise RuntimeError(
                f"{path.parent} is in use by {holder}: two runs in one folder would overwrite each other. Wait for "
                "it to end, or name another output_dir."
            ) from None
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            return file
        file.close()  # its holder let go of it in this moment, and removed it


def _told(holder: str) -> str:
    try:
        entries = json.loads(holder)
        return f"process {entries['process']} on {entries['machine']} (since {entries['since']})"
    except (KeyError, TypeError, ValueError):
        return "another process"
