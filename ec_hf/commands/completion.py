"""Completion of `ec-hf` in a shell, from the parsers of its commands."""

from __future__ import annotations

from argparse import Action, ArgumentParser
from collections.abc import Mapping

import shtab

__all__ = ["SHELLS", "script"]

SHELLS = ("bash", "zsh", "fish")
FOLDERS = {"output_dir", "export_to", "folder"}
FILES = {"forget_request", "forget_classes_file", "class_names_file", "retrain_settings", "readme", "weights"}
EITHER = {
    "base_model",
    "dataset_name",
    "downstream_dataset",
    "model_name_or_path",
    "original",
    "retrained",
    "retrained_name_or_path",
    "shadows",
    "unlearned",
}
"""Names that may be a folder; `shtab.FILE` completes both."""


def script(parsers: Mapping[str, tuple[str, ArgumentParser]], shell: str) -> str:
    """The script that makes a shell complete commands, flags, choices and paths.

    Args:
        parsers: command -> its line in the overview, and its parser, which is changed.
        shell: one of `SHELLS`.
    """
    root = ArgumentParser(prog="ec-hf")
    root.add_argument("--version", action="store_true", help="print the version")
    commands = root.add_subparsers()
    for name, (line, parser) in parsers.items():
        for action in parser._actions:
            _prepare(action)
        commands.add_parser(name, parents=[parser], add_help=False, help=line)
    return shtab.complete(root, shell=shell)


def _prepare(action: Action) -> None:
    """Leave one spelling of a flag and the first line of its help, and say what its value may be."""
    action.option_strings = [text for text in action.option_strings if "-" not in text[2:] or text == "--help-all"]
    action.help = (action.help or "").split(". ")[0].split("; ")[0].replace("%", "%%")
    if action.dest in FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.dest in FILES | EITHER:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
