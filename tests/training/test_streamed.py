"""`ECTrainer` with a retain set that is streamed from Parquet shards."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from helpers.launching import launch
from helpers.models import NAMES, make_images, make_model, make_processor
from helpers.trainers import evaluation_parts, settings
from transformers import TrainerCallback

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.training import fitting
from ec_hf.training import streamed as module

PARTS = split(make_images(200), ForgetRequest(classes=["bee"]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """160 retain rows in four Parquet files."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        PARTS["retain"].select(range(shard * 40, shard * 40 + 40)).to_parquet(str(folder / f"{shard}.parquet"))
    return sorted(map(str, folder.glob("*.parquet")))


def stream(shards):
    return load_dataset("parquet", data_files=shards, split="train", streaming=True)


def trainer(folder, shards, retain=None, forget=None, callbacks=(), heads=None, eval_dataset=None, **kwargs):
    return ECTrainer(
        make_model("ViT"),
        settings(folder, **kwargs),
        forget_dataset=PARTS["forget"] if forget is None else forget,
        retain_dataset=stream(shards) if retain is None else retain,
        processing_class=make_processor(),
        callbacks=callbacks,
        heads=heads,
        eval_dataset=eval_dataset,
    )


class Labels(TrainerCallback):
    """Notes the labels of each batch that is trained on."""

    def __init__(self):
        self.seen = []

    def watch(self, its_trainer):
        plain = its_trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            self.seen.append(inputs["labels"].tolist())
            return plain(model, inputs, *args, **kwargs)

        its_trainer.compute_loss = compute_loss
        return its_trainer


def weights(its_trainer):
    return {name: value.clone() for name, value in its_trainer.model.state_dict().items()}


def test_a_streamed_retain_set_is_trained_on_in_whole_passes(tmp_path, shards):
    labels = Labels()
    its = labels.watch(trainer(tmp_path, shards, max_steps=10, retain_rows=160))
    before = weights(its)
    its.train()
    of_retain = list(chain(*(each[8:] for each in labels.seen)))
    assert sorted(of_retain) == sorted(PARTS["retain"]["label"]), "ten steps of 16 rows are a pass over 160"
    assert all(set(each[:8]) == {1} for each in labels.seen)
    assert any(not torch.equal(value, before[name]) for name, value in weights(its).items())
    assert its.cost["retain_images_seen"] == 160
    assert its.eraser.forget_classes == (1,)
    assert "retain set 160 images" in str(its.plan) and "1 passes over the retain set" in str(its.plan)


def test_epochs_of_known_rows_have_the_steps_of_a_set_in_memory(tmp_path, shards):
    sizes = {"max_steps": -1, "num_train_epochs": 3}
    its = trainer(tmp_path, shards, retain_rows=160, **sizes)
    assert its.total_steps() == trainer(tmp_path, shards, retain=PARTS["retain"], **sizes).total_steps() == 30


@pytest.mark.parametrize(
    ("stopped", "changed"),
    [
        (3, {"retain_rows": None, "gradient_accumulation_steps": 2}),  # in the middle of a pass of unknown length
        (10, {}),  # at the end of a pass
        (11, {"dataloader_num_workers": 1}),  # in the second pass, which a worker reads
    ],
)
def test_an_interrupted_run_goes_on_to_the_bit(tmp_path, shards, fitted_heads, stopped, changed):
    kwargs = {"max_steps": 12, "retain_rows": 160, "save_strategy": "steps", "save_steps": stopped, **changed}
    kwargs |= {"heads": fitted_heads, "save_total_limit": 9}
    labels, rest = Labels(), Labels()
    whole = labels.watch(trainer(tmp_path / "whole", shards, **kwargs))
    whole.train()
    resumed = rest.watch(trainer(tmp_path / "resumed", shards, **kwargs))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stopped}"))
    assert rest.seen == labels.seen[stopped * kwargs.get("gradient_accumulation_steps", 1) :]
    ends = weights(resumed)
    assert all(torch.equal(value, ends[name]) for name, value in weights(whole).items())


def test_the_default_finds_its_rate_and_comes_back_on_a_stream(tmp_path, shards, capsys):
    its = ECTrainer(
        make_model("ViT"),
        settings(tmp_path, preset="default", max_steps=-1, learning_rate=None, retain_rows=160, retain_floor=1.0),
        forget_dataset=PARTS["forget"],
        retain_dataset=stream(shards),
        eval_dataset=evaluation_parts(),
        processing_class=make_processor(),
    )
    assert its.eraser.objective.name == "rewind" and its.total_steps() == 100, "three passes are fewer"
    its.train()
    assert "by a range test on retain images" in capsys.readouterr().out
    assert its.images_looked_at["retain"] >= 100
    its.save_model()
    record = json.loads((tmp_path / "ec_config.json").read_text())
    assert record["data"]["retain"] == {"images": 160, "fingerprint": None}
    assert record["settings"]["retain_rows"] == 160 and record["settings"]["learning_rate"] > 0


def test_a_stream_of_unknown_length_needs_steps_and_says_how_many(tmp_path, shards):
    with pytest.raises(ValueError, match=r"max_steps, which is passes \* rows / 32, as a step sees 32 retain images"):
        trainer(tmp_path, shards, max_steps=-1, num_train_epochs=1, gradient_accumulation_steps=2)
    its = trainer(tmp_path, shards, max_steps=2)
    assert "retain set streamed, of a length that is not known" in str(its.plan)
    its.train()
    assert its.state.global_step == 2
    assert trainer(tmp_path, shards, max_steps=-1, forget_epochs=1).total_steps() == 5


