from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import NAMES, make_images, make_model, make_processor
from helpers.trainers import evaluation_parts, make_trainer, settings
from PIL import Image as Pil
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback, TrainingArguments

from ec_hf import ECHeads, ECTrainer, ForgetRequest, split
from ec_hf.objectives import Objective, Part, Step
from ec_hf.training.stopping import StoppingRule

# The result is a plain model


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet", "ConvNext", "Beit", "timm ViT", "timm ResNet"])
def test_training_changes_the_backbone_and_leaves_a_plain_checkpoint(tmp_path, family):
    trainer = make_trainer(tmp_path, family)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    trainer.save_model()
    after = trainer.model.state_dict()
    assert list(after) == list(before)
    assert sum(not torch.equal(after[name], before[name]) for name in after) > len(after) / 2
    loaded, info = type(trainer.model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(value, after[name]) for name, value in loaded.state_dict().items())
    assert not any(path.suffix in {".bin", ".pt", ".pth", ".pkl"} for path in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.launch
def test_the_checkpoint_loads_where_the_package_cannot_be_imported(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    code = (
        "import sys; sys.modules['ec_hf'] = None\n"
        "import numpy as np\n"
        "from transformers import AutoModelForImageClassification, AutoImageProcessor\n"
        f"model, info = AutoModelForImageClassification.from_pretrained({str(tmp_path)!r}, output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        f"processor = AutoImageProcessor.from_pretrained({str(tmp_path)!r})\n"
        "inputs = processor(np.zeros((40, 40, 3), 'uint8'), return_tensors='pt')\n"
        "print(model.config.id2label[int(model(**inputs).logits.argmax())])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in NAMES


def test_the_record_names_settings_points_and_cost_but_no_local_path(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "ec_config.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert record["settings"]["objective"] == "contrastive"
    assert [point["index"] for point in record["points"]] == [1, 2, 3, 4]
    cost = {"steps": 4, "forget_images_seen": 32, "retain_images_seen": 64}
    assert {name: record["cost"][name] for name in cost} == cost


def test_a_model_can_be_given_by_folder_and_brings_its_processor(tmp_path):
    make_model("ResNet").save_pretrained(tmp_path / "original")
    make_processor().save_pretrained(tmp_path / "original")
    parts = split(make_images(), ForgetRequest(classes=["bee"]))
    trainer = ECTrainer(
        str(tmp_path / "original"),
        settings(tmp_path / "out"),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "out" / "preprocessor_config.json").exists()


# The loss


def test_the_loss_is_the_host_plus_the_weighted_points(tmp_path):
    trainer = make_trainer(tmp_path, layer_weights=[0.5, 0, 1, 2], ec_weight=0.1, retain_weight=3.0, max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert "hidden_states.2/contrast" not in line, "a weight of 0 leaves a point out"
    assert "hidden_states.4/contrast" not in line, "the contrastive host is the loss of the last point"
    expected = 2 * (line["contrastive/contrast"] + line["contrastive/retain_ce"])  # the host has lambda in its term
    for name, weight in (("hidden_states.1", 0.05), ("hidden_states.3", 0.1)):
        expected += weight * (line[f"{name}/contrast"] + 3 * line[f"{name}/retain_ce"])
    assert line["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("objective", "calibrated"), [("contrastive", False), ("delete", False), ("delete", True)])
def test_the_contrast_leaves_retain_features_alone_unless_told_otherwise(tmp_path, objective, calibrated):
    seen = []

    def look(loss, args, terms):
        outputs, batch, *_ = args
        contrasts = [term.value for name, term in terms.parts.items() if name.endswith("/contrast")]
        features = [each for each in (*outputs.features, outputs.last_features) if each is not None]
        gradients = torch.autograd.grad(sum(contrasts), features, retain_graph=True, allow_unused=True)
        count = batch["num_forget"]
        moved = [gradient for gradient in gradients if gradient is not None]
        seen.extend(bool(half.any()) for gradient in moved for half in (gradient[:count], gradient[count:]))

    for detached in (True, False):
        seen.clear()
        trainer = make_trainer(
            tmp_path, objective=objective, calibrated=calibrated, detach_retain=detached, max_steps=1
        )
        trainer.eraser.loss.register_forward_hook(look)
        trainer.train()
        assert len(seen) == 2 * 4
        assert all(seen[::2]) and set(seen[1::2]) == {not detached}


def test_a_host_that_works_on_logits_leaves_the_last_point_to_ec(tmp_path):
    trainer = make_trainer(tmp_path, objective="delete", max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert {"delete/delete", "hidden_states.4/contrast"} <= set(line)


def test_without_points_only_the_host_is_left(tmp_path):
    trainer = make_trainer(tmp_path, objective="finetune", points=[], max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert not any(name.startswith("hidden_states") for name in line)
    assert line["loss"] == pytest.approx(line["finetune/retain_ce"], abs=1e-4)


def test_delete_hides_the_whole_forgotten_classes_from_the_frozen_original(tmp_path):
    trainer = make_trainer(tmp_path, objective="delete", points=[], forget=("bee", "dog"), max_steps=2)
    teacher = copy.deepcopy(trainer.eraser.teacher.model.state_dict())
    assert trainer.eraser.forget_classes == (1, 3)
    trainer.train()
    assert all(torch.equal(value, teacher[name]) for name, value in trainer.eraser.teacher.model.state_dict().items())


def test_frozen_heads_do_not_move_and_training_heads_do(tmp_path):
    for train_heads in (False, True):
        trainer = make_trainer(tmp_path / str(train_heads), train_heads=train_heads)
        trainer.fit_heads()
        before = copy.deepcopy(trainer.heads.state_dict())
        trainer.train()
        moved = [not torch.equal(value, before[name]) for name, value in trainer.heads.state_dict().items()]
        assert any(moved) == train_heads


def test_evaluation_is_plain_cross_entropy_and_accuracy(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=evaluation_parts())
    metrics = trainer.evaluate()
    part = evaluation_parts()["forget"]
    batch = make_processor()(list(part["image"]), return_tensors="pt")
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    labels = torch.tensor(part["label"])
    assert metrics["eval_forget_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert metrics["eval_forget_accuracy"] == pytest.approx((logits.argmax(-1) == labels).float().mean().item())


def test_a_training_run_changes_nothing_in_the_configuration(tmp_path):
    trainer = make_trainer(tmp_path, eval_dataset=evaluation_parts(), eval_on_start=True)
    before = trainer.model.config.to_dict()
    trainer.train()
    assert trainer.model.config.to_dict() == before


# Batch norm


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


def test_batch_norm_statistics_stay_frozen_by_default(tmp_path):
    trainer = make_trainer(tmp_path, "ResNet")
    before = statistics(trainer.model)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in statistics(trainer.model).items())


def test_batch_norm_statistics_can_follow_the_retain_images_and_never_the_forget_ones(tmp_path):
    found = []
    for colour in (0.0, 100.0):  # forget images that would wreck any statistic they entered
        trainer = make_trainer(tmp_path / str(colour), "ResNet", batch_norm="retain", learning_rate=1e-12, max_steps=2)
        collate = trainer.data_collator

        def collate_with_wild_forget_images(examples, collate=collate, colour=colour):
            batch = collate(examples)
            batch["pixel_values"][: batch.get("num_forget", 0)] = colour
            return batch

        trainer.fit_heads()
        trainer.data_collator = collate_with_wild_forget_images
        before = statistics(trainer.model)
        trainer.train()
        found.append(statistics(trainer.model))
        assert not any(torch.equal(value, before[name]) for name, value in found[-1].items())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-5, atol=1e-6)


# What an objective sees and does before and during training


class Probe(Objective):
    """Notes what it is given; pulls features to their original mean and the logits of added rows to 0."""

    needs_teacher = True

    def __init__(self):
        self.steps, self.prepared = [], 0

    def prepare(self, setting):
        assert not setting.model.training and not hasattr(setting.model, "ec_heads")
        self.prepared += 1
        self.weights = copy.deepcopy(setting.model.state_dict())
        self.forget = torch.cat([batch["labels"] for batch in setting.forget()])
        self.retain = torch.cat([batch["labels"] for batch in setting.retain()])
        with torch.no_grad():
            self.mean = torch.cat([setting.features(batch["pixel_values"]) for batch in setting.retain()]).mean(0)
        self.mean += torch.randn(1)

    def extra_pixels(self, forget, retain):
        return forget[:3] + torch.randn_like(forget[:3])

    def __call__(self, step):
        pixels = step.forget.pixel_values.clone().requires_grad_()
        (slope,) = torch.autograd.grad(step.teacher(pixels).sum(), pixels)
        self.steps.append((step, slope))
        return {"extra": step.extra.logits.square().mean(), "mean": (step.retain.features - self.mean).square().mean()}


class Halve(Objective):
    """A closed form: every weight becomes half of what it was."""

    trains = False

    def prepare(self, setting):
        with torch.no_grad():
            for parameter in setting.model.parameters():
                parameter.mul_(0.5)

    def __call__(self, step):
        raise AssertionError("a closed form has no loss")


class Distil(Objective):
    """Away from the original on forget."""

    uses = "forget"
    needs_teacher = True

    def __call__(self, step):
        return {"away": -F.mse_loss(step.forget.logits, step.teacher_logits("forget"))}


PROBE, HALVE, DISTIL = (f"{__name__}:{name}" for name in ("Probe", "Halve", "Distil"))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_objective_prepares_once_on_the_original_model_and_sees_each_image_once(tmp_path):
    trainer = make_trainer(tmp_path, objective=PROBE, max_steps=1)
    original = weights(trainer.model)
    trainer.train()
    trainer.train()
    objective = trainer.eraser.objective
    assert objective.prepared == 1
    assert same(objective.weights, original)
    assert objective.forget.tolist() == [1] * 20
    assert sorted(objective.retain.tolist()) == sorted([0, 2, 3, 4] * 20)
    assert objective.mean.shape == (32,)


def test_what_an_objective_looks_at_counts_as_images_seen(tmp_path):
    trainer = make_trainer(tmp_path, objective=PROBE, points=[], max_steps=1)
    trainer.train()
    assert (trainer.cost["forget_images_seen"], trainer.cost["retain_images_seen"]) == (20 + 8, 2 * 80 + 16)
    trainer = make_trainer(tmp_path, objective="ssd", objective_kwargs={"alpha": 1.0, "every": 5}, points=[])
    trainer.train()
    assert (trainer.cost["forget_images_seen"], trainer.cost["retain_images_seen"]) == (2 * 4, 16)


def test_a_step_tells_where_in_the_run_it_is(tmp_path):
    trainer = make_trainer(tmp_path, objective=PROBE, points=[], gradient_accumulation_steps=2)
    trainer.train()
    steps = [step for step, _ in trainer.eraser.objective.steps]
    assert [step.progress.index for step in steps] == [0, 0, 1, 1, 2, 3, 3]  # 5 batches an epoch
    assert {(p.total, p.epoch_steps, p.forget_steps) for p in (step.progress for step in steps)} == {(4, 3, 2)}
    assert all(step.model is trainer.model for step in steps)


def test_the_teacher_lets_a_gradient_through_to_the_pixels_and_keeps_none(tmp_path):
    trainer = make_trainer(tmp_path, objective=PROBE, points=[], max_steps=1)
    trainer.train()
    ((step, slope),) = trainer.eraser.objective.steps
    assert slope.shape == step.forget.pixel_values.shape and slope.any()
    assert all(parameter.grad is None for parameter in trainer.eraser.teacher.model.parameters())


def test_added_rows_are_seen_in_the_same_forward_and_change_nothing_for_the_others(tmp_path):
    logs = []
    for name in (PROBE, "finetune"):
        trainer = make_trainer(tmp_path, "ResNet", objective=name, batch_norm="retain", max_steps=1)
        trainer.train()
        logs.append((trainer.state.log_history[0], statistics(trainer.model)))
        if name == PROBE:
            ((step, _),) = trainer.eraser.objective.steps
            assert step.extra.logits.shape == (3, 5) and step.extra.features.shape == (3, 32)
            assert step.extra.labels.tolist() == [-100] * 3
            assert [len(part.labels) for part in (step.forget, step.retain)] == [8, 16]
    (probe, after_probe), (plain, after_plain) = logs
    for name in plain:
        if name.startswith("hidden_states"):
            assert probe[name] == pytest.approx(plain[name], rel=1e-4), name
    assert any(name.startswith("hidden_states") for name in plain)
    for name, value in after_plain.items():
        torch.testing.assert_close(after_probe[name], value, msg=name)


def test_a_teacher_is_kept_only_for_objectives_that_need_one(tmp_path):
    assert make_trainer(tmp_path, objective="finetune", cache_teacher=True).eraser.teacher is None
    assert make_trainer(tmp_path, objective="delete").eraser.teacher is not None


def test_cached_teacher_outputs_train_the_same_model_with_one_pass_over_forget(tmp_path):
    results = []
    for cache in (False, True):
        trainer = make_trainer(tmp_path, objective=DISTIL, points=[], cache_teacher=cache, max_steps=6)
        calls = []
        trainer.eraser.teacher.model.register_forward_hook(lambda module, args, output, calls=calls: calls.append(1))
        trainer.train()
        results.append((weights(trainer.model), len(calls), trainer.cost["forget_images_seen"]))
    (live, live_calls, live_seen), (cached, cached_calls, cached_seen) = results
    assert (live_calls, cached_calls) == (6, 2)  # 20 forget images, 16 at a time
    assert cached_seen == live_seen + 20
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, msg=name)


@pytest.mark.parametrize(
    ("steps", "transformed", "remembers"), [(6, False, True), (2, False, False), (6, True, False)]
)
def test_the_teacher_is_remembered_by_default_where_images_stay_the_same_and_each_is_asked_for(
    tmp_path, steps, transformed, remembers
):
    trainer = make_trainer(tmp_path, objective=DISTIL, points=[], max_steps=steps)  # 20 forget images, 8 a step
    if transformed:
        trainer.train_dataset.forget.set_transform(lambda rows: rows)
    asked = []
    trainer.eraser.teacher.model.register_forward_hook(lambda *_: asked.append(1))
    trainer.train()
    assert trainer.remembers_teacher() is remembers
    assert len(asked) == (2 if remembers else steps)  # 20 images, 16 at a time


def test_cached_teacher_outputs_are_refused_for_images_that_change(tmp_path):
    trainer = make_trainer(tmp_path, objective=DISTIL, points=[], cache_teacher=True)
    trainer.train_dataset.forget.set_transform(
        lambda rows: {
            "image": [Pil.fromarray(np.random.randint(0, 255, (32, 32, 3), "uint8")) for _ in rows["image"]],
            "label": rows["label"],
        }
    )
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="cache_teacher=True: the forget images differ"):
        trainer.train()
    assert same(weights(trainer.model), before)
    trainer = make_trainer(tmp_path, objective=DISTIL, points=[], cache_teacher=True)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {key: value for key, value in collate(rows).items() if key != "rows"}
    with pytest.raises(ValueError, match="data_collator gives no `rows`"):
        trainer.train()


# Closed forms


def test_a_closed_form_edits_the_model_and_trains_nothing(tmp_path, capsys):
    trainer = make_trainer(
        tmp_path,
        objective=HALVE,
        points=[],
        eval_dataset=evaluation_parts(),
        eval_strategy="epoch",
        eval_on_start=True,
    )
    original = weights(trainer.model)
    parameters = dict(trainer.model.named_parameters())
    result = trainer.train()
    assert result.global_step == 0
    assert all(torch.equal(value, original[name] / 2) for name, value in parameters.items())
    losses = [entry["eval_retain_loss"] for entry in trainer.state.log_history if "eval_retain_loss" in entry]
    assert len(losses) == 2, "the original, then the edited model"
    assert losses[1] == pytest.approx(trainer.evaluate()["eval_retain_loss"])
    assert losses[0] != losses[1]
    assert "nothing is trained" in capsys.readouterr().out
    trainer.save_model()
    loaded = type(trainer.model).from_pretrained(tmp_path).state_dict()
    assert same(loaded, weights(trainer.model))
    assert json.loads((tmp_path / "ec_config.json").read_text())["cost"]["steps"] == 0
    trainer.train()
    assert same(weights(trainer.model), loaded), "once is enough"
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        trainer.train(resume_from_checkpoint=str(tmp_path))


def test_with_points_ec_trains_after_a_closed_form_and_is_judged_by_the_original(tmp_path, capsys):
    trainer = make_trainer(
        tmp_path,
        objective=HALVE,
        eval_dataset=evaluation_parts(),
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        max_steps=1,
        forget_target=-1,
    )
    original = trainer.evaluate()
    trainer.train()
    history = trainer.state.log_history
    first = {name: value for entry in history if entry["step"] == 0 for name, value in entry.items()}
    assert first["eval_retain_loss"] == pytest.approx(original["eval_retain_loss"])
    line = next(entry for entry in history if "loss" in entry)
    assert {"contrastive/contrast", "contrastive/retain_ce", "hidden_states.3/contrast"} <= set(line)
    assert "hidden_states.4/contrast" not in line
    assert sum("eval_retain_loss" in entry for entry in history) == 2
    assert trainer.args.eval_on_start
    printed = capsys.readouterr().out
    assert "in closed form, then EC trains with objective 'contrastive'" in printed


# How objective and EC go together


@pytest.mark.parametrize(
    ("objective", "options", "expected"),
    [
        ("delete", {"points": []}, "forget"),
        ("delete", {"points": [], "objective_kwargs": {"retain_weight": 1.0}}, "forget +retain"),
        ("delete", {}, "forget +retain"),
        ("finetune", {"points": []}, "retain"),
        ("finetune", {}, "retain +forget"),
        ("contrastive", {}, "forget and retain"),
    ],
)
def test_the_record_says_which_sets_are_used_and_which_one_is_added(tmp_path, objective, options, expected):
    trainer = make_trainer(tmp_path, objective=objective, **options)
    assert trainer.plan.to_dict()["uses"] == expected
    assert f"the losses use: {expected}\n" in str(trainer.plan)


@pytest.mark.parametrize("name", ["own_objective:Demote", "demote"])
def test_the_example_of_an_own_objective_trains_by_path_and_by_name(tmp_path, monkeypatch, own_registry, name):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "recipes")
    monkeypatch.delitem(sys.modules, "own_objective", raising=False)
    if name == "demote":
        importlib.import_module("own_objective")
    trainer = make_trainer(tmp_path, objective=name, objective_kwargs={"margin": 2.0}, max_steps=1)
    logits = torch.tensor([[3.0, 1, 0, 0, 0], [0, 5, 0, 0, 0]])
    forget = Part(logits, logits, torch.tensor([0, 2]), logits)
    losses = trainer.eraser.objective(Step(forget, forget))
    assert losses["demote"].item() == pytest.approx((3 - 1 + 2 + 0) / 2)  # the second label is beaten by 5 already
    trainer.train()
    assert {"demote/demote", "demote/retain_ce", "hidden_states.4/contrast"} <= set(trainer.state.log_history[0])


def test_retraining_starts_anew_and_refuses_points(tmp_path):
    with pytest.raises(ValueError, match="points=\\[\\]"):
        make_trainer(tmp_path, objective="retrain")
    trainer = make_trainer(
        tmp_path,
        "ResNet",
        objective="retrain",
        points=[],
        eval_dataset=evaluation_parts(),
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        max_steps=2,
        retain_floor=1.0,
    )
    original = trainer.evaluate()
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2, "no forget target stops it"
    assert trainer.state.log_history[1]["eval_retain_loss"] == pytest.approx(original["eval_retain_loss"])
    drawn = [name for name, value in before.items() if value.dim() == 4]
    assert drawn
    for name, value in trainer.model.state_dict().items():
        if value.dim() == 4:
            assert (value - before[name]).abs().mean() > 0.1 * before[name].std(), name
    assert trainer.plan.to_dict()["settings"]["batch_norm"] == "retain"


# Resuming


@pytest.mark.parametrize("family", ["ViT", "Swin", "ResNet", "timm ViT"])
@pytest.mark.parametrize("stop", [3, 5], ids=["mid-epoch", "at an epoch's end"])
def test_resuming_continues_to_the_bit(tmp_path, family, stop):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": stop, "save_total_limit": None}
    dropout = {"hidden_dropout_prob": 0.1} if family in ("ViT", "Swin") else {}
    whole = make_trainer(tmp_path, family, model=make_model(family, **dropout), **options)
    whole.train()
    checkpoint = str(tmp_path / f"checkpoint-{stop}")
    resumed = make_trainer(tmp_path / "again", family, model=make_model(family, **dropout), **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    for one, other in ((whole.model, resumed.model), (whole.heads, resumed.heads)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (PROBE, {"cache_teacher": True}),
        (HALVE, {}),
        ("boundary_expand", {"points": []}),
        ("duck", {}),
        ("delete", {"calibrated": True}),
        ("saliency", {"weight_decay": 0.1}),
        ("retrain", {"points": []}),
    ],
)
def test_resuming_gathers_again_what_an_objective_knows_of_the_original(tmp_path, objective, options):
    options = {"objective": objective, "save_strategy": "steps", "save_steps": 3, "save_total_limit": None} | options
    whole = make_trainer(tmp_path, "ResNet", max_steps=5, **options)
    whole.train()
    resumed = make_trainer(tmp_path / "again", "ResNet", max_steps=5, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(whole.model), weights(resumed.model))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert len(losses[0]) == 5 and losses[0] == losses[1]


def test_checkpoints_hold_the_plain_model_and_the_heads_beside_it(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    keys = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert not any("ec_heads" in key for key in keys)
    assert ECHeads.from_pretrained(tmp_path / "checkpoint-2").points == trainer.eraser.points


def test_the_best_model_is_loaded_key_for_key(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_dataset=evaluation_parts(),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget_loss",  # forgetting raises it, so that the first step is the best
        max_steps=3,
        learning_rate=5e-2,
    )
    trainer.train()
    best = type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert trainer.state.best_global_step < 3
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())


# Stopping


class Scripted(TrainerCallback):
    """Replaces measured accuracies by a script of (forget, retain) or (forget, retain, matched) an evaluation."""

    def __init__(self, script):
        self.script = script

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        entry = state.log_history[-1]
        evaluations = sum("eval_retain_accuracy" in each for each in state.log_history)
        for column, name in enumerate(("eval_forget_accuracy", "eval_retain_accuracy", "eval_matched_accuracy")):
            if name in entry:
                entry[name] = self.script[evaluations - (column > 0)][column]


def scripted_trainer(folder, script, **kwargs):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_on_start": True,
    }
    options |= {"eval_dataset": evaluation_parts(), "callbacks": [Scripted(script)], "max_steps": 6}
    return make_trainer(folder, **(options | kwargs))


def test_training_stops_once_forget_is_at_chance_and_retain_above_its_floor(tmp_path):
    script = [(0.9, 0.9), (0.5, 0.9), (0.2, 0.85), (0.2, 0.895), (0.0, 0.9)]
    trainer = scripted_trainer(tmp_path, script)
    trainer.train()
    assert trainer.stopping_rule.target == pytest.approx(1 / 5)
    assert trainer.state.global_step == 3


def test_a_forget_target_replaces_chance(tmp_path):
    script = [(0.9, 0.9), (0.1, 0.9), (0.0, 0.9), (0.0, 0.9)]
    trainer = scripted_trainer(tmp_path, script, forget_target=0.05)
    trainer.train()
    assert trainer.state.global_step == 2


def test_no_run_stops_before_its_minimum_of_steps(tmp_path):
    trainer = scripted_trainer(tmp_path, [(0.9, 0.9), *[(0.0, 0.9)] * 6], min_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4


def test_the_last_good_checkpoint_is_put_back_when_retain_ends_below_its_floor(tmp_path, capsys):
    script = [(0.9, 0.9), (0.9, 0.9), (0.9, 0.9), *[(0.9, 0.7)] * 4]
    trainer = scripted_trainer(tmp_path, script, save_total_limit=1)
    trainer.train()
    assert trainer.state.global_step == 6
    good = type(trainer.model).from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(value, good[name]) for name, value in trainer.model.state_dict().items())
    assert "below its floor" in capsys.readouterr().out


def test_the_rule_reads_all_it_needs_from_the_log_so_that_it_survives_a_resume():
    rule = StoppingRule(target=0.1, floor=0.01)
    history = [
        {"step": 0, "eval_forget_accuracy": 0.9},
        {"step": 0, "eval_retain_accuracy": 0.9},
        {"step": 5, "eval_forget_accuracy": 0.0},
    ]
    assert rule.is_good(history, 5) is None
    assert rule.is_good([*history, {"step": 5, "eval_retain_accuracy": 0.89}], 5) is True
    assert rule.is_good([*history, {"step": 5, "eval_retain_accuracy": 0.88}], 5) is False


def test_forgotten_rows_are_done_once_they_are_named_no_more_often_than_images_of_their_classes_that_stay(tmp_path):
    script = [(1.0, 0.9, 0.8), (0.9, 0.9, 0.8), (0.75, 0.9, 0.7), (0.7, 0.9, 0.7), (0.0, 0.9, 0.7)]
    parts = {**evaluation_parts(), "matched": make_images(10, seed=3)}
    trainer = scripted_trainer(tmp_path, script, eval_dataset=parts)
    assert "at most that of images of the same classes that stay" in str(trainer.plan)
    trainer.train()
    assert trainer.state.global_step == 3
    again = scripted_trainer(tmp_path / "again", script, eval_dataset=parts, forget_target=0.75)
    again.train()
    assert again.state.global_step == 2


# Bad input, before anything is trained


def test_overlapping_sets_are_refused(tmp_path):
    images = make_images()
    parts = split(images, ForgetRequest(classes=["bee"]))
    with pytest.raises(ValueError, match="20 of its rows stand in forget_dataset"):
        ECTrainer(make_model("ViT"), settings(tmp_path), forget_dataset=parts["forget"], retain_dataset=images)


def test_an_empty_set_is_refused(tmp_path):
    images = make_images()
    with pytest.raises(ValueError, match="forget_dataset is empty"):
        ECTrainer(make_model("ViT"), settings(tmp_path), forget_dataset=images.select([]), retain_dataset=images)


def test_the_uuef_contrast_is_refused_for_one_class(tmp_path):
    with pytest.raises(ValueError, match="uuef"):
        make_trainer(tmp_path, contrast="uuef")


def test_an_objective_of_whole_classes_is_refused_for_single_rows(tmp_path):
    parts = split(make_images(), ForgetRequest(rows=[0, 1, 2]))
    args = settings(tmp_path, objective="damp")
    sets = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"]}
    with pytest.raises(ValueError, match="no retain image may have a forgotten class"):
        ECTrainer(make_model("ViT"), args, processing_class=make_processor(), **sets)


def test_heads_for_other_points_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, points=[2, 4])
    trainer.fit_heads()
    trainer.heads.save_pretrained(tmp_path / "heads")
    with pytest.raises(ValueError, match="heads: they were built for"):
        make_trainer(tmp_path, heads=str(tmp_path / "heads"))
    assert make_trainer(tmp_path, points=[2, 4], heads=tmp_path / "heads").heads.points == trainer.eraser.points


def test_heads_with_another_pooling_are_refused(tmp_path):
    heads = make_trainer(tmp_path).heads
    with pytest.raises(ValueError, match="pooling 'mean', this run"):
        make_trainer(tmp_path, heads=heads, pooling="cls")


def test_cls_pooling_is_refused_where_there_is_no_cls_token(tmp_path):
    with pytest.raises(ValueError, match="no CLS token"):
        make_trainer(tmp_path, "ResNet", pooling="cls")


def test_resuming_where_there_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"contrast": "simclr"}, "expected one of"),
        ({"temperature": 0.0}, "above 0"),
        ({"ec_weight": 0.0}, "above 0"),
        ({"retain_weight": -1.0}, "0 or more"),
        ({"remove_unused_columns": True}, "image column"),
        ({"layer_weights": [1, 2]}, "one number for each of the 4 supervision points"),
        ({"objective": "delet"}, "did you mean 'delete'"),
        ({"points": [9]}, "no hidden state 9"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **setting)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"retain_floor": 5.0}, "not a percentage"),
        ({"batch_norm": "retain", "activation_checkpointing": True}, "activation checkpointing"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_config(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **setting)


def test_arguments_of_the_wrong_kind_are_refused_by_name(tmp_path):
    parts = split(make_images(), ForgetRequest(classes=["bee"]))
    data = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"], "processing_class": make_processor()}
    with pytest.raises(TypeError, match="eval_dataset: expected"):
        ECTrainer(make_model("ViT"), settings(tmp_path), **data, eval_dataset=parts["forget"])
    with pytest.raises(TypeError, match="args: expected an ECConfig"):
        ECTrainer(make_model("ViT"), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), **data)
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        ECTrainer(make_model("ViT").bfloat16(), settings(tmp_path), **data)
    with pytest.raises(TypeError, match="forget_dataset: expected a dataset with rows by index"):
        ECTrainer(make_model("ViT"), settings(tmp_path), **data | {"forget_dataset": images_as_stream()})
    with pytest.raises(TypeError, match="retain_dataset: expected a dataset with rows by index, got generator"):
        ECTrainer(make_model("ViT"), settings(tmp_path), **data | {"retain_dataset": (row for row in parts["retain"])})


