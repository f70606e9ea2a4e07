"""The original model, frozen: distilling objectives and calibrated erasure ask it for its logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ec_hf.models.adapters import adapters_off, is_adapted

__all__ = ["Teacher"]

LOOKED_AT_AGAIN = 8
"""Images of the forget set by which it is seen whether they are the same each time."""


class Teacher:
    """Logits of a model as it is now, whatever becomes of it.

    Args:
        original: a classifier; it is copied. A model with adapters is not: without them it is the original, so they
            are switched off for each question.

    Attributes:
        model: the copy, in eval mode, or the model with adapters. No question puts a gradient on its parameters, its
            input may have one.
    """

    def __init__(self, original: nn.Module) -> None:
        self.adapted = is_adapted(original)
        self.model = original if self.adapted else copy.deepcopy(original).eval().requires_grad_(False)
        self._forget_logits: Tensor | None = None

    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Logits (rows, classes), computed where the pixels are."""
        if self.adapted:
            with adapters_off(self.model):
                return self.model(pixel_values=pixel_values).logits
        return self.model.to(pixel_values.device)(pixel_values=pixel_values).logits

    def remember(
        self, batches: Iterable[Mapping[str, Tensor]], batch_of_rows: Callable[[list[int]], Mapping[str, Tensor]]
    ) -> None:
        """Compute the logits of the whole forget set once; the model then waits in the memory of the CPU.

        Args:
            batches: ``pixel_values`` of the forget set, in the order of its rows.
            batch_of_rows: makes a batch of the rows of these numbers; the first few are looked at a second time, each
                alone.

        Raises:
            ValueError: images that differ from one look to the next.
        """
        logits: list[Tensor] = []
        with torch.no_grad():
            for batch in batches:
                if not logits:
                    _check_repeatable(batch["pixel_values"][:LOOKED_AT_AGAIN], batch_of_rows)
                logits.append(self(batch["pixel_values"]))
        self._forget_logits = torch.cat(logits)
        if not self.adapted:
            self.model.cpu()  # comes back should it be asked for something else

    def remembered(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Logits of the forget half of a paired batch, None where nothing was remembered.

        Raises:
            ValueError: the batch does not say which rows are in it.
        """
        if self._forget_logits is None:
            return None
        if "rows" not in batch:
            raise ValueError(
                "cache_teacher=True: the data_collator gives no `rows`, the `paired_row` of each example."
            )
        return self._forget_logits[batch["rows"][: batch["num_forget"]]]


def _check_repeatable(images: Tensor, batch_of_rows: Callable[[list[int]], Mapping[str, Tensor]]) -> None:
    again = torch.cat([batch_of_rows([row])["pixel_values"] for row in range(len(images))])
    if not torch.allclose(images.cpu(), again.cpu(), atol=1e-3):
        raise ValueError(
            "cache_teacher=True: the forget images differ from one look to the next, so the original model's "
            "outputs on them cannot be computed once. Take random augmentation off the forget set, or leave "
            "cache_teacher out."
        )
