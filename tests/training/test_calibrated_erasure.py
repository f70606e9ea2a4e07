"""Calibrated erasure as an option of the trainer."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import make_images, make_model, make_processor

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from ec_hf.training.adversary import Adversary


def trainer(tmp_path, **settings):
    parts = split(make_images(60), ForgetRequest(classes=["bee", "dog"]))
    config = {
        "objective": "contrastive",
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "heads_epochs": 1,
        "save_strategy": "no",
    }
    args = ECConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], logging_steps=1, **(config | settings))
    return ECTrainer(
        make_model("ViT"),
        args,
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        processing_class=make_processor(),
    )


@pytest.mark.parametrize("objective", ["delete", "finetune"])  # one with a teacher of its own, one without
def test_the_trainer_runs_it_in_place_of_the_contrast(tmp_path, objective):
    run = trainer(tmp_path, objective=objective, calibrated=True)
    run.train()
    line = next(entry for entry in run.state.log_history if "hidden_states.1/contrast" in entry)
    assert "fallbacks" not in line and line["hidden_states.1/contrast"] > 0
    plain = trainer(tmp_path, objective=objective)
    plain.train()
    other = next(entry for entry in plain.state.log_history if "hidden_states.1/contrast" in entry)
    assert other["hidden_states.1/contrast"] != line["hidden_states.1/contrast"] and "fallbacks" in other


def first_line(run):
    run.train()
    return next(entry for entry in run.state.log_history if "hidden_states.1/contrast" in entry)


def test_an_adversary_trains_along_unless_its_weight_is_zero(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Adversary, "fit", lambda probe, features, labels: seen.append((features.shape, labels)))
    untrained = first_line(trainer(tmp_path, objective="delete", calibrated=True, max_steps=1))
    shape, labels = seen[0]
    assert len(seen) == 4 and shape == (16, 32)
    assert set(labels[:8].tolist()) <= {1, 3} and set(labels[8:].tolist()) <= {0, 2, 4}
    assert untrained["hidden_states.1/probe"] > math.log(5 / 3)  # KL of three classes at most from all five alike
    monkeypatch.undo()
    runs = {weight: trainer(tmp_path, objective="delete", calibrated=True, probe_weight=weight) for weight in (1.0, 0)}
    lines = {weight: first_line(run) for weight, run in runs.items()}
    assert lines[1.0]["hidden_states.1/probe"] > 0 and "hidden_states.1/probe" not in lines[0]
    assert all(each.weight.any() for each in runs[1.0].eraser.loss.adversaries) and not len(
        runs[0].eraser.loss.adversaries
    )
    one, other = (runs[weight].model.state_dict() for weight in (1.0, 0))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_that_lost_its_adversaries_is_not_gone_on_from(tmp_path):
    options = {"objective": "delete", "calibrated": True, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options).train()
    (tmp_path / "checkpoint-1" / "adversaries.pt").unlink()
    resumed = trainer(tmp_path / "again", **options)
    with pytest.raises(ValueError, match=r"adversaries\.pt is missing"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_settings_out_of_range_are_refused(tmp_path):
    for name in ("probe_weight", "repulsion"):
        with pytest.raises(ValueError, match=f"{name}=-1: expected 0 or more"):
            trainer(tmp_path, objective="delete", calibrated=True, **{name: -1})


def test_forget_images_are_pushed_apart_as_far_as_it_is_said(tmp_path):
    first, second = (
        first_line(trainer(tmp_path, objective="delete", calibrated=True, repulsion=each))["hidden_states.1/contrast"]
        for each in (0.0, 1.0)
    )
    assert second > first


def test_an_objective_that_pulls_the_last_features_itself_is_refused(tmp_path):
    with pytest.raises(ValueError, match='set objective="delete"'):
        trainer(tmp_path, objective="contrastive", calibrated=True)


def test_its_weight_and_what_it_moves_are_its_own_unless_they_are_said(tmp_path):
    def chosen(**given):
        config = ECConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], objective="delete", **given)
        return config.ec_weight, config.detach_retain

    assert chosen() == (0.1, True)
    assert chosen(calibrated=True) == (1.0, False)
    assert chosen(calibrated=True, ec_weight=0.5, detach_retain=True) == (0.5, True)
