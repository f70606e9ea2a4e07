"""Weights that other code stored give the same answers as a checkpoint of transformers."""

from __future__ import annotations

import re

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, SwinConfig

from ec_hf.models.converting import convert, read_state
from ec_hf.models.layouts import LAYOUTS

MEAN, STD = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])


def torchvision_resnet(depth):
    return getattr(torchvision.models, f"resnet{depth}")(num_classes=7), 64


def timm_swin():
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=128, window_size=4, embed_dim=12, depths=(2, 2, 2, 2),
        num_heads=(1, 2, 3, 4), num_classes=7,
    )  # fmt: skip
    return model, 128


def torchvision_swin():
    model = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=12, depths=[2, 2, 2, 2], num_heads=[1, 2, 3, 4], window_size=[4, 4], num_classes=7
    )
    return model, 128


def small_resnet(depth):
    """As in the code of SalUn and UUEF for CIFAR."""
    model = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model


def timm_vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=48, depth=2, num_classes=7, num_heads=3), 48


def torchvision_vit():
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=1, hidden_dim=64, mlp_dim=96, num_classes=7
    )
    torch.nn.init.normal_(model.heads.head.weight, std=0.1)  # its own first weights are 0
    return model, 32


def as_microsoft(state):
    """A Swin of timm under the names of Microsoft's repository, with the buffers that it stores."""

    def renamed(key):
        key = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    named = {renamed(key): value for key, value in state.items()}
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    named["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 16, 16)  # 8 x 8 windows of 4 x 4 patches of 4 x 4 pixels
    return named


def randomised(model):
    """Every weight and statistic moved, so that none is what it is by default."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                moved = 0.005 * torch.randn(value.shape, generator=generator)
                value += moved.abs() if (value == 1).all() else moved  # a variance stays positive
    return model.eval()


ROWS = {
    "resnet18": (lambda: torchvision_resnet(18), "torchvision_resnet"),
    "resnet34": (lambda: torchvision_resnet(34), "torchvision_resnet"),
    "resnet50": (lambda: torchvision_resnet(50), "torchvision_resnet"),
    "resnet101": (lambda: torchvision_resnet(101), "torchvision_resnet"),
    "timm resnet26": (lambda: (timm.create_model("resnet26", num_classes=7), 64), "torchvision_resnet"),
    "timm swin": (timm_swin, "timm_swin"),
    "torchvision swin": (torchvision_swin, "torchvision_swin"),
    "torchvision swin_t": (lambda: (torchvision.models.swin_t(num_classes=7), 224), "torchvision_swin"),
    "timm vit": (timm_vit, "timm_vit"),
    "torchvision vit": (torchvision_vit, "torchvision_vit"),
}


@torch.no_grad()
def agree(model, folder, converted, size):
    """Whether the checkpoint that is written and loaded again answers as the original module does."""
    converted.model.save_pretrained(folder)
    converted.processor.save_pretrained(folder)
    loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected, found = model(images), loaded(pixel_values=images).logits
    assert expected.std() > 1e-3, "the answers tell images and classes apart"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("row", ROWS)
def test_a_layout_is_known_by_its_names_and_answers_stay(row, tmp_path):
    make, layout = ROWS[row]
    torch.manual_seed(0)
    model, size = make()
    converted = convert(randomised(model).state_dict())
    assert converted.layout == layout
    agree(model, tmp_path, converted, size)


def test_swin_of_microsoft_s_repository_keeps_its_answers(tmp_path):
    model, size = timm_swin()
    converted = convert(as_microsoft(randomised(model).state_dict()))
    assert converted.layout == "microsoft_swin"
    assert converted.model.config.image_size == converted.processor.crop_size["height"] == size
    assert len(converted.left_out) == 2
    agree(model, tmp_path, converted, size)


@pytest.mark.parametrize("row", ["resnet50", "timm swin"])
def test_a_file_of_the_ec_group_gives_its_normalisation_to_the_processor(row, tmp_path):
    """Its model normalises the images itself, its file wraps the weights, and its Swin is Microsoft's."""
    model, size = ROWS[row][0]()
    state = randomised(model).state_dict()
    state = as_microsoft(state) if "swin" in row else state
    state = {f"module.{key}": value for key, value in {**state, "normalize.mean": MEAN, "normalize.std": STD}.items()}
    file = tmp_path / "ec_unlearned_random100.tar"
    torch.save({"epoch": 80, "best_sa": 76.1, "state_dict": state, "optimizer": {"state": {}}}, file)
    converted = convert(read_state(file))
    torch.testing.assert_close(torch.tensor(converted.processor.image_mean), MEAN)
    torch.testing.assert_close(torch.tensor(converted.processor.image_std), STD)
    agree(model, tmp_path / "out", converted, size)


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet", "resnet26d"])
def test_any_other_model_of_timm_goes_into_the_wrapper(architecture, tmp_path):
    model = randomised(timm.create_model(architecture, num_classes=7))
    converted = convert(model.state_dict(), timm_architecture=architecture, class_names=list("abcdefg"))
    assert converted.model.config.id2label[6] == "g"
    agree(model, tmp_path, converted, 64)


def test_class_names_are_those_of_the_checkpoint(tmp_path):
    state = torchvision_resnet(18)[0].state_dict()
    assert convert(state, class_names=list("abcdefg")).model.config.label2id["g"] == 6
    for names in (["a", "b"], list("abcdeff")):
        with pytest.raises(ValueError, match="for weights of 7 classes"):
            convert(state, class_names=names)


def test_images_are_as_the_weights_allow_and_the_choices_say(tmp_path):
    vit, size = timm_vit()
    with pytest.raises(ValueError, match="position embeddings are those of images of 48 pixels"):
        convert(vit.state_dict(), image_size=size + 16)
    swin = convert(timm_swin()[0].state_dict(), image_size=256)
    assert swin.model.config.image_size == swin.processor.crop_size["height"] == 256
    state = timm.create_model("test_resnet", num_classes=7).state_dict() | {"normalize.mean": MEAN}
    wrapped = convert(state, timm_architecture="test_resnet", image_size=96)
    assert wrapped.processor.data_config["input_size"] == (3, 96, 96)
    assert wrapped.processor.data_config["mean"] == pytest.approx(MEAN.tolist())


def test_a_swin_of_torchvision_has_the_sizes_of_its_name():
    for name in ("swin_s", "swin_b"):
        with torch.device("meta"):
            state = getattr(torchvision.models, name)().state_dict()
        config = LAYOUTS["torchvision_swin"].config(state, None)
        own = SwinConfig(
            depths=[2, 2, 18, 2],
            **({"embed_dim": 128, "num_heads": [4, 8, 16, 32]} if name == "swin_b" else {"num_heads": [3, 6, 12, 24]}),
        )
        for setting in ("image_size", "window_size", "embed_dim", "depths", "num_heads", "mlp_ratio", "qkv_bias"):
            assert getattr(config, setting) == getattr(own, setting), setting


def test_the_second_version_of_torchvisions_swin_is_in_no_layout():
    with torch.device("meta"):
        state = torchvision.models.swin_v2_t().state_dict()
    with pytest.raises(ValueError, match="in no layout that is known here"):
        convert(state)


# ResNets for small images


def as_pytorch_cifar(state):
    renamed = {"fc.": "linear.", "downsample": "shortcut"}
    return {re.sub("fc\\.|downsample", lambda match: renamed[match[0]], key): value for key, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize(("depth", "names"), [(18, "fc"), (50, "fc"), (18, "linear"), (34, "linear")])
def test_a_resnet_for_small_images_keeps_its_answers_on_the_images_as_its_processor_magnifies_them(
    depth, names, tmp_path
):
    torch.manual_seed(0)
    model = randomised(small_resnet(depth))
    state = model.state_dict() | {"normalize.mean": MEAN, "normalize.std": STD}
    converted = convert(as_pytorch_cifar(state) if names == "linear" else state)
    assert converted.layout == ("small_image_resnet_linear" if names == "linear" else "small_image_resnet")
    converted.model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    inputs = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    expected = model(inputs)
    found = loaded(**processor([Image.fromarray(image) for image in pixels], return_tensors="pt")).logits
    assert expected.std() > 1e-3
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_images_of_another_size_are_magnified_as_much(tmp_path):
    converted = convert(small_resnet(18).state_dict(), image_size=28)
    image = Image.fromarray(np.zeros((28, 28, 3), dtype=np.uint8))
    assert converted.processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 112, 112)


@pytest.mark.parametrize("side", [3, 5])
def test_a_stem_that_no_network_of_the_layout_has_is_refused_with_the_reason(side):
    state = small_resnet(18).state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, side, side)
    with pytest.raises(ValueError, match=rf"conv1.weight is a {side}x{side} convolution.*leave the layout out"):
        convert(state, layout="torchvision_resnet" if side == 3 else None)


