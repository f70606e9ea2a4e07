from __future__ import annotations

import copy
from itertools import islice

import numpy as np
import pytest
import torch
from helpers.attacks import subject_and_images
from helpers.models import FAMILIES, TIMM, make_model

from ec_hf.auditing.attacks import prompt as prompts
from ec_hf.auditing.attacks.fitting import endless_batches, train
from ec_hf.auditing.attacks.prompt import Prompt, prompt_for

SHAPE = (3, 32, 32)
TOKENS = {"ViT", "DeiT", "Beit", "Dinov2", "Dinov2WithRegisters", "Siglip", "timm ViT", "timm ViT registers"}


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_transformers_on_tokens_get_learnt_tokens_and_all_others_a_learnt_border(family):
    model, pixels = make_model(family).eval().requires_grad_(False), torch.rand(2, *SHAPE)
    prompt = prompt_for(model, SHAPE)
    assert prompt.kind == ("tokens" if family in TOKENS else "border")
    before = model(pixel_values=pixels).logits
    with torch.no_grad():
        prompt.values.add_(torch.randn(prompt.values.shape))
    prompted = prompt.classify(pixels)
    assert prompted.shape == before.shape and prompted.requires_grad
    assert not torch.equal(prompted, before)
    assert torch.equal(model(pixel_values=pixels).logits, before), "the model alone is as it was"


def test_tokens_that_would_not_fit_a_bias_for_each_place_give_way_to_a_border():
    model = make_model("Beit", use_relative_position_bias=True).eval()
    assert prompt_for(model, SHAPE).kind == "border"


def test_a_border_is_zero_at_first_and_never_touches_the_middle():
    model = make_model("ResNet").eval().requires_grad_(False)
    prompt, pixels = prompt_for(model, SHAPE), torch.rand(2, *SHAPE)
    assert torch.equal(prompt.classify(pixels), model(pixel_values=pixels).logits)
    edge = 4  # 30 of 224 pixels
    assert prompt.around.sum() == 32**2 - (32 - 2 * edge) ** 2
    assert prompt.around[edge:-edge, edge:-edge].max() == 0


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_a_prompt_learns_and_leaves_the_weights_of_the_model_as_they_were(family, monkeypatch):
    monkeypatch.setattr(prompts, "STEPS", 2)
    subject, images = subject_and_images(family)
    before = copy.deepcopy(subject.model.state_dict())
    outcome = Prompt().run(subject, images)
    assert all(torch.equal(before[name], weight) for name, weight in subject.model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in subject.model.parameters())
    assert np.array_equal(outcome.hits, Prompt().run(subject, images).hits), "a seed gives one curve"
    assert list(outcome.x) == images.shots


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_the_loss_falls_as_a_prompt_is_learnt(family):
    subject, images = subject_and_images(family)
    model = subject.model.requires_grad_(False)
    prompt = prompt_for(model, SHAPE)
    batch = subject.collator([images.forgotten[row] for row in range(len(images.forgotten))])

    def loss() -> float:
        with torch.no_grad():
            logits = prompt.classify(batch["pixel_values"])
        return torch.nn.functional.cross_entropy(logits, batch["labels"]).item()

    before = loss()
    batches = endless_batches(images.forgotten, subject.collator, 12, seed=0)
    list(islice(train(prompt.classify, prompt.parameters(), batches, model, 1e-2), 10))
    assert loss() < before
