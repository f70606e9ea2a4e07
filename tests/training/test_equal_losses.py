"""The same loss whatever makes a step faster or smaller: each way within its stated tolerance of plain float32."""

from __future__ import annotations

import shutil
from contextlib import nullcontext

import pytest
import torch
from helpers.models import make_images, make_model, make_processor

from ec_hf import Eraser, EraserConfig, ForgetRequest, split
from ec_hf.models.inputs import ImageCollator

CONFIG = EraserConfig(objective="delete", objective_kwargs={"retain_weight": 1.0}, calibrated=True)
PARTS = split(make_images(40), ForgetRequest(classes=["bee", "dog"]))
COLLATE = ImageCollator(make_processor())
BATCH = COLLATE(
    [{**row, "is_forget": name == "forget"} for name, part in PARTS.items() for row in part.select(range(8))]
)


def step(family, prepare=lambda model: None, *, wrap=lambda model: model, context=nullcontext, pixels=None, **config):
    """Terms of the loss, and the gradients, of one step."""
    model = make_model(family, **config)
    eraser = Eraser(model, CONFIG, forget_classes=[1, 3])
    eraser.heads_fitted = True
    batch = BATCH if pixels is None else {**BATCH, "pixel_values": pixels}
    with eraser.attached():
        model.train()
        prepare(model)
        with context():
            terms = eraser(batch, model=wrap(model))
        terms.total.backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {name: value.item() for name, value in terms.logged().items()}, gradients


def assert_equal(ours, theirs, tolerance):
    """Each term within a share of itself, and the whole gradient within the same share of its length."""
    (terms, gradients), (wanted, slopes) = ours, theirs
    assert terms == pytest.approx(wanted, rel=tolerance, abs=tolerance)
    assert gradients.keys() == slopes.keys()
    mine, its = (torch.cat([each[name].flatten() for name in slopes]) for each in (gradients, slopes))
    assert (mine - its).norm() <= tolerance * its.norm()


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet", "ConvNext"])
def test_bf16_autocast_within_5_percent(family):
    (terms, gradients), (wanted, slopes) = (
        step(family, context=context) for context in (lambda: torch.autocast("cpu", torch.bfloat16), nullcontext)
    )
    assert terms == pytest.approx(wanted, rel=0.05, abs=0.02)
    assert terms != wanted, "autocast took part"
    assert gradients.keys() == slopes.keys()
    assert all(torch.isfinite(each).all() for each in gradients.values())


@pytest.mark.parametrize("family", ["ViT", "Swin"])
def test_activation_checkpointing_to_the_rounding(family):
    def checkpointed(model):
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing

    assert_equal(step(family, checkpointed), step(family), 1e-6)


@pytest.mark.parametrize("family", ["ResNet", "ConvNext"])
def test_channels_last_to_the_rounding(family):
    pixels = BATCH["pixel_values"].contiguous(memory_format=torch.channels_last)
    found = step(family, lambda model: model.to(memory_format=torch.channels_last), pixels=pixels)
    assert_equal(found, step(family), 1e-4)


@pytest.mark.parametrize("family", ["ViT", "Swin"])
def test_sdpa_is_eager_attention_to_the_rounding(family):
    ways = [step(family, attn_implementation=name) for name in ("sdpa", "eager")]
    assert_equal(*ways, 1e-4)


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU"),
            ],
        ),
    ],
)
def test_torch_compile_to_the_rounding(family, backend):
    torch.compiler.reset()
    assert_equal(step(family, wrap=lambda model: torch.compile(model, backend=backend)), step(family), 1e-4)
