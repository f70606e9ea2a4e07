"""The recipe that puts methods between an original and retrained models."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from helpers.models import NAMES, make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

from ec_hf import ECConfig
from ec_hf.auditing.report import AuditReport, Measurement, ModelInfo, Signal

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import positions as recipe
import side_by_side

SETTINGS = {"use_cpu": True, "max_steps": 2, "heads_epochs": 1, "learning_rate": 1e-3}


def signal(metric, position):
    return Signal(metric, "ec", "forget_test", "penultimate", 0.5, 0.9, [0.4], position, None, None, "unclear", 10)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    DatasetDict(train=make_images(100), test=make_images(60, seed=1)).save_to_disk(folder / "data")
    for name, seed in (("original", 0), ("retrained-1", 1), ("retrained-2", 2)):
        make_model("ViT", seed=seed).save_pretrained(folder / name)
        make_processor().save_pretrained(folder / name)
    return {
        "dataset_name": str(folder / "data"),
        "forget_classes": [NAMES[1]],
        "original": str(folder / "original"),
        "retrained": [str(folder / "retrained-1"), str(folder / "retrained-2")],
        "audit": {"embedding": False, "int8": False},
        "common": SETTINGS,
        "methods": {"delete": {"objective": "delete", "points": []}, "rewind": {"objective": "rewind"}},
    }


def test_every_method_has_a_row_and_every_signal_a_place(case, tmp_path):
    report, costs = recipe.run(case, tmp_path)
    lines = recipe.table(report, costs).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:7]] == [
        "delete", "rewind", "original", "retrained 1", "retrained 2"
    ]  # fmt: skip
    placed = {(each.metric, each.layer, each.note) for each in report.signals if each.position is not None}
    assert len(lines) == 2 + 5 + 1 + 2 + len(placed)
    assert costs["rewind"]["retain_images_seen"] == 3 * 64  # one batch tells the order of the blocks


def test_a_model_that_is_there_is_not_made_again(case, tmp_path):
    some = {**case, "methods": {"delete": case["methods"]["delete"]}}
    _, first = recipe.run(some, tmp_path)
    before = (tmp_path / "delete" / "model.safetensors").stat().st_mtime_ns
    _, second = recipe.run(some, tmp_path)
    assert first == second and (tmp_path / "delete" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_a_method_with_adapters_ends_as_a_plain_model_whose_other_weights_stay(case, tmp_path):
    pytest.importorskip("peft")
    delete = case["methods"]["delete"]
    adapters = {"r": 2, "target_modules": "all-linear", "modules_to_save": ["classifier"]}
    report, _ = recipe.run({**case, "methods": {"lora": {**delete, "adapters": adapters}, "full": delete}}, tmp_path)
    original, merged, full = (
        AutoModelForImageClassification.from_pretrained(folder).state_dict()
        for folder in (case["original"], tmp_path / "lora", tmp_path / "full")
    )
    assert list(merged) == list(original)
    moved = [{name for name in original if not torch.equal(original[name], each[name])} for each in (merged, full)]
    assert moved[0] < moved[1] and all(name.endswith("weight") or "classifier" in name for name in moved[0])
    assert {each.model for each in report.signals} == {"lora", "full"}


def test_the_values_of_signals_without_a_position_are_shown_too():
    report = AuditReport(signals=[signal("knn", None), signal("linear_probe", 0.8)])
    assert recipe.values(report, ["ec", "other"])[2:] == [
        "| knn forget_test penultimate | 0.900 | 0.400 to 0.400 | 0.500 | — |",
        "| linear_probe forget_test penultimate | 0.900 | 0.400 to 0.400 | 0.500 | — |",
    ]


def test_nearness_is_the_mean_distance_of_what_has_a_position():
    found = [
        ("knn", 0.8),
        ("linear_probe", 1.5),
        ("knn", None),
        ("accuracy", 9.0),
    ]
    report = AuditReport(signals=[signal(*each) for each in found])
    assert recipe.nearness(report, "ec") == (pytest.approx(0.35), 0.5)
    assert recipe.nearness(report, "other") is None


def test_with_seeds_every_method_has_a_run_for_each_and_one_row(case, tmp_path):
    seeds = {**case, "methods": {"delete": case["methods"]["delete"]}, "seeds": [3, 4]}
    report, costs = recipe.run(seeds, tmp_path)
    assert list(costs) == ["delete, seed 3", "delete, seed 4"]
    first, second = (
        AutoModelForImageClassification.from_pretrained(tmp_path / run).classifier.weight for run in costs
    )
    assert not torch.equal(first, second)
    rows = recipe.table(report, costs).splitlines()
    assert [line.split(" | ")[0] for line in rows[2:4]] == ["| delete", "| original"]


@pytest.mark.parametrize(("values", "shown"), [([], "—"), ([0.5, 0.5], "0.50"), ([0.25, 0.75], "0.50 (0.25 to 0.75)")])
def test_the_range_of_runs_stands_beside_their_mean_where_they_differ(values, shown):
    assert recipe.spread(values, "{:.2f}") == shown


def report_of(distances, retain):
    """An audit of methods whose one signal lies so far from 1."""
    report = AuditReport(
        signals=[dataclasses.replace(signal("knn", 1 - distance), model=run) for run, distance in distances.items()]
    )
    for name, accuracy in {**dict.fromkeys(distances, retain), "retrained": 0.9}.items():
        role = "retrained" if name == "retrained" else "unlearned"
        report.models[name] = ModelInfo("Tiny", 1, role)
        report.measurements.append(Measurement("accuracy", name, accuracy, split="retain_test"))
    return report


def test_side_by_side_a_case_counts_once_and_the_nearest_method_stands_first():
    first = report_of({"far": 0.8, "near, seed 1": 0.1, "near, seed 2": 0.3, "only here": 0.0}, 0.88)
    second = report_of({"far": 1.0, "near": 0.4}, 0.92)
    rows = side_by_side.table({"first": first, "second": second}).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| near", "| far"]
    assert rows[2].split(" | ")[1] == "0.30 (0.20 to 0.40)" and rows[2].endswith("| 0.20 | 0.40 |")
    assert rows[3].split(" | ")[3] == "+0.0 (-2.0 to +2.0)"


def test_side_by_side_reads_saved_audits(tmp_path, monkeypatch, capsys):
    report_of({"near": 0.25}, 0.9).save(tmp_path / "audit.json")
    monkeypatch.setattr(sys, "argv", ["side_by_side", *(f"{name}={tmp_path / 'audit.json'}" for name in "ab")])
    side_by_side.main()
    assert capsys.readouterr().out.splitlines()[2] == "| near | 0.25 | 100% | +0.0 | 0.25 | 0.25 |"


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ({"one": report_of({"a": 0.1}, 0.9)}, "needs two"),
        ({"one": report_of({"a": 0.1}, 0.9), "two": report_of({"b": 0.1}, 0.9)}, "no method is in all of one, two"),
    ],
)
def test_side_by_side_says_what_it_cannot_put_together(reports, said):
    with pytest.raises(ValueError, match=said):
        side_by_side.table(reports)


def test_a_case_without_methods_has_those_of_the_file_of_methods():
    methods = yaml.safe_load(recipe.METHODS.read_text(encoding="utf-8"))
    assert len(methods) == 7 and methods["default"] == {"learning_rate": None}
    for settings in methods.values():
        ECConfig(output_dir="unused", use_cpu=True, **settings)
