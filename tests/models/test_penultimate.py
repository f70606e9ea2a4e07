from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import FAMILIES, TIMM, make_model
from torch import nn
from transformers import DeiTForImageClassificationWithTeacher, ViTForImageClassification

from ec_hf.models.penultimate import Penultimate, classifier_of, penultimate_point

WIDTHS = {
    "ViT": 32,
    "DeiT": 32,
    "Beit": 32,
    "Dinov2": 64,
    "Dinov2WithRegisters": 64,
    "Siglip": 32,
    "Swin": 64,
    "Swinv2": 64,
    "FocalNet": 64,
    "ConvNext": 32,
    "ResNet": 32,
    "RegNet": 32,
    "MobileNetV2": 1280,
    "PvtV2": 32,
    "PoolFormer": 32,
    "timm ViT": 64,
    "timm ViT registers": 32,
    "timm ResNet": 96,
    "timm ConvNeXt": 64,
    "timm EfficientNet": 256,
}


def images(count=3, dtype=torch.float32):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_the_classifier_of_every_family_makes_the_logits_of_the_penultimate_features(family, dtype, tolerance):
    model = make_model(family).to(dtype)
    ((_, layer),) = classifier_of(model).items()
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(2))  # some families start with zeros
        with Penultimate([layer]) as penultimate:
            logits = model.eval()(pixel_values=images(dtype=dtype)).logits
        features = penultimate.take()
        again = nn.functional.linear(features, layer.weight.flatten(1), layer.bias)
    assert features.shape == (3, WIDTHS[family])
    torch.testing.assert_close(again, logits, rtol=tolerance, atol=tolerance)


def test_two_averaged_classifiers_read_their_inputs_side_by_side():
    model = DeiTForImageClassificationWithTeacher(FAMILIES["DeiT"]()).eval()
    layers = classifier_of(model)
    assert list(layers) == ["cls_classifier", "distillation_classifier"]
    with torch.no_grad(), Penultimate(layers.values()) as penultimate:
        logits = model(pixel_values=images()).logits
    parts = penultimate.take().split(32, dim=1)
    mean = sum(layer(part) for layer, part in zip(layers.values(), parts, strict=True)) / 2
    torch.testing.assert_close(mean, logits)


class Averaged(nn.Module):
    """Classifies two positions, and averages the logits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 5)

    def forward(self, x):
        return self.linear(torch.stack([x, 2 * x], dim=1)).mean(dim=1)


class Summed(nn.Module):
    """The sum of two classifiers."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(32, 5), nn.Linear(32, 5)

    def forward(self, x):
        return self.one(x) + self.other(x)


@pytest.mark.parametrize("head", [Averaged(), Summed(), nn.Sequential(nn.Linear(32, 5), nn.Tanh())])
def test_logits_that_are_not_the_mean_of_linear_layers_have_no_classifier(head):
    model = make_model("ViT")
    model.classifier = head
    assert classifier_of(model) == {}
    assert penultimate_point([], 5) == []


def test_a_classifier_of_zeros_and_layers_as_wide_as_the_classes_are_told_apart():
    config = FAMILIES["ViT"]()
    config.num_labels = config.hidden_size
    model = ViTForImageClassification(config)
    for parameter in model.classifier.parameters():
        nn.init.zeros_(parameter)
    assert list(classifier_of(model)) == ["classifier"]


def test_a_wrapped_classifier_is_found_by_what_it_does():
    model = make_model("ViT")
    model.classifier = nn.Sequential(nn.Dropout(0.5), nn.Sequential(model.classifier))
    assert list(classifier_of(model)) == ["classifier.1.0"]


def test_looking_for_the_classifier_changes_nothing_of_the_model():
    for family in ("ResNet", "timm EfficientNet"):
        model = make_model(family).train()
        before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        classifier_of(model)
        assert model.training and torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())


def test_frozen_models_and_images_of_another_size_are_looked_into_as_well():
    model = make_model("ResNet").requires_grad_(False)
    assert list(classifier_of(model, (3, 64, 32))) == ["classifier.1"]


def test_features_have_a_gradient_and_are_handed_out_once():
    model = make_model("Swin").train()
    penultimate = Penultimate(classifier_of(model).values())
    assert penultimate.take() is None
    with penultimate:
        model(pixel_values=images())
    features = penultimate.take()
    features[:, 0].sum().backward()
    assert model.swin.embeddings.patch_embeddings.projection.weight.grad.any()
    assert penultimate.take() is None
    model(pixel_values=images())
    assert penultimate.take() is None, "the hooks went with the block"


def test_in_training_the_classifier_reads_what_dropout_leaves():
    model = make_model("MobileNetV2").train()
    with Penultimate(classifier_of(model).values()) as penultimate:
        model(pixel_values=images())
        trained = penultimate.take()
        model.eval()(pixel_values=images())
        evaluated = penultimate.take()
    assert (trained == 0).sum() > (evaluated == 0).sum() + 500


def test_features_under_autocast_are_those_of_the_forward_that_ran():
    model = make_model("ViT").eval()
    with torch.autocast("cpu", torch.bfloat16), Penultimate([model.classifier]) as penultimate:
        logits = model(pixel_values=images()).logits
        assert torch.equal(model.classifier(penultimate.take()), logits)
