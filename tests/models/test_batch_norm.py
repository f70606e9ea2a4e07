from __future__ import annotations

import copy

import torch
from timm.layers import BatchNormAct2d
from torch import nn

from ec_hf.models.batch_norm import clean_statistics


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), BatchNormAct2d(4)
    ).train()


def test_frozen_statistics_normalise_as_in_evaluation_and_stay():
    model, images = network(), torch.rand(6, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    with clean_statistics(model, 2, update=False):
        output = model(images)
    assert torch.equal(output, model.eval()(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_updated_statistics_are_those_of_training_on_the_retain_images_alone():
    model, plain, images = network(), network(), torch.rand(6, 3, 8, 8)
    wild = torch.cat([1000 * torch.rand(2, 3, 8, 8), images])
    for _ in range(3):
        with clean_statistics(model, 2, update=True):
            output = model(wild)
        expected = plain(images)
    torch.testing.assert_close(output[2:], expected, rtol=1e-4, atol=1e-4)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_of_the_retain_images_are_those_of_training_on_them_alone():
    model, plain, images = network(), network(), torch.rand(6, 3, 8, 8)
    with clean_statistics(model, 2, update=True):
        model(torch.cat([torch.rand(2, 3, 8, 8), images]))[2:].square().sum().backward()
    plain(images).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_model_is_left_without_hooks():
    model = network()
    with clean_statistics(model, 1, update=True):
        model(torch.rand(4, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in model.modules())
