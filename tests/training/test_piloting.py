"""Rows are forgotten in two runs: a rewound pilot, and the original that learns to answer as it does."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers.trainers import make_trainer
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, TrainerCallback

import ec_hf
from ec_hf import ForgetRequest
from ec_hf.files import RECORD, ModelFolder

FAST = {
    "max_steps": 6,
    "learning_rate": 1e-3,
    "heads_epochs": 1,
    "per_device_train_batch_size": 16,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "report_to": "none",
}
ROWS = ForgetRequest(rows=list(range(0, 60, 3)))


def erase(original, data, folder, request=ROWS, **settings):
    audited = {"embedding": False, "int8": False}
    return ec_hf.erase(original, data, request, output_dir=folder, audit_settings=audited, **(FAST | settings))


def weights(folder):
    return AutoModelForImageClassification.from_pretrained(folder).state_dict()


def test_rows_are_left_to_a_pilot_and_the_original_follows_it(original, data, tmp_path):
    done = erase(original, data, tmp_path / "out", max_steps=60, learning_rate=4e-3, save_strategy="no")
    record = done.trainer.plan.settings
    assert (record["objective"], record["max_steps"], record["learning_rate"]) == ("follow", 20, 2e-3)
    pilot = ModelFolder(tmp_path / "out" / "pilot")
    assert pilot.damage() is None and pilot.read(RECORD)["settings"]["max_steps"] == 40
    assert not pilot.read(RECORD)["settings"]["pilot"]

    images = torch.stack([torch.as_tensor(done.trainer.data_collator([row])["pixel_values"][0]) for row in
                          done.data.held_out.train["forget"]])  # fmt: skip
    models = [AutoModelForImageClassification.from_pretrained(each).eval() for each in (pilot.path, original)]
    with torch.no_grad():
        wanted, before, after = (each(pixel_values=images).logits.log_softmax(-1) for each in (*models, done.model))

    def divergence(answers):
        return F.kl_div(answers, wanted, log_target=True, reduction="batchmean")

    assert divergence(after) < 0.5 * divergence(before)


def test_the_record_tells_of_the_pilot_without_a_path_and_counts_both_runs(original, data, tmp_path):
    done = erase(original, data, tmp_path / "out")
    record = ModelFolder(tmp_path / "out").read(RECORD)
    assert record["pilot"]["settings"]["objective"] == "rewind"
    assert record["settings"]["objective_kwargs"] == {"pilot": None} and str(tmp_path) not in str(record)
    assert done.trainer.cost["steps"] == 6
    assert done.trainer.cost["retain_images_seen"] >= record["pilot"]["cost"]["retain_images_seen"] + 2 * 16
    assert "a pilot" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("request_", "settings", "objective"),
    [
        (ForgetRequest(classes=["bee"]), {}, "rewind"),
        (ForgetRequest(classes=["bee"]), {"pilot": True}, "follow"),
        (ROWS, {"pilot": False}, "rewind"),
        (ROWS, {"objective": "delete", "points": [], "retain_floor": 1.0}, "delete"),
    ],
)
def test_whole_classes_have_no_pilot_unless_one_is_asked_for(original, data, tmp_path, request_, settings, objective):
    done = erase(original, data, tmp_path / "out", request_, **(settings | {"max_steps": 3}))
    assert done.trainer.args.objective == objective
    assert (tmp_path / "out" / "pilot").exists() == (objective == "follow")


def test_a_run_that_goes_on_with_another_pilots_settings_is_refused(original, data, tmp_path):
    erase(original, data, tmp_path / "out")
    with pytest.raises(ValueError, match=r"belongs to another run: .*depth"):
        erase(original, data, tmp_path / "out", objective_kwargs={"depth": 0.25}, resume_from_checkpoint="true")


def test_a_checkpoint_of_the_pilot_is_gone_on_from_by_its_name(original, data, tmp_path):
    erase(original, data, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "pilot", tmp_path / "out" / "pilot")
    (tmp_path / "out" / "pilot" / "model.safetensors").unlink()
    named = min((tmp_path / "out" / "pilot").glob("checkpoint-*"))
    erase(original, data, tmp_path / "out", resume_from_checkpoint=str(named))
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "out")[name]), name


def test_delete_stands_beside_a_run_with_a_pilot(original, data, tmp_path):
    done = erase(original, data, tmp_path / "out", pilot=True, with_delete=True, max_steps=3)
    assert {"follow", "delete"} <= set(done.report.models)


@pytest.mark.parametrize("during", ["rewind", "follow"])
def test_an_interrupted_run_goes_on_where_it_was_and_ends_as_a_whole_one(original, data, tmp_path, during):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if args.objective == during and state.global_step == 1:
                raise KeyboardInterrupt

    erase(original, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        erase(original, data, tmp_path / "out", callbacks=[Break()])
    pilots = (tmp_path / "out" / "pilot" / "model.safetensors").exists()
    assert pilots == (during == "follow")
    with pytest.raises(FileExistsError, match="a run that did not end"):
        erase(original, data, tmp_path / "out")
    if pilots:
        with pytest.raises(ValueError, match="belongs to another run: the forget set"):
            erase(original, data, tmp_path / "out", ForgetRequest(rows=[1, 2]), resume_from_checkpoint="true")
    erase(original, data, tmp_path / "out", resume_from_checkpoint="true")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "out")[name]), name


def test_a_pilot_beside_another_objective_and_in_one_trainer_is_refused(original, data, tmp_path):
    with pytest.raises(ValueError, match="goes with objective 'rewind', not 'delete'"):
        erase(original, data, tmp_path / "out", objective="delete", pilot=True)
    with pytest.raises(ValueError, match="takes two runs"):
        make_trainer(tmp_path, objective="rewind", pilot=True)
