"""EU-k as a host objective: the last blocks are trained anew, and they alone."""

from __future__ import annotations

from dataclasses import dataclass

from ec_hf.objectives.base import Setting
from ec_hf.objectives.cf_k import CfK
from ec_hf.objectives.rewind import mix, new_weights

__all__ = ["EuK"]


@dataclass
class EuK(CfK):
    """Cross-entropy on retain, of the last k blocks from new weights; those before them are frozen: exact in its part.

    What the paper counts in layers counts in blocks here, as in `CfK`. Train it as the original was trained.

    Args:
        k: number of blocks from the output, at least 1.

    Raises:
        ValueError: a setting out of range.
    """

    name = "eu_k"
    renews = True

    def prepare(self, setting: Setting) -> None:
        """Draw new weights for the last k blocks, and freeze what stands before them."""
        last = self.last_blocks(setting, freeze=True)
        mix(setting.model, new_weights(setting.model), dict.fromkeys(last, 1.0))
