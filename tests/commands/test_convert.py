"""The command that brings other code's weights into a folder of transformers."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from transformers import AutoImageProcessor

from ec_hf import cli
from ec_hf.models.loading import load_model

NAMES = [f"class {label}" for label in range(7)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), path)
    return str(path)


def test_a_converted_folder_is_a_model_that_erase_takes(weights, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    out = tmp_path / "out"
    assert cli.main(["convert", weights, str(out), "--class_names_file", str(tmp_path / "names.txt")]) == 0
    model, processor = load_model(out)
    assert list(model.config.id2label.values()) == NAMES
    assert processor.crop_size["height"] == 224
    printed = capsys.readouterr().out
    assert "torchvision_resnet, 7 classes" in printed
    assert "mean 0.485, 0.456, 0.406 and standard deviation 0.229, 0.224, 0.225" in printed
    assert cli.main(["convert", weights, str(out)]) == 1, "nothing is written over"
    assert "holds config.json already" in capsys.readouterr().err


def test_programs_get_what_was_converted_as_json_and_nothing_else(weights, tmp_path, capsys):
    assert cli.main(["convert", weights, str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "folder": str(tmp_path / "out"), "layout": "torchvision_resnet", "num_labels": 7, "left_out": told["left_out"]
    }  # fmt: skip


def test_the_images_are_as_the_flags_say(weights, tmp_path):
    flags = ["--image_size", "64", "--image_mean", ".5", ".5", ".5", "--image_std", ".25", ".25", ".25"]
    assert cli.main(["convert", weights, str(tmp_path / "out"), *flags]) == 0
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == [0.5] * 3 and list(processor.image_std) == [0.25] * 3
    assert processor.size["shortest_edge"] == 73 and processor.crop_size["width"] == 64


@pytest.mark.parametrize("content", [NAMES, dict(reversed(list(enumerate(NAMES))))])
def test_class_names_come_from_json_too(weights, tmp_path, content):
    (tmp_path / "names.json").write_text(json.dumps(content))
    names = ["--class_names_file", str(tmp_path / "names.json")]
    assert cli.main(["convert", weights, str(tmp_path / "out"), *names]) == 0
    assert load_model(tmp_path / "out")[0].config.label2id["class 6"] == 6


@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--class_names", "a", "--class_names_file", "b"], "give one of them", 2),
        (["--layout", "timm_vit", "--timm_architecture", "resnet18"], "give one of them", 2),
        (["--class_names", "a", "b"], "for weights of 7 classes", 1),
        (["--class_names_file", "not_there.txt"], "not_there.txt", 1),
        (["--layout", "timm_swin"], "no place for", 1),
    ],
)
def test_wrong_flags_end_with_a_message_and_without_a_folder(weights, tmp_path, capsys, flags, message, code):
    assert cli.main(["convert", weights, str(tmp_path / "out"), *flags]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
