from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import make_model
from torch import nn
from torch.nn.utils import parametrize

from ec_hf.auditing.attacks.adapter import add_adapters


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet", "ConvNext", "Siglip", "timm ViT", "timm ResNet"])
def test_a_model_with_adapters_equals_the_model_before_the_first_step(family):
    model, pixels = make_model(family).eval(), torch.rand(2, 3, 32, 32)
    adapted = copy.deepcopy(model)
    adapters = add_adapters(adapted, rank=2)
    with torch.no_grad():
        assert torch.equal(adapted(pixel_values=pixels).logits, model(pixel_values=pixels).logits)
        for each in adapters:
            each.add_(0.1)
        assert not torch.allclose(adapted(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_only_the_adapters_are_trained_and_a_seed_gives_the_same_ones():
    models = [make_model("ViT") for _ in range(3)]
    first, again, other = (add_adapters(model, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True))
    assert {id(each) for each in first} == {id(each) for each in models[0].parameters() if each.requires_grad}
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_adapter_changes_a_weight_by_a_matrix_of_its_rank():
    layer = nn.Sequential(nn.Conv2d(6, 8, 3))
    before = layer[0].weight.detach().clone()
    down, up = add_adapters(layer, rank=2)
    assert (down.shape, up.shape) == ((2, 54), (8, 2))
    with torch.no_grad():
        up.normal_()
    assert parametrize.is_parametrized(layer[0])
    assert torch.linalg.matrix_rank((layer[0].weight - before).flatten(1)) == 2


def test_a_model_without_layers_that_fit_is_refused():
    with pytest.raises(ValueError, match="no linear layer or convolution"):
        add_adapters(nn.Sequential(nn.LayerNorm(3)))
