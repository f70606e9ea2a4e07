from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from helpers.heads import make_heads
from helpers.models import FAMILIES, TIMM, make_images, make_model, make_processor
from torch.utils.data import DataLoader

from ec_hf.models.heads import ECHead, ECHeads
from ec_hf.models.inputs import ImageCollator
from ec_hf.models.penultimate import classifier_of
from ec_hf.models.points import SupervisionPoint, describe_hidden_states, hidden_state_kwargs, pool
from ec_hf.training import fitting
from ec_hf.training.fitting import fit_heads


def run(model, training=True):
    model.train(training)
    return model(pixel_values=torch.rand(2, 3, 32, 32), **hidden_state_kwargs(model))


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_heads_of_every_family_bring_their_point_to_the_width_of_the_last_one(family):
    model = make_model(family)
    classifier = classifier_of(model).values()
    heads = make_heads(model)
    heads.attach(model)
    output = run(model)
    width = heads.points[-1].channels
    assert [tuple(each.shape) for each in output.features] == [(2, width)] * len(heads.points)
    assert [tuple(each.shape) for each in output.head_logits] == [(2, 5)] * len(heads.points)
    width = sum(layer.in_features if hasattr(layer, "in_features") else layer.in_channels for layer in classifier)
    assert output.last_features.shape == (2, width), "what the classifier reads"
    sum(each.sum() for each in output.head_logits).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_the_head_of_point_k_of_l_is_a_chain_of_l_minus_k_blocks():
    for family in ("ViT", "ResNet"):
        assert [len(head.blocks) for head in make_heads(make_model(family)).heads] == [3, 2, 1, 0]


def test_convolution_heads_end_at_the_resolution_of_the_last_point():
    heads = make_heads(make_model("Swin"))
    last = heads.points[-1]
    for head, point in zip(heads.heads, heads.points, strict=True):
        out = head.blocks(torch.rand(1, point.channels, point.height, point.width))
        assert out.shape == (1, last.channels, last.height, last.width)


def test_heads_hold_no_batch_statistics():
    for family in ("ViT", "ResNet"):
        assert not list(make_heads(make_model(family)).buffers())


def test_outside_training_the_model_returns_its_plain_output():
    model = make_model("ViT")
    make_heads(model).attach(model)
    assert type(run(model, training=False)).__name__ == "ImageClassifierOutput"


def test_saving_with_heads_attached_writes_the_plain_checkpoint(tmp_path):
    model = make_model("ViT")
    plain = copy.deepcopy(model)
    heads = make_heads(model)
    heads.attach(model)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_detaching_leaves_the_model_as_it_was():
    model = make_model("ResNet")
    before, ignored = list(model.state_dict()), model._keys_to_ignore_on_save
    heads = make_heads(model)
    heads.attach(model)
    assert list(model.state_dict()) != before
    heads.detach()
    heads.detach()  # a second time does nothing
    assert list(model.state_dict()) == before
    assert model._keys_to_ignore_on_save == ignored
    assert type(run(model)).__name__ != "ECImageClassifierOutput"


def test_a_saved_head_gives_the_same_output_from_its_own_folder_and_from_beside_a_model(tmp_path):
    model = make_model("ResNet").eval()
    heads = make_heads(model)
    heads.save_pretrained(tmp_path / "ec_heads")
    states = run(model, training=False).hidden_states
    for folder in (tmp_path, tmp_path / "ec_heads"):
        loaded = ECHeads.from_pretrained(folder)
        assert loaded.points == heads.points and loaded.last == heads.last
        for ours, theirs in zip(heads(states)[1], loaded(states)[1], strict=True):
            assert torch.equal(ours, theirs)


def test_heads_for_another_number_of_classes_are_refused():
    model = make_model("ViT")
    heads = ECHeads([], describe_hidden_states(model)[-1].to_dict(), num_labels=7)
    with pytest.raises(ValueError, match="classify 7 classes, the model 5"):
        heads.attach(model)


def test_a_second_set_of_heads_is_refused():
    model = make_model("ViT")
    make_heads(model).attach(model)
    with pytest.raises(ValueError, match="attached already"):
        make_heads(model).attach(model)


