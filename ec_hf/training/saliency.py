"""SalUn's mask: only the weights that matter most to the forget set may move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SaliencyMask", "saliency_mask"]


def saliency_mask(model: Any, forget: Iterable[Mapping[str, Tensor]], share: float) -> dict[str, Tensor]:
    """The share of all weights with the largest gradient on the forget set (SalUn, arXiv 2310.12508, eq. 4).

    The gradient is that of the mean cross-entropy over the forget set; entries of all parameters are ranked together
    by its absolute value, and exactly ``round(share * number of weights)`` of them may move.

    Args:
        model: the original model, in eval mode, before EC heads are attached.
        forget: batches of the forget set, dicts of ``pixel_values`` and ``labels``.
        share: share of the weights that may move, above 0 and at most 1.

    Returns:
        Boolean tensors by the names of the parameters that take a gradient, True where a weight may move.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    sums = [torch.zeros_like(each) for each in parameters.values()]
    with torch.enable_grad():
        for batch in forget:
            loss = F.cross_entropy(model(pixel_values=batch["pixel_values"]).logits, batch["labels"], reduction="sum")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient
    ranked = broadcast(torch.cat([total.abs().flatten() for total in sums]))  # all processes must choose the same
    movable = torch.zeros_like(ranked, dtype=torch.bool)
    movable[ranked.topk(round(share * len(ranked))).indices] = True
    pieces = movable.split([each.numel() for each in parameters.values()])
    return {name: piece.view_as(each) for (name, each), piece in zip(parameters.items(), pieces, strict=True)}


class SaliencyMask:
    """Holds the masked weights of a model in training where they are, to the bit.

    Their gradient is zeroed as it arrives, so that it does not count in gradient clipping. Weight decay and momentum
    would still move them: after each optimiser step they are put back, and their optimiser state is cleared.

    Args:
        masks: what `saliency_mask` gives. Parameters that it does not name, such as those of EC heads, move freely.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.masks = masks
        self._held: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._hooks: list[Any] = []

    def hold(self, model: nn.Module) -> None:
        """Take hold of the masked weights as they are now."""
        self.release()
        parameters = dict(model.named_parameters())
        for name, mask in self.masks.items():
            parameter = parameters[name]
            self._held.append((parameter, mask, parameter.detach().clone()))
            self._hooks.append(parameter.register_hook(partial(torch.mul, mask)))

    @torch.no_grad()
    def put_back(self, optimizer: Any) -> None:
        """Undo what weight decay and momentum did to the masked weights in a step of this optimiser."""
        for parameter, mask, start in self._held:
            parameter.copy_(torch.where(mask, parameter, start))
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == mask.shape:
                    value.mul_(mask)

    def release(self) -> None:
        """Let go of the weights, also after a run that failed."""
        for hook in self._hooks:
            hook.remove()
        self._held, self._hooks = [], []
