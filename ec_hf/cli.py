"""Command lines and YAML files as dataclasses."""

from __future__ import annotations

import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


def parse(*types: Any, argv: Sequence[str] | None = None, description: str | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass from the command line.

    A first argument that ends in ``.yaml`` or ``.yml`` gives defaults for any of their fields; flags override it.

    Raises:
        ValueError: for a YAML file that is no mapping or has a key that no field has.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(types, description=description, formatter_class=_Formatter)
    if argv and argv[0].endswith((".yaml", ".yml")):
        path = argv.pop(0)
        values = yaml.safe_load(Path(path).read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{path}: expected a mapping of settings, found {type(values).__name__}.")
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; --help lists the ones there are.")
        parser.set_defaults(**values)
        for action in parser._actions:
            action.required = action.required and action.dest not in values
    return parser.parse_args_into_dataclasses(argv)


class _Formatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults beside the flags, and the description as it was written."""
