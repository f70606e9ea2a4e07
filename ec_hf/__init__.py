"""Erase at the Core for Hugging Face vision classifiers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ec_hf._version import __version__

if TYPE_CHECKING:
    from ec_hf.auditing.audit import audit
    from ec_hf.auditing.report import AuditReport
    from ec_hf.data.requests import ForgetRequest
    from ec_hf.data.splitting import split
    from ec_hf.models.heads import ECHeads
    from ec_hf.models.wrapping import as_classifier
    from ec_hf.pipeline import erase
    from ec_hf.publishing.hub import load_report, push
    from ec_hf.training.callback import ECCallback
    from ec_hf.training.config import ECConfig, EraserConfig
    from ec_hf.training.eraser import Eraser
    from ec_hf.training.trainer import ECTrainer

__all__ = [
    "AuditReport",
    "ECCallback",
    "ECConfig",
    "ECHeads",
    "ECTrainer",
    "Eraser",
    "EraserConfig",
    "ForgetRequest",
    "__version__",
    "as_classifier",
    "audit",
    "erase",
    "load_report",
    "push",
    "split",
]

_HOMES = {
    "AuditReport": "auditing.report",
    "ECCallback": "training.callback",
    "ECConfig": "training.config",
    "ECHeads": "models.heads",
    "ECTrainer": "training.trainer",
    "Eraser": "training.eraser",
    "EraserConfig": "training.config",
    "ForgetRequest": "data.requests",
    "as_classifier": "models.wrapping",
    "audit": "auditing.audit",
    "erase": "pipeline",
    "load_report": "publishing.hub",
    "push": "publishing.hub",
    "split": "data.splitting",
}


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used, so that a command line answers before torch is loaded."""
    if name in _HOMES:
        globals()[name] = getattr(import_module(f"ec_hf.{_HOMES[name]}"), name)
        return globals()[name]
    try:
        return import_module(f"ec_hf.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"ec_hf.{name}":
            raise
        raise AttributeError(f"module 'ec_hf' has no attribute {name!r}") from None