def images_as_stream():
    return make_images().to_iterable_dataset()


def test_only_heads_that_carry_a_loss_ask_for_a_gradient(tmp_path):
    asked = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            asked.extend(all(p.requires_grad for p in head.parameters()) for head in model.ec_heads.heads)

    make_trainer(tmp_path, train_heads=True, layer_weights=[1, 0, 1, 1], callbacks=[Look()]).train()
    assert asked == [True, False, True, False], "the last point's loss is the contrastive host"


def test_images_seen_count_every_micro_batch(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, max_steps=7)  # 5 batches an epoch: 2, 2 and 1
    trainer.train()
    assert trainer.cost["forget_images_seen"] == 8 * (5 + 5 + 2)


def test_several_gpus_in_one_process_are_refused(tmp_path):
    args = settings(tmp_path)
    args._n_gpu = 2
    parts = split(make_images(), ForgetRequest(classes=["bee"]))
    with pytest.raises(ValueError, match="accelerate launch"):
        ECTrainer(make_model("ViT"), args, forget_dataset=parts["forget"], retain_dataset=parts["retain"])


def test_a_failing_run_takes_the_heads_off_again(tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("power cut")

    trainer = make_trainer(tmp_path, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train()
    assert not hasattr(trainer.model, "ec_heads")


def test_the_same_trainer_can_train_twice(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    trainer.train()
    assert trainer.state.global_step == 2


def test_text_labels_work_though_each_part_holds_some_of_them_only(tmp_path):
    images = make_images()
    names = [NAMES[label] for label in images["label"]]
    images = images.remove_columns("label").add_column("label", names)
    parts = split(images, ForgetRequest(classes=["bee"]))
    trainer = ECTrainer(
        make_model("ViT"),
        settings(tmp_path),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        eval_dataset={"forget": parts["forget"]},
        processing_class=make_processor(),
    )
    assert trainer.eraser.forget_classes == (1,)
    trainer.train()
    assert "eval_forget_accuracy" in trainer.evaluate()


def test_data_that_holds_pixel_values_needs_no_processor(tmp_path):
    images = make_images()
    processor = make_processor()
    images.set_transform(
        lambda rows: {
            "pixel_values": processor(rows["image"], return_tensors="pt")["pixel_values"],
            "labels": rows["label"],
        }
    )
    parts = split(images, ForgetRequest(rows=list(range(10))))
    trainer = ECTrainer(
        make_model("ViT"), settings(tmp_path), forget_dataset=parts["forget"], retain_dataset=parts["retain"]
    )
    trainer.train()
    assert trainer.eraser.forget_classes is None, "no class is forgotten as a whole"
    assert Path(tmp_path).exists()
