"""Forget images have a share of exactly 0 where they must have none.

The canary is NaN: whatever takes in the smallest part of it, 0 times it included, is NaN itself.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

import numpy as np
import pytest
import torch
from helpers.models import make_images, make_model, make_processor
from helpers.trainers import make_trainer, settings

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.data.manifests import earlier_requests, manifest
from ec_hf.data.pairing import PairedBatchSampler

FAMILIES = ["ViT", "ResNet", "ConvNext", "timm ResNet"]
COUNT = 6


def a_batch(trainer):
    """The first forget and the first retain images."""
    first = len(trainer.train_dataset.forget)
    rows = [*range(COUNT), *range(first, first + COUNT)]
    return trainer.data_collator(trainer.train_dataset.__getitems__(rows))


def finite(value):
    return bool(torch.isfinite(value).all())


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_norm", ["frozen", "retain"])
def test_what_the_retain_images_cost_takes_nothing_from_the_forget_images(tmp_path, family, batch_norm):
    trainer = make_trainer(tmp_path, family, batch_norm=batch_norm)
    batch = a_batch(trainer)
    batch["pixel_values"][:COUNT] = float("nan")
    before = statistics(trainer.model)
    with trainer.eraser.attached():
        trainer.model.train()
        terms = trainer.eraser(batch).parts
        kept = [term.value for name, term in terms.items() if name.endswith("retain_ce")]
        sum(kept).backward()
    assert len(kept) == 4 and all(map(finite, kept))
    assert all(not finite(term.value) for name, term in terms.items() if name.endswith("/contrast")), "it sings"
    after = statistics(trainer.model)
    assert all(map(finite, after.values()))
    assert all(torch.equal(after[name], before[name]) == (batch_norm == "frozen") for name in after)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_of_the_retain_loss_at_forget_pixels_is_exactly_0(tmp_path, family):
    trainer = make_trainer(tmp_path, family, batch_norm="retain")
    batch = a_batch(trainer)
    pixels = batch["pixel_values"].requires_grad_()
    with trainer.eraser.attached():
        trainer.model.train()
        terms = trainer.eraser(batch).parts
        kept = sum(term.value for name, term in terms.items() if name.endswith("retain_ce"))
        (slope,) = torch.autograd.grad(kept, pixels)
    assert not slope[:COUNT].any()
    assert slope[COUNT:].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(("forget", "retain"), [(3, 50), (50, 3), (17, 40)])
def test_no_forget_row_stands_among_the_retain_rows_of_a_batch(forget, retain, processes):
    sampler = PairedBatchSampler(
        forget, retain, forget_batch_size=4, retain_batch_size=8, seed=1, num_processes=processes
    )
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert max(batch[:4]) < forget <= min(batch[4:])


def with_canaries(trainer, labels):
    """From now on images of some classes are NaN wherever they are seen."""
    collate = trainer.data_collator

    def collate_with_canaries(examples):
        batch = collate(examples)
        batch["pixel_values"][torch.isin(batch["labels"], torch.tensor(labels))] = float("nan")
        return batch

    trainer.data_collator = collate_with_canaries


@pytest.mark.parametrize("objective", ["duck", "coun", "boundary_expand"])
def test_what_an_objective_learns_of_the_retain_set_takes_nothing_from_the_forget_set(tmp_path, objective):
    trainer = make_trainer(tmp_path, objective=objective, points=[])
    with_canaries(trainer, [1])
    looked_at = list(trainer.look_at("retain"))
    assert sum(len(batch["labels"]) for batch in looked_at) == 80
    assert all(finite(batch["pixel_values"]) for batch in looked_at)
    assert not any(finite(batch["pixel_values"]) for batch in trainer.look_at("forget"))


def test_remembered_outputs_of_one_forget_image_take_nothing_from_another(tmp_path):
    trainer = make_trainer(tmp_path, objective="delete", points=[], cache_teacher=True)
    collate = trainer.data_collator

    def collate_with_one_canary(examples):
        batch = collate(examples)
        batch["pixel_values"][batch["rows"] == 17] = float("nan")
        return batch

    trainer.data_collator = collate_with_one_canary
    trainer._prepare(evaluate=False)
    logits = trainer.eraser.teacher._forget_logits
    assert len(logits) == 20
    assert torch.nonzero(~torch.isfinite(logits).all(dim=1)).flatten().tolist() == [17]


def test_heads_and_weights_of_a_later_request_take_nothing_from_what_an_earlier_one_named(tmp_path):
    images = make_images()
    first, second = ForgetRequest(classes=["bee"]), ForgetRequest(classes=["dog"])
    history = [manifest(images, first, split(images, first), name="images")]
    earlier, _ = earlier_requests(history, images)
    assert [request.content_hash for request in earlier.values()] == [first.content_hash]
    ever = reduce(or_, earlier.values(), second)
    forget, retain = split(images, second)["forget"], split(images, ever)["retain"]
    assert not {1} & set(np.unique([*forget["label"], *retain["label"]]))
    trainer = ECTrainer(
        make_model("ResNet"),
        settings(tmp_path, batch_norm="retain", max_steps=3),
        forget_dataset=forget,
        retain_dataset=retain,
        processing_class=make_processor(),
    )
    with_canaries(trainer, [1])
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(map(finite, [*trainer.model.state_dict().values(), *trainer.heads.state_dict().values()]))
