"""The loops that users bring themselves take the steps of `ECTrainer`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from datasets import DatasetDict
from helpers.launching import launch
from helpers.models import make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("processes", [1, 2])
def test_the_bare_loop_takes_the_steps_of_ec_trainer(tmp_path, processes):
    launch(HERE / "bare_loop.py", tmp_path, 16 // processes, processes=processes)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] == processes
    assert found["apart"] < 1e-6 and found["moved"]


def test_the_bare_loop_is_short():
    assert len((RECIPES / "erase_accelerate.py").read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_recipe_of_adapters_prints_a_table_by_rank(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    DatasetDict(train=make_images(), test=make_images(50, seed=1)).save_to_disk(tmp_path / "data")
    for part in (make_model("ViT"), make_processor()):
        part.save_pretrained(tmp_path / "model")
    flags = {
        "original": tmp_path / "model", "dataset_name": tmp_path / "data", "output_dir": tmp_path / "out", "ranks": 2,
        "with_full": False, "with_delete": True, "use_cpu": True, "max_steps": 2, "heads_epochs": 1,
        "eval_strategy": "no", "save_strategy": "no", "per_device_train_batch_size": 8,
    }  # fmt: skip
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["lora.py", *argv, "--forget_classes", "bee", "dog"])
    runpy.run_path(str(RECIPES / "lora.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "|  | original | rank 2 | delete, rank 2 | random_init |" in printed
    assert "| linear probe, forget test, penultimate |" in printed
    AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "rank-2" / "merged")