def test_fitting_learns_to_classify_and_changes_nothing_of_the_model():
    torch.manual_seed(0)
    model = make_model("ResNet")
    model.train()  # fitting must not let batch norm see a training batch all the same
    before = copy.deepcopy(model.state_dict())
    heads = make_heads(model)
    batches = DataLoader(make_images(), batch_size=20, collate_fn=ImageCollator(make_processor()))
    found = fit_heads(heads, model, batches, Accelerator(cpu=True), epochs=8, learning_rate=5e-3)
    assert list(found) == [point.name for point in heads.points]
    assert min(found.values()) > 0.6, found
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fitting_runs_the_model_without_gradient():
    model = make_model("ViT")
    heads = make_heads(model)
    seen = []

    def record(*_) -> None:
        seen.append(torch.is_inference_mode_enabled())

    model.vit.embeddings.register_forward_hook(record)
    batches = DataLoader(make_images(20), batch_size=20, collate_fn=ImageCollator(make_processor()))
    fit_heads(heads, model, batches, Accelerator(cpu=True), epochs=1, learning_rate=1e-3)
    assert seen == [True]


@pytest.mark.parametrize("pooling", ["mean", "cls", "all"])
def test_a_token_head_computes_what_torchs_own_layers_and_pooling_would(pooling):
    points = [SupervisionPoint(k, "tokens", 16, 3, 3, prefix=1) for k in range(3)]
    head = ECHead(points, 5, pooling).double()
    tokens = torch.randn(2, 10, 16, dtype=torch.double, requires_grad=True)
    wanted = tokens
    for block in head.blocks:
        wanted = torch.nn.TransformerEncoderLayer.forward(block, wanted)
    wanted = head.norm(pool(wanted, points[-1], pooling))
    found, _ = head(tokens)
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(each.square().sum(), tokens)[0] for each in (found, wanted)]
    torch.testing.assert_close(*slopes)


def test_heads_that_are_not_active_do_not_run_and_change_nothing_of_the_others():
    model = make_model("ResNet")
    heads = make_heads(model)
    ran = []
    for number, head in enumerate(heads.heads):
        head.register_forward_hook(lambda *_, number=number: ran.append(number))
    results = []
    for active in (None, [True, False, True, False]):
        torch.manual_seed(0)
        heads.attach(model, active=active, pooled=active is None)
        results.append(run(model))
        heads.detach()
    every, some = results
    assert ran == [0, 1, 2, 3, 0, 2]
    assert some.pooled is None and len(every.pooled) == 4
    for mine, its in zip(some.features + some.head_logits, every.features + every.head_logits, strict=True):
        assert mine is None or torch.equal(mine, its)
    assert [each is None for each in some.features] == [False, True, False, True]


class Counted(torch.utils.data.Dataset):
    """As many images of five shades as one asks for."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        torch.manual_seed(row)
        return torch.rand(3, 32, 32) * 0.1 + row % 5 / 5, row % 5


def loader(rows, size=8):
    def collate(items):
        return {
            "pixel_values": torch.stack([image for image, _ in items]),
            "labels": torch.tensor([label for _, label in items]),
        }

    return DataLoader(Counted(rows), batch_size=size, collate_fn=collate)


def test_a_long_fit_ends_once_held_out_images_gain_nothing_and_tells_their_accuracy(monkeypatch):
    monkeypatch.setattr(fitting, "ROUND", 20)
    model = make_model("ResNet")
    heads, steps = make_heads(model), []
    model.register_forward_hook(lambda *_: steps.append(1))
    found = fit_heads(
        heads,
        model,
        loader(1600),
        Accelerator(cpu=True),
        epochs=3,
        learning_rate=5e-3,
        held_out=loader(40, 20),
    )
    rounds, rest = divmod(len(steps), 22)  # 20 batches and 2 of held-out images
    assert 2 <= rounds < 30 and not rest, "three passes are 30 rounds"
    assert all(share * 40 == pytest.approx(round(share * 40)) for share in found.values())


def test_without_held_out_images_all_passes_are_made(monkeypatch):
    monkeypatch.setattr(fitting, "ROUND", 2)
    model = make_model("ResNet")
    heads, steps = make_heads(model), []
    model.register_forward_hook(lambda *_: steps.append(1))
    fit_heads(heads, model, loader(40), Accelerator(cpu=True), epochs=2, learning_rate=1e-3)
    assert len(steps) == 10


def test_only_a_long_fit_leaves_images_out_and_no_image_is_in_both_parts():
    images = Counted(50)
    assert fitting.with_held_out(images, steps=fitting.ROUND, seed=0) == (images, None)
    fitted, left_out = fitting.with_held_out(images, steps=fitting.ROUND + 1, seed=0)
    assert len(left_out) == 5
    assert sorted([*fitted.indices, *left_out.indices]) == list(range(50))
    assert len(fitting.with_held_out(Counted(20_000), steps=1e6, seed=0)[1]) == fitting.HELD_OUT
