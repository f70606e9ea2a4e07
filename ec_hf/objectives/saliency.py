"""SalUn as a host objective."""

from __future__ import annotations

from dataclasses import dataclass

from ec_hf.objectives.random_label import RandomLabel

__all__ = ["Saliency"]


@dataclass
class Saliency(RandomLabel):
    """Random labels, with only the half of the weights that matter most to the forget set free to move.

    The loss is that of `RandomLabel`, with its settings; the mask is `ec_hf.training.saliency`, whose share
    `ECConfig(saliency=...)` changes, and which any other objective can have by that setting too.

    Published settings: half of the weights, and those of random labels.
    """

    name = "saliency"
    saliency = 0.5
    source = "SalUn, ICLR 2024, arXiv 2310.12508"
