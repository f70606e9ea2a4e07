"""Recovery attacks by name. A new one is one short file with a subclass of `Attack` and one line in the table."""

from __future__ import annotations

from ec_hf.auditing.attacks.base import Attack
from ec_hf.auditing.attacks.new_head import NewHead
from ec_hf.auditing.attacks.prompt import Prompt
from ec_hf.auditing.attacks.pruning import Pruning
from ec_hf.auditing.attacks.quantization import Quantization
from ec_hf.auditing.attacks.relearning import Relearning

__all__ = ["ATTACKS", "attacks_of"]

ATTACKS: dict[str, Attack] = {
    "relearn_head": Relearning("head", "steps", "quick"),
    "relearn_full": Relearning("full", "steps", "quick"),
    "relearn_lora": Relearning("lora", "steps"),
    "relearn_head_images": Relearning("head", "images a class"),
    "relearn_full_images": Relearning("full", "images a class"),
    "relearn_lora_images": Relearning("lora", "images a class"),
    "new_head": NewHead(),
    "prompt": Prompt(),
    "quantization": Quantization(),
    "pruning": Pruning(),
}


def attacks_of(level: str) -> dict[str, Attack]:
    """The attacks by name that a level names.

    Args:
        level: "none", "quick" or "full", which holds the quick ones too.

    Raises:
        ValueError: another level.
    """
    chosen = {"none": (), "quick": ("quick",), "full": ("quick", "full")}
    if level not in chosen:
        raise ValueError(f"attacks={level!r}: expected one of {list(chosen)}")
    return {name: attack for name, attack in ATTACKS.items() if attack.level in chosen[level]}
