"""`ec-hf erase`: from a model, a dataset and a request to a finished folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from ec_hf.commands.judging import EXIT_CODE, FAIL_HELP, NOT_FORGOTTEN, passes
from ec_hf.commands.parsing import JSON_HELP, UsageError, flag, parse, parser_for, read_settings, stdout_for_json
from ec_hf.commands.requests import RequestArguments, read_request
from ec_hf.files import HEADS, PAGE
from ec_hf.training.config import ECConfig

__all__ = [
    "DESCRIPTION",
    "NOT_FORGOTTEN",
    "OFTEN",
    "EraseArguments",
    "erase_command",
    "erase_parser",
    "run",
]

NO_BASE = "none"
UNNAMED = "trainer_output"  # what TrainingArguments calls the folder where none was named


@dataclass
class EraseArguments(RequestArguments):
    """What to forget, from which model and data, and what to compare with."""

    model_name_or_path: str | None = flag("Hub id, local folder or timm name of the model.")
    model_revision: str | None = flag("Branch, tag or commit of the model.")
    streaming: bool = flag(
        "Stream the retain set of a dataset that is larger than this machine; the dataset needs a test split.", False
    )
    hold_out: float = flag(
        "Share of the training images, about 1,000 at most of each side, that decide when to stop; 0 to 0.5.", 0.1
    )
    retrained_name_or_path: list[str] | None = flag(
        "A retrained model that is there already, or several of other seeds (ec-hf retrain)."
    )
    with_retrained: bool = flag("Also train a model on the retain set alone, the reference for forgetting.", False)
    base_model: str | None = flag(
        "Pretrained network that your model was fine-tuned from: rewind goes back to it, and --with_retrained starts "
        "from it. Default: for rewind what the model's card names, or none."
    )
    retrain_from: Literal["base", "new"] = flag(
        "With --with_retrained: base for --base_model, new for the model's architecture with new weights.", "base"
    )
    retrain_settings: str | None = flag("With --with_retrained: YAML file with flags of ec-hf retrain.")
    retrain_seeds: int = flag("With --with_retrained: so many retrained models; three show how far they differ.", 1)
    with_delete: bool = flag("Also erase with DELETE at the logits only, for contrast.", False)
    manifest_detail: Literal["hashes", "classes", "rows"] = flag(
        "What the card and a push tell of the request: hashes and counts, class names, all of it.", "hashes"
    )
    finish: Literal["keep", "mask", "drop"] = flag(
        "What becomes of the logits of the forgotten classes in the copy that is pushed.", "keep"
    )
    with_heads: str | None = flag(
        "Push the EC heads too: 'folder' for ec_heads/ beside the model, or a repository id."
    )
    json: bool = flag(JSON_HELP, False)
    fail_unless_forgotten: bool = flag(FAIL_HELP, False)


OFTEN = {
    "model and data": ("model_name_or_path", "dataset_name", "forget_classes", "forget_request", "output_dir"),
    "how to erase": (
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "objective",
        "preset",
        "points",
        "ec_weight",
        "calibrated",
        "seed",
        "use_cpu",
        "bf16",
    ),
    "when to stop": ("hold_out", "forget_target", "retain_floor", "eval_strategy", "eval_steps"),
    "what to compare with": ("retrained_name_or_path", "with_retrained", "base_model", "retrain_from", "with_delete"),
    "the result": ("json", "fail_unless_forgotten", "push_to_hub", "hub_model_id", "manifest_detail", "finish"),
}
"""What `--help` lists."""

DESCRIPTION = f"""Erase classes, rows or people from an image classifier, and show layer by layer what is left.

    ec-hf erase --model_name_or_path ID --dataset_name ID --forget_classes cat dog
    ec-hf erase settings.yaml --forget_request request.json --output_dir out
    ec-hf erase ... --with_retrained --base_model ID        # and train the reference for it
    accelerate launch --multi_gpu --num_processes 2 -m ec_hf.cli erase ...

A first argument that ends in .yaml gives defaults for any of the flags.

