from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import FAMILIES, TIMM, make_images, make_model, make_processor
from torch import nn

from ec_hf.auditing.attacks.relearning import head_parameters, relearn
from ec_hf.metrics import attack_area
from ec_hf.models.inputs import ImageCollator
from ec_hf.models.points import image_shape

COLLATE = ImageCollator(make_processor())
CLASSIFIERS = {
    "ViT": {"vit.layernorm.weight", "vit.layernorm.bias", "classifier.weight", "classifier.bias"},
    "Swin": {"swin.layernorm.weight", "swin.layernorm.bias", "classifier.weight", "classifier.bias"},
    "ResNet": {"classifier.1.weight", "classifier.1.bias"},
    "ConvNext": {"convnext.layernorm.weight", "convnext.layernorm.bias", "classifier.weight", "classifier.bias"},
    "Dinov2": {"dinov2.layernorm.weight", "dinov2.layernorm.bias", "classifier.weight", "classifier.bias"},
    "timm ViT": {f"timm_model.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")},
    "timm ResNet": {"timm_model.fc.weight", "timm_model.fc.bias"},
}


@pytest.fixture(scope="module")
def forget(images):
    """Twenty images of two classes to learn from and others to test on."""
    sample, other = images.filter(lambda row: row["label"] in (1, 3)), make_images(count=60, seed=5)
    return sample.select(range(20)), other.filter(lambda row: row["label"] in (1, 3))


def weights(model):
    return copy.deepcopy(model.state_dict())


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_the_head_is_what_moves_the_logits_and_not_the_last_hidden_state(family):
    model = make_model(family).eval()
    names = head_parameters(model)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    if family in CLASSIFIERS:
        assert set(names) == CLASSIFIERS[family]
    pixels = torch.randn(2, *image_shape(model))
    before = model(pixel_values=pixels, output_hidden_states=True)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).add_(0.1 * torch.randn_like(model.get_parameter(name)))
    after = model(pixel_values=pixels, output_hidden_states=True)
    assert not torch.allclose(after.logits, before.logits)

    def last(output):
        state = output.hidden_states[-1]
        return state[0] if isinstance(state, (tuple, list)) else state

    assert torch.equal(last(after), last(before))
    assert any(parameter.shape[0] == 5 for name, parameter in model.named_parameters() if name in names)


@pytest.mark.parametrize("mode", ["head", "full", "lora"])
@pytest.mark.parametrize("family", ["ViT", "ResNet", "MobileNetV2", "timm ConvNeXt"])
def test_a_model_relearns_on_a_copy_and_the_same_way_each_time(family, mode, forget):
    model = make_model(family).train()
    before, grads = weights(model), [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(1)
    curve = relearn(model, *forget, COLLATE, mode=mode, steps=(0, 1, 3), name="ours", seed=3)
    torch.manual_seed(2)
    torch.rand(5)
    assert relearn(model, *forget, COLLATE, mode=mode, steps=(0, 1, 3), name="ours", seed=3) == curve
    assert (curve.model, curve.attack, curve.x, len(curve.accuracy)) == ("ours", f"relearn_{mode}", [0, 1, 3], 3)
    assert curve.settings["learning_rate"] == {"head": 1e-2, "full": 1e-4, "lora": 1e-3}[mode]
    assert curve.settings["images"] == 20
    assert 0 < curve.settings["parameters"] <= model.num_parameters()
    assert (curve.settings["parameters"] == model.num_parameters()) == (mode == "full")
    assert same(before, model.state_dict()) and model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == grads


def test_accuracy_rises_from_that_of_the_model_and_a_frozen_model_relearns_as_well(forget):
    model = make_model("ViT").eval().requires_grad_(False)
    curve = relearn(model, *forget, COLLATE, steps=(0, 8, 32))
    batch = COLLATE([forget[1][row] for row in range(len(forget[1]))])
    start = (model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).float().mean().item()
    assert curve.accuracy[0] == pytest.approx(start)
    assert curve.accuracy[-1] > max(start, 0.9)
    assert 0 < attack_area(curve.x, curve.accuracy, curve.unit) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "heads"}, "expected one of"),
        ({"steps": (1, 2)}, "ascend from 0"),
        ({"steps": (0, 2, 2)}, "ascend from 0"),
        ({"steps": ()}, "ascend from 0"),
        ({"batch_size": 0}, "batches of 0"),
        ({"learning_rate": 1e30, "steps": (0, 9), "mode": "full"}, "the loss is"),
    ],
)
def test_settings_that_make_no_curve_are_refused(change, message, forget):
    with pytest.raises(ValueError, match=message):
        relearn(make_model("ResNet"), *forget, COLLATE, **change)


def test_empty_samples_and_dropped_classes_are_refused(forget):
    sample, held_out = forget
    with pytest.raises(ValueError, match="0 images to fine-tune on"):
        relearn(make_model("ViT"), sample.select([]), held_out, COLLATE)
    with pytest.raises(ValueError, match="0 held out"):
        relearn(make_model("ViT"), sample, held_out.select([]), COLLATE)
    dropped = make_model("ViT")
    dropped.classifier, dropped.config.num_labels = nn.Linear(32, 3), 3
    with pytest.raises(ValueError, match=r"label ids \[1, 3\], the model has 3 labels: a class whose logit"):
        relearn(dropped, sample, held_out, COLLATE)


def test_a_masked_class_is_refused_with_words(forget):
    masked = make_model("ViT")
    with torch.no_grad():
        masked.classifier.bias[1] = -torch.inf
    with pytest.raises(ValueError, match="is a class masked in this model"):
        relearn(masked, *forget, COLLATE)
