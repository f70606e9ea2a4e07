"""A stock `Trainer` erases by a callback."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers.launching import launch
from helpers.models import make_images, make_model
from helpers.stock import Recorded, collate_fn, replayed, stock_trainer, with_pixels
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, default_data_collator

from ec_hf import ECCallback, ECHeads, Eraser, EraserConfig, ForgetRequest, split

PARTS = {name: with_pixels(part) for name, part in split(make_images(), ForgetRequest(classes=["bee", "dog"])).items()}
DELETE = {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}, "calibrated": True}


def erasing(model=None, heads=None, **settings):
    model = make_model("ViT") if model is None else model
    eraser = Eraser(
        model,
        EraserConfig(**({"objective": "contrastive", "heads_epochs": 1} | settings)),
        forget_classes=[1, 3],
        heads=heads,
    )
    return ECCallback(eraser, **PARTS)


def erased(folder, callback, **kwargs):
    trainer = stock_trainer(folder, callback.eraser.model, callback.train_dataset, [callback], **kwargs)
    trainer.train()
    return trainer


def same_weights(one, other, **tolerance):
    others = other.state_dict()
    assert list(one.state_dict()) == list(others)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(others[name], value, **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "settings", [{}, DELETE, {"objective": "scrub", "saliency": 0.5}, {"objective": "bad_teacher"}]
)
def test_a_stock_trainer_takes_the_steps_of_ec_trainer(fitted_heads, tmp_path, settings, accumulation):
    recorded, arguments = Recorded(), {"gradient_accumulation_steps": accumulation, "max_steps": 6 // accumulation}
    arguments["per_device_train_batch_size"] = 20 // accumulation  # epochs of whole batches and whole steps
    callback = erasing(heads=copy.deepcopy(fitted_heads), **settings)
    stock = erased(tmp_path / "stock", callback, collate=recorded, **arguments)
    again = replayed(tmp_path / "ec", recorded.batches[-6:], make_model("ViT"), fitted_heads, **settings, **arguments)
    again.train()
    same_weights(stock.model, again.model, rtol=1e-6, atol=1e-6)
    ours, theirs = ([line for line in each.state.log_history if "loss" in line] for each in (stock, again))
    assert len(ours) == 6 // accumulation
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-4)
        assert {name for name in its if "/" in name} == {name for name in mine if "/" in name}


@pytest.mark.slow
@pytest.mark.launch
def test_two_processes_of_a_stock_trainer_take_the_steps_of_ec_trainer(tmp_path):
    launch(Path(__file__).with_name("train_stock.py"), tmp_path, processes=2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] == 2 and found["steps"] == 6
    assert found["moved"] > 0 and found["apart"] < 1e-6


def test_the_script_is_left_with_a_plain_model_and_a_finished_folder(tmp_path):
    callback = erasing()
    trainer = erased(tmp_path, callback, save_strategy="steps", save_steps=3)
    trainer.save_model()
    model = callback.eraser.model
    assert not hasattr(model, "ec_heads") and "forward" not in vars(model)
    assert list(model.state_dict()) == list(make_model("ViT").state_dict())
    batch = collate_fn([PARTS["retain"][0]])
    model.train()
    assert model(**batch).loss == F.cross_entropy(model(**batch).logits, batch["labels"])
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        _, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert ECHeads.from_pretrained(folder).points == callback.eraser.points
        assert json.loads((folder / "ec_config.json").read_text())["data"]["forget"]["images"] == 40


def test_in_evaluation_the_model_is_the_plain_one(fitted_heads, tmp_path):
    seen = []

    class Watching(Trainer):
        def prediction_step(self, model, inputs, *args, **kwargs):
            loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
            seen.append((loss, F.cross_entropy(logits, labels)))
            return loss, logits, labels

    callback = erasing(heads=fitted_heads)
    trainer = Watching(
        model=callback.eraser.model,
        args=TrainingArguments(
            str(tmp_path),
            use_cpu=True,
            report_to="none",
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            remove_unused_columns=False,
            save_strategy="no",
        ),
        compute_metrics=lambda _: {},
        train_dataset=callback.train_dataset,
        eval_dataset=PARTS["retain"],
        data_collator=collate_fn,
        callbacks=[callback],
    )
    trainer.train()
    assert len(seen) == 16
    for loss, expected in seen:
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("settings", [DELETE, {"objective": "delete", "saliency": 0.3}])
def test_a_resumed_run_ends_as_one_that_went_through(fitted_heads, tmp_path, settings):
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = erased(tmp_path, erasing(heads=copy.deepcopy(fitted_heads), **settings), **saving)
    callback = erasing(**settings)  # the heads come from the checkpoint
    again = stock_trainer(tmp_path, callback.eraser.model, callback.train_dataset, [callback], **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    same_weights(whole.model, again.model)


def test_a_checkpoint_of_another_run_is_refused(fitted_heads, tmp_path):
    erased(tmp_path, erasing(heads=fitted_heads), save_strategy="steps", save_steps=3)
    callback = erasing(objective="delete")
    other = stock_trainer(tmp_path, callback.eraser.model, callback.train_dataset, [callback])
    with pytest.raises(ValueError, match="objective was 'contrastive' and is 'delete'"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_the_masked_weights_stay_where_they_were(fitted_heads, tmp_path):
    callback = erasing(heads=fitted_heads, objective="delete", saliency=0.25)
    before = {name: value.clone() for name, value in callback.eraser.model.named_parameters()}
    erased(tmp_path, callback, weight_decay=0.1)
    moved = sum((value != before[name]).sum().item() for name, value in callback.eraser.model.named_parameters())
    assert 0 < moved <= round(0.25 * sum(value.numel() for value in before.values()))


def test_the_best_checkpoint_is_put_back_at_the_end(fitted_heads, tmp_path):
    callback = erasing(heads=fitted_heads)
    trainer = stock_trainer(
        tmp_path, callback.eraser.model, callback.train_dataset, [callback], save_strategy="steps", save_steps=3,
        eval_strategy="steps", eval_steps=3, load_best_model_at_end=True, eval_dataset=PARTS["retain"],
    )  # fmt: skip
    trainer.train()
    same_weights(trainer.model, type(trainer.model).from_pretrained(trainer.state.best_model_checkpoint))


def test_rows_that_a_default_collator_made_serve_a_remembered_teacher(fitted_heads, tmp_path):
    callback = erasing(heads=fitted_heads, cache_teacher=True, **DELETE)

    def collate(examples):
        return default_data_collator([{k: v for k, v in row.items() if k != "image"} for row in examples])

    trainer = erased(tmp_path, callback, collate=collate)
    assert trainer.state.global_step == 6


class Focal(Trainer):
    """Computes its own loss, as many fine-tuning scripts do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits * 1.0, inputs["labels"]) if outputs.logits.requires_grad else None
        loss = loss if loss is not None else sum(p.square().sum() for p in model.parameters())
        return (loss, outputs) if return_outputs else loss


