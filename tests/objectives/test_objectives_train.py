"""Every objective end to end on a tiny model, alone and with EC on top."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.models import make_model
from helpers.trainers import make_trainer

from ec_hf.objectives import available, get_objective

RUNS = [
    pytest.param(name, points, id=f"{name}-{'with EC' if points else 'alone'}")
    for name in available()
    for points in ([], "auto")
    if not (points and get_objective(name).from_scratch)  # the trainer refuses it, as another test holds
]


@pytest.mark.parametrize(("name", "points"), RUNS)
def test_an_objective_runs_changes_the_model_and_leaves_a_plain_checkpoint(tmp_path, fitted_heads, name, points):
    objective = get_objective(name)
    if name == "follow":
        make_model("ViT", seed=1).save_pretrained(tmp_path / "pilot")
    trainer = make_trainer(
        tmp_path,
        forget=("bee", "cat"),
        heads=fitted_heads if points and name not in ("rewind", "undo") else None,  # whose points are fewer
        objective=name,
        objective_kwargs={"pilot": str(tmp_path / "pilot")} if name == "follow" else None,
        points=points,
        per_device_train_batch_size=8,
        max_steps=3,
        learning_rate=1e-2,
    )
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    trainer.save_model()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[key]) for key, value in after.items())

    log = trainer.state.log_history
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == (3 if objective.trains or points else 0)
    assert all(map(math.isfinite, losses))
    components = {key for line in log for key in line if "/" in key}
    host = name if objective.trains else "contrastive"  # which EC trains with after a closed form
    assert any(key.startswith(f"{host}/") for key in components) == bool(losses)
    assert any(key.startswith("hidden_states") for key in components) == bool(points)

    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, after[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["random_label", "coun", "boundary_expand", "laf"])
def test_random_draws_are_the_same_after_a_resume_and_other_with_another_seed(tmp_path, name):
    def weights(folder, resume=None, seed=0):
        trainer = make_trainer(
            tmp_path / folder,
            forget=("bee", "cat"),
            objective=name,
            points=[],
            save_strategy="steps",
            save_steps=2,
            max_steps=3,
            seed=seed,
            data_seed=0,
        )
        trainer.train(resume)
        return torch.cat([each.detach().flatten() for each in trainer.model.parameters()])

    whole = weights("whole")
    assert torch.equal(weights("resumed", str(tmp_path / "whole" / "checkpoint-2")), whole)
    assert not torch.equal(weights("other", seed=1), whole)
