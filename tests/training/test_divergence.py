"""A run whose numbers are no numbers any more is no success: it stops, says where, and leaves no model as a result."""

from __future__ import annotations

import pytest
import torch
from helpers.models import make_model
from helpers.trainers import evaluation_parts, make_trainer

from ec_hf.models.loading import load_model
from ec_hf.objectives import Objective
from ec_hf.publishing.export import export
from ec_hf.training.loss import DivergedError


@pytest.mark.parametrize("rate", [1e30, float("inf")])
def test_a_run_that_diverges_stops_at_the_step_and_names_the_parts(tmp_path, fitted_heads, rate):
    trainer = make_trainer(tmp_path, heads=fitted_heads, learning_rate=rate, max_steps=6, warmup_steps=0)
    with pytest.raises(DivergedError, match=r"step [12]: the loss is .*(contrast|retain_ce).*Lower learning_rate"):
        trainer.train()
    assert not (tmp_path / "model.safetensors").exists() and not hasattr(trainer.model, "ec_heads")


def test_the_checkpoints_from_before_stay(tmp_path, fitted_heads):
    trainer = make_trainer(tmp_path, heads=fitted_heads, save_strategy="steps", save_steps=1, max_steps=4)
    step = trainer.training_step

    def break_at_the_third(*args):
        if trainer.state.global_step == 2:
            trainer.model.vit.embeddings.cls_token.data.fill_(float("nan"))
        return step(*args)

    trainer.training_step = break_at_the_third
    with pytest.raises(DivergedError, match="step 2: the loss is nan"):
        trainer.train()
    model, _ = load_model(tmp_path / "checkpoint-2")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_pixels_that_are_no_numbers_are_found_at_their_step(tmp_path, fitted_heads):
    trainer = make_trainer(tmp_path, heads=fitted_heads)
    collate = trainer.data_collator

    def broken(examples):
        batch = collate(examples)
        batch["pixel_values"][-1] = float("nan")
        return batch

    trainer.data_collator = broken
    with pytest.raises(DivergedError, match=r"step 0: .*pixel values are finite"):
        trainer.train()


def test_an_evaluation_of_outputs_that_are_no_numbers_is_no_accuracy(tmp_path):
    trainer = make_trainer(tmp_path, points=[], objective="finetune", eval_dataset=evaluation_parts())
    trainer.model.classifier.bias.data[0] = float("inf")
    with pytest.raises(DivergedError, match="logits of evaluation images are NaN or infinite"):
        trainer.evaluate()


class Ruin(Objective):
    """A closed form that leaves a weight which is no number."""

    trains = False

    def prepare(self, setting):
        setting.model.classifier.weight.data[0, 0] = float("nan")

    def __call__(self, step):
        raise AssertionError("a closed form has no loss")


def test_a_closed_form_that_breaks_the_model_is_no_success(tmp_path):
    trainer = make_trainer(tmp_path, objective=f"{__name__}:Ruin", points=[])
    with pytest.raises(ValueError, match=r"at the end of this run: weights that are NaN.*classifier\.weight"):
        trainer.train()
    with pytest.raises(ValueError, match="the model of this run: weights that are NaN"):
        trainer.save_model()


def test_an_original_with_broken_weights_is_refused_before_anything_is_trained(tmp_path):
    model = make_model("ViT")
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"model: weights that are NaN.*classifier\.bias"):
        make_trainer(tmp_path, model=model)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"broken.*weights that are NaN"):
        load_model(tmp_path / "broken")


def test_a_broken_model_is_not_published(tmp_path):
    model = make_model("ViT")
    model.classifier.bias.data[0] = float("inf")
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"classifier\.bias in model\.safetensors is NaN or infinite"):
        export(tmp_path / "broken", tmp_path / "out")
