"""An original model on disk and images to erase from it."""

from __future__ import annotations

import pytest
from datasets import DatasetDict
from helpers.models import make_images, make_model, make_processor


@pytest.fixture
def original(tmp_path):
    folder = tmp_path / "original"
    make_model("ViT").save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data():
    return DatasetDict(train=make_images(200), test=make_images(50, seed=1))
