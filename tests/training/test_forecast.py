"""The arithmetic of plans, by hand."""

from __future__ import annotations

import pytest
from helpers.trainers import settings

from ec_hf.training.forecast import Measured, Sizes, evaluations, forecast, shared_out
from ec_hf.training.run_length import RunLength

SECONDS = Measured(step=0.1, update=0.5, plain=0.05, fitting=0.02, inference=0.01)
SIZES = Sizes(weights=400, gradients=800, optimizer=1600, teacher=0, heads=100, activations=10.0, features=20.0)


def of(args, **options):
    length = RunLength.of(args, 160, 1600, options.pop("devices", 1))
    given = {"fitted": 3600, "evaluated": 360, "retrained": 7200, "bytes_per_second": 1e3}
    return forecast(length, SECONDS, SIZES, **(given | options))


@pytest.fixture
def args(tmp_path):
    """16 retain and 16 forget images a step, 10 steps."""
    return settings(tmp_path, per_device_forget_batch_size=16, max_steps=10)


def test_one_device_takes_the_measured_seconds(args):
    one = of(args)
    assert one.images == {"forget": 160, "retain": 160}
    assert one.seconds_a_step == pytest.approx(32 * 0.1 + 0.5)
    assert one.communication == one.exchanged == 0
    hours = {name: value * 3600 for name, value in one.hours.items()}
    assert hours == pytest.approx(
        {"heads": 72, "erasure": 37, "evaluation": 3.6, "retraining": 7200 * 0.05 + 450 * 0.5}
    )
    assert one.share_of_retraining == pytest.approx((72 + 37 + 3.6) / 585)
    assert one.memory["activations"] == 320 and sum(one.memory.values()) == 400 + 800 + 1600 + 100 + 320


def test_devices_share_the_batch_and_wait_for_each_other(args):
    four = of(shared_out(args, 4), devices=4)
    assert dict(four.batch) == {"forget": 4, "retain": 4}
    assert (four.steps, four.images) == (10, {"forget": 160, "retain": 160})
    assert four.exchanged == pytest.approx(2 * 0.75 * 800 + 2 * 0.75 * 20 * 32)
    assert four.seconds_a_step == pytest.approx(8 * 0.1 + 0.5 + four.exchanged / 1e3)
    assert four.memory["activations"] == 80


def test_a_batch_that_cannot_be_shared_out_evenly_is_rounded_up(args):
    assert shared_out(args, 64).per_device_train_batch_size == 1
    assert shared_out(args, 5).per_device_train_batch_size == 4


def test_another_machine_is_known_by_its_images_a_second():
    faster = SECONDS.elsewhere(100)
    assert vars(faster) == pytest.approx(
        {"step": 0.01, "update": 0, "plain": 0.005, "fitting": 0.002, "inference": 0.001}
    )


def test_retraining_of_unknown_length_is_not_guessed(args):
    unknown = of(args, retrained=None)
    assert unknown.hours["retraining"] is None and unknown.share_of_retraining is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"eval_strategy": "no", "eval_on_start": False}, 0),
        ({"eval_strategy": "epoch", "eval_on_start": True, "max_steps": 101}, 3),
        ({"eval_strategy": "steps", "eval_steps": 30, "eval_on_start": True, "max_steps": 100}, 4),
        ({"eval_strategy": "steps", "eval_steps": 0.25, "eval_on_start": False, "max_steps": 100}, 4),
    ],
)
def test_evaluations_are_counted(options, expected, tmp_path):
    args = settings(tmp_path, **options)
    assert evaluations(args, RunLength.of(args, 160, 1600, 1)) == expected
