"""How command lines and YAML files become dataclasses, and the help that lists what most people need first."""

from __future__ import annotations

import contextlib
import difflib
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

__all__ = ["HelpFormatter", "UsageError", "flag", "parse", "parser_for", "read_settings", "stdout_for_json"]

JSON_HELP = "Print the result as one JSON object on stdout, and everything else on stderr."

BLOCKS = ("plan",)
"""Keys of a YAML file under which the command of that name has settings of its own; others pass over them."""


class UsageError(ValueError):
    """A command line that is no sense as it stands; ``ec-hf`` then ends with exit code 2."""


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """The description as it was written, one spelling of a flag, and defaults beside flags that have one."""

    def _format_action_invocation(self, action: Action) -> str:
        """`--flag VALUE`; argparse would repeat the value after each spelling."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        words = [text for text in action.option_strings if "-" not in text.lstrip("-") or not _twin(text, action)]
        if action.nargs == 0:
            return ", ".join(words)
        metavar = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(words)} {metavar}"

    def _get_help_string(self, action: Action) -> str | None:
        if action.const is False and action.nargs == 0:  # --no_NAME would have the help text of --NAME
            return f"Turn --{action.dest} off."
        if action.default in (None, [], SUPPRESS) or "efault" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def _twin(text: str, action: Action) -> bool:
    return "--" + text.lstrip("-").replace("-", "_") in action.option_strings


def flag(help: str, default: Any = None) -> Any:
    """A dataclass field that becomes a flag."""
    return field(default=default, metadata={"help": help})


def parser_for(
    *types: Any,
    description: str | None = None,
    prog: str | None = None,
    often: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """The parser of a command, an `HfArgumentParser`.

    Args:
        *types: the dataclasses; their fields become flags.
        description: what stands above the flags in the help.
        prog: the command's name in the help.
        often: titles and the flags under them that ``--help`` lists; all others are listed by ``--help-all`` alone.
    """
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        types, prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )  # an abbreviated flag would be recorded as it was typed, and its value told where the flag would be hidden
    if often:
        _list_often(parser, often)
    return parser


def parse(
    *types: Any, argv: Sequence[str] | None = None, block: str | None = None, **appearance: Any
) -> tuple[Any, ...]:
    """One instance of each dataclass, with fields from the command line.

    If the first argument ends in ``.yaml`` or ``.yml``, that file gives defaults for any of the fields; flags override
    them.

    Args:
        *types: the dataclasses; their fields become flags.
        argv: the arguments; None for those of this process.
        block: of `BLOCKS` the one that is this command's.
        **appearance: as for `parser_for`.

    Raises:
        UsageError: the YAML file is no mapping, or has a key that is no field; a flag is unknown.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = parser_for(*types, **appearance)
    if argv and argv[0].endswith((".yaml", ".yml")):
        path = argv.pop(0)
        values = _own_settings(path, block)
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"{path}: unknown settings {', '.join(unknown)}; --help lists the ones there are.")
        parser.set_defaults(**values)
        for action in parser._actions:
            action.required = action.required and action.dest not in values
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        raise UsageError(
            f"Some specified arguments are not used by this command: {unknown}{_meant(unknown, parser)}; "
            "--help lists the flags."
        )
    return tuple(parsed)


def _meant(unknown: Sequence[str], parser: Any) -> str:
    """The flags that come closest to those that are unknown, as a question."""
    flags = [text for action in parser._actions for text in action.option_strings if "-" not in text.lstrip("-")]
    wrong = [text.partition("=")[0].replace("-", "_").replace("__", "--", 1) for text in unknown if text[:2] == "--"]
    close = [match for text in wrong for match in difflib.get_close_matches(text, flags, n=1, cutoff=0.8)]
    return f" (did you mean {' '.join(close)}?)" if close else ""


def _own_settings(path: str | Path, block: str | None) -> dict[str, Any]:
    """The settings in a YAML file, with those of a command's own block and without other commands' blocks."""
    values = read_settings(path)
    blocks = {name: values.pop(name) for name in BLOCKS if name in values}
    own = blocks.get(block or "") or {}
    if not isinstance(own, dict):
        raise UsageError(f"{path}: under {block!r} expected a mapping of settings, found {type(own).__name__}.")
    return values | own


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UsageError: the file is no YAML, or holds no mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a mapping of settings, found {type(values).__name__}.")
    return values


@contextlib.contextmanager
def stdout_for_json(wanted: bool) -> Iterator[Any]:
    """Where the JSON goes, while all that is printed goes to stderr; None where no JSON is wanted."""
    if not wanted:
        yield None
        return
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield stdout


def _list_often(parser: ArgumentParser, often: Mapping[str, Sequence[str]]) -> None:
    """Make ``--help`` list these flags, and ``--help-all`` all of them."""
    actions = list(parser._actions)
    listed = {name for names in often.values() for name in names}
    for title, names in often.items():
        group = parser.add_argument_group(title)
        group._group_actions += [each for name in names for each in actions if each.dest == name]
    rest = parser.add_argument_group("everything else")
    rest._group_actions += [each for each in actions if each.dest not in listed and each.dest != "help"]
    short = parser._action_groups[-len(often) - 1 : -1]
    more = f"--help-all lists {len({each.dest for each in rest._group_actions})} more flags."
    parser.usage = "%(prog)s [SETTINGS.yaml] [--FLAG VALUE ...]"

    class Help(Action):
        def __call__(self, parser: ArgumentParser, _namespace: Any, _values: Any, option: str | None = None) -> None:
            everything = option == "--help-all"
            parser._action_groups = [*short, rest] if everything else short
            parser.epilog = None if everything else more
            parser.print_help()
            parser.exit()

    parser._option_string_actions.pop("-h")
    parser._option_string_actions.pop("--help")
    parser._remove_action(next(each for each in actions if each.dest == "help"))
    parser.add_argument("-h", "--help", "--help-all", action=Help, nargs=0, dest=SUPPRESS, default=SUPPRESS)
