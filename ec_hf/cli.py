"""The command `ec-hf`: which commands there are, and those that train nothing.

Modules that take time to load are imported where they are needed, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ec_hf.commands.judging import EXIT_CODE, FAIL_HELP, NOT_FORGOTTEN, passes, told
from ec_hf.commands.parsing import (
    JSON_HELP,
    HelpFormatter,
    UsageError,
    flag,
    parse,
    parser_for,
    stdout_for_json,
)
from ec_hf.commands.requests import RequestArguments, read_request

COMMANDS = {
    "erase": (
        "ec_hf.commands.erase:erase_command",
        "erase classes, rows or people from a model, audit it, write its card",
    ),
    "retrain": (
        "ec_hf.commands.retrain:retrain_command",
        "train the reference: a model that never saw what is forgotten",
    ),
    "audit": ("ec_hf.cli:audit_command", "measure what an unlearned model still knows, layer by layer"),
    "card": ("ec_hf.cli:card_command", "write the model card of a finished model folder"),
    "push": ("ec_hf.cli:push_command", "publish a finished model folder on the Hub"),
    "plan": (
        "ec_hf.commands.plan:plan_command",
        "what an erasure will cost, from its settings, without data and network",
    ),
    "convert": (
        "ec_hf.commands.convert:convert_command",
        "bring weights of torchvision, timm, Swin or the EC authors into a model folder",
    ),
    "completion": ("ec_hf.cli:completion_command", "print what makes bash, zsh or fish complete these commands"),
}
"""Each command with the function that takes its arguments ("module:function"), and its line in the overview.

