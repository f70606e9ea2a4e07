"""Networks of one's own through the whole package: erased, audited, saved, described, published, asked again."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers.models import NAMES, make_images, make_model
from helpers.own import TRANSFORM, LeNet, WithTokens, make_own
from helpers.trainers import settings
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments

from ec_hf import ECCallback, ECConfig, ECTrainer, Eraser, EraserConfig, ForgetRequest, as_classifier, audit, erase
from ec_hf import split as split_by
from ec_hf.models.finish import finished
from ec_hf.models.loading import load_model, new_like
from ec_hf.publishing.card import card
from ec_hf.publishing.export import export

pytestmark = pytest.mark.slow

FAST = {"embedding": False, "int8": False}
BEES = ForgetRequest(classes=["bee"])
STEPS = {
    "objective": "contrastive",
    "max_steps": 2,
    "heads_epochs": 1,
    "eval_on_start": False,
    "eval_strategy": "no",
    "save_strategy": "no",
}


def data():
    return {"train": make_images(40), "test": make_images(20, seed=1)}


def erased(network, folder, request=BEES, **kwargs):
    config = ECConfig(str(folder), use_cpu=True, disable_tqdm=True, **STEPS)
    return erase(network, data(), request, output_dir=folder, args=config, audit_settings=FAST, **kwargs)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    """A network before, and what `erase` made of it."""
    torch.manual_seed(0)
    network = LeNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    done = erased(network, tmp_path_factory.mktemp("own") / "out", processor=TRANSFORM)
    return network, before, done


def test_erase_leaves_the_given_network_alone_and_a_folder_that_its_code_loads(lenet):
    network, before, done = lenet
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    saved = load_file(done.folder / "model.safetensors")
    assert saved.keys() == before.keys() and any(not torch.equal(saved[name], before[name]) for name in saved)
    again = LeNet()
    again.load_state_dict(saved)
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(pixels), done.model.own.eval()(pixels))
    assert {"forget_manifest.json", "audit.json", "README.md", "report.html"} <= {
        each.name for each in done.folder.iterdir()
    }
    assert list(done.model.config.id2label.values()) == NAMES
    assert {"conv1", "conv2", "penultimate"} <= set(done.report.layers)
    assert done.report.models["original"].architecture == "LeNet"


def test_configuration_and_card_say_how_the_weights_are_loaded(lenet):
    *_, done = lenet
    config = json.loads((done.folder / "config.json").read_text())
    assert config["network"] == "helpers.own.LeNet" and "load_state_dict" in config["how_to_load"]
    text = (done.folder / "README.md").read_text()
    assert "network.load_state_dict(load_file(" in text and "AutoModelForImageClassification" not in text
    assert "library_name: pytorch" in text
    assert card(done.folder) == text


def test_what_is_exported_is_the_same_network_and_its_logits_cannot_be_finished_without_its_code(lenet, tmp_path):
    *_, done = lenet
    names = export(done.folder, tmp_path / "look")
    assert {"model.safetensors", "config.json", "README.md", "audit.json", "forget_manifest.json"} <= set(names)
    with pytest.raises(ValueError, match=r"finish='drop' needs the code of this network.*finish='keep'"):
        export(done.folder, tmp_path / "dropped", finish="drop")
    dropped = finished(done.model, [1], "drop")
    assert dropped(torch.rand(1, 3, 32, 32)).logits.shape == (1, 4)


def test_a_name_loads_no_network_that_only_its_code_can_build(lenet):
    *_, done = lenet
    with pytest.raises(ValueError, match=r"network of one's own.*as_classifier\(network, weights="):
        load_model(done.folder)


def test_a_second_request_to_saved_weights_knows_the_first(lenet, tmp_path):
    *_, done = lenet
    network = LeNet()
    model = as_classifier(network, weights=done.folder, processor=TRANSFORM)
    saved = load_file(done.folder / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    assert model.hidden_names == ["conv1", "conv2"] and list(model.config.id2label.values()) == NAMES
    second = erased(model, tmp_path / "second", ForgetRequest(classes=["dog"]))
    assert [each["request"]["hash"] for each in second.data.manifest()["history"]] == [BEES.content_hash]
    with pytest.raises(ValueError, match="are those of another network than WithTokens"):
        as_classifier(WithTokens(), weights=done.folder)


def test_an_object_of_timm_is_saved_as_what_transformers_loads(tmp_path):
    given = make_own("timm object ViT")
    done = erased(given, tmp_path / "out", request=BEES)
    loaded = AutoModelForImageClassification.from_pretrained(done.folder)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixel_values=pixels).logits, done.model.eval()(pixels).logits)
    prepared = AutoImageProcessor.from_pretrained(done.folder)([make_images(5)[0]["image"]], return_tensors="pt")
    assert prepared["pixel_values"].shape == (1, 3, 32, 32), "as its pretrained_cfg says, at the size it was made for"


def test_an_audit_takes_networks_compiled_ones_and_a_transform():
    torch.manual_seed(0)
    original, unlearned, retrained = LeNet(), torch.compile(LeNet()), WithTokens()
    report = audit(original, unlearned, retrained=retrained, **data(), request=BEES, processor=TRANSFORM, **FAST)
    assert {name: info.architecture for name, info in report.models.items()} == {
        "original": "LeNet",
        "unlearned": "LeNet",
        "retrained": "WithTokens",
    }
    assert report.value("accuracy", model="unlearned", split="retain_test") is not None


def test_a_callback_erases_from_a_network_in_a_trainer_of_ones_own(tmp_path):
    network = make_own("compiled LeNet")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = make_images(20).map(lambda row: {"pixel_values": TRANSFORM(row["image"]).numpy()}, remove_columns="image")
    rows = rows.with_format("torch")
    eraser = Eraser(network, EraserConfig("contrastive", heads_epochs=1), forget_classes=[1], image_shape=(3, 32, 32))
    erasing = ECCallback(eraser, **split_by(rows, BEES))
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True
    )
    with pytest.raises(ValueError, match=r"give it `eraser\.model`"):
        Trainer(LeNet(), args, train_dataset=erasing.train_dataset, callbacks=[erasing]).train()
    trainer = Trainer(eraser.model, args, train_dataset=erasing.train_dataset, callbacks=[erasing])
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    plain = network._orig_mod.state_dict()
    assert saved.keys() == plain.keys() and all(torch.equal(value, plain[name]) for name, value in saved.items())
    assert any(not torch.equal(value, before[f"_orig_mod.{name}"]) for name, value in saved.items())


def test_retraining_a_network_starts_anew(tmp_path):
    torch.manual_seed(0)
    network = WithTokens()
    place = network.place.detach().clone()
    parts = split_by(make_images(20), BEES)
    sets = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"], "processing_class": TRANSFORM}
    run = ECTrainer(network, settings(tmp_path, objective="retrain", points=[], max_steps=1), **sets)
    run.train()
    assert not torch.allclose(network.place, place, atol=0.05)
    torch.testing.assert_close(network.place.sort().values.mean(), place.sort().values.mean(), atol=0.05, rtol=0)


def test_new_weights_come_from_the_owners_function_where_there_is_one():
    model = as_classifier(LeNet(), image_shape=(3, 32, 32), new=LeNet)
    torch.manual_seed(3)
    expected = LeNet()
    torch.manual_seed(3)
    assert torch.equal(new_like(model).own.conv1.weight, expected.conv1.weight)
    other = as_classifier(LeNet(), image_shape=(3, 32, 32), new=WithTokens)
    with pytest.raises(ValueError, match="makes another network"):
        new_like(other)


def with_points(network, **kwargs):
    return lambda tmp_path: ECTrainer(
        network,
        settings(tmp_path, **kwargs),
        forget_dataset=split_by(make_images(20), BEES)["forget"],
        retain_dataset=split_by(make_images(20), BEES)["retain"],
        processing_class=TRANSFORM,
    )


class Calls(nn.Module):
    """Calls a weight without its module, and leaves a layer out while it trains."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3072, 16), nn.Linear(16, 16)
        self.skipped, self.last = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, images):
        x = torch.relu(self.first(images.flatten(1)))
        x = nn.functional.linear(x, self.second.weight, self.second.bias)
        return self.last(x if self.training else self.skipped(x))


