"""What a preset fills in, what it leaves to the user, and where it is told."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from helpers.trainers import make_trainer
from transformers import HfArgumentParser, TrainingArguments

from ec_hf import ECConfig
from ec_hf.objectives import Objective, available, get_objective, register
from ec_hf.training.config import EraserConfig, from_preset

CPU = {"use_cpu": True}
BEFORE_PRESETS = {
    "points": "auto",
    "contrast": "supcon",
    "temperature": 0.1,
    "retain_weight": 1.0,
    "layer_weights": "uniform",
    "batch_norm": "frozen",
    "ec_weight": 0.1,
    "detach_retain": True,
    "objective_kwargs": None,
    "saliency": None,
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 64,
    "per_device_forget_batch_size": 64,
    "warmup_steps": 0.05,
    "forget_target": None,
    "forget_epochs": None,
}


@pytest.mark.parametrize("preset", [{}, {"preset": "default"}])
def test_objectives_that_train_on_have_settings_of_a_fine_tuning(preset):
    config, plain = ECConfig(**CPU, objective="contrastive", **preset), TrainingArguments(**CPU)
    assert {name: getattr(config, name) for name in BEFORE_PRESETS} == BEFORE_PRESETS
    for name in ("optim", "optim_args", "weight_decay", "max_grad_norm", "lr_scheduler_type", "num_train_epochs"):
        assert getattr(config, name) == getattr(plain, name), name
    assert config.max_steps == plain.max_steps == -1
    assert from_preset(config) == {}
    assert (EraserConfig(**preset).points, EraserConfig(**preset).contrast) == ("auto", "supcon")


def test_without_an_objective_the_deep_part_starts_anew_and_rate_and_length_are_left_to_the_run():
    config = ECConfig(**CPU)
    assert (config.objective, config.calibrated, config.ec_weight, config.retain_floor) == ("rewind", True, 0.1, 0.05)
    assert config.learning_rate is None and config.num_train_epochs is None
    assert replace(config, seed=3).learning_rate is None
    assert ECConfig(**CPU, objective="rewind").to_dict() == config.to_dict()
    assert ECConfig(**CPU, max_steps=7, learning_rate=1e-3).learning_rate == 1e-3


@pytest.mark.parametrize("name", sorted({*available()} - {"follow", "rewind", "undo"}))
def test_every_objective_has_published_settings_that_its_constructor_and_the_configuration_take(name):
    config = ECConfig(**CPU, objective=name, preset="published")
    objective = get_objective(name, **(config.objective_kwargs or {}))
    assert type(objective).published
    assert set(type(objective).published) <= {each.name for each in fields(ECConfig)}
    assert config.points == []
    for setting, value in type(objective).published.items():
        assert getattr(config, setting) == value, setting
    if objective.trains and name != "coun":  # whose schedule is not public
        assert {"learning_rate", "optim", "weight_decay"} <= set(type(objective).published)
        assert bool(config.forget_epochs) != ("num_train_epochs" in type(objective).published)


def test_a_setting_that_is_given_counts_even_where_it_is_the_default():
    config = ECConfig(**CPU, objective="finetune", preset="published", learning_rate=1e-4, points="auto")
    assert (config.learning_rate, config.points) == (1e-4, "auto")
    assert (config.weight_decay, config.num_train_epochs) == (5e-4, 10)


def test_settings_of_the_objective_are_merged_one_by_one():
    config = ECConfig(**CPU, objective="scrub", preset="published", objective_kwargs='{"alpha": 0.5}')
    assert config.objective_kwargs == {"gamma": 0.99, "alpha": 0.5, "temperature": 4.0, "msteps": 2}
    assert from_preset(config)["objective_kwargs"] == {"gamma": 0.99, "temperature": 4.0, "msteps": 2}


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"optim": "adamw_torch"}, {"optim_args": None}),
        ({"max_steps": 7}, {"forget_epochs": None, "num_train_epochs": 3.0}),
        ({"num_train_epochs": 2}, {"forget_epochs": None, "max_steps": -1}),
    ],
)
def test_settings_that_say_one_thing_together_come_from_one_side(given, left):
    config = ECConfig(**CPU, objective="delete", preset="published", **given)
    assert {name: getattr(config, name) for name in left} == left
    assert config.learning_rate == 1e-4 and config.objective_kwargs["mask"] == "sample"


def test_flags_win_over_a_preset_and_the_rest_is_filled_in():
    flags = ["--objective", "delete", "--preset", "published", "--learning_rate", "0.0001", "--max_steps", "3"]
    (config,) = HfArgumentParser(ECConfig).parse_args_into_dataclasses(["--use_cpu", *flags])
    assert (config.learning_rate, config.max_steps, config.forget_epochs) == (1e-4, 3, None)
    assert (config.per_device_train_batch_size, str(config.optim.value), config.points) == (128, "sgd", [])
    (config,) = HfArgumentParser(ECConfig).parse_args_into_dataclasses(["--use_cpu"])
    assert (config.points, config.layer_weights, config.preset) == ("auto", "uniform", "default")


def test_replace_keeps_what_was_filled_in():
    config = replace(ECConfig(**CPU, objective="scrub", preset="published"), output_dir="elsewhere", seed=3)
    assert (config.learning_rate, config.per_device_forget_batch_size, config.points) == (5e-4, 32, [])
    assert config.objective_kwargs == dict(get_objective("scrub").published["objective_kwargs"])


def test_the_preset_paper_is_ec_as_published():
    config = ECConfig(**CPU, preset="paper")
    assert (config.contrast, config.temperature, config.detach_retain, config.ec_weight) == ("csul", 0.7, False, 1.0)
    assert (config.points, config.layer_weights, config.retain_weight) == ("auto", "uniform", pytest.approx(1 / 3))
    assert ECConfig(**CPU, preset="paper", ec_weight=0.3).ec_weight == 0.3


def test_an_unknown_preset_and_an_objective_without_published_settings_are_refused(own_registry):
    with pytest.raises(ValueError, match="expected one of default, paper, published"):
        ECConfig(**CPU, preset="publised")

    @register("unpublished")
    class Unpublished(Objective):
        def __call__(self, step):
            return {}

    with pytest.raises(ValueError, match="'unpublished' names no published settings"):
        ECConfig(**CPU, objective="unpublished", preset="published")


def test_plan_and_record_tell_what_a_preset_gave(tmp_path):
    trainer = make_trainer(tmp_path, objective="scrub", preset="published")
    told = str(trainer.plan)
    assert "by preset 'published': objective_kwargs={'gamma': 0.99, " in told
    assert "weight_decay=0.0005" in told and "learning_rate" not in told  # which the test's own settings gave
    recorded = trainer.plan.to_dict()["settings"]
    assert (recorded["preset"], recorded["optim"], recorded["optim_args"]) == ("published", "sgd", "momentum=0.9")
    assert recorded["objective_kwargs"]["msteps"] == 2
    assert "preset" not in str(make_trainer(tmp_path, objective="scrub").plan)


def test_a_run_may_be_as_long_as_so_many_passes_over_the_forget_set(tmp_path):
    trainer = make_trainer(tmp_path, objective="delete", points=[], max_steps=None, forget_epochs=2.5)
    assert trainer.total_steps() == 8  # 20 images in batches of 8, three a pass, two and a half times
    trainer.train()
    assert trainer.state.global_step == 8
    with pytest.raises(ValueError, match="forget_epochs=0: expected a number above 0"):
        make_trainer(tmp_path, forget_epochs=0)


def test_a_published_run_trains_by_the_published_optimiser(tmp_path):
    trainer = make_trainer(tmp_path, objective="gradient_ascent", preset="published", learning_rate=None, max_steps=2)
    trainer.train()
    (group,) = [each for each in trainer.optimizer.param_groups if each["weight_decay"]]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-4, 0.9, 5e-4)
