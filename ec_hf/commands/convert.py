"""`ec-hf convert`: from weights that other code stored to a folder that transformers loads."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ec_hf.commands.parsing import JSON_HELP, HelpFormatter, UsageError, stdout_for_json

__all__ = ["convert_command", "convert_parser"]

DESCRIPTION = """Turn weights of torchvision, timm, Microsoft's Swin or the published EC checkpoints into a folder that
AutoModelForImageClassification.from_pretrained loads.

    ec-hf convert resnet50.pth FOLDER --class_names_file names.txt
    ec-hf convert ec_unlearned_random100.tar FOLDER          # the EC and UUEF checkpoints, ResNet or Swin
    ec-hf convert convnext.safetensors FOLDER --timm_architecture convnext_tiny

The layout is known by the names of the tensors and the sizes of the network by their shapes. A ResNet with a 3x3 stem,
as of CIFAR, becomes one of timm that takes the images magnified by 4, which its image processor does. Every tensor
finds its place and every place its tensor, else nothing is written. Pickles are read as tensors alone: no code in them
runs.

Exit codes: 0 done, 1 an error, 2 wrong usage."""


def convert_command(argv: Sequence[str]) -> None:
    """``ec-hf convert``: see `ec_hf.models.converting.convert`."""
    options = vars(convert_parser().parse_args(argv))
    wants_json = options.pop("json")
    source, folder = options.pop("weights"), Path(options.pop("folder"))
    options["class_names"] = _class_names(options["class_names"], options.pop("class_names_file"))
    if options["layout"] and options["timm_architecture"]:
        raise UsageError("--layout and --timm_architecture both say how the weights are laid out: give one of them")

    from ec_hf.files import ModelFolder, move_files
    from ec_hf.models.converting import convert, read_state

    if there := ModelFolder(folder).present():
        raise FileExistsError(f"{folder} holds {there[0]} already: name another folder")
    with stdout_for_json(wants_json) as answer:
        done = convert(read_state(source), **options)
        aside = folder / "unfinished"
        done.model.save_pretrained(aside)
        done.processor.save_pretrained(aside)
        move_files(aside, folder)
        config = done.model.config
        print(f"{source}: {done.layout}, {config.num_labels} classes, {done.model.num_parameters():,} parameters")
        if done.left_out:
            print(f"Left out: {', '.join(done.left_out[:6])}{' ...' if len(done.left_out) > 6 else ''}")
        print(f"In {folder}: a {type(done.model).__name__} and its image processor. {_normalises(done.processor)}")
        if answer:
            told = {"folder": str(folder), "layout": done.layout, "num_labels": config.num_labels}
            print(json.dumps(told | {"left_out": list(done.left_out)}), file=answer, flush=True)


def convert_parser() -> ArgumentParser:
    """The parser of ``ec-hf convert``."""
    parser = ArgumentParser(
        prog="ec-hf convert", description=DESCRIPTION, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("weights", help="file of weights: .safetensors, or what torch.save wrote (.pth, .pt, .tar)")
    parser.add_argument("folder", help="new folder for the model and its image processor")
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    layout = parser.add_argument_group("what the weights are")
    layout.add_argument(
        "--layout",
        help="torchvision_resnet, small_image_resnet or small_image_resnet_linear (a 3x3 stem), microsoft_swin, "
        "timm_swin, torchvision_swin, timm_vit or torchvision_vit; default: told by the names and shapes",
    )
    layout.add_argument(
        "--timm_architecture",
        help="timm name of any other model that the weights belong to; transformers loads it through timm",
    )
    layout.add_argument(
        "--num_attention_heads", type=int, help="heads of a ViT, where it has not one for each 64 channels"
    )
    layout.add_argument("--ignored", metavar="REGEX", help="leave out tensors whose whole name matches")
    classes = parser.add_argument_group("its classes")
    classes.add_argument("--class_names", nargs="+", metavar="NAME", help="names in the order of their ids")
    classes.add_argument(
        "--class_names_file", metavar="FILE", help="the same, one a line, or as JSON: a list, or ids and names"
    )
    images = parser.add_argument_group("its images")
    images.add_argument("--image_size", type=int, help="side in pixels; default: what the weights tell, else 224")
    images.add_argument(
        "--image_mean",
        nargs="+",
        type=float,
        metavar="M",
        help="mean of each channel (pixels 0 to 1); default: what the weights hold, else ImageNet's",
    )
    images.add_argument(
        "--image_std", nargs="+", type=float, metavar="S", help="standard deviation of each channel, likewise"
    )
    return parser


def _class_names(names: list[str] | None, file: str | None) -> list[str] | None:
    """The class names that are given, in the order of their ids."""
    if names and file:
        raise UsageError("--class_names and --class_names_file both name the classes: give one of them")
    if not file:
        return names
    text = Path(file).read_text(encoding="utf-8")
    if Path(file).suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
        found = [found[key] for key in sorted(found, key=int)] if isinstance(found, dict) else found
    except ValueError as error:
        raise ValueError(f"--class_names_file {file}: expected a list of names, or ids with names: {error}") from error
    return [str(name) for name in found]


def _normalises(processor: Any) -> str:
    """How images are normalised, to be checked by who knows what the weights were trained with."""
    own = getattr(processor, "data_config", None) or {}
    mean, std = own.get("mean") or processor.image_mean, own.get("std") or processor.image_std
    return f"Images are normalised with mean {_listed(mean)} and standard deviation {_listed(std)}."


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)
