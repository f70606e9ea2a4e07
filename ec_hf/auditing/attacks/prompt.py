"""Visual prompts: learnt tokens before the first block, or learnt pixels around the image; the model is frozen."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.auditing.attacks.base import BATCH, Attack, AttackImages, Outcome
from ec_hf.auditing.attacks.fitting import endless_batches, hits_on, logits_of, train
from ec_hf.auditing.subjects import Subject
from ec_hf.models.points import describe_hidden_states

__all__ = ["BorderPrompt", "Prompt", "TokenPrompt", "prompt_for"]

STEPS = 64
TOKENS = 10
BORDER = 30 / 224
"""Width of the border as a share of the image's shorter side, as in arXiv 2203.17274."""
LEARNING_RATES = {"tokens": 3e-2, "border": 5e-2}


@dataclass(frozen=True)
class Prompt(Attack):
    """Learns a prompt from so many images a forgotten class, among as many retain images; the model stays frozen."""

    unit: Literal["images a class"] = "images a class"
    level: Literal["quick", "full"] = "full"

    def run(self, subject: Subject, images: AttackImages) -> Outcome:
        """See `Attack.run`."""
        collator, tests, hits = subject.collator, images.tests(subject.collator), []
        settings: dict[str, Any] = {}
        shape = tuple(tests[0]["pixel_values"].shape[1:])
        for shots in images.shots:
            model = copy.deepcopy(subject.model).eval().requires_grad_(False)
            prompt = prompt_for(model, shape, seed=images.seed)
            sample = images.of_each_class(shots)
            batches = endless_batches(sample, collator, BATCH, images.seed)
            rate = LEARNING_RATES[prompt.kind]
            for _ in islice(train(prompt.classify, prompt.parameters(), batches, model, rate), STEPS):
                pass
            hits.append(hits_on(prompt.classify, tests, model))
            settings = {
                "prompt": prompt.kind,
                "parameters": prompt.size,
                "steps": STEPS,
                "learning_rate": rate,
                "optimizer": "AdamW",
                "seed": images.seed,
            }
        return Outcome(images.shots, np.stack(hits), self.unit, settings)


class BorderPrompt(nn.Module):
    """Learnt values that are added to the pixels along the border (Bahng et al. 2022, arXiv 2203.17274).

    They are 0 before the first step.

    Args:
        model: the classifier, which is frozen by whoever calls.
        shape: ``(channels, height, width)`` of the pixels.
    """

    kind = "border"

    def __init__(self, model: PreTrainedModel, shape: tuple[int, ...]) -> None:
        super().__init__()
        _, height, width = shape
        edge = max(1, round(BORDER * min(height, width)))
        around = torch.ones(height, width)
        around[edge : height - edge, edge : width - edge] = 0
        self.values = nn.Parameter(torch.zeros(shape, device=model.device, dtype=model.dtype))
        self.around = around.to(model.device, model.dtype)
        self.size = int(around.sum()) * shape[0]
        self._logits = logits_of(model)

    def classify(self, pixels: Tensor) -> Tensor:
        """Logits of the framed images."""
        return self._logits(pixels + self.values * self.around)


class TokenPrompt(nn.Module):
    """Learnt tokens that pass through all blocks beside those of the image (Jia et al. 2022, arXiv 2203.12119).

    This is the shallow form: one set of tokens, behind the prefix tokens and before those of the patches. They are
    taken out behind the last block, so that the model pools as it always does.

    Args:
        model: the classifier, which is frozen by whoever calls.
        blocks: its blocks, first to last.
        prefix: number of tokens before those of the patches.
        width: of the tokens.
        seed: seed of their random start.
    """

    kind = "tokens"

    def __init__(self, model: PreTrainedModel, blocks: nn.ModuleList, prefix: int, width: int, *, seed: int) -> None:
        super().__init__()
        start = 0.02 * torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(seed))
        self.values = nn.Parameter(start.to(model.device, model.dtype))
        self.size = self.values.numel()
        self.place = slice(prefix, prefix + TOKENS)
        self._ends = [blocks[0], blocks[-1]]
        self._logits = logits_of(model)

    def classify(self, pixels: Tensor) -> Tensor:
        """Logits of the images with the tokens beside theirs."""
        first, last = self._ends
        hooks = [first.register_forward_pre_hook(self._add), last.register_forward_hook(self._remove)]
        try:
            return self._logits(pixels)
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, _block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, at = args[0], self.place.start
        own = self.values.expand(len(tokens), -1, -1)
        return (torch.cat([tokens[:, :at], own, tokens[:, at:]], dim=1), *args[1:])

    def _remove(self, _block: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._without(output[0]), *output[1:])
        return self._without(output)

    def _without(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, : self.place.start], tokens[:, self.place.stop :]], dim=1)


def prompt_for(model: PreTrainedModel, shape: tuple[int, ...], *, seed: int = 0) -> TokenPrompt | BorderPrompt:
    """Learnt tokens where a model can take them, as a trial shows, and a learnt border everywhere else.

    Tokens need blocks that all work on tokens of one width and number, and none of which minds how many these are.
    Those of Swin and PVT are windows or maps, and BEiT's can have a bias for each place.

    Args:
        model: an image classifier in evaluation mode, frozen.
        shape: ``(channels, height, width)`` of the pixels.
        seed: seed of the tokens' random start.
    """
    blank = torch.zeros(1, *shape, device=model.device, dtype=model.dtype)
    with suppress(RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError), torch.no_grad():
        point = describe_hidden_states(model, shape)[0]  # type: ignore[arg-type]
        blocks, count, width = _token_blocks(model, blank)
        if point.kind == "tokens" and count == point.prefix + point.height * point.width:
            prompt = TokenPrompt(model, blocks, point.prefix, width, seed=seed)
            if prompt.classify(blank).shape == logits_of(model)(blank).shape:
                return prompt
    return BorderPrompt(model, shape)


def _token_blocks(model: PreTrainedModel, blank: Tensor) -> tuple[nn.ModuleList, int, int]:
    """The longest list of blocks that run one after the other on tokens, with their number and width.

    Raises:
        ValueError: there are none.
    """
    lists = [each for each in model.modules() if isinstance(each, (nn.ModuleList, nn.Sequential)) and len(each)]
    seen: dict[nn.Module, list[tuple[int, ...]]] = {}

    def note(block: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(block, []).append(tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ())

    hooks = [block.register_forward_pre_hook(note) for block in {block for each in lists for block in each}]
    try:
        logits_of(model)(blank)
    finally:
        for hook in hooks:
            hook.remove()
    for each in sorted(lists, key=len, reverse=True):
        shapes = [seen.get(block, []) for block in each]
        alike = len({type(block) for block in each}) == 1 and all(shape == shapes[0] for shape in shapes)
        if alike and len(shapes[0]) == 1 and len(shapes[0][0]) == 3:
            return each, *shapes[0][0][1:]  # type: ignore[return-value]
    raise ValueError(f"{type(model).__name__} has no blocks of tokens")
