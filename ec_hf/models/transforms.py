"""Functions that prepare one image, such as torchvision's transforms, as image processors."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ec_hf.files import PROCESSOR, write_json

__all__ = ["TransformProcessor", "as_processor"]


class TransformProcessor:
    """A function from a PIL image to a tensor (channels, height, width), as an image processor.

    It is taken for a function without state, so copies of a model share it.

    Args:
        transform: the function, such as ``weights.transforms()`` of torchvision or a ``Compose``.

    Attributes:
        image_mean: mean by which it normalises, where that can be told.
        image_std: standard deviation by which it normalises, where that can be told.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        steps = [transform, *getattr(transform, "transforms", ())]
        told = next((step for step in steps if hasattr(step, "mean") and hasattr(step, "std")), None)
        self.image_mean = None if told is None else [float(value) for value in told.mean]
        self.image_std = None if told is None else [float(value) for value in told.std]

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        """Prepare images.

        Args:
            images: PIL images.
            return_tensors: "pt", for tensors of torch.

        Returns:
            ``pixel_values`` (images, channels, height, width) float32.

        Raises:
            TypeError: the function gives something that is no tensor of floats.
            ValueError: it gives tensors of different shapes.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: expected 'pt'")
        prepared = [self.transform(image) for image in images]
        if not all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in prepared):
            raise TypeError(
                f"the transform gives a {type(prepared[0]).__name__} and no tensor of floats: let it end with "
                "ToTensor and Normalize, as the model was trained with"
            )
        if len(shapes := {tuple(each.shape) for each in prepared}) > 1:
            raise ValueError(
                f"the transform gives tensors of different shapes, {sorted(shapes)[:2]}: let it resize and crop images"
            )
        return {"pixel_values": torch.stack(prepared).float()}

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformProcessor:
        return self

    def to_dict(self) -> dict[str, Any]:
        """What tells it from other ones, for as long as the process runs."""
        return {"transform": id(self.transform)}

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write what is known of the function beside a model; the function itself is code, and stays with its owner.

        Args:
            folder: of the model.
        """
        content = {"prepared_by": f"code of its owner: {self.transform!r}"}
        told = {"image_mean": self.image_mean, "image_std": self.image_std}
        write_json(Path(folder) / PROCESSOR, content | {name: value for name, value in told.items() if value})


def as_processor(given: Any) -> Any:
    """An image processor as it is; a function that prepares one image as a `TransformProcessor`.

    Args:
        given: either of these, or None; of several by name, each is looked at.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, Mapping):
        return {name: as_processor(each) for name, each in given.items()}
    if given is None or hasattr(given, "save_pretrained") or _takes_a_batch(given):
        return given
    if not callable(given):
        raise TypeError(
            f"processor: expected an image processor of transformers or a function from a PIL image to a tensor, got "
            f"{type(given).__name__}"
        )
    return TransformProcessor(given)


def _takes_a_batch(given: Any) -> bool:
    """Whether something is called as image processors of transformers are."""
    try:
        called = given.forward if isinstance(given, nn.Module) else given
        return "return_tensors" in inspect.signature(called).parameters
    except (TypeError, ValueError):  # no callable, or one of C
        return False