Beside ``NAME_command`` stands ``NAME_parser``, which gives the parser of those arguments.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script ``ec-hf COMMAND ...``. Wrong input ends with a message instead of a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from ec_hf._version import __version__

        print(f"ec_hf {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"ec-hf: no command {argv[0]!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    module, function = COMMANDS[argv[0]][0].split(":")
    try:
        return getattr(import_module(module), function)(argv[1:]) or 0
    except KeyboardInterrupt:
        print(f"\nec-hf {argv[0]}: interrupted", file=sys.stderr)
        return 130  # as a shell tells SIGINT
    except Exception as error:
        if os.environ.get("EC_HF_DEBUG"):
            raise
        expected = isinstance(error, (OSError, TypeError, ValueError))
        text = str(error) if expected else f"{type(error).__name__}: {error}"
        print(f"ec-hf {argv[0]}: {text}\n(EC_HF_DEBUG=1 shows where)", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ec-hf COMMAND ...",
            "",
            *lines,
            "",
            "ec-hf COMMAND --help lists the flags of a command, with examples",
        ]
    )


@dataclass
class AuditArguments(RequestArguments):
    """What `ec-hf audit` looks at."""

    original: str | None = flag("The model before unlearning: Hub id, local folder or timm name.")
    unlearned: list[str] | None = flag("The model after it; of several each as NAME=ID.")
    retrained: list[str] | None = flag("A model trained without the forget set, or several of other seeds.")
    shadows: list[str] | None = flag(
        "Other models trained without the forget set, and as in=ID with it, to attack membership with (LiRA)."
    )
    image_column: str | None = flag("Column of the images, where there are several.")
    label_column: str | None = flag("Column of the labels, where there are several.")
    downstream_dataset: str | None = flag("Another labelled dataset, for k-NN on frozen features.")
    output_dir: str = flag("Where audit.json, report.html and figures/ go.", "audit")
    show_images: bool = flag("Show forgotten images in report.html: nearest neighbours, one row a model.", False)
    use_cpu: bool = flag("Run on the CPU even where there is a GPU.", False)
    json: bool = flag(JSON_HELP, False)
    fail_unless_forgotten: bool = flag(FAIL_HELP, False)


AUDIT_OFTEN = {
    "models": ("original", "unlearned", "retrained", "shadows"),
    "data": ("dataset_name", "dataset_config", "forget_classes", "forget_request"),
    "how to measure": ("attacks", "residual", "max_images", "batch_size", "use_cpu"),
    "the result": ("output_dir", "show_images", "json", "fail_unless_forgotten"),
}
"""What `ec-hf audit --help` lists."""


def audit_parser() -> Any:
    """The parser of ``ec-hf audit``."""
    from ec_hf.auditing.settings import AuditSettings

    return parser_for(AuditArguments, AuditSettings, description=_AUDIT, prog="ec-hf audit", often=AUDIT_OFTEN)


def audit_command(argv: Sequence[str]) -> int:
    """``ec-hf audit``: run the audit, print it, and write audit.json, report.html and figures."""
    from ec_hf.auditing.settings import AuditSettings

    what, settings = parse(
        AuditArguments, AuditSettings, argv=argv, description=_AUDIT, prog="ec-hf audit", often=AUDIT_OFTEN
    )
    _check_audit(what)

    from accelerate import PartialState

    with stdout_for_json(what.json) as answer:
        state = PartialState(cpu=what.use_cpu)
        report, splits = _audited(what, settings)
        models = told(report)
        if state.is_main_process:
            _write_and_show(report, what, splits)
            if answer:
                print(json.dumps({"folder": what.output_dir, "models": models}), file=answer, flush=True)
        state.wait_for_everyone()
    state.destroy_process_group()
    forgotten = all(passes(each["status"], report) for each in models.values())
    return NOT_FORGOTTEN if what.fail_unless_forgotten and not forgotten else 0


def _audited(what: Any, settings: Any) -> tuple[Any, dict[str, Any]]:
    """The report, and the four splits that it is of."""
    from ec_hf.auditing.audit import audit
    from ec_hf.command import public
    from ec_hf.data.columns import find_label_column
    from ec_hf.data.erasure import NO_TEST_SPLIT
    from ec_hf.data.sources import has_test_split, load_images, train_and_test
    from ec_hf.data.splitting import four_splits
    from ec_hf.pipeline import resolved

    images = load_images(what.dataset_name, config=what.dataset_config)
    request = resolved(read_request(what), images, what.label_column)
    train, test = train_and_test(images, label_column=what.label_column)
    splits = four_splits(train, test, request, label_column=what.label_column, id_column=what.id_column)
    report = audit(
        what.original,
        _named(what.unlearned or ()),
        retrained=what.retrained or None,
        shadows=what.shadows,
        splits=splits,
        request=request,
        downstream=load_images(what.downstream_dataset) if what.downstream_dataset else None,
        dataset_name=public(what.dataset_name),
        image_column=what.image_column,
        label_column=what.label_column,
        **asdict(settings),
    )
    if not has_test_split(images, find_label_column(train, what.label_column)):
        report.notes.append(NO_TEST_SPLIT)
    return report, splits


def _write_and_show(report: Any, what: AuditArguments, splits: dict[str, Any]) -> None:
    from rich.console import Console

    from ec_hf.reporting.tables import to_rich
    from ec_hf.reporting.verdict import findings
    from ec_hf.reporting.writing import write_audit

    folder = Path(what.output_dir)
    write_audit(report, folder, splits=splits if what.show_images else None, image_column=what.image_column)
    console = Console()
    console.print(to_rich(report))
    console.print(*map(str, findings(report)), sep="\n", markup=False)
    console.print(f"\nIn {folder}: audit.json, report.html, figures/", highlight=False)


def _check_audit(what: AuditArguments) -> None:
    """Refuse flags that do not go together, and a folder that holds an audit."""
    if missing := [f"--{name}" for name in ("original", "unlearned", "dataset_name") if not getattr(what, name)]:
        raise UsageError(f"{', '.join(missing)} missing; --help lists the flags")
    folder = Path(what.output_dir)
    if folder.is_file():
        raise FileExistsError(f"--output_dir {folder} is a file: name a folder")
    written = ("audit.json", "report.html", "figures")
    if there := [name for name in written if (folder / name).is_file() or any((folder / name).glob("*"))]:
        raise FileExistsError(f"--output_dir {folder} holds {there[0]} already: name another folder, or move it away")
    read_request(what)


def _named(texts: Sequence[str]) -> str | dict[str, str]:
    """The models of ``--unlearned``: one ``ID``, or several by name from ``NAME=ID``."""
    if len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    pairs = [text.partition("=") for text in texts]
    named = {name: model for name, _, model in pairs if name and model}
    if len(named) != len(texts):
        raise ValueError(f"--unlearned: give several models as NAME=ID with different names, got {' '.join(texts)}")
    return named


def card_parser() -> ArgumentParser:
    """The parser of ``ec-hf card``."""
    from ec_hf.publishing.disclosure import DETAILS

    parser = ArgumentParser(prog="ec-hf card", description=_CARD, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="what ec-hf erase or ECTrainer.save_model wrote")
    parser.add_argument("--repo_id", help="the Hub id that the model will have")
    parser.add_argument("--license", help="licence id of the Hub; that of the base model if left out")
    parser.add_argument("--manifest_detail", choices=DETAILS, help="what the card tells of the request")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that is there")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    return parser


def card_command(argv: Sequence[str]) -> None:
    """``ec-hf card``: write the card of a finished model folder into it."""
    options = vars(card_parser().parse_args(argv))
    folder, overwrite, as_json = (options.pop(name) for name in ("folder", "overwrite", "json"))

    from ec_hf.files import CARD, write_text
    from ec_hf.publishing.card import card

    with stdout_for_json(as_json) as answer:
        text, path = card(folder, **options), folder / CARD
        if path.exists() and path.read_text(encoding="utf-8") != text and not overwrite:
            raise FileExistsError(f"{path} is there already and differs: --overwrite replaces it")
        write_text(path, text)
        print(f"Wrote {path}")
        if answer:
            print(json.dumps({"card": str(path)}), file=answer, flush=True)


def push_parser() -> ArgumentParser:
    """The parser of ``ec-hf push``."""
    from ec_hf.publishing.disclosure import DETAILS

    parser = ArgumentParser(prog="ec-hf push", description=_PUSH, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("folder", help="what ec-hf erase or ECTrainer.save_model wrote; it is not changed")
    parser.add_argument("repo_id", nargs="?", help="repository on the Hub, made if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to push to, made if it is not there")
    parser.add_argument("--commit_message", default="Unlearned model", help="title of the commit")
    parser.add_argument(
        "--manifest_detail",
        choices=DETAILS,
        default="hashes",
        help="what is told of the request: hashes and counts, class names, all of it",
    )
    parser.add_argument(
        "--finish",
        choices=("keep", "mask", "drop"),
        default="keep",
        help="logits of the forgotten classes: keep, mask (never reached) or drop",
    )
    parser.add_argument(
        "--with_heads",
        nargs="?",
        const=True,
        default=False,
        metavar="REPO_ID",
        help="publish the EC heads too, in ec_heads/ or in a repository of their own",
    )
    parser.add_argument("--license", help="licence id of the Hub; that of the base model if left out")
    parser.add_argument("--readme", help="file with your own card, published as it is")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files in a repository that ec_hf did not make"
    )
    parser.add_argument("--export_to", metavar="NEW_FOLDER", help="push nothing: write there what would be published")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    return parser


def push_command(argv: Sequence[str]) -> None:
    """``ec-hf push``: publish a finished model folder, or write what would be published into another folder."""
    options = vars(push_parser().parse_args(argv))
    folder, repo_id, destination, as_json = (options.pop(name) for name in ("folder", "repo_id", "export_to", "json"))
    if not destination and repo_id is None:
        raise UsageError("say where to push to: ec-hf push FOLDER NAME/REPOSITORY")

    from ec_hf.publishing.export import export
    from ec_hf.publishing.hub import push

    done: dict[str, Any]
    with stdout_for_json(as_json) as answer:
        if destination:
            choices = {
                name: options[name] for name in ("manifest_detail", "finish", "with_heads", "license", "readme")
            }
            files = export(folder, destination, repo_id=repo_id, **choices)
            print(f"In {destination}:", *files, sep="\n  ")
            done = {"folder": destination, "files": list(files)}
        else:
            done = {"url": str(push(folder, repo_id, **options))}
            print(f"Published at {done['url']}")
        if answer:
            print(json.dumps(done), file=answer, flush=True)


def completion_parser() -> ArgumentParser:
    """The parser of ``ec-hf completion``."""
    parser = ArgumentParser(prog="ec-hf completion", description=_COMPLETION, formatter_class=HelpFormatter)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    return parser


def completion_command(argv: Sequence[str]) -> None:
    """``ec-hf completion``: print the script that makes a shell complete commands, flags, choices and paths."""
    shell = completion_parser().parse_args(argv).shell

    from ec_hf.commands.completion import script

    parsers = {}
    for name, (place, line) in COMMANDS.items():
        module, function = place.replace("_command", "_parser").split(":")
        parsers[name] = line, getattr(import_module(module), function)()
    print(script(parsers, shell))


_COMPLETION = """Print a script that makes a shell complete commands, flags, choices and paths.

    ec-hf completion bash > ~/.local/share/bash-completion/completions/ec-hf
    ec-hf completion zsh > ~/.zfunc/_ec-hf        # a folder of $fpath
    ec-hf completion fish > ~/.config/fish/completions/ec-hf.fish

Exit codes: 0 done, 1 an error, 2 wrong usage."""

_CARD = """Write the README.md of a finished model folder.

    ec-hf card FOLDER
    ec-hf card FOLDER --manifest_detail classes --overwrite

Exit codes: 0 done, 1 an error, 2 wrong usage."""

_PUSH = """Publish a finished model folder on the Hub, with its card.

    ec-hf push FOLDER NAME/REPOSITORY
    ec-hf push FOLDER NAME/REPOSITORY --manifest_detail classes --finish drop
    ec-hf push FOLDER --export_to NEW_FOLDER

The token is that of `hf auth login` or of the environment variable HF_TOKEN.

Exit codes: 0 done, 1 an error, 2 wrong usage."""

_AUDIT = f"""What does an unlearned image classifier still know of what it was to forget?

    ec-hf audit --original ID --unlearned ID --dataset_name ID --forget_classes cat dog
    ec-hf audit --original ID --unlearned ec=ID scrub=ID --retrained ID ID --dataset_name ID --forget_request FILE.json
    accelerate launch --multi_gpu --num_processes 2 -m ec_hf.cli audit ...

A first argument that ends in .yaml gives defaults for any of the flags.

Exit codes: 0 done, 1 an error, 2 wrong usage, {EXIT_CODE}"""


if __name__ == "__main__":
    sys.exit(main())
