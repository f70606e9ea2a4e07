"""The flags that say what is forgotten, and of which data; the same for every command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ec_hf.commands.parsing import UsageError, flag

__all__ = ["RequestArguments", "read_request"]


@dataclass
class RequestArguments:
    """The data, and what of it is forgotten."""

    dataset_name: str | None = flag("Hub id, local folder, or mnist5k, which comes with the package.")
    dataset_config: str | None = flag("Name of a subset, where the dataset on the Hub has several.")
    forget_classes: list[str] | None = flag("Names or label ids of the classes to forget.")
    forget_request: str | None = flag('JSON file, as {"ids": {"file_name": ["cat/7.jpg"]}}; replaces the classes.')
    forget_classes_file: str | None = flag("Text file with a class name or label id a line; replaces the classes.")
    forget_random_classes: int | None = flag(
        "Draw so many classes at random, where none are named; the same ones for every command with the same seed."
    )
    forget_seed: int = flag("Seed of that draw.", 0)
    id_column: str | None = flag("Column that identifies an image; its duplicates go with it.")


def read_request(what: RequestArguments) -> Any:
    """What to forget, from a file or the class flags: a `ForgetRequest`, or `RandomClasses` to be drawn of the data.

    Args:
        what: the flags.

    Raises:
        UsageError: nothing is given.
        ValueError: the file is no request, or no list of classes.
    """
    from ec_hf.data.class_lists import RandomClasses, read_class_list
    from ec_hf.data.requests import ForgetRequest

    if what.forget_request:
        return ForgetRequest.load(what.forget_request)
    if what.forget_classes_file:
        return read_class_list(what.forget_classes_file)
    if what.forget_classes:
        return ForgetRequest(classes=what.forget_classes)
    if what.forget_random_classes is not None:
        return RandomClasses(what.forget_random_classes, what.forget_seed)
    raise UsageError(
        "Say what to forget, or what was to be forgotten: --forget_classes NAME ..., --forget_classes_file FILE, "
        "--forget_random_classes N or --forget_request FILE.json."
    )
