"""Every objective end to end on a tiny model, alone and with EC on top."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from helpers.models import make_images, make_model, make_processor

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from ec_hf.objectives import get_objective
from ec_hf.objectives.registry import _OBJECTIVES

SETTINGS = {"ssd": {"alpha": 1.0}}  # at the published 10 no weight of a random model stands out


@pytest.fixture(scope="module")
def parts():
    return split(make_images(40), ForgetRequest(classes=["bee", "cat"]))


@pytest.fixture(scope="module", autouse=True)
def quick_garbage_collection():
    """Accelerate collects after each run, which takes a second over all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def make_trainer(folder, parts, name, **settings):
    args = ECConfig(
        str(folder),
        objective=name,
        objective_kwargs=SETTINGS.get(name),
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=8,
        heads_epochs=1,
        logging_steps=1,
        eval_strategy="no",
        **({"save_strategy": "no", "warmup_steps": 0, "max_steps": 3, "learning_rate": 1e-3} | settings),
    )
    return ECTrainer(
        make_model("ViT"),
        args,
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        processing_class=make_processor(),
    )


@pytest.mark.parametrize("points", [[], "auto"], ids=["alone", "with EC"])
@pytest.mark.parametrize("name", sorted(_OBJECTIVES))
def test_an_objective_runs_changes_the_model_and_leaves_a_plain_checkpoint(tmp_path, parts, name, points):
    objective = get_objective(name)
    if objective.from_scratch and points:
        pytest.skip("new weights hold nothing to erase, which the trainer refuses")
    trainer = make_trainer(tmp_path, parts, name, points=points)
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    trainer.save_model()
    after = model.state_dict()
    assert list(after) == list(before)
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed and all(value.isfinite().all() for value in after.values())
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == (3 if objective.trains or points else 0) and all(map(math.isfinite, losses))
    components = {key for line in trainer.state.log_history for key in line if "/" in key}
    assert any(key.startswith(f"{trainer.host.name}/") for key in components) == bool(losses)
    assert any(key.startswith("hidden_states") for key in components) == bool(points)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, after[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("name", ["random_label", "coun", "boundary_expand"])
def test_random_draws_are_the_same_after_a_resume_and_other_with_another_seed(tmp_path, parts, name):
    def weights(folder, resume=None, seed=0):
        trainer = make_trainer(
            tmp_path / folder, parts, name, points=[], save_strategy="steps", save_steps=2, seed=seed, data_seed=0
        )
        trainer.train(resume)
        return trainer.model.classifier.weight

    whole = weights("whole")
    assert torch.equal(weights("resumed", str(tmp_path / "whole" / "checkpoint-2")), whole)
    assert not torch.equal(weights("other", seed=1), whole)
