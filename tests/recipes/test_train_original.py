from __future__ import annotations

import sys
from pathlib import Path

from datasets import DatasetDict
from helpers.models import make_model, make_processor

from ec_hf.models.loading import load_model

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import train_original as recipe


def test_the_command_line_trains_on_a_folder(images, held_out, tmp_path, monkeypatch, capsys):
    DatasetDict({"train": images, "test": held_out}).save_to_disk(tmp_path / "data")
    flags = f"--dataset_name {tmp_path / 'data'} --output_dir {tmp_path / 'model'} --architecture resnet --max_steps 2"
    monkeypatch.setattr(sys, "argv", ["train_original.py", *flags.split(), "--use_cpu", "--disable_tqdm", "true"])
    recipe.main()
    assert load_model(tmp_path / "model")[0].config.model_type == "resnet"
    out = capsys.readouterr().out
    assert "1 process(es)" in out and "on the test images; saved in" in out


def test_the_command_line_fine_tunes_a_base_model(images, held_out, tmp_path, monkeypatch, capsys):
    DatasetDict({"train": images, "test": held_out}).save_to_disk(tmp_path / "data")
    make_model("ViT").save_pretrained(tmp_path / "base")
    make_processor().save_pretrained(tmp_path / "base")
    flags = f"--dataset_name {tmp_path / 'data'} --output_dir {tmp_path / 'model'} --base_model {tmp_path / 'base'}"
    monkeypatch.setattr(sys, "argv", ["train_original.py", *flags.split(), "--max_steps", "1", "--use_cpu"])
    recipe.main()
    assert load_model(tmp_path / "model")[0].config.model_type == "vit"
    assert f"from {tmp_path / 'base'}" in capsys.readouterr().out
