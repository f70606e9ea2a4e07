from __future__ import annotations

import copy

import pytest
import torch
from helpers.attacks import subject_and_images
from helpers.models import make_model
from torch import nn

from ec_hf.auditing.attacks.quantization import Quantization, quantized


def weights(model):
    return copy.deepcopy(model.state_dict())


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


def test_sixteen_bits_are_the_model_up_to_rounding_and_few_bits_are_not():
    model, pixels = make_model("ViT").eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        exact, fine, coarse = (
            each(pixel_values=pixels).logits for each in (model, quantized(model, 16), quantized(model, 3))
        )
    torch.testing.assert_close(fine, exact, rtol=0, atol=1e-3)
    assert (coarse - exact).abs().max() > 10 * (fine - exact).abs().max()


def test_the_curve_starts_with_many_bits_and_leaves_the_model_as_it_was():
    subject, images = subject_and_images("ViT")
    before = weights(subject.model)
    outcome = Quantization().run(subject, images)
    assert same(before, subject.model.state_dict())
    assert outcome.unit == "bits" and {4, 8} <= set(outcome.x) and list(outcome.x) == sorted(outcome.x, reverse=True)
    assert outcome.hits.shape == (len(outcome.x), len(images.held_out))


@pytest.mark.parametrize("family", ["ViT", "ResNet", "timm EfficientNet"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_weights_lie_on_a_grid_for_each_output_channel(family, bits):
    model = make_model(family)
    before = weights(model)
    rounded = quantized(model, bits)
    assert same(before, model.state_dict())
    steps = 2 ** (bits - 1) - 1
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    for name, weight in rounded.state_dict().items():
        layer, _, kind = name.rpartition(".")
        if layer not in layers or kind != "weight":
            assert torch.equal(weight, before[name]), name
            continue
        old, new = before[name].flatten(1), weight.flatten(1)
        places = new / (old.abs().amax(1, keepdim=True) / steps)
        assert (places - places.round()).abs().max() < 1e-3
        assert ((new - old).abs() <= 0.5001 * old.abs().amax(1, keepdim=True) / steps).all()
        assert not torch.equal(new, old)


def test_a_layer_of_zeros_stays_so_and_a_changed_weight_below_half_a_step_is_undone():
    model = make_model("ViT")
    nn.init.zeros_(model.classifier.weight)
    assert quantized(model).classifier.weight.abs().max() == 0
    other = copy.deepcopy(quantized(make_model("ViT")))
    weight = other.classifier.weight
    rounded = weight.clone()
    with torch.no_grad():
        step = weight.abs().amax(1, keepdim=True) / 127
        moved = weight.abs() < weight.abs().amax(1, keepdim=True)
        weight += 0.4 * step * moved
    assert not torch.allclose(weight, rounded, atol=1e-6)
    torch.testing.assert_close(quantized(other).classifier.weight, rounded)


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(ValueError, match="expected 2 to 16"):
        quantized(make_model("ViT"), bits)
