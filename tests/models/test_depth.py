"""Where in the depth of a network its parameters and buffers stand."""

from __future__ import annotations

import pytest
import torch
from helpers.models import FAMILIES, TIMM, make_model

from ec_hf.models.depth import blocks_of_weights
from ec_hf.models.points import hidden_state_kwargs


def tensors(state):
    return state if isinstance(state, (tuple, list)) else (state,)


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_new_weights_from_a_block_on_leave_the_hidden_states_before_it_as_they_are(family):
    model = make_model(family).eval()
    images = torch.rand(2, 3, 32, 32)
    blocks, count = blocks_of_weights(model, images)
    wanted = hidden_state_kwargs(model)
    with torch.no_grad():
        before = model(pixel_values=images, **wanted)
        assert count == len(before.hidden_states) + 1
        cut = count // 2
        for name, value in model.state_dict().items():
            if blocks.get(name, -1) >= cut and value.is_floating_point():
                value.add_(torch.rand_like(value))
        after = model(pixel_values=images, **wanted)
    pairs = list(zip(before.hidden_states, after.hidden_states, strict=True))[:cut]
    assert all(torch.equal(*each) for pair in pairs for each in zip(*map(tensors, pair), strict=True))
    assert not torch.equal(before.logits, after.logits)


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_every_parameter_and_statistic_has_a_block_and_the_classifier_the_last(family):
    model = make_model(family)
    blocks, count = blocks_of_weights(model, torch.rand(1, 3, 32, 32))
    assert set(dict(model.named_parameters())) <= set(blocks)
    assert set(dict(model.named_buffers())) <= set(blocks)
    classifier = [block for name, block in blocks.items() if name.startswith("classifier")]
    assert classifier and set(classifier) == {count - 1}
    assert min(blocks.values()) == 0


def test_what_takes_a_gradient_and_the_mode_are_left_as_they_were():
    model = make_model("ViT").train()
    frozen = next(model.parameters()).requires_grad_(False)
    blocks_of_weights(model, torch.rand(1, 3, 32, 32))
    assert model.training and not frozen.requires_grad
    assert all(each.requires_grad for each in list(model.parameters())[1:])
    assert all(each.grad is None for each in model.parameters())
