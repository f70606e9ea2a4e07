"""A folder of fitted EC heads, which later requests to the same model and data take up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from ec_hf.data.fingerprint import fingerprint
from ec_hf.files import CONFIG, ModelFolder, move_files, read_json, write_json
from ec_hf.models.heads import ECHeads
from ec_hf.models.loading import weights_hash
from ec_hf.training.checkpoints import UNFINISHED
from ec_hf.training.config import ECConfig

__all__ = ["HeadsCache", "fitted_on"]

FITTED_ON = "fitted_on.json"
"""The file that says of which model and data the heads are."""


class HeadsCache:
    """Fitted heads in a folder, and what they were fitted on.

    Args:
        folder: of the cache; made when heads are kept.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def holds_heads(self) -> bool:
        """Whether whole heads are there.

        Raises:
            FileExistsError: something else is there, which would be replaced.
        """
        files = ModelFolder(self.folder)
        if (there := files.present()) and "points" not in files.read(CONFIG):
            raise FileExistsError(
                f"heads_cache={str(self.folder)!r} holds {there[0]} and no EC heads: name a new folder"
            )
        return files.damage() is None

    def of(self, wanted: Mapping[str, Any]) -> Path | None:
        """The folder, where it holds heads; None where it holds none yet.

        Args:
            wanted: as `fitted_on`.

        Raises:
            FileExistsError: as `holds_heads`.
            ValueError: they are of another model, of other data or of another fit, or do not say of which.
        """
        if not self.holds_heads():
            return None
        file = self.folder / FITTED_ON
        found = read_json(file) if file.is_file() else {}
        if other := [name for name, value in wanted.items() if found.get(name) != value]:
            what = (
                f"EC heads of another {' and '.join(other)}" if found else "EC heads, and not what they are fitted on"
            )
            raise ValueError(
                f"heads_cache={str(self.folder)!r} holds {what}: name a new folder, or take this one away."
            )
        return self.folder

    def keep(self, heads: ECHeads, wanted: Mapping[str, Any]) -> None:
        """Write fitted heads, whole or not at all.

        Args:
            heads: the heads.
            wanted: as `fitted_on`.
        """
        aside = self.folder / UNFINISHED
        heads.save_pretrained(aside)
        write_json(aside / FITTED_ON, wanted)
        move_files(aside, self.folder)


def fitted_on(model: PreTrainedModel, data: Dataset, config: ECConfig) -> dict[str, Any]:
    """What heads are fitted on, and how; their supervision points stand in their own configuration.

    Args:
        model: the original model.
        data: all training images.
        config: settings of the erasure.
    """
    return {
        "model": weights_hash(model),
        "data": fingerprint(data),
        "heads_epochs": config.heads_epochs,
        "heads_learning_rate": config.heads_learning_rate,
    }
