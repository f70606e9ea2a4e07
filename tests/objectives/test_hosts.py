"""Every built-in objective runs in the trainer, alone and with EC on top."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.trainers import make_trainer

from ec_hf.objectives import get_objective
from ec_hf.objectives.registry import _OBJECTIVES


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("heads"))
    trainer.fit_heads()
    return trainer.heads


@pytest.mark.parametrize("points", [[], "auto"], ids=["alone", "with-ec"])
@pytest.mark.parametrize("name", sorted(_OBJECTIVES))
def test_a_host_changes_the_model_and_leaves_it_finite(tmp_path, heads, name, points):
    objective = get_objective(name)
    if objective.from_scratch and points:
        pytest.skip("refused, as another test holds")
    settings = {"alpha": 1.0} if name == "ssd" else None  # random weights have none that matters ten times as much
    trainer = make_trainer(
        tmp_path,
        heads=copy.deepcopy(heads) if points else None,
        objective=name,
        objective_kwargs=settings,
        points=points,
        max_steps=2,
        learning_rate=1e-2,
    )
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    after = trainer.model.state_dict()
    assert list(after) == list(before)
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[each]) for each, value in after.items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == (2 if objective.trains or points else 0)
    assert all(map(math.isfinite, losses))
