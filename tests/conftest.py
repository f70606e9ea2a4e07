"""No network, one thread, and the data that most tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers
from datasets import Dataset
from helpers.models import make_images

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def images() -> Dataset:
    return make_images()


@pytest.fixture(scope="session")
def held_out() -> Dataset:
    return make_images(count=50, seed=1)
