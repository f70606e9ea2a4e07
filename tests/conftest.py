"""No network, one thread, deprecations as errors, and what most tests share."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes run side by side

import copy
import gc
import logging

import pytest
import torch
import transformers
from datasets import Dataset
from helpers.models import make_images
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("busy machine", deadline=None)  # an example may take long where other work goes on
settings.load_profile("busy machine")


class RefuseDeprecations(logging.Handler):
    """transformers logs most of its deprecations; here they fail a test, as those do that it warns of."""

    def emit(self, record: logging.LogRecord) -> None:
        """Raise it where it was logged."""
        if "deprecated" in record.getMessage().lower():
            raise FutureWarning(record.getMessage())


transformers.logging.disable_default_handler()
transformers.logging.add_handler(RefuseDeprecations())


@pytest.fixture(autouse=True)
def deprecations_are_logged() -> None:
    """Whatever verbosity a recipe chose in an earlier test."""
    transformers.logging.set_verbosity_warning()


def pytest_collection_finish() -> None:
    """Accelerate collects garbage after each run, which takes a second over all that is imported by now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def images() -> Dataset:
    return make_images()


@pytest.fixture(scope="session")
def held_out() -> Dataset:
    return make_images(count=50, seed=1)


@pytest.fixture
def own_registry(monkeypatch) -> None:
    """Objectives that the test registers are known to it alone."""
    from ec_hf.objectives import registry

    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory):
    from helpers.trainers import make_trainer  # slow to import, and most tests train nothing

    trainer = make_trainer(tmp_path_factory.mktemp("heads"))
    trainer.fit_heads()
    return trainer.heads


@pytest.fixture
def fitted_heads(fitted_once):
    """EC heads that were fitted on `make_model("ViT")`, for this test alone."""
    return copy.deepcopy(fitted_once)
