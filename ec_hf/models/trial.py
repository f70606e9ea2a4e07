"""Images of noise, by which a network's layers are found out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["TRIAL_IMAGES", "trial_images"]

TRIAL_IMAGES = 2


def trial_images(module: nn.Module, shape: tuple[int, int, int], count: int = TRIAL_IMAGES) -> Tensor:
    """The same images each time, uniform from 0 to 1, where and in the precision that a network wants them.

    Args:
        module: the network, with at least one parameter of floating point.
        shape: ``(channels, height, width)`` of an image.
        count: number of images.

    Returns:
        (count, channels, height, width).
    """
    weight = next(each for each in module.parameters() if each.is_floating_point())
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).to(weight)
