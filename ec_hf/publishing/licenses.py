"""Licences as the Hub names them, and that of a base model."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from ec_hf.files import CARD

__all__ = ["LICENSES", "base_license"]

LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apple-amlr apple-ascl apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 intel-research
    isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905 - a list would be sixty lines
)
"""Licence identifiers that the Hub documents."""
KEYS = ("license", "license_name", "license_link")


def base_license(name_or_path: str | Path | None, token: str | bool | None = None) -> dict[str, str]:
    """What the card of a model says of its licence: `license`, and for "other" `license_name` and `license_link`.

    Args:
        name_or_path: a folder with a README.md, or a Hub id.
        token: Hub token, or True for the stored one.

    Returns:
        The keys that the card has; none if there is no card, it names no licence, or the Hub does not answer.
    """
    if not name_or_path:
        return {}
    folder = Path(name_or_path)
    try:
        card = ModelCard.load(folder / CARD if folder.is_dir() else str(name_or_path), token=token)  # type: ignore[arg-type]
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    metadata = {key: getattr(card.data, key, None) for key in KEYS}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}
