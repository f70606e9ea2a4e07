"""Random moves of training images: turned, zoomed, shifted, mirrored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ec_hf.models.inputs import ImageCollator

__all__ = ["COLOUR", "GRAY", "Batches", "move"]

GRAY = {"degrees": 10, "zoom": 0.1, "shift": 0.07, "flip": 0.0}
COLOUR = {"degrees": 0, "zoom": 0, "shift": 0.125, "flip": 0.5}


@dataclass
class Batches:
    """Dataset transform: examples to `pixel_values` and `labels`, a batch at once, randomly moved if so asked."""

    collator: ImageCollator
    moves: Mapping[str, float] | None = None

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Collate and move the columns of one batch."""
        batch = self.collator([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
        return batch | ({"pixel_values": move(batch["pixel_values"], **self.moves)} if self.moves else {})


def move(images: torch.Tensor, degrees: float, zoom: float, shift: float, flip: float) -> torch.Tensor:
    """Each image turned, zoomed and shifted by up to as much, and mirrored with the probability `flip`.

    Args:
        images: `(n, channels, height, width)`.
        degrees: angle.
        zoom: share of the size.
        shift: share of the size, in whole pixels, so that it alone blurs nothing.
        flip: probability.
    """
    count, size = len(images), torch.tensor(images.shape[-2:]).flip(0)
    uniform = 2 * torch.rand(count, 4) - 1
    angle, scale = uniform[:, 0] * math.radians(degrees), 1 + zoom * uniform[:, 1]
    mirror = 1 - 2 * (torch.rand(count) < flip).float()
    rows = [mirror * angle.cos() * scale, -angle.sin() * scale, mirror * angle.sin() * scale, angle.cos() * scale]
    turn = torch.stack(rows, dim=1).reshape(count, 2, 2)
    offset = 2 * (uniform[:, 2:] * shift * size).round() / size  # the grid spans -1 to 1
    grid = F.affine_grid(torch.cat([turn, offset[:, :, None]], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
