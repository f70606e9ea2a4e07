"""A learning rate that nobody names: found ahead of the first step, and the model is as it was."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers.models import make_model
from helpers.trainers import make_trainer
from torch.nn import functional as F

from ec_hf.files import ModelFolder
from ec_hf.training.learning_rate import batch_for, rate_of, tried_rates

REWIND = {"objective": "rewind", "learning_rate": None, "per_device_forget_batch_size": 8}


def batches(count=100, size=8):
    """Images whose brightest channel is their class."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        labels = torch.randint(0, 3, (size,), generator=generator)
        pixels = torch.randn(size, 3, 32, 32, generator=generator) + 2 * F.one_hot(labels, 3)[:, :, None, None]
        yield pixels, labels


def adamw(model):
    return lambda rate: torch.optim.AdamW(model.parameters(), lr=rate)


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_the_model_is_as_it_was_after_the_rates_are_tried(family):
    model = make_model(family).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tried = tried_rates(model, batches(), adamw(model))
    assert not model.training and all(each.grad is None for each in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert 10 < len(tried) <= 100 and all(one[0] < other[0] for one, other in pairwise(tried))


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_the_rate_that_is_found_trains_better_than_a_thirtieth_and_thirty_times_of_it(family):
    def loss_after(rate):
        model = make_model(family).train()
        optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate), []
        for pixels, labels in batches(40):
            loss = F.cross_entropy(model(pixel_values=pixels).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return sum(losses[-10:]) / 10

    model = make_model(family)
    found = rate_of(tried_rates(model, batches(), adamw(model)))
    assert loss_after(found) < min(loss_after(found / 30), loss_after(found * 30))


def test_the_rate_is_well_below_that_of_the_least_loss():
    tried = [(1e-4, 3.0), (4e-3, 1.0), (1e-2, 2.0), (1e-1, math.nan)]
    assert rate_of(tried) == 1e-3 and rate_of(tried, new_weights=True) == 2e-3
    with pytest.raises(ValueError, match="Name a learning_rate"):
        rate_of([(1e-5, math.nan)])


def test_steps_see_more_images_where_there_are_more_classes():
    assert [batch_for(classes, most=64) for classes in (2, 10, 345, 1000, 20000)] == [8, 8, 21, 62, 64]
    assert batch_for(1000, most=4) == 8


def test_a_run_finds_its_rate_puts_it_on_record_and_goes_on_with_it(tmp_path):
    options = {**REWIND, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    rate = whole.args.learning_rate
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert 1e-6 < rate < 1e-1
    assert ModelFolder(checkpoint).read("ec_config.json")["settings"]["learning_rate"] == rate
    assert 200 < whole.cost["retain_images_seen"] - 6 * 16 <= 880, "what the test looked at counts"
    resumed = make_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.args.learning_rate == rate
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_rate_that_is_given_is_taken_as_it_is(tmp_path):
    trainer = make_trainer(tmp_path, **{**REWIND, "learning_rate": 2e-3}, max_steps=1)
    trainer.train()
    assert trainer.args.learning_rate == 2e-3 and trainer.images_looked_at["retain"] < 800
