"""EC sets in at a point below the cut where a look finds that it is needed."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.trainers import evaluation_parts, make_trainer

from ec_hf.files import RECORD, read_json
from ec_hf.metrics.separability import Relative
from ec_hf.training import steering
from ec_hf.training.steering import PointLook, expected, few_of_each_class, is_due, weight_after


def rewinding(tmp_path, **settings):
    """A run of ten steps that steers one point of four blocks, two of which are new."""
    chosen = {
        "objective": "rewind",
        "strength": "auto",
        "points": [1],
        "max_steps": 10,
        "learning_rate": 1e-3,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    return make_trainer(tmp_path, forget=("bee", "dog"), **(chosen | settings))


def looks(trainer, *values):
    """Have the looks of a run find these at the point, and at the state above it what the original has."""
    found = iter(values)
    cut = trainer.steering.cut.name

    def measured():
        return {"hidden_states.1": Relative(next(found), 0.01), cut: Relative(1.0, 0.01)}

    trainer.steering.measured = measured


def weights_of(trainer):
    """EC's weight at the point after each look."""
    key = "ec_weight/hidden_states.1"
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_what_is_expected_falls_with_depth_by_what_the_layer_above_the_cut_has_lost():
    original, depths = {"a": 0.9, "b": 1.0, "c": 1.2}, {"a": 1, "b": 2, "c": 4}
    target = expected(original, 0.8, depths)
    assert target == pytest.approx({"a": 0.8, "b": 0.8, "c": 0.8})
    assert expected(original, 1.5, depths) == original  # more than before is no reason to expect more


def after(*above, given=0.1, error=0.02):
    return weight_after([Relative(each, error) for each in above], given)


def test_ec_sets_in_gets_stronger_weaker_and_ends():
    assert after() == after(0.01) == 0.0
    assert after(0.05) == after(math.nan, 0.05, math.nan) == 0.1
    assert 0.1 < after(0.05, 0.04) < 0.2
    assert after(*[0.9, *[0.5] * 9]) == pytest.approx(0.3)
    assert 0 < after(0.05, -0.1) < 0.1
    assert after(0.05, -0.6) == 0.0
    assert after(0.05, -0.6, 0.05) == 0.1  # and may set in again


def test_a_point_that_ec_does_not_bring_nearer_is_left_alone():
    assert after(0.05, 0.06) > 0.1
    assert after(0.05, 0.06, 0.05) == after(0.05, 0.04, 0.03, 0.06, 0.2) == 0.0


def test_looks_begin_once_the_new_layers_are_back():
    assert [step for step in range(100) if is_due(step, 100)] == [30, 40, 50, 60, 70, 80, 90]
    assert [step for step in range(4) if is_due(step, 4)] == [2, 3]


def test_a_position_is_told_where_original_and_expected_differ_by_more_than_chance():
    far = PointLook(Relative(0.8, 0.02), original=1.0, expected=0.6, weight=0.0)
    near = PointLook(Relative(0.8, 0.02), original=0.63, expected=0.6, weight=0.0)
    assert far.position == pytest.approx(0.5) and far.told()["position"] == 0.5
    assert near.position is None and "position" not in near.told()


def test_images_to_look_at_are_as_many_of_each_class_and_of_few_classes():
    labels = torch.arange(50).repeat_interleave(40).numpy()
    few = few_of_each_class(labels, seed=3)
    classes, counts = torch.from_numpy(labels[few]).unique(return_counts=True)
    assert len(classes) == steering.CLASSES and set(counts.tolist()) == {steering.IMAGES // steering.CLASSES}
    assert (few == few_of_each_class(labels, seed=3)).all()


def test_while_no_point_needs_ec_no_step_looks_at_forget_images(tmp_path, fitted_heads):
    trainer = rewinding(tmp_path)
    looks(trainer, *[1.0] * 10)
    trainer.train()
    assert trainer.cost["forget_images_seen"] == 0  # the looks are those of the stub
    assert not any(key.startswith("hidden_states.1/") for entry in trainer.state.log_history for key in entry)
    assert trainer.on_record["steering"]["hidden_states.1"]["ec_weight"] == 0.0


def test_ec_sets_in_where_a_look_finds_too_much_and_ends_again(tmp_path, capsys):
    trainer = rewinding(tmp_path)
    looks(trainer, 1.0, 1.0, 1.4, 1.3, *[0.2] * 8)
    trainer.train()
    by_step = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    has_ec = [step for step, entry in by_step.items() if "hidden_states.1/contrast" in entry]
    assert has_ec and has_ec[0] == 5 and has_ec[-1] < 10
    assert trainer.cost["forget_images_seen"] == len(has_ec) * trainer.args.per_device_forget_batch_size
    told = capsys.readouterr().out
    assert "step 4: EC sets in at hidden_states.1" in told and "EC ends at hidden_states.1" in told
    weights = weights_of(trainer)
    assert weights[0] == 0 and weights[1] == 0.1 and weights[-1] == 0


def test_the_looks_are_real_and_on_record(tmp_path):
    parts = evaluation_parts()
    trainer = rewinding(tmp_path, eval_dataset=parts, eval_strategy="no", eval_on_start=False)
    trainer.train()
    trainer.save_model()
    told = read_json(tmp_path / RECORD)["steering"]["hidden_states.1"]
    assert set(told) >= {"error", "separability", "expected", "original", "ec_weight"}
    assert all(map(math.isfinite, told.values()))
    looked_at = sum(map(len, (parts["forget"], parts["retain"])))
    assert trainer.cost["forget_images_seen"] + trainer.cost["retain_images_seen"] >= 8 * looked_at


def test_a_resumed_run_goes_on_with_the_weight_of_its_log(tmp_path):
    trainer = rewinding(tmp_path, save_strategy="steps", save_steps=5, max_steps=5)
    looks(trainer, 1.0, 1.4, *[1.3] * 9)
    trainer.train()
    again = rewinding(tmp_path, save_strategy="steps", save_steps=5, resume_from_checkpoint=str(tmp_path))
    looks(again, 1.0, *[1.3] * 9)
    again.train(resume_from_checkpoint=True)
    weights = weights_of(again)
    assert weights == sorted(weights) and weights[-1] > 0.1


def test_a_look_that_finds_no_number_changes_nothing_and_leaves_none_on_record(tmp_path):
    trainer = rewinding(tmp_path, max_steps=10)
    looks(trainer, 1.0, 1.4, *[math.nan] * 9)
    trainer.train()
    assert weights_of(trainer)[-1] == 0.1
    assert set(trainer.on_record["steering"]["hidden_states.1"]) == {"expected", "error", "original", "ec_weight"}
    trainer.steering.resume(trainer.state.log_history)
    assert trainer.steering.weights() == {"hidden_states.1": 0.1}


def test_a_fixed_strength_and_what_cannot_be_steered_have_ec_from_the_first_step(tmp_path):
    others = {"objective": "delete", "calibrated": True}, {"objective": "undo"}
    for settings in ({"strength": "fixed"}, {"train_heads": True}, *others):
        trainer = rewinding(tmp_path, **settings)
        assert trainer.steering is None and trainer.eraser.weights.points[0] > 0


def test_a_strength_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="strength='strong': expected one of auto, fixed"):
        rewinding(tmp_path, strength="strong")
