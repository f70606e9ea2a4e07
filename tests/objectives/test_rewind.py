"""Objectives that set the deep blocks of a network back: rewind, EU-k, CF-k."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.models import make_model
from helpers.trainers import make_trainer

from ec_hf import Eraser, EraserConfig
from ec_hf.models.depth import blocks_of_weights
from ec_hf.objectives import Part, Setting, Step, get_objective

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prepared(model, name, **settings):
    """What the objective makes of a model, beside the weights before and the block of each."""
    before = copy.deepcopy(model.state_dict())
    batches = [{"pixel_values": IMAGES, "labels": torch.arange(4)}]
    get_objective(name, **settings).prepare(Setting(model, lambda: batches, lambda: batches, None, (2,), seed=0))
    return before, model.state_dict(), *blocks_of_weights(model, IMAGES)


def changed(before, after):
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet", "timm ResNet"])
def test_rewind_starts_the_deep_half_anew_and_keeps_the_rest_to_the_bit(family):
    model = make_model(family)
    with torch.no_grad():
        [each.add_(torch.rand_like(each)) for each in model.parameters()]  # norms and biases are new ones otherwise
    before, after, blocks, count = prepared(model, "rewind", depth=0.5)
    cut = round(count / 2)
    moved = changed(before, after)
    assert all(blocks[name] >= cut for name in moved)
    assert {name for name, _ in model.named_parameters() if blocks[name] >= cut} <= moved


def test_alpha_mixes_the_blocks_and_the_classifier_is_new_in_any_case():
    halves = [prepared(make_model("ViT"), "rewind", depth=1.0, alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
    (before, none, blocks, count), (_, half, *_), (_, whole, *_) = halves
    deep = {name for name, block in blocks.items() if block == count - 1}
    assert changed(before, none) <= deep
    name = next(name for name, block in blocks.items() if block == 1 and before[name].dim() == 2)
    assert not torch.equal(half[name], before[name]) and not torch.equal(whole[name], before[name])
    assert half[name].std() < before[name].std()  # of two independent draws of one size


def test_undo_moves_every_block_the_classifier_too_by_alpha():
    model = make_model("ViT")
    before, after, blocks, _ = prepared(model, "undo", alpha=0.25)
    whole = prepared(make_model("ViT"), "undo", alpha=1.0)[1]
    assert set(blocks) >= changed(before, after) > set()
    for name in ("classifier.weight", "vit.embeddings.patch_embeddings.projection.weight"):
        torch.testing.assert_close(after[name], 0.75 * before[name] + 0.25 * whole[name])


def test_a_base_checkpoint_gives_its_weights_where_they_fit_and_new_ones_elsewhere(tmp_path):
    model = make_model("ViT")
    base = type(model)(type(model.config).from_dict({**model.config.to_dict(), "id2label": {0: "one", 1: "two"}}))
    base.save_pretrained(tmp_path / "base")
    before, after, blocks, count = prepared(model, "rewind", depth=0.5, alpha=1.0, base=str(tmp_path / "base"))
    theirs = base.state_dict()
    for name, block in blocks.items():
        if name.startswith("classifier"):
            assert after[name].shape == before[name].shape
        else:
            assert torch.equal(after[name], theirs[name] if block >= round(count / 2) else before[name])


def test_with_a_base_all_blocks_go_most_of_the_way_back_to_it_unless_said_otherwise(tmp_path):
    plain, based = get_objective("rewind"), get_objective("rewind", base="somewhere")
    assert (plain.depth, plain.alpha, plain.teacher_weight) == (0.5, 1.0, 2.0)
    assert (based.depth, based.alpha, based.teacher_weight) == (1.0, 0.9, 1.0)
    assert (get_objective("rewind", base="somewhere", depth=0.25, alpha=1.0).depth) == 0.25


def test_frozen_weights_are_not_rewound():
    model = make_model("ViT")
    frozen = dict(model.named_parameters())["classifier.weight"]
    frozen.requires_grad_(False)
    before, after, *_ = prepared(model, "rewind", depth=1.0)
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_the_blind_teacher_gives_forgotten_classes_no_probability():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    student = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    part = Part(student, student, torch.tensor([0]), IMAGES[:1])
    step = Step(part, part, teacher=lambda pixels: logits, forget_classes=(2,))
    losses = get_objective("rewind", retain_weight=1.0, teacher_weight=2.0)(step)
    q = torch.tensor([1.0, 2.0]).softmax(0)
    log_p = student.detach()[0].log_softmax(0)
    assert losses["blind_teacher"].item() == pytest.approx(2 * float((q * (q.log() - log_p[:2])).sum()), rel=1e-6)
    assert losses["retain_ce"].item() == pytest.approx(float(-log_p[0]), rel=1e-6)


def test_a_run_of_rewind_is_not_stopped_by_the_output_and_follows_retain_statistics(tmp_path, fitted_heads):
    points = [point.index for point in fitted_heads.points]
    trainer = make_trainer(
        tmp_path, forget=("bee",), heads=fitted_heads, points=points, objective="rewind", max_steps=3
    )
    assert trainer.eraser.batch_norm == "retain"
    assert trainer.stopping_rule.target < 0
    trainer.train()
    assert math.isfinite(trainer.state.log_history[-1]["train_loss"])


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_ec_supervises_what_rewind_leaves_as_it_is_where_no_points_are_named(family):
    model = make_model(family)
    eraser = Eraser(model, EraserConfig("rewind"), forget_classes=[2])
    blocks, count = blocks_of_weights(model, IMAGES)
    cut = round(count / 2)
    assert eraser.points and all(point.index < cut for point in eraser.points)
    assert {blocks[name] for name, _ in model.named_parameters()} >= {point.index for point in eraser.points}
    assert not Eraser(make_model(family), EraserConfig("rewind", {"depth": 1.0}), forget_classes=[2]).points


@pytest.mark.parametrize("name", ["cf_k", "eu_k"])
def test_the_last_blocks_alone_train_and_all_may_train_again_afterwards(tmp_path, name):
    trainer = make_trainer(
        tmp_path, objective=name, objective_kwargs={"k": 1}, points=[], max_steps=3, learning_rate=1e-2
    )
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    blocks, count = blocks_of_weights(model, torch.rand(1, 3, 32, 32))
    moved = changed(before, model.state_dict())
    assert moved and all(blocks[name] == count - 1 for name in moved)
    assert all(each.requires_grad for each in model.parameters())


def test_eu_k_keeps_the_statistics_of_frozen_layers():
    model = make_model("ResNet")
    before, after, blocks, count = prepared(model, "eu_k", k=2)
    assert {name for name, each in model.named_parameters() if each.requires_grad} == {
        name for name, _ in model.named_parameters() if blocks[name] >= count - 2
    }
    assert all(blocks[name] >= count - 2 for name in changed(before, after))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("rewind", {"depth": 1.5}),
        ("rewind", {"alpha": -0.1}),
        ("rewind", {"teacher_weight": -1}),
        ("eu_k", {"k": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        get_objective(name, **settings)


@pytest.mark.parametrize(("settings", "rows"), [({"points": []}, 16), ({"points": [1]}, 24)])
def test_forget_images_go_through_the_model_only_where_a_loss_looks_at_them(tmp_path, settings, rows):
    seen = []
    trainer = make_trainer(tmp_path, objective="rewind", objective_kwargs={"depth": 0.5}, max_steps=2, **settings)
    trainer.model.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(len(kwargs["pixel_values"])) if model.training else None,
        with_kwargs=True,
    )
    trainer.train()
    assert seen == [rows] * 2
    assert (trainer.cost["forget_images_seen"] == 0) == (rows == 16)
