"""The recipes as their users run them, on tiny data."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import DatasetDict
from helpers.launching import launch
from helpers.models import make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

from ec_hf import ECConfig
from ec_hf.auditing.report import AuditReport
from ec_hf.cli import parse
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


@pytest.fixture(scope="module")
def erased(inputs, tmp_path_factory):
    """What the recipe leaves in its folder and prints, started with one process and with two."""
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"{processes} process")
        (folder / "settings.yaml").write_text(yaml.safe_dump(arguments(inputs, folder / "out")))
        flags = ["--with_delete", "--max_steps", "2"]  # a flag overrides the file
        printed = launch(RECIPES / "ec_vit.py", folder / "settings.yaml", *flags, processes=processes)
        found[processes] = folder / "out", printed
    return found


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a recipe in this process, which spares the seconds that its imports take, and returns what it printed."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        monkeypatch.syspath_prepend(RECIPES)
        runpy.run_path(str(RECIPES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("processes", [1, 2])
def test_ec_vit_erases_compares_and_saves(erased, processes):
    out, printed = erased[processes]
    assert f"{processes} process(es), backend {'gloo' if processes > 1 else 'none'}" in printed
    assert printed.count("Forget the classes") == 1, "one rank speaks"
    report = AuditReport.load(out / "audit.json")
    assert {name: info.role for name, info in report.models.items()} == {
        "original": "original",
        "rewind + EC": "unlearned",
        "delete": "unlearned",
        "random_init": "floor",
    }
    assert "accuracy" in printed
    assert str(findings(report)[0]).split()[0] in printed
    assert (out / "report.html").exists()
    assert (out / "figures" / "cka.png").exists()
    assert json.loads((out / "ec_config.json").read_text())["cost"]["steps"] == 2
    manifest = json.loads((out / "forget_manifest.json").read_text())
    assert manifest["parts"]["forget"] == {"rows": 40, "per_class": {"bee": 20, "dog": 20}}
    AutoModelForImageClassification.from_pretrained(out)


@pytest.mark.slow
@pytest.mark.launch
def test_the_original_is_measured_the_same_by_one_process_and_by_two(erased):
    reports = [AuditReport.load(out / "audit.json") for out, _ in erased.values()]
    one, two = ({row.split: row.value for row in each.find("accuracy", model="original")} for each in reports)
    assert one == two
    assert len(one) == 4


@pytest.mark.slow
def test_a_request_file_with_rows_leaves_the_whole_test_set_to_retain(inputs, run, tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"rows": [0, 1, 2, 3, 4, 5, 6, 7]}))
    chosen = arguments(inputs, tmp_path / "out") | {"forget_request": str(request), "max_steps": 1}
    del chosen["forget_classes"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(chosen))
    printed = run("ec_vit.py", tmp_path / "settings.yaml")
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    assert {row.split for row in report.find("accuracy")} == {"forget_train", "retain_train", "retain_test"}
    assert report.value("linear_cka", model="follow", split="forget_train", layer="hidden_states.4") is not None
    assert "it needs eval_dataset" not in printed, "the forgotten rows themselves are evaluated"


@pytest.mark.slow
def test_train_original_makes_the_retrained_references_of_a_request(inputs, run, tmp_path):
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
    run("train_original.py", *flags, "--seeds", "3")
    original, *retrained = (str(tmp_path / f"retrained-{number}") for number in (1, 2, 3))
    model = AutoModelForImageClassification.from_pretrained(original)
    assert model.config.num_labels == 5, "the classes keep their place in the head"
    chosen = arguments(inputs, tmp_path / "out") | {"model_name_or_path": original, "max_steps": 1}
    chosen |= {"retrained_name_or_path": retrained}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(chosen))
    run("ec_vit.py", tmp_path / "settings.yaml")
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    for name in ("retrained 1", "retrained 2"):
        assert report.models[name].role == "retrained"
        assert report.value("accuracy", model=name, split="forget_train") == 0.0
        assert report.value("accuracy", model=name, split="retain_test") > 0.9
    assert report.signals and all(len(signal.retrained) == 2 for signal in report.signals)


@pytest.mark.slow
def test_the_demonstration_is_left_out_where_model_or_data_are_named(inputs, run, tmp_path):
    flags = ["--model-name-or-path", inputs / "model", "--dataset-name", inputs / "data", "--forget_classes", "bee"]
    flags += ["--max_steps", "1", "--heads_epochs", "1", "--use_cpu", "--output_dir", tmp_path]
    run("ec_vit.py", *flags)
    settings = json.loads((tmp_path / "ec_config.json").read_text())["settings"]
    assert (settings["objective"], settings["points"]) == ("rewind", "auto")


def test_unknown_settings_in_a_file_are_refused(tmp_path):
    (tmp_path / "settings.yaml").write_text("temprature: 0.5\n")
    with pytest.raises(ValueError, match="unknown settings temprature"):
        parse(ECConfig, argv=[str(tmp_path / "settings.yaml")])


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("config.json", "holds a model"),
        ("checkpoint-7", "a run that did not end"),
        ("pilot", "a run that did not end"),
    ],
)
def test_what_lies_in_the_output_folder_is_never_overwritten(inputs, run, tmp_path, there, message):
    out = tmp_path / "out"
    (out / there).mkdir(parents=True)
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(arguments(inputs, out)))
    with pytest.raises(FileExistsError, match=message):
        run("ec_vit.py", settings)
    assert [path.name for path in out.iterdir()] == [there]


def test_the_demonstration_trains_as_many_retrained_models_as_it_is_told_to(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    recipe = importlib.import_module("ec_vit")
    monkeypatch.setattr(
        sys, "argv", ["ec_vit.py", "--with_retrained", "--retrain_seeds", "2", "--seed", "5", "--use_cpu"]
    )
    monkeypatch.setattr(recipe, "run", lambda *args, retrained, **kwargs: retrained)
    monkeypatch.setattr(
        recipe, "train_once", lambda folder, train, test, config, **kwargs: ((folder, config.seed), None)
    )
    parts = dict.fromkeys(("retain_train", "retain_test"), make_images(10))
    original = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(id2label={0: "0"})))
    found = recipe.main()(original, SimpleNamespace(splits=parts))
    assert [seed for _, seed in found] == [5, 6] and found[0][0] != found[1][0]