REFUSALS = {
    "more logits than classes": (
        with_points(nn.Sequential(nn.Flatten(), nn.Linear(3072, 7))),
        r"gives 7 logits for an image, and there are 5 classes.*labels=\[",
    ),
    "no logits": (with_points(nn.Conv2d(3, 5, 3)), r"gives a Tensor of shape \(2, 5, 30, 30\): put a classifier"),
    "images of another size": (with_points(nn.Sequential(nn.Flatten(), nn.Linear(12, 5))), "fails: mat1 and mat2"),
    "no weights": (with_points(nn.Flatten()), "has no weights"),
    "a compiled part": (with_points(nn.Sequential(torch.compile(LeNet()))), "its part '0' is compiled"),
    "no layer to look at": (
        with_points(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))),
        r"no module of Sequential but its classifier.*layers=\[",
    ),
    "a layer without its module": (
        with_points(Calls(), points=["second"]),
        r"module 'second' did not run when the model saw an image.*(Close|Some) names: .*first",
    ),
    "a layer that is not there": (with_points(LeNet(), points=["conv3"]), r"no module 'conv3'.*Close names: conv"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_erased_from_is_refused_in_words_that_mend_it(what, tmp_path):
    give, words = REFUSALS[what]
    with pytest.raises((TypeError, ValueError), match=re.compile(words, re.DOTALL)):
        give(tmp_path)


@pytest.mark.filterwarnings("ignore:This DataLoader")
def test_a_layer_that_training_leaves_out_is_named_with_how_to_name_another(tmp_path):
    run = with_points(Calls(), points=["skipped"], heads_epochs=1)(tmp_path)
    with pytest.raises(RuntimeError, match=r"did not run.*'skipped'.*Name the module around it, or one behind it"):
        run.train()


def test_images_that_nothing_prepares_are_refused():
    parts = split_by(make_images(20), BEES)
    with pytest.raises(ValueError, match=r"how images become its input is not known.*weights\.transforms\(\)"):
        ECTrainer(LeNet(), forget_dataset=parts["forget"], retain_dataset=parts["retain"])
    with pytest.raises(ValueError, match=r"size of its images is not known.*image_shape="):
        as_classifier(LeNet(), labels=NAMES)
    with pytest.raises(ValueError, match=r"size of its images is not known"):
        as_classifier(LeNet(), labels=NAMES, processor=lambda image: torch.zeros(3, *image.size))


def test_a_compiled_model_of_transformers_is_taken_as_it_was():
    model = make_model("ViT")
    assert as_classifier(torch.compile(model)) is model
    model.compile()
    assert (
        Eraser(model, EraserConfig("contrastive"), forget_classes=[1]).model is model
        and model._compiled_call_impl is None
    )


def test_rows_go_by_a_pilot_of_an_own_network_too(tmp_path):
    network = as_classifier(LeNet(), image_shape=(3, 32, 32), new=LeNet)
    config = ECConfig(
        str(tmp_path / "out"), use_cpu=True, disable_tqdm=True, **{**STEPS, "objective": "rewind", "points": []}
    )
    rows = ForgetRequest(rows=[0, 3, 6])
    done = erase(
        network, data(), rows, output_dir=tmp_path / "out", args=config, audit_settings=FAST, processor=TRANSFORM
    )
    assert done.trainer.args.objective == "follow" and (tmp_path / "out" / "pilot" / "model.safetensors").exists()
