"""Numbers that are no numbers: found at their step, and told by component, point and image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ec_hf.training.loss import DivergedError, LossTerms

__all__ = ["finite_loss", "parts_without_gradient", "require_finite_logits"]


def finite_loss(terms: LossTerms, batch: Mapping[str, Any], step: int, place: Callable[[int], str]) -> Tensor:
    """The loss of a paired batch, if it is a number.

    Args:
        terms: what the batch cost.
        batch: its ``pixel_values`` and, where the collator gives them, ``rows``.
        step: number of the optimiser step, for the error.
        place: names the set and the row that an entry of ``rows`` means.

    Raises:
        DivergedError: it is not; the error names the parts of the loss, and the images that are no numbers themselves.
    """
    try:
        return terms.finite_total(step)
    except DivergedError as error:
        broken = ~torch.isfinite(batch["pixel_values"]).flatten(1).all(dim=1)
        if not broken.any():
            raise
        rows = batch["rows"][broken[: len(batch["rows"])].to(batch["rows"].device)].tolist() if "rows" in batch else []
        named = ", ".join(map(place, rows)) or f"{int(broken.sum())} of the batch"
        raise DivergedError(f"{error} Images that are NaN or infinite: {named}.") from None


def parts_without_gradient(terms: LossTerms, model: nn.Module) -> list[str]:
    """Names of the parts of a loss whose gradient is NaN or infinite in some weight of the model."""
    weights = [each for each in model.parameters() if each.requires_grad]
    found = []
    for name, term in terms.parts.items():
        if term.value.requires_grad:
            gradients = torch.autograd.grad(term.value, weights, retain_graph=True, allow_unused=True)
            if not all(torch.isfinite(each).all() for each in gradients if each is not None):
                found.append(name)
    return found


def require_finite_logits(logits: Tensor, step: int) -> Tensor:
    """The logits of evaluation images, if all are numbers: argmax would take others for the first class.

    Raises:
        DivergedError: some are not.
    """
    if torch.isfinite(logits).all():
        return logits
    raise DivergedError(
        f"step {step}: logits of evaluation images are NaN or infinite. The model, or an image, is broken: an "
        "accuracy of such outputs would say nothing."
    )
