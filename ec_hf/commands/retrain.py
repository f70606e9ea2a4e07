"""`ec-hf retrain`: the reference for forgetting, a model trained without what is to be forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ec_hf.commands.parsing import JSON_HELP, UsageError, flag, parse, parser_for, stdout_for_json
from ec_hf.commands.requests import RequestArguments, read_request
from ec_hf.training.classifier import ClassifierConfig, train_seeds

__all__ = ["OFTEN", "RetrainArguments", "retrain_command", "retrain_parser"]


@dataclass
class RetrainArguments(RequestArguments):
    """Without what to train, and what from."""

    model_name_or_path: str | None = flag(
        "The model that is to unlearn: the retrained one has its classes, and leaves out what it forgot before."
    )
    model_revision: str | None = flag("Branch, tag or commit of that model.")
    retrain_from: Literal["base", "new"] = flag(
        "base for the pretrained weights of --base_model, new for the model's architecture with new weights.", "base"
    )
    seeds: int = flag(
        "Train so many models, with the seeds from --seed on, into OUTPUT_DIR-1, OUTPUT_DIR-2 and so on; the spread "
        "of retrained models is the unit of an audit.",
        1,
    )
    json: bool = flag(JSON_HELP, False)


@dataclass
class RetrainConfig(ClassifierConfig):
    """`ClassifierConfig` with a folder of its own."""

    output_dir: str | None = flag("Folder for the retrained model.", "outputs/retrained")


OFTEN = {
    "what from": ("model_name_or_path", "base_model", "retrain_from", "output_dir"),
    "without what": ("dataset_name", "forget_classes", "forget_request"),
    "how to train": (
        "seeds",
        "seed",
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "weight_decay",
        "augment",
        "use_cpu",
        "bf16",
    ),
    "the result": ("json",),
}
"""What `--help` lists."""

DESCRIPTION = """Train the reference for forgetting: a model that never saw what is to be forgotten.

    ec-hf retrain --model_name_or_path ID --base_model ID --dataset_name ID --forget_classes cat dog --seeds 3
    ec-hf retrain --model_name_or_path ID --retrain_from new --dataset_name ID --forget_request request.json

Train it as your model was trained: the same base model, epochs, learning rate and batch size. Then give it to
ec-hf erase --retrained_name_or_path, or to ec-hf audit --retrained.

A first argument that ends in .yaml gives defaults for any of the flags.

Exit codes: 0 done, 1 an error, 2 wrong usage."""


APPEARANCE: dict[str, Any] = {"description": DESCRIPTION, "prog": "ec-hf retrain", "often": OFTEN}


def retrain_parser() -> Any:
    """The parser of ``ec-hf retrain``."""
    return parser_for(RetrainArguments, RetrainConfig, **APPEARANCE)


def retrain_command(argv: Sequence[str]) -> None:
    """``ec-hf retrain``: train a model, or several seeds of it, on the retain set of a request."""
    what, config = parse(RetrainArguments, RetrainConfig, argv=argv, **APPEARANCE)
    if not what.dataset_name:
        raise UsageError("--dataset_name missing; --help lists the flags")
    if config.base_model and what.retrain_from == "new":
        raise UsageError("--base_model has pretrained weights and --retrain_from new has none: give one of the two")
    if what.retrain_from == "new" and not what.model_name_or_path:
        raise UsageError("--retrain_from new: name the model with that architecture as --model_name_or_path")
    if what.retrain_from == "base" and not config.base_model:
        raise UsageError(
            "say what to train from: --base_model ID for a fine-tuned network, or --retrain_from new for one that was "
            "trained from random weights"
        )
    request = read_request(what)

    from accelerate import PartialState

    with stdout_for_json(what.json) as answer:
        state = PartialState(cpu=config.use_cpu)
        folders = _retrained(what, config, request, state)
        state.print(f"Retrained without what the request names: {' '.join(folders)}")
        if answer and state.is_main_process:
            print(json.dumps({"folders": folders}), file=answer, flush=True)
        state.wait_for_everyone()  # gloo may abort a process that leaves while another still works
    state.destroy_process_group()


def _retrained(what: RetrainArguments, config: RetrainConfig, request: Any, state: Any) -> list[str]:
    """Train the models; their folders."""
    from ec_hf.data.erasure import ErasureData
    from ec_hf.pipeline import Original, images_of, resolved

    original = Original.of(what.model_name_or_path, revision=what.model_revision) if what.model_name_or_path else None
    images, _ = images_of(what.dataset_name, what.dataset_config)
    request = resolved(request, images, config.label_column)
    state.print(request.summary())
    columns = {"label_column": config.label_column, "id_column": what.id_column}
    history = original.history if original else ()
    data = ErasureData.of(images, request, history=history, share=0, seed=config.seed, **columns)
    config = replace(config, label_column=data.columns["label_column"])
    like = {"like": original.model, "processor": original.processor} if original else {}
    return train_seeds(config, what.seeds, data.splits["retain_train"], data.splits["retain_test"], **like)