Exit codes: 0 the folder is finished, 1 an error, 2 wrong usage, {EXIT_CODE}"""

APPEARANCE: dict[str, Any] = {"description": DESCRIPTION, "prog": "ec-hf erase", "often": OFTEN}


def erase_parser() -> Any:
    """The parser of ``ec-hf erase``."""
    return parser_for(EraseArguments, ECConfig, **APPEARANCE)


def erase_command(argv: Sequence[str]) -> int:
    """``ec-hf erase``: see `ec_hf.erase`."""
    what, config = parse(EraseArguments, ECConfig, argv=argv, **APPEARANCE)
    if missing := [f"--{name}" for name in ("model_name_or_path", "dataset_name") if not getattr(what, name)]:
        raise UsageError(f"{', '.join(missing)} missing; --help lists the flags")
    return run(what, config)


def run(
    what: EraseArguments,
    config: ECConfig,
    *,
    folders: str = "outputs/erased",
    model: Callable[[ECConfig], Any] | None = None,
    **kwargs: Any,
) -> int:
    """Erase as the flags say, and print what came out.

    Args:
        what: what to forget, from which model and data.
        config: settings of the erasure.
        folders: where no output folder is named, it is this and a number.
        model: gives the original model where no name does; called with the settings.
        **kwargs: passed on to `ec_hf.erase`, over what the flags say.

    Returns:
        The exit code: 0, or `NOT_FORGOTTEN` where the flags ask for it.

    Raises:
        UsageError: for flags that do not go together.
        ValueError: as `ec_hf.erase`.
    """
    config = replace(rewound_to(what.base_model, config), output_dir=new_folder(config, folders))
    request, reference = read_request(what), reference_of(what, config)

    from accelerate import PartialState
    from transformers.utils import logging

    from ec_hf.pipeline import erase
    from ec_hf.publishing.hub import PushError
    from ec_hf.training.loss import DivergedError

    logging.set_verbosity_warning()
    with stdout_for_json(what.json) as answer:
        state = PartialState(cpu=config.use_cpu)
        state.print(f"{state.num_processes} process(es), backend {state.backend or 'none'}, device {state.device}")
        chosen: dict[str, Any] = {
            "retrained": reference,
            **{name: getattr(what, name) for name in PASSED_ON},
            "with_heads": what.with_heads or False,
            **kwargs,
        }
        original: Any = model(config) if model else what.model_name_or_path
        data: Any = what.dataset_name
        try:
            done = erase(original, data, request, args=config, output_dir=str(config.output_dir), **chosen)
        except PushError as error:
            sys.exit(str(error))
        except DivergedError as error:
            raise ValueError(str(error)) from error
        if state.is_main_process:
            _show(done)
            if answer:
                print(json.dumps(done.to_dict()), file=answer, flush=True)
        done.trainer.end()
    return NOT_FORGOTTEN if what.fail_unless_forgotten and not passes(done.status, done.report) else 0


PASSED_ON = (
    "model_revision",
    "dataset_config",
    "id_column",
    "hold_out",
    "streaming",
    "with_delete",
    "manifest_detail",
    "finish",
)
"""Flags that are keywords of `ec_hf.erase`."""


def reference_of(what: EraseArguments, config: ECConfig) -> Any:
    """The retrained models that are named, or a function that trains them; None for none.

    Raises:
        UsageError: it is not said what the retrained model starts from.
    """
    if what.retrained_name_or_path or not what.with_retrained:
        return what.retrained_name_or_path
    base = _base(what.base_model or NO_BASE)
    if what.retrain_from == "base" and not base and what.model_name_or_path:
        raise UsageError(
            "--with_retrained trains a model without the forget set, and must know what your model was trained from. "
            "Give --base_model ID for a fine-tuned network, or --retrain_from new for one that was trained from "
            "random weights; or pass a retrained model that is there already as --retrained_name_or_path."
        )
    given: dict[str, Any] = {"seed": config.seed, "use_cpu": config.use_cpu, "disable_tqdm": config.disable_tqdm}
    given |= read_settings(what.retrain_settings) if what.retrain_settings else {}
    if what.retrain_from == "base":
        given["base_model"] = base

    from ec_hf.training.classifier import ClassifierConfig

    columns: dict[str, Any] = {"image_column": config.image_column, "label_column": config.label_column}
    try:
        ClassifierConfig(output_dir="unused", **columns | given)
    except TypeError as error:
        raise UsageError(f"{what.retrain_settings}: {error}; ec-hf retrain --help-all lists the settings") from error

    def trained(original: Any, data: Any) -> list[str]:
        from ec_hf.training.classifier import train_once

        settings = ClassifierConfig(output_dir=str(Path(str(config.output_dir)) / "retrained"), **columns | given)
        retained = data.splits["retain_train"], data.splits["retain_test"]
        return train_once(settings, what.retrain_seeds, *retained, like=original.model, processor=original.processor)

    return trained


def rewound_to(base: str | None, config: ECConfig) -> ECConfig:
    """The settings with the base model as what `rewind` goes back to, where they name no other."""
    if base is None or config.objective != "rewind":
        return config
    return replace(config, objective_kwargs={"base": _base(base), **(config.objective_kwargs or {})})  # type: ignore[dict-item]


def _base(text: str) -> str | None:
    """The base model that --base_model names; None for the word that says that there is none."""
    return None if text.lower() == NO_BASE else text


def new_folder(config: ECConfig, folders: str) -> str:
    """The output folder that is named, else the first of FOLDERS-1, FOLDERS-2 and so on that is not there."""
    if config.output_dir != UNNAMED:
        return str(config.output_dir)
    return next(str(path) for path in (Path(f"{folders}-{i}") for i in count(1)) if not path.exists())


def _show(done: Any) -> None:
    """What was found, as a table and in words."""
    from rich.console import Console

    from ec_hf.reporting.tables import to_rich
    from ec_hf.reporting.verdict import findings

    console = Console()
    console.print(to_rich(done.report))
    console.print(*map(str, findings(done.report)), sep="\n", markup=False)
    heads = "EC heads, " if (done.folder / HEADS).exists() else ""
    print(f"\nIn {done.folder}: the unlearned model, its card, {heads}manifest, audit and figures")
    print(f"Open {done.folder / PAGE} first.")
    if retrained := sorted(str(each) for each in done.folder.glob("retrained-*")):
        print(f"Retrained models, for --retrained_name_or_path and ec-hf audit --retrained: {' '.join(retrained)}")
    if done.url:
        print(f"Published at {done.url}")
    print(f"What next: {what_next(done)}")


MORE = (
    "let more of the network start anew, with a larger depth or alpha in --objective_kwargs, or raise --ec_weight; a "
    "fine-tuned network goes back to its --base_model"
)
LESS = "train longer, with --num_train_epochs, or let less of the network start anew, with a smaller alpha or depth"
"""What to change after a rewind."""
TO_KNOW = (
    "to know whether this is enough, compare with a model that never saw the images: --with_retrained "
    "--base_model ID, or ec-hf retrain."
)


def _was_rewound(trainer: Any) -> bool:
    """Whether the model was rewound, or the pilot that it followed."""
    return trainer.eraser.objective.renews or "pilot" in trainer.on_record


def what_next(done: Any) -> str:
    """What to change, or to do, after what the audit found.

    Args:
        done: what `ec_hf.erase` gave.
    """
    referenced = any(model.role == "retrained" for model in done.report.models.values())
    if done.status in ("untouched", "under-erased", "known"):
        if done.trainer.put_back:
            return (
                f"too little was erased: the rest suffered in later steps, so {done.trainer.put_back} was put back. "
                "Raise --retain_weight, or lower --learning_rate with more --max_steps; with --eval_strategy steps "
                "--eval_steps 10 --save_strategy steps --save_steps 10 the run goes back less far."
            )
        steps, enough = done.trainer.state.global_step, ECConfig.min_steps
        few = f"the run took {steps} steps and layers need {enough} or more, so " if steps < enough else ""
        first = "" if referenced else f"{TO_KNOW} If that model knows less than this one, "
        other = "raise --max_steps and --min_steps, then --learning_rate or --ec_weight; or leave out --objective"
        more = MORE if _was_rewound(done.trainer) else few + other
        return f"{first}too little was erased: {more}."
    if done.status == "over-erased":
        other = "lower --ec_weight or --max_steps, or leave out --objective"
        return f"more was erased than retraining would: {LESS if _was_rewound(done.trainer) else other}."
    if not referenced:
        return TO_KNOW
    if done.status == "as retrained":
        return f"ec-hf push {done.folder} NAME/REPOSITORY publishes it."
    return (
        "the comparison with the retrained model is open: see that it is as good on the rest as the original, take "
        "three of them (ec-hf retrain --seeds 3), or give more test images."
    )
