"""Erase at the Core for Hugging Face vision classifiers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ec_hf._version import __version__
from ec_hf.audit import audit  # light; later, the import system would put the module of that name in its place

if TYPE_CHECKING:
    from ec_hf.config import ECConfig
    from ec_hf.data import split
    from ec_hf.heads import ECHeads
    from ec_hf.hub import load_report, push
    from ec_hf.report import AuditReport
    from ec_hf.requests import ForgetRequest
    from ec_hf.trainer import ECTrainer

__all__ = [
    "AuditReport",
    "ECConfig",
    "ECHeads",
    "ECTrainer",
    "ForgetRequest",
    "__version__",
    "audit",
    "load_report",
    "push",
    "split",
]

_HOMES = {
    "AuditReport": "report",
    "ECConfig": "config",
    "ECHeads": "heads",
    "ECTrainer": "trainer",
    "ForgetRequest": "requests",
    "load_report": "hub",
    "push": "hub",
    "split": "data",
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
