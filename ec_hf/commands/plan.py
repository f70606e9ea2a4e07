"""`ec-hf plan`: what an erasure will do and cost, from its settings, without data and network."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ec_hf.commands.erase import OFTEN as ERASE_OFTEN
from ec_hf.commands.erase import EraseArguments
from ec_hf.commands.parsing import UsageError, flag, parse, parser_for
from ec_hf.commands.requests import read_request
from ec_hf.training.config import ECConfig

__all__ = ["OFTEN", "PlanArguments", "plan", "plan_command", "plan_parser"]


@dataclass
class PlanArguments:
    """What a plan has to know where data and network are out of reach, and for which devices it is made."""

    train_images: int | None = flag("Images of the training set; default: those of --dataset_name, which is loaded.")
    test_images: int = flag("Images of the test set, with --train_images; 0 for none.", 0)
    num_classes: int | None = flag("Classes of the data, with --train_images.")
    image_size: int | None = flag("Side of the images in pixels; default: what the model is configured for.")
    model_config: dict | str | None = flag(
        'Sizes of the model, as in \'{"model_type": "resnet"}\': what differs from the defaults of its configuration '
        "in transformers. Default: the configuration of --model_name_or_path."
    )
    retrain_epochs: float | None = flag("Epochs of a training anew on the retain set, to compare with.")
    devices: list[int] | None = flag("Numbers of devices to plan for. Default: 1 8 64.")
    images_per_second: float | None = flag(
        "Forget and retain images a second that one device takes in steps of the erasure, where another machine is "
        "meant. Default: as measured on this one."
    )
    gigabytes_per_second: float = flag("What each device sends to the next one, in 1e9 bytes a second.", 12.5)
    measured_images: int = flag("Images of each half of the batch that is measured.", 2)
    measured_steps: int = flag("Steps that are measured, of which the median counts.", 3)

    def __post_init__(self) -> None:
        self.devices = self.devices or [1, 8, 64]
        self.model_config = _object(self.model_config)
        numbers = {"devices": min(self.devices), "gigabytes_per_second": self.gigabytes_per_second}
        numbers |= {name: getattr(self, name) for name in ("measured_images", "measured_steps")}
        optional = ("train_images", "num_classes", "image_size", "retrain_epochs", "images_per_second")
        numbers |= {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        if bad := [name for name, value in numbers.items() if value <= 0]:
            raise UsageError(f"--{bad[0]} {numbers[bad[0]]}: expected a number above 0")
        if self.train_images and not self.num_classes:
            raise UsageError("--train_images needs --num_classes: what is forgotten is a number of classes")


def _object(text: Any) -> dict[str, Any] | None:
    """The sizes of a model, as YAML gives them or as JSON text."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        value = text
    if not isinstance(value, (dict, type(None))):
        raise UsageError(f'--model_config {text!r}: expected a JSON object such as \'{{"model_type": "resnet"}}\'')
    return value


OFTEN = {
    "what is planned": ("model_name_or_path", "model_config", "image_size"),
    "data": ("dataset_name", "train_images", "test_images", "num_classes"),
    "what to forget": ("forget_classes", "forget_random_classes", "forget_classes_file", "forget_request"),
    "how to erase": ERASE_OFTEN["how to erase"],
    "devices": ("devices", "images_per_second", "gigabytes_per_second", "measured_images", "measured_steps"),
    "the result": ("retrain_epochs", "json"),
}
"""What `--help` lists."""

DESCRIPTION = """What will an erasure do, and what will it cost? Without data and network, from its settings alone.

    ec-hf plan recipes/paper/imagenet_resnet50_random100.yaml
    ec-hf plan settings.yaml --train_images 50000 --num_classes 100 --devices 1 4
    ec-hf plan settings.yaml --images_per_second 1400        # of a device on which a step was measured

The settings are those of ec-hf erase. Under the key plan, which ec-hf erase passes over, a settings file says what
data and network would: train_images, test_images, num_classes, image_size, model_config, retrain_epochs. A model of
these sizes with random weights takes a few steps on noise; the rest is arithmetic.

Exit codes: 0 done, 1 an error, 2 wrong usage."""
APPEARANCE: dict[str, Any] = {"description": DESCRIPTION, "prog": "ec-hf plan", "often": OFTEN}


def plan_parser() -> Any:
    """The parser of ``ec-hf plan``."""
    return parser_for(EraseArguments, ECConfig, PlanArguments, **APPEARANCE)


def plan_command(argv: Sequence[str]) -> None:
    """``ec-hf plan``: print what an erasure with these settings will do and cost."""
    what, config, facts = parse(EraseArguments, ECConfig, PlanArguments, argv=argv, block="plan", **APPEARANCE)
    if not (what.model_name_or_path or facts.model_config):
        raise UsageError("say which model: --model_name_or_path, or --model_config for its sizes")
    if not (what.dataset_name or facts.train_images):
        raise UsageError("say which data: --dataset_name, or --train_images and --num_classes")
    if what.streaming and not facts.train_images:
        raise UsageError(
            "a plan of streamed data reads none of it: say how much there is, by --train_images and --num_classes"
        )
    planned = plan(what, config, facts)
    if what.json:
        print(json.dumps(planned))
        return

    from ec_hf.commands.plan_tables import as_markdown

    print(as_markdown(planned))


