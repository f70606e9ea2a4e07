"""What linear CKA gives where there is nothing in common, and where there is all: the two ends to read it by."""

from __future__ import annotations

from typing import Literal

import torch

from ec_hf.metrics.arrays import Array, matrix
from ec_hf.metrics.linear_cka import linear_cka

__all__ = ["cka_floor", "split_half_cka"]


def cka_floor(
    x: Array,
    y: Array | None = None,
    debiased: bool = True,
    mode: Literal["exact", "uuef"] = "exact",
    batch_size: int = 512,
    seed: int = 0,
) -> float:
    """CKA of unrelated features of the same widths and spectra: `linear_cka` after the rows of `y` were shuffled.

    About 0 for the debiased estimator; about 1 / (1 + n / p) for the biased one on features without structure
    (0.8 for batches of 512 of width 2048), which is why biased values mean nothing without it.

    Args:
        x: Features `(n, p)`.
        y: Features `(n, q)`; those of x if left out.
        debiased: As in `linear_cka`.
        mode: As in `linear_cka`.
        batch_size: As in `linear_cka`.
        seed: Seed of the order into which rows are shuffled.
    """
    x = matrix(x, "x")
    y = x if y is None else matrix(y, "y")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return linear_cka(x, y[order.to(y.device)], debiased, mode, batch_size)


def split_half_cka(x: Array, debiased: bool = True, seed: int = 0) -> float:
    """CKA between two random halves of the channels of one model's features: how far the channels tell the same.

    High where a layer holds the same information many times over; a second model that agrees with the first as well
    as its own halves do could not be told from it by CKA.

    Args:
        x: Features `(n, p)` with p at least 2; the halves have p // 2 and p - p // 2 channels.
        debiased: As in `linear_cka`.
        seed: Seed of the cut of the channels into halves.

    Raises:
        ValueError: Fewer than two channels, or what `linear_cka` refuses.
    """
    x = matrix(x, "x")
    if x.shape[1] < 2:
        raise ValueError(f"x has {x.shape[1]} channel: halves need at least 2.")
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    half = x.shape[1] // 2
    return linear_cka(x[:, order[:half]], x[:, order[half:]], debiased)