def test_a_small_resnet_of_three_stages_is_refused_with_the_reason():
    state = {key: value for key, value in small_resnet(18).state_dict().items() if not key.startswith("layer4.")}
    with pytest.raises(ValueError, match=r"have four stages; .* there are 3 stages"):
        convert(state)


# What does not fit


def test_keys_without_a_place_are_named_and_may_be_left_out():
    state = torchvision_resnet(18)[0].state_dict() | {"aux.0.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"no place for \['aux\.0\.weight'\]"):
        convert(state)
    assert convert(state, ignored=r"aux\..*").left_out == ("aux.0.weight",)


def test_keys_that_are_missing_are_named():
    state = torchvision_resnet(18)[0].state_dict()
    del state["layer2.0.bn1.weight"]
    with pytest.raises(ValueError, match=r"stages\.1\.layers\.0\.layer\.0\.normalization\.weight'.* are missing"):
        convert(state)


def test_another_network_under_the_same_names_is_refused():
    state = torchvision.models.wide_resnet50_2(num_classes=7).state_dict()
    with pytest.raises(ValueError, match="have another shape"):
        convert(state)


def test_unknown_names_list_the_layouts_there_are():
    with pytest.raises(ValueError, match="in no layout that is known here") as caught:
        convert({"weight": torch.zeros(2)})
    assert all(name in str(caught.value) for name in LAYOUTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "resnet"}, "layout='resnet': expected one of torchvision_resnet"),
        ({"layout": "timm_vit"}, "no place for"),
        ({"timm_architecture": "resnet1800"}, "timm has no such model"),
        ({"num_attention_heads": 3}, "tells its heads by itself"),
    ],
)
def test_wrong_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert(torchvision_resnet(18)[0].state_dict(), **options)


# Files


class Harmful:
    """What a pickle can hold: a call that runs while it is read."""

    def __reduce__(self):
        return (open, ("was_run", "w"))


def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Harmful()}, "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth cannot be read as tensors alone"):
        read_state("bad.pth")
    assert not (tmp_path / "was_run").exists()


def test_files_of_safetensors_and_of_torch_give_the_same(tmp_path):
    tensors = {"a": torch.arange(3.0), "b": torch.eye(2)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"model": {f"module._orig_mod.{key}": value for key, value in tensors.items()}}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        found = read_state(tmp_path / name)
        assert list(found) == ["a", "b"] and torch.equal(found["b"], tensors["b"])


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_file_without_a_state_dict_is_named(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "x.pth")


def test_a_file_that_is_no_torch_file_is_named(tmp_path):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(ValueError, match="cannot be read as tensors alone"):
            read_state(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"no file .*y\.pth"):
        read_state(tmp_path / "y.pth")
