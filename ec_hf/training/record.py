"""What an unlearning run has done, as plain values for the files beside the model."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import accelerate
import psutil
import torch
import transformers

from ec_hf._version import __version__
from ec_hf.command import command, public
from ec_hf.publishing.licenses import base_license
from ec_hf.training.plan import RunPlan

__all__ = ["peak_memory_mb", "run_record"]


def run_record(plan: RunPlan, model_config: Any, cost: dict[str, float]) -> dict[str, Any]:
    """Plan, base model, versions, cost and command of a run as JSON values. No local path is in it.

    Args:
        plan: what the run set out to do.
        model_config: configuration of the model, which names what it was loaded from.
        cost: what it took so far; empty before its end.
    """
    base = getattr(model_config, "_name_or_path", None)
    return {
        **plan.to_dict(),
        "date": datetime.now(UTC).date().isoformat(),
        "base_model": public(base),
        "base_model_revision": getattr(model_config, "_commit_hash", None),
        "base_model_license": base_license(base) if base and Path(base).is_dir() else {},
        "command": command(),
        "cost": cost,
        "versions": {
            "ec_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def peak_memory_mb(device: torch.device) -> int:
    """The most memory that this process has held so far, in MB: on the GPU that it uses, else on the machine."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    if sys.platform == "win32":
        return round(psutil.Process().memory_info().peak_wset / 2**20)
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
