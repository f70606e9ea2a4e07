"""Each family of networks that transformers, timm and others have, or why it is none of ours.

A row is a family: it is erased from once, and each test below asks something else of that run.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from helpers.families import CANNOT, ROWS, TRANSFORMERS, make_family
from helpers.models import FAMILIES, make_images
from helpers.own import OWN, TRANSFORM, make_own
from helpers.trainers import settings
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, ViTImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from ec_hf import ECTrainer, ForgetRequest, audit, split
from ec_hf.models.modules import blocks_of
from ec_hf.models.own_network import OwnClassifier, logits_in
from ec_hf.models.penultimate import Penultimate

DEEPER = {
    "ViT": "vit.layers.2",
    "Swin": "swin.encoder.layers.1",
    "ResNet": "resnet.encoder.stages.2",
    "ConvNext": "convnext.encoder.stages.2",
    "timm ViT": "timm_model.blocks.3",
    "timm ConvNeXt": "timm_model.stages.1.blocks.0",
}
"""One row a kind that is looked at more closely, with one of its modules."""


def processor(size):
    square = {"height": size, "width": size}
    return ViTImageProcessor(size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def trainer(model, size, folder, prepared_by=None, **kwargs):
    parts = split(make_images(20), ForgetRequest(classes=["bee"]))
    return ECTrainer(
        model=model,
        args=settings(folder, **{"max_steps": 2, "per_device_train_batch_size": 8, **kwargs}),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        processing_class=prepared_by or processor(size),
    )


def images(size, count=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_row(family, seed=0):
    """What a user has, the side of its images, and what prepares these."""
    if family in OWN:
        return make_own(family, seed), 32, TRANSFORM
    model, size = make_family(family, seed)
    return model, size, processor(size)


class Row(NamedTuple):
    """A family after two steps of EC, the first of which left a checkpoint."""

    family: str
    given: Any
    before: dict[str, torch.Tensor]
    run: ECTrainer
    folder: Path
    size: int


SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}


@pytest.fixture(scope="module", params=[*ROWS, *OWN])
def row(request, tmp_path_factory):
    """The run of a row, for all tests of that row."""
    folder = tmp_path_factory.mktemp("row")
    given, size, prepared_by = make_row(request.param)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    with ExitStack() as told:
        if request.param == "timm object of other arguments":
            told.enter_context(pytest.warns(UserWarning, match=r"model_args=\{\.\.\.\}"))
        run = trainer(given, size, folder, prepared_by, **SAVING)
    run.train()
    return Row(request.param, given, before, run, folder, size)


def logits_of(network, size):
    with torch.no_grad():
        return logits_in(network.eval()(images(size)))


def test_two_steps_of_ec_move_the_weights_that_were_given_and_no_loss_breaks(row):
    assert row.run.eraser.points and row.run.eraser.classifier
    weights = row.given.state_dict()
    assert any(not torch.equal(value, row.before[name]) for name, value in weights.items())
    assert all(math.isfinite(each["loss"]) for each in row.run.state.log_history if "loss" in each)


def test_the_classifier_on_penultimate_features_gives_the_logits(row):
    layers = list(row.run.eraser.classifier.values())
    with torch.no_grad(), Penultimate(layers) as penultimate:
        logits = row.run.model.eval()(pixel_values=images(row.size)).logits
    widths = [layer.weight[0].numel() for layer in layers]
    parts = zip(layers, penultimate.take().split(widths, dim=1), strict=True)
    again = sum(nn.functional.linear(x, layer.weight.flatten(1), layer.bias) for layer, x in parts) / len(layers)
    torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4)


def test_what_is_saved_loads_clean_without_the_package(row):
    model, saved = row.run.model, row.folder / "saved"
    row.run.save_model(saved)
    if isinstance(model, OwnClassifier):
        network = getattr(make_own(row.family, seed=1), "_orig_mod", None) or make_own(row.family, seed=1)
        network.load_state_dict(load_file(saved / "model.safetensors"))
        torch.testing.assert_close(logits_of(network, row.size), logits_of(row.run.model.own, row.size))
        return
    loaded, found = AutoModelForImageClassification.from_pretrained(saved, output_loading_info=True)
    if type(loaded) is not type(model):  # of several classes with one configuration, the Auto class takes the first
        loaded, found = type(model).from_pretrained(saved, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    expected = model.eval()(pixel_values=images(row.size)).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixel_values=images(row.size)).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:model. timm's 'deit:UserWarning")
def test_a_run_that_is_resumed_ends_as_one_that_was_not_interrupted(row):
    again, size, prepared_by = make_row(row.family)
    resumed = trainer(again, size, row.folder, prepared_by, **SAVING)
    resumed.train(resume_from_checkpoint=str(row.folder / "checkpoint-1"))
    whole = row.run.model.state_dict()
    assert {name for name, value in resumed.model.state_dict().items() if not torch.equal(whole[name], value)} == set()


def test_a_step_in_bfloat16_has_finite_losses_and_gradients(row):
    eraser, model = row.run.eraser, row.run.model
    batch = row.run.data_collator([row.run.train_dataset[k] for k in (0, 1, 4, 5, 6)])
    with eraser.attached():
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            terms = eraser(batch, row.run.progress())
        terms.total.backward()
    slopes = [each.grad for each in model.parameters() if each.grad is not None]
    model.eval().zero_grad()
    assert math.isfinite(terms.total.item()) and slopes
    assert all(torch.isfinite(slope).all() for slope in slopes)


@pytest.mark.filterwarnings("ignore:model. timm's 'deit:UserWarning")
def test_an_audit_measures_every_layer_and_finds_the_model_moved(row):
    original, _, prepared_by = make_row(row.family)
    parts = split(make_images(20), ForgetRequest(classes=["bee"]))
    splits = {"forget_test": parts["forget"], "retain_test": parts["retain"]}
    fast = {"embedding": False, "int8": False}
    report = audit(original, row.given, splits=splits, processor=prepared_by, **fast)
    assert {"penultimate", *(each.name for each in row.run.eraser.points)} <= set(report.layers)
    for layer in report.layers:
        value = report.value("linear_cka", model="unlearned", layer=layer, split="retain_test", reference="original")
        assert value is None or value <= 1 + 1e-6, layer
    assert not any("same weights" in note for note in report.notes)


def test_every_class_of_transformers_is_a_row_or_has_a_reason():
    named = {name for names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values() for name in _several(names)}
    rows, reasons = ({_class(name) for name in names} for names in ([*FAMILIES, *TRANSFORMERS], CANNOT))
    others = {"TimmWrapperForImageClassification", "PerceiverForImageClassificationFourier"}  # the second is slow
    assert named - rows - reasons - others == set()
    assert reasons <= named


def _class(name):
    return name if "ForImage" in name else f"{name}ForImageClassification"


def _several(names):
    return (names,) if isinstance(names, str) else names


@pytest.mark.parametrize("family", ["ImageGPT", "PPLCNet"])
def test_classes_that_ec_does_not_take_are_refused_before_training(family, tmp_path):
    arguments = {
        "ImageGPT": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 17, "n_positions": 64},
        "PPLCNet": {"scale": 0.25},
    }
    kind = getattr(transformers, f"{family}ForImageClassification")
    model = kind(kind.config_class(num_labels=5, **arguments[family]))
    with pytest.raises((ValueError, TypeError), match=f"{family}ForImageClassification"):
        trainer(model, 32, tmp_path)


@pytest.mark.parametrize("family", DEEPER)
def test_a_run_at_a_named_module_is_resumed_exactly(family, tmp_path):
    kwargs = {"points": [DEEPER[family], "penultimate"], "save_strategy": "steps", "save_steps": 1}
    whole, size = make_family(family)
    trainer(whole, size, tmp_path, **kwargs).train()
    again, _ = make_family(family)
    trainer(again, size, tmp_path, **kwargs).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("family", DEEPER)
def test_a_run_in_bfloat16_at_all_blocks_is_finite(family, tmp_path):
    model, size = make_family(family)
    run = trainer(model, size, tmp_path, points="blocks", bf16=True, max_steps=1)
    assert [point.name for point in run.eraser.points] == blocks_of(model, (3, size, size))
    run.train()
    logged = {name for each in run.state.log_history for name in each}
    assert {f"{DEEPER[family]}/contrast", f"{DEEPER[family]}/retain_ce"} <= logged
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


@pytest.mark.parametrize("family", DEEPER)
def test_an_audit_of_the_blocks_names_them(family):
    (model, size), (other, _) = make_family(family), make_family(family, seed=1)
    parts = split(make_images(20), ForgetRequest(classes=["bee"]))
    splits = {"forget_test": parts["forget"], "retain_test": parts["retain"]}
    fast = {"embedding": False, "int8": False}
    report = audit(model, other, splits=splits, processor=processor(size), layers="blocks", **fast)
    assert report.layers == [*blocks_of(model, (3, size, size)), "penultimate"]
    for layer in report.layers:
        value = report.value("linear_cka", model="unlearned", layer=layer, split="retain_test", reference="original")
        assert value is not None and value <= 1, layer
