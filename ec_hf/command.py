"""The command line of this run, for others to repeat, without anything that belongs to this machine alone."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

__all__ = ["command", "is_local", "public", "without_paths"]

LAUNCHERS = ("accelerate", "torchrun", "deepspeed")
LOCAL = re.compile(r"^(file:|[/~\\]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\])")
SECRET = re.compile(r"token|password|secret|api_key", re.IGNORECASE)
LITERAL = re.compile(r"[^\s\"'=,:\[\]{}()]+")  # what stands between the punctuation of JSON


def command(argv: Sequence[str] | None = None, launcher: Sequence[str] | None = None) -> str | None:
    """The command line of this process; None if it has none, as in a notebook.

    The command starts with the launcher and its flags if there is one, such as `accelerate launch`. Each local path
    and each token is replaced by the name of its flag in capitals: ``--output_dir OUTPUT_DIR``.

    Args:
        argv: program and arguments; None for those of this process.
        launcher: the words of the launcher's command before the program; None to look for them in the parent process.
    """
    argv = list(sys.argv if argv is None else argv)
    if not argv or not Path(argv[0]).is_file() or "ipykernel" in argv[0]:
        return None
    launcher = _launcher(argv) if launcher is None else launcher
    return shlex.join(
        [*launcher[:1], *_shareable(launcher[1:]), *_program(argv[0], bool(launcher)), *_shareable(argv[1:])]
    )


def is_local(text: str) -> bool:
    """Whether a name is a path on this machine: by its form, or because something is there."""
    return bool(LOCAL.match(text)) or os.path.lexists(text)  # Path.exists raises for a text too long for a path


def public(name: str | None) -> str | None:
    """The name if it is a Hub id; None if it is a path on this machine."""
    return None if not name or is_local(str(name)) else str(name)


def without_paths(value: Any) -> Any:
    """A JSON value in which None stands for every local path; a text without a slash counts as none."""
    if isinstance(value, Mapping):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    return public(value) if isinstance(value, str) and re.search(r"[/\\]", value) else value


def _shareable(words: Sequence[str]) -> list[str]:
    flag, kept = "", []
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        flag = name or flag
        if value and (SECRET.search(flag) or value.startswith("hf_") or any(map(is_local, LITERAL.findall(value)))):
            value = "SETTINGS.yaml" if value.endswith((".yaml", ".yml")) else flag.strip("-").upper() or "PATH"
        kept.append(f"{name}{equals}{value}")
    return kept


def _program(script: str, launched: bool) -> list[str]:
    """How to start the program; a script is named as seen from the current folder, or by its name alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    python = [] if launched else ["python"]
    if spec is not None and spec.origin and Path(script).resolve() == Path(spec.origin).resolve():
        return [*python, "-m", spec.name.removesuffix(".__main__")]
    path = Path(os.path.relpath(script))
    if path.suffix != ".py":  # a console script
        return [path.name]
    return [*python, path.name if ".." in path.parts else path.as_posix()]


def _launcher(argv: Sequence[str]) -> list[str]:
    """``accelerate launch --num_processes 2`` of a parent process that was started with the same program after it."""
    try:
        parents = [parent.cmdline() for parent in psutil.Process().parents()[:3]]
    except psutil.Error:
        return []
    for words in parents:
        end = len(words) - len(argv)
        names = [Path(word).name for word in words[:end]]
        starts = [i for i, name in enumerate(names) if name in LAUNCHERS]
        if end > 0 and words[end:] == list(argv) and starts:
            return [names[starts[0]], *words[starts[0] + 1 : end]]
    return []
