"""Erase at the Core for Hugging Face vision classifiers."""

from ec_hf._version import __version__
from ec_hf.config import ECConfig
from ec_hf.data import split
from ec_hf.heads import ECHeads
from ec_hf.requests import ForgetRequest
from ec_hf.trainer import ECTrainer

__all__ = ["ECConfig", "ECHeads", "ECTrainer", "ForgetRequest", "__version__", "split"]