def plan(what: EraseArguments, config: ECConfig, facts: PlanArguments) -> dict[str, Any]:
    """What an erasure with these settings will do and cost, as JSON values.

    Args:
        what: what to forget, from which model and data.
        config: settings of the erasure, for one device.
        facts: what is known in place of data and network.

    Raises:
        UsageError: as `read_request`.
        ValueError: for settings that do not fit, as `ec_hf.erase` would refuse them, and for an objective that trains
            nothing.
    """
    from transformers.utils import logging

    from ec_hf.data.erasure import ErasureData
    from ec_hf.data.stand_in import blanked, stand_in
    from ec_hf.models.loading import configured
    from ec_hf.models.points import image_shape
    from ec_hf.pipeline import images_of, resolved
    from ec_hf.training.measuring import measure
    from ec_hf.training.retain_floor import retain_floor_for
    from ec_hf.training.trainer import ECTrainer

    logging.set_verbosity_error()
    request = read_request(what)
    over = {"num_labels": facts.num_classes, "image_size": facts.image_size}
    over = {name: value for name, value in over.items() if value}
    model = configured(what.model_name_or_path, facts.model_config, revision=what.model_revision, **over)  # type: ignore[arg-type]
    shape = image_shape(model)
    if facts.train_images:
        rows = {"train": facts.train_images, "test": facts.test_images}
        images: Any = stand_in(rows, facts.num_classes or 0, shape, config.label_column or "label")
    else:
        images = blanked(images_of(str(what.dataset_name), what.dataset_config)[0], shape)
    request = resolved(request, images, config.label_column)
    columns: dict[str, Any] = {"label_column": config.label_column, "id_column": what.id_column}
    data = ErasureData.of(images, request, share=what.hold_out, seed=config.seed, **columns)
    with tempfile.TemporaryDirectory() as folder:
        config = replace(
            config,
            output_dir=folder,
            pilot=False,
            push_to_hub=False,
            label_column=data.columns["label_column"],
            retain_floor=retain_floor_for(config, data),
        )
        trainer = ECTrainer(
            model,
            config,
            forget_dataset=data.held_out.train["forget"],
            retain_dataset=data.held_out.train["retain"],
            eval_dataset=data.held_out.evaluated,
        )
        if not trainer.eraser.host.trains:
            raise ValueError(
                f"objective {config.objective!r} edits the model in closed form and takes no steps to be planned"
            )
        measured = measure(trainer, images=facts.measured_images, repeats=facts.measured_steps)
    return _planned(trainer, data, facts, measured, shape)


def _planned(trainer: Any, data: Any, facts: PlanArguments, measured: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The plan of a trainer, and a forecast for each number of devices."""
    from ec_hf.training.forecast import evaluations, forecast, shared_out
    from ec_hf.training.run_length import RunLength

    args, eraser, sets = trainer.args, trainer.eraser, trainer.plan.images
    fitted = 0 if args.heads or not eraser.points else args.heads_epochs * sum(sets.values())
    looked_at = sets["forget"] * ((eraser.saliency is not None) + trainer.remembers_teacher())
    evaluated = {name: len(part) for name, part in (trainer.eval_dataset or {}).items()}
    seconds = measured.seconds
    if facts.images_per_second:
        seconds = seconds.elsewhere(facts.images_per_second)
    forecasts = []
    for devices in facts.devices or ():
        shared = shared_out(args, devices)
        length = RunLength.of(shared, sets["forget"], sets["retain"], devices)
        each = forecast(
            length,
            seconds,
            measured.sizes,
            fitted=fitted,
            evaluated=evaluations(args, length) * sum(evaluated.values()) + looked_at,
            retrained=None if facts.retrain_epochs is None else round(facts.retrain_epochs * sets["retain"]),
            bytes_per_second=1e9 * facts.gigabytes_per_second,
        )
        forecasts.append(
            {**asdict(each), "total_hours": each.total_hours, "share_of_retraining": each.share_of_retraining}
        )
    length = RunLength.of(args, sets["forget"], sets["retain"], 1)
    return {
        "plan": str(trainer.plan),
        "run": trainer.plan.to_dict(),
        "request": data.request.to_dict(),
        "original_images": {name: len(part) for name, part in data.splits.items()},
        "model": type(eraser.model).__name__,
        "parameters": eraser.model.num_parameters(),
        "head_parameters": sum(each.numel() for each in eraser.heads.parameters()),
        "image_shape": list(shape),
        "images": dict(sets),
        "evaluated": evaluated,
        "evaluations": evaluations(args, length),
        "epoch_steps": length.epoch_steps,
        "steps": length.steps,
        "trained_on": length.images(),
        "fitted_on": fitted,
        "retrain_epochs": facts.retrain_epochs,
        "objective_looks": eraser.looks,
        "measured": asdict(measured),
        "images_per_second": facts.images_per_second,
        "gigabytes_per_second": facts.gigabytes_per_second,
        "devices": forecasts,
    }
