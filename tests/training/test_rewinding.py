"""What a rewind goes back to, how deep it goes, and what happens when that does not come back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from helpers.models import make_model

import ec_hf
from ec_hf import ECConfig, ForgetRequest
from ec_hf.files import RECORD, read_json
from ec_hf.publishing.bases import named_base
from ec_hf.training.coming_back import ComingBack, NotComingBackError
from ec_hf.training.rewinding import with_base

FAST = {
    "max_steps": 4,
    "learning_rate": 1e-3,
    "heads_epochs": 1,
    "per_device_train_batch_size": 16,
    "use_cpu": True,
    "disable_tqdm": True,
}
AUDIT = {"embedding": False, "int8": False}


def card(folder, text):
    (folder / "README.md").write_text(f"---\n{text}\n---\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint from which a model might be fine-tuned."""
    folder = tmp_path_factory.mktemp("base")
    make_model("ViT", seed=7).save_pretrained(folder)
    return folder


def erase(original, data, folder, **settings):
    request = ForgetRequest(classes=["bee"])
    return ec_hf.erase(original, data, request, output_dir=folder, audit_settings=AUDIT, **(FAST | settings))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base_model: me/base", "me/base"),
        ("base_model: [me/base]\nbase_model_relation: finetune", "me/base"),
        ("base_model: [me/base, me/other]", None),
        ("base_model: me/base\nbase_model_relation: quantized", None),
        ("base_model: 7", None),
        ("license: mit", None),
        ("base_model: [", None),
    ],
)
def test_a_card_names_the_base_model_where_it_is_one_that_was_fine_tuned(tmp_path, text, named):
    assert named_base(card(tmp_path, text)) == named


def test_a_folder_without_a_card_names_no_base(tmp_path):
    assert named_base(tmp_path) is None


def test_the_base_that_the_card_names_is_gone_back_to_and_the_output_says_so(original, base, data, tmp_path, capsys):
    card(original, f"base_model: {base}")
    done = erase(original, data, tmp_path / "out")
    assert done.trainer.eraser.objective.base == str(base)
    assert "its weights are gone back to" in capsys.readouterr().out
    assert not done.trainer.eraser.points


@pytest.mark.parametrize("text", ["base_model: /nowhere/at/all", None])
def test_new_weights_stand_in_for_a_base_that_cannot_be_loaded(original, base, tmp_path, text, capsys):
    other = tmp_path / "other"
    make_model("ResNet").save_pretrained(other)
    card(original, text or f"base_model: {other}")
    config = with_base(ECConfig(str(tmp_path)), make_model("ViT"), str(original), ())
    assert "base" not in (config.objective_kwargs or {})
    assert "cannot be gone back to" in capsys.readouterr().out


def test_a_base_that_is_given_and_does_not_serve_is_refused_before_training(original, data, tmp_path):
    other = tmp_path / "other"
    make_model("ResNet").save_pretrained(other)
    with pytest.raises(ValueError, match="no checkpoint that the model was fine-tuned from"):
        erase(original, data, tmp_path / "out", objective_kwargs={"base": str(other)})
    assert not (tmp_path / "out").exists()


def test_the_card_is_not_asked_where_the_user_says_none_or_the_model_has_forgotten_before(original, base, tmp_path):
    card(original, f"base_model: {base}")
    model = make_model("ViT")
    for config, history in (
        (ECConfig(str(tmp_path), objective_kwargs={"base": None}), ()),
        (ECConfig(str(tmp_path)), ({"request": {}},)),
        (ECConfig(str(tmp_path), objective="delete"), ()),
    ):
        assert with_base(config, model, str(original), history) is config


def at_step(step, before, now):
    """The state of a run of 10 steps after an evaluation."""
    log = [
        {"step": at, "eval_forget_accuracy": 0.5, "eval_retain_accuracy": value}
        for at, value in ((0, before), (step, now))
    ]
    return SimpleNamespace(global_step=step, log_history=log)


def test_half_of_the_run_tells_whether_a_model_comes_back():
    rule, control = ComingBack(floor=0.1, total_steps=10), SimpleNamespace(should_evaluate=False)
    for step, now in ((4, 0.0), (5, 0.5), (10, 0.0)):
        rule.on_evaluate(None, at_step(step, 0.9, now), control)
    with pytest.raises(NotComingBackError, match=r"retain accuracy is 45.0%, of 80.0% that the end must have"):
        rule.on_evaluate(None, at_step(5, 0.9, 0.45), control)
    evaluating, silent = (SimpleNamespace(eval_strategy=name) for name in ("epoch", "no"))
    assert not rule.on_step_end(evaluating, SimpleNamespace(global_step=4), control).should_evaluate
    assert not rule.on_step_end(silent, SimpleNamespace(global_step=5), control).should_evaluate
    assert rule.on_step_end(evaluating, SimpleNamespace(global_step=5), control).should_evaluate


def lost_times(count, monkeypatch):
    """So many runs are lost at half."""
    lost = []

    def asked(self, args, state, control, **kwargs):
        if state.global_step == self.half and len(lost) < count and self not in lost:
            lost.append(self)
            raise NotComingBackError("Half of the run is over")

    monkeypatch.setattr(ComingBack, "on_evaluate", asked)


def test_a_run_that_is_lost_starts_over_with_half_the_depth(original, data, tmp_path, monkeypatch, capsys):
    lost_times(1, monkeypatch)
    done = erase(original, data, tmp_path / "out", retain_floor=1.0, save_strategy="steps", save_steps=1)
    said = capsys.readouterr().out
    assert done.trainer.eraser.objective.depth == 0.25
    assert "It starts over with half the depth, 0.25." in said and "Half of the run is over" in said
    record = read_json(tmp_path / "out" / RECORD)
    assert record["settings"]["objective_kwargs"] == {"depth": 0.25}
    assert done.trainer.cost["retain_images_seen"] >= (2 + 4) * 16, "the lost half is in the cost"
    assert done.trainer.state.global_step == 4


def test_what_never_comes_back_fails(original, data, tmp_path, monkeypatch):
    lost_times(9, monkeypatch)
    with pytest.raises(NotComingBackError, match="Half of the run"):
        erase(original, data, tmp_path / "out")


def test_a_depth_that_the_user_chose_is_not_changed(original, data, tmp_path, monkeypatch):
    lost_times(1, monkeypatch)
    with pytest.raises(NotComingBackError, match="Half of the run"):
        erase(original, data, tmp_path / "out", objective_kwargs={"depth": 0.5})
