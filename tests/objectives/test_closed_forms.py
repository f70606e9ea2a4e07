from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import FAMILIES, TIMM, make_model
from torch import nn
from torch.nn import functional as F

from ec_hf.models.loading import new_like
from ec_hf.objectives import Setting, get_objective
from ec_hf.objectives.damp import forget_directions
from ec_hf.objectives.projection import layer_inputs, linear_layers, remove_directions
from ec_hf.objectives.ssd import chosen_alpha, importance


class Tiny(nn.Module):
    """Two linear layers on an image of one pixel and four channels, in float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.config = SimpleNamespace(num_labels=3, num_channels=4, image_size=1)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.double().eval()

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.last(self.hidden(pixel_values)))

    def hidden(self, pixel_values):
        return self.first(pixel_values.flatten(1)).tanh()


def batches(images, labels, size):
    pairs = zip(images.split(size), labels.split(size), strict=True)
    return [{"pixel_values": each, "labels": ids} for each, ids in pairs]


def setting(model, shape, forget=6, retain=10, size=4, dtype=torch.float32):
    """Class 2 is forgotten, 0 and 1 are retained; images of a class lie around its own offset."""
    generator = torch.Generator().manual_seed(1)
    parts = {}
    for name, labels in (("forget", torch.full((forget,), 2)), ("retain", torch.arange(retain) % 2)):
        images = torch.randn(len(labels), *shape, generator=generator, dtype=dtype)
        parts[name] = batches(images + labels.view(-1, 1, 1, 1), labels, size)
    calls = (
        lambda every=1, part=part: part[::every] for part in parts.values()
    )  # each k-th batch, so each k-th image where size is 1
    return Setting(model, *calls, lambda images: images, (2,), 0)


def tiny_setting(**kwargs):
    return setting(Tiny(), (4, 1, 1), dtype=torch.float64, **kwargs)


def joined(part):
    return tuple(torch.cat([batch[name] for batch in part()]) for name in ("pixel_values", "labels"))


# What they share


def test_a_direction_is_taken_out_of_a_linear_layer_by_its_strength():
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    bias = layer.bias.clone()
    remove_directions(layer, torch.tensor([[1.0], [0.0]], dtype=torch.float64), strength=0.5)
    assert layer.weight.tolist() == [[0.5, 2.0], [1.5, 4.0]]
    assert torch.equal(layer.bias, bias)


def test_a_convolution_is_blind_to_a_removed_channel_direction_at_every_position():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3).double()
    q = F.normalize(torch.randn(3, 1, dtype=torch.float64), dim=0)
    images, along = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 1, 6, 6).double()
    remove_directions(layer, q)
    torch.testing.assert_close(layer(images + q.view(1, 3, 1, 1) * along), layer(images))


@pytest.mark.parametrize("family", ["ViT", "Swin", "Swinv2", "ConvNext", "ResNet", "timm ViT"])
def test_layer_inputs_are_those_of_each_image_alone(family):
    model = make_model(family).eval()
    images = torch.randn(3, 3, 32, 32)
    layers = list(layer_inputs(model, linear_layers(model), images))
    together = layer_inputs(model, layers, images)
    alone = [layer_inputs(model, layers, image[None]) for image in images]
    assert len(layers) > 4 and list(together) == layers
    for layer, features in together.items():
        torch.testing.assert_close(features, torch.cat([each[layer] for each in alone]), rtol=1e-4, atol=1e-4)


# SSD


def test_importance_is_the_mean_squared_gradient_of_single_images():
    model = make_model("ViT").double().eval()
    images, labels = torch.randn(5, 3, 32, 32).double(), torch.tensor([0, 1, 2, 3, 4])
    expected = {name: torch.zeros_like(each) for name, each in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(pixel_values=image[None]).logits, label[None])
        for name, gradient in zip(expected, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            expected[name] += gradient**2 / 5
    for size in (2, 5):
        for name, value in importance(model, batches(images, labels, size)).items():
            torch.testing.assert_close(value, expected[name], msg=name)


def test_ssd_shrinks_by_the_formula_what_matters_more_to_forget():
    now = tiny_setting()
    before = copy.deepcopy(now.model)
    of_forget = importance(before, now.forget())
    of_retain = importance(before, now.retain())
    get_objective("ssd", alpha=1.5, dampening=0.5).prepare(now)
    shrunk = 0
    for name, value in now.model.named_parameters():
        start = before.get_parameter(name)
        for i in range(value.numel()):
            f, r = of_forget[name].flatten()[i].item(), of_retain[name].flatten()[i].item()
            d = (6 * f + 10 * r) / 16
            factor = min(1.0, 0.5 * d / f) if f > 1.5 * d else 1.0
            shrunk += factor < 1
            assert value.flatten()[i].item() == pytest.approx(factor * start.flatten()[i].item(), rel=1e-9)
    assert 0 < shrunk < sum(value.numel() for value in before.parameters())


def test_ssd_chooses_alpha_by_the_share_of_the_forget_set():
    # arXiv 2402.10098: the percentile 100 − ln(1 + 100 |F| / |D|) of I_F / I_D over all weights, λ 1.
    now = tiny_setting()
    before = copy.deepcopy(now.model)
    of_forget, of_all = importance(before, now.forget()), importance(before, [*now.forget(), *now.retain()])
    ratios = np.concatenate([(of_forget[name] / each).flatten().numpy() for name, each in of_all.items()])
    alpha = np.percentile(ratios, 100 - math.log(1 + 100 * 6 / 16))
    objective = get_objective("ssd")
    objective.prepare(now)
    assert objective.chosen == pytest.approx(alpha, rel=1e-12)
    by_alpha = tiny_setting()
    get_objective("ssd", alpha=alpha).prepare(by_alpha)
    for name, value in now.model.state_dict().items():
        assert torch.equal(value, by_alpha.model.state_dict()[name])
    assert any(not torch.equal(value, before.get_parameter(name)) for name, value in now.model.named_parameters())


def test_ssd_without_alpha_shrinks_the_published_share_of_weights_for_one_class_of_ten():
    torch.manual_seed(0)
    ratios = torch.rand(100_000) * 9  # below the 10 of the first paper, as they must be for one of ten
    alpha = chosen_alpha(ratios, 5_000, 45_000)
    assert (ratios > alpha).double().mean().item() == pytest.approx(math.log(11) / 100, abs=1e-5)


def test_ssd_without_alpha_shrinks_weights_that_forget_images_alone_move_however_many_they_are():
    ratios = torch.cat([torch.full((20,), 3.0), torch.full((20,), 3.0 + 3e-7), torch.rand(60)])
    alpha = chosen_alpha(ratios, 2, 4)
    assert (ratios > alpha).sum() == 40


def test_ssd_leaves_frozen_weights_and_those_that_no_image_moves_out():
    now = tiny_setting()
    now.model.first.requires_grad_(False)
    now.model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))  # which no image moves
    before = copy.deepcopy(now.model)
    objective = get_objective("ssd")
    objective.prepare(now)
    assert torch.equal(now.model.first.weight, before.first.weight)
    assert torch.equal(now.model.spare, before.spare) and math.isfinite(objective.chosen)
    last = (now.model.last.weight, before.last.weight), (now.model.last.bias, before.last.bias)
    assert any(not torch.equal(*pair) for pair in last)
    now.model.last.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable weight has a gradient"):
        get_objective("ssd").prepare(now)


def test_ssd_that_would_change_nothing_is_refused():
    now = tiny_setting()
    before = copy.deepcopy(now.model.state_dict())
    of_forget, of_all = importance(now.model, now.forget()), importance(now.model, [*now.forget(), *now.retain()])
    largest = max((of_forget[name] / each).nan_to_num(0.0).max().item() for name, each in of_all.items())
    with pytest.raises(ValueError, match=rf"matters 10 times as much .* the largest ratio is {largest:.3g}: set"):
        get_objective("ssd", alpha=10.0).prepare(now)
    assert largest <= 16 / 6
    assert all(torch.equal(value, before[name]) for name, value in now.model.state_dict().items())


def test_ssd_does_not_depend_on_the_batches():
    models = []
    for size in (1, 3, 16):
        now = tiny_setting(size=size)
        get_objective("ssd", alpha=1.5).prepare(now)
        models.append(now.model.state_dict())
    for name, value in models[0].items():
        for other in models[1:]:
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=0)


def test_ssd_can_do_with_each_kth_image():
    thinned, third = tiny_setting(size=1), tiny_setting(size=1)
    for name in ("forget", "retain"):
        part = getattr(third, name)(3)
        setattr(third, name, lambda every, part=part: part)
    whole, before = tiny_setting(size=1), copy.deepcopy(thinned.model)
    get_objective("ssd", alpha=1.5, every=3).prepare(thinned)
    get_objective("ssd", alpha=1.5).prepare(third)
    get_objective("ssd", alpha=1.5).prepare(whole)
    expected, other, start = (each.state_dict() for each in (third.model, whole.model, before))
    assert all(torch.equal(value, expected[name]) for name, value in thinned.model.state_dict().items())
    assert any(not torch.equal(expected[name], other[name]) for name in start)
    assert any(not torch.equal(expected[name], start[name]) for name in start)
    for every in (2.0, 0):
        with pytest.raises(ValueError, match=f"every must be a whole number from 1, got {every}"):
            get_objective("ssd", every=every)


# ESC


def test_esc_removes_the_leading_directions_of_what_the_classifier_reads():
    now = tiny_setting()
    before = copy.deepcopy(now.model)
    images, _ = joined(now.forget)
    features = before.hidden(images)
    q = torch.linalg.svd(features, full_matrices=False).Vh[:2].T
    get_objective("esc", share=0.5).prepare(now)  # two of four
    torch.testing.assert_close(now.model(images).logits, before.last(features - features @ q @ q.T))
    assert torch.equal(now.model.first.weight, before.first.weight)


def test_esc_removes_the_published_number_of_directions_and_one_at_least():
    for width, count in ((512, 7), (768, 11), (32, 1)):
        model = Tiny()
        model.first, model.last = nn.Linear(4, width).double(), nn.Linear(width, 3).double()
        now = setting(model, (4, 1, 1), forget=20, size=20, dtype=torch.float64)
        get_objective("esc").prepare(now)
        leading = torch.linalg.svd(model.hidden(joined(now.forget)[0]), full_matrices=False).Vh
        response = (leading @ model.last.weight.T).norm(dim=1)
        assert (response[:count] < 1e-9).all() and response[count] > 1e-6


# DAMP


def test_forget_directions_are_what_lies_outside_the_span_of_retain():
    retain = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    basis = forget_directions(torch.tensor([[5.0, -2, 3, 4]]), retain)
    torch.testing.assert_close(basis.abs(), torch.tensor([[0.0], [0], [0.6], [0.8]]))
    two = forget_directions(torch.tensor([[0.0, 0, 1, 0], [0, 0, 1, 1]]), retain)
    torch.testing.assert_close(two @ two.T, torch.diag(torch.tensor([0.0, 0, 1, 1])))
    assert forget_directions(torch.tensor([[5.0, -2, 0, 0]]), retain).shape == (4, 0)


def test_damp_edits_each_layer_by_separability_and_depth():
    now = tiny_setting()
    before = copy.deepcopy(now.model)
    get_objective("damp", strength=0.8).prepare(now)
    (forget, _), (retain, labels) = joined(now.forget), joined(now.retain)
    inputs = {
        "first": (forget.flatten(1), retain.flatten(1)),
        "last": (before.hidden(forget), before.hidden(retain)),
    }
    for depth, (name, (f, r)) in enumerate(inputs.items(), start=1):
        means = torch.stack([r[labels == 0].mean(0), r[labels == 1].mean(0)])
        away = f.mean(0) - torch.linalg.lstsq(means.T, f.mean(0)).solution @ means
        q = away / away.norm()
        own = [(x - f.mean(0)).norm() < (x - means).norm(dim=1).min() for x in f]
        kept = [(x - means).norm(dim=1).min() < (x - f.mean(0)).norm() for x in r]
        separability = max(0.0, sum(own).item() / 6 + sum(kept).item() / 10 - 1)
        assert separability > 0
        weight = getattr(before, name).weight
        expected = weight - 0.8 * separability * depth / 2 * (weight @ q)[:, None] * q
        edited = getattr(now.model, name).weight
        torch.testing.assert_close(edited, expected)
        torch.testing.assert_close(edited @ means.T, weight @ means.T)  # a retained prototype is answered as before


def test_damp_refuses_what_it_cannot_do():
    now = tiny_setting()
    now.forget_classes = None
    with pytest.raises(ValueError, match="whole classes"):
        get_objective("damp").prepare(now)
    now = tiny_setting()
    now.forget = now.retain  # the same prototypes
    with pytest.raises(ValueError, match="too narrow"):
        get_objective("damp").prepare(now)


# Retraining


@pytest.mark.parametrize("family", ["ViT", "ResNet", "timm ViT", "timm ResNet"])
def test_new_weights_are_drawn_as_the_family_draws_them(family):
    torch.manual_seed(3)
    model = make_model(family)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    torch.manual_seed(3)
    new = new_like(model)
    assert list(new.state_dict()) == list(model.state_dict())
    weights = [value for name, value in new.named_parameters() if value.dim() > 1 and "bias" not in name]
    assert not any((value == 7).any() for value in new.parameters())
    assert sum(value.std() > 0 for value in weights) > len(weights) / 2
    torch.manual_seed(3)
    again = new_like(model).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in new.state_dict().items())


def test_new_timm_weights_are_timms_own_and_not_the_wrappers():
    model = make_model("timm ResNet")
    own = [layer for layer in new_like(model).modules() if isinstance(layer, nn.Conv2d)]
    wrapper = [layer for layer in type(model)(model.config).modules() if isinstance(layer, nn.Conv2d)]
    for layer, other in zip(own, wrapper, strict=True):
        fan_out = layer.out_channels * layer.kernel_size[0] ** 2 / layer.groups
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.35)
        assert other.weight.std().item() == pytest.approx(0.02, rel=0.35)


def test_retrain_replaces_every_weight_and_the_statistics():
    now = setting(make_model("ResNet"), (3, 32, 32))
    for buffer in now.model.buffers():
        buffer.fill_(9)
    before = copy.deepcopy(now.model.state_dict())
    get_objective("retrain").prepare(now)
    drawn = [name for name, value in before.items() if value.dim() == 4]
    assert drawn and not any(torch.equal(now.model.state_dict()[name], before[name]) for name in drawn)
    assert all((value != 9).all() for value in now.model.buffers())


# Every family


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_closed_forms_edit_every_family_in_place_and_leave_a_finite_model(family):
    model = make_model(family).eval()
    if family == "MobileNetV2":  # its initial weights let nothing through
        [nn.init.kaiming_normal_(each.weight) for each in model.modules() if isinstance(each, nn.Conv2d)]
    now = setting(model, (3, 32, 32), forget=2, retain=4)
    start = copy.deepcopy(model.state_dict())
    images, _ = joined(now.retain)
    for name, options in (("ssd", {}), ("esc", {}), ("damp", {})):
        model.load_state_dict(start)
        with torch.no_grad():
            original = model(pixel_values=images).logits
        get_objective(name, **options).prepare(now)
        with torch.no_grad():
            edited = model(pixel_values=images).logits
        assert edited.isfinite().all()
        assert not torch.equal(edited, original), name
        assert not any(module._forward_pre_hooks for module in model.modules())
