"""CF-k as a host objective: fine-tuning of the last blocks alone."""

from __future__ import annotations

from dataclasses import dataclass

from ec_hf.models.depth import blocks_of_weights
from ec_hf.objectives.base import Setting
from ec_hf.objectives.checks import positive
from ec_hf.objectives.finetune import Finetune

__all__ = ["CfK"]


@dataclass
class CfK(Finetune):
    """Cross-entropy on retain, of the last k blocks alone; those before them are frozen: catastrophic forgetting.

    The paper counts layers; here k counts spans between hidden states (`ec_hf.models.depth`), the classifier among
    them, which holds for every family. Published settings (CIFAR, ResNet-18 and ViT): k is a share of the layers, SGD
    with the learning rate of the training.

    Args:
        k: number of blocks from the output, at least 1.

    Raises:
        ValueError: a setting out of range.
    """

    k: int = 2

    name = "cf_k"
    uses = "retain"
    source = "Towards Adversarial Evaluations for Inexact Machine Unlearning, arXiv 2201.06640"

    def __post_init__(self) -> None:
        positive(self, "k")

    def prepare(self, setting: Setting) -> None:
        """Freeze what stands before the last k blocks."""
        self.last_blocks(setting, freeze=True)

    def last_blocks(self, setting: Setting, *, freeze: bool) -> list[str]:
        """Names of the parameters and buffers of the last k blocks; the other parameters may be frozen."""
        blocks, count = blocks_of_weights(setting.model, next(iter(setting.retain()))["pixel_values"][:1])
        last = [name for name, block in blocks.items() if block >= count - self.k]
        if freeze:
            kept = set(last)
            for name, parameter in setting.model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and name in kept)
        return last
