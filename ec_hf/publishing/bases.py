"""The base model that a model's card names."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from ec_hf.files import CARD

__all__ = ["named_base"]

FINE_TUNED = (None, "finetune")


def named_base(name_or_path: str | Path, token: str | bool | None = None) -> str | None:
    """The one model that a model was fine-tuned from, by its card; None where the card names none, or several.

    Args:
        name_or_path: a folder with a README.md, or a Hub id.
        token: Hub token, or True for the stored one.

    Returns:
        A Hub id, or a folder that is there.
    """
    folder = Path(name_or_path)
    try:
        card = ModelCard.load(folder / CARD if folder.is_dir() else str(name_or_path), token=token)  # type: ignore[arg-type]
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = getattr(card.data, "base_model", None)
    base = named[0] if isinstance(named, list) and len(named) == 1 else named
    if not isinstance(base, str) or base == str(name_or_path):
        return None
    return base if getattr(card.data, "base_model_relation", None) in FINE_TUNED else None
