"""A run takes the steps, and sees the images, that its length says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.trainers import make_trainer, settings

from ec_hf import ECConfig
from ec_hf.training.run_length import RunLength


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 7},  # into a second pass over 80 retain images
        {"num_train_epochs": 1.5, "max_steps": -1},
        {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 2},  # 5 batches: 2 + 2 + 1
        {"max_steps": 4, "gradient_accumulation_steps": 3},
        {"forget_epochs": 2.5},  # of 20 images, 8 a step
        {"max_steps": 2, "per_device_train_batch_size": 200},  # more than there are
    ],
)
def test_a_run_is_as_long_as_its_length_says(options, tmp_path, fitted_heads):
    length = RunLength.of(settings(tmp_path, **options), 20, 80, 1)
    trainer = make_trainer(tmp_path, heads=fitted_heads, **options)
    trainer.train()
    seen = {name: trainer.cost[f"{name}_images_seen"] for name in ("forget", "retain")}
    assert (trainer.cost["steps"], seen) == (length.steps, length.images())


def test_processes_that_share_a_batch_take_as_many_steps(tmp_path):
    args = settings(tmp_path, max_steps=-1, num_train_epochs=3)
    alone = RunLength.of(args, 1000, 5000, 1)
    halves = replace(args, per_device_train_batch_size=8, per_device_forget_batch_size=4)
    shared = RunLength.of(halves, 1000, 5000, 2)
    assert (shared.steps, shared.epoch_steps, shared.images()) == (alone.steps, alone.epoch_steps, alone.images())
    assert RunLength.of(args, 1000, 5000, 2).steps == alone.steps // 2


def test_a_run_that_nobody_gave_a_length_takes_three_passes_and_a_hundred_steps_at_least():
    def steps(retain, **given):
        args = ECConfig(use_cpu=True, per_device_train_batch_size=10, **given)
        return RunLength.of(args, forget_rows=20, retain_rows=retain, processes=1).steps

    assert steps(1000) == 300
    assert steps(50) == 100
    assert steps(50, num_train_epochs=2) == 10
    assert steps(50, objective="delete") == 15
