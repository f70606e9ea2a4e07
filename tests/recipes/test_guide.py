"""The guide's Python runs as it stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from helpers.models import make_images, make_model, make_processor
from helpers.stock import collate_fn, stock_trainer, with_pixels
from transformers import AutoModelForImageClassification, Trainer

from ec_hf import ECConfig, ForgetRequest, load_report, split
from ec_hf.commands.erase import EraseArguments
from ec_hf.commands.parsing import parse
from ec_hf.commands.plan import PlanArguments
from ec_hf.models.loading import load_model

GUIDE = Path(__file__).parents[2] / "recipes" / "README.md"
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.DOTALL | re.MULTILINE))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the blocks of sections, one after another, with the names that the guide takes for granted."""
    monkeypatch.chdir(tmp_path)
    names = {"model": make_model("ViT"), "processor": make_processor(), "train_dataset": make_images()}
    names["test_dataset"] = make_images(50, seed=1)
    names |= {"collate_fn": collate_fn, "TheirTrainer": type("TheirTrainer", (Trainer,), {})}
    names["parts"] = split(names["train_dataset"], ForgetRequest(classes=["cat", "dog"]))

    def run(*sections, **given):
        names.update(given)
        for section in sections:
            for block in re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL):
                exec(block, names)
        return names

    return run


def moved(model):
    """Whether a model is another one than the original, and plain."""
    before = make_model("ViT").state_dict()
    assert list(model.state_dict()) == list(before) and not hasattr(model, "ec_heads")
    return any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_retain_set_may_be_streamed(run, tmp_path):
    make_images().to_parquet(str(tmp_path / "0.parquet"))
    names = run("Data larger than a machine", shards=[str(tmp_path / "0.parquet")])
    assert names["trainer"].state.global_step == 3 and names["trainer"].eraser.forget_classes == (2, 3)
    assert moved(names["model"])


def test_a_trainer_with_three_lines_more_erases(run):
    parts = {
        name: with_pixels(part) for name, part in split(make_images(), ForgetRequest(classes=["cat", "dog"])).items()
    }
    names = run("Your own Trainer", parts=parts)
    assert moved(AutoModelForImageClassification.from_pretrained("own-trainer"))
    assert names["Erasing"].compute_loss is Trainer.compute_loss
    added = [line for line in SECTIONS["Your own Trainer"].splitlines() if re.search(r"# [123](:|$)", line)]
    assert len(added) == 3


def test_the_weights_of_torchvision_in_the_guide_become_a_model(run):
    names = run("Weights of other code")
    model, processor = load_model("resnet18")
    assert model.config.label2id["elk"] == 4 and processor.crop_size["height"] == 224
    assert names["converted"].left_out == ()


def test_the_settings_of_the_guide_are_what_a_plan_takes(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", SECTIONS["What a run will cost"], re.DOTALL)
    (tmp_path / "settings.yaml").write_text(block)
    kinds = (EraseArguments, ECConfig, PlanArguments)
    what, _, facts = parse(*kinds, argv=[str(tmp_path / "settings.yaml")], block="plan")
    assert (what.forget_random_classes, facts.train_images, facts.model_config["model_type"]) == (
        100,
        1281167,
        "resnet",
    )


def test_the_loop_of_plain_torch_erases(run):
    assert moved(run("A bare loop")["model"])


@pytest.mark.slow
def test_a_network_of_ones_own_erases(run):
    names = run("Your own network")
    before, after = names["network"].state_dict(), names["forgot"].state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert names["model"].hidden_names == names["stages"] and names["model"].config.id2label[2] == "cat"


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
def test_the_module_of_lightning_erases(run):
    names = run("A bare loop")
    before = {name: value.clone() for name, value in names["model"].state_dict().items()}
    names = run("Lightning")
    assert any(not torch.equal(value, before[name]) for name, value in names["model"].state_dict().items())


def test_the_objective_of_the_guide_is_one(run, own_registry):
    names = run("A bare loop", "Your own objective")
    assert names["eraser"].objective.name == "flatten" and moved(names["model"])


def test_a_deletion_in_a_run_in_progress_leaves_the_rows_out_and_goes_on(run):
    model, seen = make_model("ViT"), []
    stock_trainer("fine-tuning", model, with_pixels(make_images()), save_strategy="steps", save_steps=3).train()

    class Watching(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.extend(inputs["labels"].tolist())
            return super().training_step(model, inputs, *args, **kwargs)

    names = run("A deletion while fine-tuning is in progress", EPOCHS=2, Trainer=Watching)
    assert set(seen) == {0, 1, 4}, "cat and dog are left out"
    assert 0 < names["done"] < 2
    erased, final = (AutoModelForImageClassification.from_pretrained(each) for each in ("erased", "fine-tuning-on"))
    assert moved(final) and not torch.equal(erased.classifier.weight, final.classifier.weight)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_adapters_of_the_guide_erase(run):
    peft = pytest.importorskip("peft")
    names = run("LoRA")
    assert isinstance(names["adapted"], peft.PeftModel)
    assert moved(AutoModelForImageClassification.from_pretrained("merged"))
    peft.PeftModel.from_pretrained(make_model("ViT"), "adapter")


def test_the_requests_of_the_guide_add_up(run):
    names = run("What to forget")
    assert names["request"] == ForgetRequest.load("request.json") == names["cats"] | names["some"]
    assert names["patient"].ids == {"patient": (17,)} and names["years"].where


@pytest.mark.slow
def test_a_second_request_of_the_guide_knows_the_first(run):
    names = run("Several requests in a row")
    first, second = (load_report(folder).manifest for folder in ("first", "second"))
    assert [each["request"]["hash"] for each in names["history"]] == [first["request"]["hash"]]
    assert second["parts"]["retain"]["rows"] < first["parts"]["retain"]["rows"]
    assert moved(AutoModelForImageClassification.from_pretrained("second")) and not moved(names["model"])
