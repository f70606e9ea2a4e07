"""The calibrated contrast against its formula, and as an option of the trainer."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.models import make_images, make_model, make_processor

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from ec_hf.losses.calibrated import guided
from ec_hf.training.adversary import LinearProbe


def batch(width: int = 5, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    forget, retain = (torch.randn(n, width, generator=draw, dtype=torch.float64) for n in (4, 6))
    targets = torch.rand(4, 3, generator=draw, dtype=torch.float64).softmax(dim=1)
    return forget, retain, torch.tensor([7, 7, 8, 9]), torch.tensor([0, 1, 2, 2, 1, 0]), targets


@pytest.mark.parametrize("repulsion", [0.0, 0.5, 1.0])
def test_it_is_the_formula_written_out(repulsion):
    forget, retain, forget_labels, retain_labels, targets = batch()
    unit = torch.nn.functional.normalize
    total = 0.0
    for i in range(4):
        scores = [math.exp(float(unit(forget, dim=1)[i] @ row) / 0.5) for row in unit(retain, dim=1)]
        others = [j for j in range(4) if j != i and forget_labels[j] == forget_labels[i]]
        normaliser = sum(scores) + repulsion * sum(
            math.exp(float(unit(forget, dim=1)[i] @ unit(forget, dim=1)[j]) / 0.5) for j in others
        )
        weights = [float(targets[i, label]) for label in retain_labels]
        total -= sum(w / sum(weights) * math.log(s / normaliser) for w, s in zip(weights, scores, strict=True))
    assert guided(*batch(), temperature=0.5, repulsion=repulsion).item() == pytest.approx(total / 4)


def test_slices_of_the_anchors_have_the_mean_of_the_whole():
    whole = guided(*batch(), temperature=0.1, repulsion=0.5)
    halves = [guided(*batch(), temperature=0.1, repulsion=0.5, anchors=slice(i, i + 2)) for i in (0, 2)]
    assert torch.stack(halves).mean() == pytest.approx(whole)


def test_the_pull_goes_to_the_likely_class_alone():
    forget, retain, forget_labels, retain_labels, _ = batch()
    forget = forget.requires_grad_()
    targets = torch.eye(3, dtype=torch.float64)[[1, 1, 1, 1]]
    start = guided(forget.detach(), retain, forget_labels, retain_labels, targets, temperature=0.5, repulsion=0.5)
    optimizer = torch.optim.SGD([forget], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss = guided(forget, retain, forget_labels, retain_labels, targets, temperature=0.5, repulsion=0.5)
        loss.backward()
        optimizer.step()
    similar = torch.nn.functional.normalize(forget, dim=1) @ torch.nn.functional.normalize(retain, dim=1).T
    assert loss < start
    assert (similar[:, retain_labels == 1].mean(dim=1) > similar[:, retain_labels != 1].mean(dim=1)).all()


@pytest.mark.parametrize("present", [True, False])
def test_a_class_that_is_not_in_the_batch_leaves_a_finite_loss(present):
    forget, retain, forget_labels, retain_labels, targets = batch()
    targets = torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 4) if not present else torch.cat([targets, targets[:, :1]], dim=1)
    loss = guided(
        forget.requires_grad_(), retain, forget_labels, retain_labels, targets, temperature=0.1, repulsion=0.5
    )
    loss.backward()
    assert loss > 0 if present else loss == 0
    assert torch.isfinite(forget.grad).all()


def test_bad_input_is_refused():
    forget, retain, forget_labels, retain_labels, targets = batch()
    with pytest.raises(ValueError, match="targets have 3 rows for 4"):
        guided(forget, retain, forget_labels, retain_labels, targets[:3], temperature=0.1, repulsion=0.5)
    with pytest.raises(ValueError, match="temperature must be a positive"):
        guided(*batch(), temperature=0.0, repulsion=0.5)
    with pytest.raises(ValueError, match="repulsion must be 0 or more, got -1"):
        guided(*batch(), temperature=0.1, repulsion=-1)


def trainer(tmp_path, **settings):
    parts = split(make_images(60), ForgetRequest(classes=["bee", "dog"]))
    config = {"max_steps": 2, "per_device_train_batch_size": 8, "heads_epochs": 1, "save_strategy": "no"}
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


def test_a_probe_trains_along_unless_its_weight_is_zero(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(LinearProbe, "fit", lambda probe, features, labels: seen.append((features.shape, labels)))
    untrained = first_line(trainer(tmp_path, objective="delete", calibrated=True, max_steps=1))
    shape, labels = seen[0]
    assert len(seen) == 4 and shape == (16, 32)
    assert set(labels[:8].tolist()) <= {1, 3} and set(labels[8:].tolist()) <= {0, 2, 4}
    assert untrained["hidden_states.1/probe"] > math.log(5 / 3)  # KL of three classes at most from all five alike
    monkeypatch.undo()
    runs = {weight: trainer(tmp_path, objective="delete", calibrated=True, probe_weight=weight) for weight in (1.0, 0)}
    lines = {weight: first_line(run) for weight, run in runs.items()}
    assert lines[1.0]["hidden_states.1/probe"] > 0 and "hidden_states.1/probe" not in lines[0]
    assert all(probe.weight.any() for probe in runs[1.0]._probes.values()) and not runs[0]._probes
    one, other = (runs[weight].model.state_dict() for weight in (1.0, 0))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_checkpoint_without_the_state_of_the_probes_is_gone_on_from(tmp_path):
    options = {"objective": "delete", "calibrated": True, "save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **options, save_only_model=True).train()
    resumed = trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert (tmp_path / "again" / "checkpoint-2" / "probes.pt").exists()


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
        config = ECConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], **given)
        return config.ec_weight, config.detach_retain

    assert chosen() == (0.1, True)
    assert chosen(calibrated=True) == (1.0, False)
    assert chosen(calibrated=True, ec_weight=0.5, detach_retain=True) == (0.5, True)