def test_a_trainer_that_computes_its_own_loss_is_refused_before_its_first_step(fitted_heads, tmp_path):
    callback = erasing(heads=copy.deepcopy(fitted_heads))
    before = copy.deepcopy(callback.eraser.model.state_dict())
    with pytest.raises(ValueError, match=r"compute_loss = Trainer\.compute_loss"):
        erased(tmp_path, callback, trainer=Focal)
    callback.detach()
    assert all(torch.equal(value, before[name]) for name, value in callback.eraser.model.state_dict().items())

    class Erasing(Focal):
        compute_loss = Trainer.compute_loss

    assert erased(tmp_path, erasing(heads=fitted_heads), trainer=Erasing).state.global_step == 6


def test_what_a_callback_cannot_do_is_refused(fitted_heads, tmp_path):
    with pytest.raises(ValueError, match="train_heads=True: a Trainer makes its optimiser before"):
        erasing(train_heads=True)
    with pytest.raises(ValueError, match=r"trains nothing.*Eraser\.prepare"):
        erasing(objective="esc", points=[])
    with pytest.raises(ValueError, match="retain_dataset: 60 of its rows"):
        ECCallback(Eraser(make_model("ViT")), PARTS["retain"], PARTS["retain"])
    callback = erasing(heads=fitted_heads)
    model, paired = callback.eraser.model, callback.train_dataset
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1"):
        stock_trainer(tmp_path, model, paired, [callback], label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"train_dataset=erasing\.train_dataset"):
        stock_trainer(tmp_path, model, PARTS["retain"], [callback]).train()
    with pytest.raises(ValueError, match="another model than the eraser's"):
        stock_trainer(tmp_path, make_model("ViT"), paired, [callback]).train()


def test_a_training_that_broke_off_can_be_begun_again(fitted_heads, tmp_path):
    callback = erasing(heads=fitted_heads)

    class Failing(Trainer):
        def training_step(self, *args, **kwargs):
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        erased(tmp_path, callback, trainer=Failing)
    assert erased(tmp_path, callback).state.global_step == 6
    assert not hasattr(callback.eraser.model, "ec_heads")
