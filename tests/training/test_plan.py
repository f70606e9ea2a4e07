"""What a run says it will do, and which runs may go on from a checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.models import make_images, make_model, make_processor
from helpers.trainers import make_trainer, settings

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.data.fingerprint import fingerprint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two steps of a run that forgets "bee"."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, save_strategy="steps", save_steps=2, max_steps=2).train()
    return str(folder / "checkpoint-2")


def resumed(tmp_path, checkpoint, **options):
    trainer = make_trainer(tmp_path, **({"max_steps": 3} | options))
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_a_run_goes_on_and_may_go_on_for_longer(tmp_path, checkpoint):
    assert resumed(tmp_path, checkpoint).state.global_step == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget": ("cat",)}, "the forget set was"),
        ({"forget": ("bee", "cat")}, "the retain set was"),
        ({"learning_rate": 5e-3}, "learning_rate was 0.001 and is 0.005"),
        ({"objective": "delete"}, "objective was 'contrastive' and is 'delete'"),
        ({"points": [2, 4]}, "points was"),
        ({"seed": 7}, "seed was 42 and is 7"),
    ],
)
def test_another_request_or_other_settings_are_refused_before_a_step(tmp_path, checkpoint, options, message):
    with pytest.raises(ValueError, match="the checkpoint belongs to another run") as caught:
        resumed(tmp_path, checkpoint, **options)
    assert message in str(caught.value)


def test_other_images_of_the_same_classes_are_another_set(tmp_path, checkpoint):
    parts = split(make_images(seed=5), ForgetRequest(classes=["bee"]))
    sets = {"forget_dataset": parts["forget"], "retain_dataset": parts["retain"]}
    trainer = ECTrainer(make_model("ViT"), settings(tmp_path), **sets, processing_class=make_processor())
    with pytest.raises(ValueError, match="the forget set was"):
        trainer.train(resume_from_checkpoint=checkpoint)


def test_the_plan_is_on_record_as_it_was_printed(tmp_path, capsys):
    trainer = make_trainer(tmp_path, objective="delete", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert str(trainer.plan) in capsys.readouterr().out
    record = json.loads((tmp_path / "ec_config.json").read_text())
    assert record | trainer.plan.to_dict() == record
    assert record["data"]["forget"] == {"images": 20, "fingerprint": fingerprint(trainer.train_dataset.forget)}


def test_a_set_is_known_by_its_images_however_it_is_shown():
    images = make_images()
    one = fingerprint(images)
    shown = make_images().with_transform(lambda rows: {"label": rows["label"]})
    assert fingerprint(shown) == one == fingerprint(make_images())
    others = [images.select(range(99)), images.shuffle(seed=1), make_images(seed=3)]
    assert len({one, *map(fingerprint, others)}) == 4
    assert fingerprint([1, 2]) is None


@pytest.mark.parametrize(
    "options", [{"points": ["1", "2", "3", "-1"]}, {"layer_weights": ["1", "1.0", "1", "1"]}, {"objective_kwargs": {}}]
)
def test_settings_that_mean_the_same_are_the_same_however_they_are_typed(tmp_path, checkpoint, options):
    assert resumed(tmp_path, checkpoint, **options).state.global_step == 3


def test_a_run_from_another_original_does_not_go_on(tmp_path, checkpoint):
    halfway = type(make_model("ViT")).from_pretrained(checkpoint)
    for model in (make_model("ViT", seed=9), halfway):
        with pytest.raises(ValueError, match="original was"):
            resumed(tmp_path, checkpoint, model=model)


def test_a_checkpoint_of_which_nothing_is_known_is_refused(tmp_path, checkpoint):
    copied = tmp_path / "checkpoint-2"
    shutil.copytree(checkpoint, copied)
    (copied / "ec_config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no ec_config\.json"):
        resumed(tmp_path / "again", str(copied))


def test_a_plan_says_how_long_a_training_must_be_for_the_run_to_be_worth_it(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=-1, num_train_epochs=3)
    retained, batch = len(trainer.train_dataset.retain), trainer.args.per_device_train_batch_size
    passes = 3 * -(-retained // batch) * batch / retained
    assert trainer.plan.passes == pytest.approx(passes)
    assert f"{passes:.3g} passes over the retain set at most" in str(trainer.plan)
    assert "fewer than 10, this is more than 30% of a retraining" in str(trainer.plan)
