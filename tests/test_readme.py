"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from helpers.models import make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

from ec_hf import objectives

README = Path(__file__).parents[1] / "README.md"


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second, loop, own = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {
        "train_dataset": make_images(),
        "test_dataset": make_images(50, seed=1),
        "model_or_id": make_model("ViT"),
        "processor": make_processor(),
    }
    exec(first, names)
    AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    exec(second, names)
    names["model"] = make_model("ViT")
    before = [value.clone() for value in names["model"].parameters()]
    exec(loop, names)
    assert any(not torch.equal(*pair) for pair in zip(before, names["model"].parameters(), strict=True))
    assert not hasattr(names["model"], "ec_heads")
    assert names["request"].ids == {"patient": (17,)}
    recipe = Path(README.parent, "recipes", "own_objective.py").read_text()
    assert recipe.endswith(own), "that file runs in another test"


def test_every_objective_is_named():
    text = README.read_text()
    assert [name for name in objectives.available() if f"`{name}`" not in text] == []
