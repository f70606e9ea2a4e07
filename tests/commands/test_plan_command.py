"""What `ec-hf plan` says is what `ec-hf erase` then does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from datasets import DatasetDict
from helpers.models import make_images, make_model, make_processor

from ec_hf import cli
from ec_hf.commands.erase import EraseArguments
from ec_hf.commands.parsing import UsageError, parse
from ec_hf.training.config import ECConfig

PAPER = sorted((Path(__file__).parents[2] / "recipes" / "paper").glob("*.yaml"))
TINY = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
QUICK = ["--measured_steps", "1", "--measured_images", "2"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A settings file for both commands, and a model and images for the second."""
    folder = tmp_path_factory.mktemp("inputs")
    DatasetDict(train=make_images(), test=make_images(50, seed=1)).save_to_disk(folder / "data")
    make_model("ViT").save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    chosen = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "data"),
        "objective": "contrastive",
        "forget_random_classes": 2,
        "forget_seed": 1,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "heads_epochs": 1,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "use_cpu": True,
        "plan": {"train_images": 100, "test_images": 50, "num_classes": 5, "model_config": TINY, "retrain_epochs": 10},
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(chosen))
    return path


def planned(capsys, *flags):
    assert cli.main(["plan", *map(str, flags), "--json", *QUICK]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_an_erasure_takes_the_steps_and_sees_the_images_that_were_planned(settings, tmp_path, capsys):
    plan = planned(capsys, settings)
    assert cli.main(["erase", str(settings), "--output_dir", str(tmp_path / "out"), "--forget_target", "-1"]) == 0
    record = json.loads((tmp_path / "out" / "ec_config.json").read_text())
    manifest = json.loads((tmp_path / "out" / "forget_manifest.json").read_text())
    cost = record["cost"]
    assert plan["steps"] == cost["steps"]
    assert plan["trained_on"] == {name: cost[f"{name}_images_seen"] for name in ("forget", "retain")}
    assert plan["images"] == {name: record["data"][name]["images"] for name in ("forget", "retain")}
    assert plan["run"]["points"] == record["points"] and plan["run"]["layer_weights"] == record["layer_weights"]
    assert plan["request"] == manifest["request"]["content"], "the classes that were drawn are on record"
    assert sorted(manifest["parts"]["forget"]["per_class"].values()) == [20, 20]


def test_images_that_stand_in_are_split_as_the_images_themselves(settings, capsys):
    standing_in = planned(capsys, settings)
    itself = settings.with_name("itself.yaml")
    values = yaml.safe_load(settings.read_text())
    values["plan"] = {"retrain_epochs": 10}
    itself.write_text(yaml.safe_dump(values))
    real = planned(capsys, itself)
    for name in (
        "request",
        "images",
        "original_images",
        "evaluated",
        "steps",
        "trained_on",
        "fitted_on",
        "parameters",
    ):
        assert standing_in[name] == real[name], name


def test_a_plan_reads_as_tables_and_says_what_it_assumes(settings, capsys):
    assert cli.main(["plan", str(settings), *QUICK, "--images_per_second", "100", "--devices", "1", "4"]) == 0
    text = capsys.readouterr().out
    assert "supervision points" in text and "forward and backward:" in text
    assert "| devices | 1 | 4 |" in text
    assert "| seconds a step | 0.32 |" in text, "32 images at 100 a second"
    assert "erasure against retraining" in text
    assert "Assumed: each device takes 100 images a second" in text


@pytest.mark.parametrize("file", PAPER, ids=lambda path: path.stem)
def test_a_paper_file_gives_defaults_of_an_erasure_and_can_be_planned(file, tmp_path, monkeypatch, capsys):
    parse(EraseArguments, ECConfig, argv=[str(file)])  # which passes over what is for the plan
    monkeypatch.chdir(tmp_path)
    Path("top100_cub.txt").write_text("\n".join(map(str, range(100))))
    facts = yaml.safe_load(file.read_text())["plan"]
    small = {**TINY, "hidden_size": 16, "num_attention_heads": 1, "intermediate_size": 16}
    plan = planned(
        capsys, file, "--model_config", json.dumps(small), "--image_size", "32",
        "--train_images", facts["train_images"] // 100, "--test_images", "0",
    )  # fmt: skip
    forgotten = len(plan["request"]["classes"])
    assert forgotten == (10 if "cifar100" in file.stem else 100)
    assert plan["run"]["settings"]["contrast"] == "csul"
    assert plan["steps"] > 0 and plan["devices"][2]["share_of_retraining"] > 0


def test_streamed_data_is_planned_by_its_size_alone(settings, tmp_path, capsys):
    chosen = yaml.safe_load(settings.read_text())
    del chosen["plan"]["train_images"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(chosen))
    assert cli.main(["plan", str(tmp_path / "settings.yaml"), "--streaming"]) == 2
    assert "a plan of streamed data reads none of it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--model_config", "null", "--model_name_or_path", ""], "say which model", 2),
        (["--num_classes", "0"], "--num_classes 0: expected a number above 0", 2),
        (["--devices", "0"], "--devices 0", 2),
        (["--forget_random_classes", "5"], "the data has 5 classes", 1),
        (["--objective", "ssd", "--points", "none"], "takes no steps to be planned", 1),
        (["--objective", "scrubs"], "scrubs", 1),
        (["--model_config", '{"model_type": "bert"}'], "no image classifier", 1),
        (["--model_config", "resnet"], "expected a JSON object", 2),
    ],
)
def test_what_cannot_be_planned_is_said_before_anything_is_measured(settings, capsys, flags, message, code):
    assert cli.main(["plan", str(settings), *flags]) == code
    assert message in capsys.readouterr().err


def test_settings_of_another_command_s_block_are_passed_over_and_unknown_ones_in_an_own_block_refused(tmp_path):
    (tmp_path / "settings.yaml").write_text("seed: 7\nplan: {trian_images: 3}\n")
    assert parse(ECConfig, argv=[str(tmp_path / "settings.yaml")])[0].seed == 7
    with pytest.raises(UsageError, match="unknown settings trian_images"):
        parse(ECConfig, argv=[str(tmp_path / "settings.yaml")], block="plan")
    (tmp_path / "settings.yaml").write_text("plan: 3\n")
    with pytest.raises(UsageError, match="under 'plan' expected a mapping"):
        parse(ECConfig, argv=[str(tmp_path / "settings.yaml")], block="plan")


@pytest.mark.parametrize(("epochs", "remembers"), [(2, True), (0.25, False)])
def test_a_plan_asks_the_original_as_the_run_would_once_where_forget_images_come_round(
    settings, capsys, epochs, remembers
):
    flags = ["--objective", "delete", "--calibrated", "true", "--num_train_epochs", epochs]
    assert planned(capsys, settings, *flags)["run"]["settings"]["cache_teacher"] is remembers
