"""The recipes as their users run them, on tiny data."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from datasets import DatasetDict
from helpers.launching import launch
from helpers.models import make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

from ec_hf.auditing.report import AuditReport
from ec_hf.reporting.verdict import findings

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A data set and an original model on disk."""
    folder = tmp_path_factory.mktemp("inputs")
    DatasetDict(train=make_images(), test=make_images(50, seed=1)).save_to_disk(folder / "data")
    make_model("ViT").save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    return folder


def arguments(inputs, out):
    return {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "data"),
        "forget_classes": ["bee", "dog"],
        "output_dir": str(out),
        "use_cpu": True,
        "max_steps": 4,
        "heads_epochs": 1,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "retain_floor": 1.0,
        "forget_target": -1.0,
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_ec_vit_erases_compares_and_saves(inputs, tmp_path, processes):
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(arguments(inputs, tmp_path / "out")))
    flags = ["--with_delete", "--max_steps", "2"]  # a flag overrides the file
    printed = launch(RECIPES / "ec_vit.py", settings, *flags, processes=processes)
    assert f"{processes} process(es), backend {'gloo' if processes > 1 else 'none'}" in printed
    assert printed.count("Forget the classes") == 1, "one rank speaks"
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    assert {name: info.role for name, info in report.models.items()} == {
        "original": "original",
        "EC": "unlearned",
        "delete": "unlearned",
        "random_init": "floor",
    }
    assert "accuracy" in printed
    assert str(findings(report)[0]).split()[0] in printed
    assert (tmp_path / "out" / "report.html").exists()
    assert (tmp_path / "out" / "figures" / "cka.png").exists()
    assert json.loads((tmp_path / "out" / "ec_config.json").read_text())["cost"]["steps"] == 2
    manifest = json.loads((tmp_path / "out" / "forget_manifest.json").read_text())
    assert manifest["parts"]["forget"] == {"rows": 40, "per_class": {"bee": 20, "dog": 20}}
    AutoModelForImageClassification.from_pretrained(tmp_path / "out")


def test_the_comparison_is_the_same_from_one_process_and_from_two(inputs, tmp_path):
    found = []
    for processes in (1, 2):
        settings = tmp_path / f"{processes}.yaml"
        # A learning rate of almost nothing leaves the original, whose figures both runs must agree on.
        chosen = arguments(inputs, tmp_path / str(processes)) | {"learning_rate": 1e-12, "max_steps": 1}
        settings.write_text(yaml.safe_dump(chosen))
        launch(RECIPES / "ec_vit.py", settings, processes=processes)
        report = AuditReport.load(tmp_path / str(processes) / "audit.json")
        found.append({row.split: row.value for row in report.find("accuracy", model="original")})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_request_file_with_rows_leaves_the_whole_test_set_to_retain(inputs, tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"rows": [0, 1, 2, 3, 4, 5, 6, 7]}))
    chosen = arguments(inputs, tmp_path / "out") | {"forget_request": str(request), "max_steps": 1}
    del chosen["forget_classes"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(chosen))
    printed = launch(RECIPES / "ec_vit.py", tmp_path / "settings.yaml", processes=1)
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    assert {row.split for row in report.find("accuracy")} == {"forget_train", "retain_train", "retain_test"}
    assert report.value("linear_cka", model="EC", split="forget_train", layer="hidden_states.4") is not None
    assert "it needs eval_dataset" not in printed, "the forgotten rows themselves are evaluated"


def test_train_original_makes_the_retrained_reference_of_a_request(inputs, tmp_path):
    flags = [
        "--dataset_name",
        inputs / "data",
        "--without_classes",
        "bee",
        "dog",
        "--output_dir",
        tmp_path / "retrained",
    ]
    flags += ["--architecture", "resnet", "--max_steps", "40", "--per_device_train_batch_size", "8", "--use_cpu"]
    launch(RECIPES / "train_original.py", *flags, processes=1)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "retrained")
    assert model.config.num_labels == 5, "the classes keep their place in the head"
    chosen = arguments(inputs, tmp_path / "out") | {"model_name_or_path": str(tmp_path / "retrained"), "max_steps": 1}
    chosen |= {"retrained_name_or_path": str(tmp_path / "retrained")}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(chosen))
    launch(RECIPES / "ec_vit.py", tmp_path / "settings.yaml", processes=1)
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    assert report.value("accuracy", model="retrained", split="forget_train") == 0.0
    assert report.value("accuracy", model="retrained", split="retain_test") > 0.9
    profile = report.profile("linear_cka", model="retrained", reference="original", split="retain_test")
    assert min(profile.values()) == pytest.approx(1.0), "both are the same model here"


def test_the_demonstration_is_left_out_where_model_or_data_are_named(inputs, tmp_path):
    flags = ["--model-name-or-path", inputs / "model", "--dataset-name", inputs / "data", "--forget_classes", "bee"]
    flags += ["--max_steps", "1", "--heads_epochs", "1", "--use_cpu", "--output_dir", tmp_path]
    launch(RECIPES / "ec_vit.py", *flags, processes=1)
    settings = json.loads((tmp_path / "ec_config.json").read_text())["settings"]
    assert (settings["objective"], settings["points"]) == ("contrastive", "auto")


def test_unknown_settings_in_a_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    from ec_hf import ECConfig
    from ec_hf.cli import parse

    (tmp_path / "settings.yaml").write_text("temprature: 0.5\n")
    with pytest.raises(ValueError, match="unknown settings temprature"):
        parse(ECConfig, argv=[str(tmp_path / "settings.yaml")])
    assert sys.path[0] == str(RECIPES)