def test_rows_of_a_class_that_stays_are_forgotten_as_rows(tmp_path, shards):
    rows = split(make_images(200), ForgetRequest(rows=[0, 1, 2, 3, 4]))["forget"]
    its = trainer(tmp_path, shards, forget=rows)
    assert its.eraser.forget_classes is None


def test_a_forgotten_class_that_the_head_of_the_stream_hides_is_found_when_it_comes(tmp_path, shards, monkeypatch):
    late = Dataset.from_list(
        [*PARTS["retain"].select(range(40)), *PARTS["forget"].select(range(40))], PARTS["retain"].features
    )
    monkeypatch.setattr(module, "LOOKED_AT", 30)
    its = trainer(tmp_path, shards, retain=late.to_iterable_dataset(), points=[], max_steps=10)
    with pytest.raises(ValueError, match="a row of the stream has label 1, which is a class of the forget set"):
        its.train()


def test_a_stream_that_knows_all_its_labels_need_not_be_guessed_at_from_its_head(tmp_path, shards, monkeypatch):
    late = Dataset.from_list(
        [*PARTS["retain"].select(range(40)), *PARTS["forget"].select(range(40))], PARTS["retain"].features
    )
    monkeypatch.setattr(module, "LOOKED_AT", 30)
    stream = late.to_iterable_dataset()
    stream.labels = late.select_columns("label")
    assert trainer(tmp_path, shards, retain=stream, points=[]).eraser.forget_classes is None


def test_a_long_fit_of_heads_is_told_by_the_head_of_the_stream(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(fitting, "ROUND", 4)
    monkeypatch.setattr(module, "ROUND", 4)
    its = trainer(tmp_path, shards, retain_rows=160, heads_epochs=3)
    batches, held_out = its._batches_for_heads()
    told = torch.cat([batch["labels"] for batch in held_out]).tolist()
    assert len(told) == 20 and told.count(1) == 4, "a tenth of all, forget rows in their share"
    fitted = torch.cat([batch["labels"] for batch in batches]).tolist()
    assert len(batches) == 9 and fitted.count(1) == pytest.approx(200 / 5, abs=8)
    assert its.fit_heads().keys() == {point.name for point in its.eraser.points}


def test_objectives_that_look_at_the_retain_set_see_the_whole_stream(tmp_path, shards):
    its = trainer(tmp_path, shards)
    assert sum(len(batch["labels"]) for batch in its.look_at("retain")) == 160
    assert sum(len(batch["labels"]) for batch in its.look_at("retain", 4)) == 40
    assert its.images_looked_at["retain"] == 200


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda t, s: trainer(t, s, forget=stream(s)), TypeError, "forget_dataset: expected a dataset with rows"),
        (lambda t, s: trainer(t, s, dataloader_num_workers=2), ValueError, "read by one worker a process"),
        (lambda t, s: trainer(t, s, retain_rows=0), ValueError, "retain_rows=0: expected a number above 0"),
    ],
)
def test_what_cannot_be_streamed_is_refused(tmp_path, shards, make, kind, message):
    with pytest.raises(kind, match=message):
        make(tmp_path, shards)


def test_a_stream_with_other_class_names_is_refused(tmp_path, shards):
    renamed = stream(shards)
    features = renamed.features.copy()
    features["label"].names = NAMES[::-1]
    with pytest.raises(ValueError, match="bring all to one form"):
        trainer(tmp_path, shards, retain=renamed.cast(features))


def test_a_run_in_memory_is_no_run_to_go_on_with_from_a_stream(tmp_path, shards, fitted_heads):
    kwargs = {"save_strategy": "steps", "save_steps": 2, "heads": fitted_heads}
    trainer(tmp_path, shards, retain=PARTS["retain"], **kwargs).train()
    with pytest.raises(ValueError, match="holds no place in a stream"):
        trainer(tmp_path, shards, max_steps=6, **kwargs).train(resume_from_checkpoint=True)


@pytest.mark.slow
@pytest.mark.launch
def test_two_processes_read_shards_of_their_own_and_resume_to_the_bit(tmp_path, shards):
    script = Path(__file__).with_name("train_streamed.py")
    whole, resumed, alone = (tmp_path / name for name in ("whole", "resumed", "alone"))
    launch(script, whole, *shards, processes=2)
    found = [json.loads((whole / f"seen-{k}.json").read_text()) for k in (0, 1)]
    assert all(each["world_size"] == 2 for each in found)
    first, second = (list(chain(*each["numbers"][:5])) for each in found)
    assert len(first) == len(second) == 80 and sorted(first + second) == list(range(160)), "a pass, shared out"
    launch(script, resumed, "--resume", whole / "checkpoint-4", *shards, processes=2)
    again = [json.loads((resumed / f"seen-{k}.json").read_text()) for k in (0, 1)]
    assert [each["numbers"] for each in again] == [each["numbers"][4:] for each in found]
    assert [each["hash"] for each in again] == [each["hash"] for each in found]
    printed = launch(script, alone, "--resume", whole / "checkpoint-4", *shards, processes=1)
    assert "the stream is read from its head again" in printed
