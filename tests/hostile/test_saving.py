"""Checkpoints and models are whole or not there, whatever the disk, a second run or a signal does."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.launching import launch
from helpers.models import make_model
from helpers.trainers import evaluation_parts, make_trainer
from safetensors.torch import load_file
from transformers import TrainerCallback

from ec_hf.files import ModelFolder, explained_writing
from ec_hf.training import checkpoints
from ec_hf.training.checkpoints import MARKER, UNFINISHED, damage, last_whole
from ec_hf.training.lock import LOCK, lock
from ec_hf.training.stopping import BelowFloorError

SAVES = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": 3}
FILES = [
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "model.safetensors",
    "trainer_state.json",
    "ec_heads/config.json",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, fitted_once):
    """A run of three steps with three checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer = make_trainer(folder, heads=fitted_once, **SAVES)
    trainer.train()
    return folder, {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.fixture
def run(tmp_path, finished):
    """A copy of it, and the weights at its end."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run", finished[1]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Which checkpoint a run goes on from


def test_a_whole_checkpoint_knows_the_size_of_each_of_its_files(run):
    sizes = json.loads((run[0] / "checkpoint-2" / MARKER).read_text())["files"]
    assert set(FILES) <= set(sizes)
    assert all((run[0] / "checkpoint-2" / name).stat().st_size == size for name, size in sizes.items())
    assert damage(run[0] / "checkpoint-2") is None
    assert not (run[0] / UNFINISHED).exists() and not (run[0] / LOCK).exists()


@pytest.mark.parametrize("name", [*FILES, MARKER])
@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_damaged_checkpoint_is_noticed_and_the_last_whole_one_named(run, name, how):
    path = run[0] / "checkpoint-3" / name
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:-2])
    told = []
    assert last_whole(run[0], told) == run[0] / "checkpoint-2"
    assert "checkpoint-3 is passed over" in told[0] and Path(name).name in told[0]


def test_a_run_goes_on_from_the_last_whole_checkpoint_with_a_word_and_to_the_bit(run, capsys):
    folder, end = run
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"half")
    (folder / "checkpoint-2" / "optimizer.pt").unlink()
    trainer = make_trainer(folder, **SAVES)
    trainer.train(resume_from_checkpoint=True)
    printed = capsys.readouterr().out
    assert "checkpoint-3 is passed over" in printed and "optimizer.pt is missing" in printed
    assert f"goes on from {folder / 'checkpoint-1'}" in printed
    assert same(trainer.model.state_dict(), end)
    assert damage(folder / "checkpoint-3") is None


def test_a_damaged_checkpoint_that_is_named_is_refused(run):
    (run[0] / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"cannot be gone on from: scheduler\.pt is missing"):
        make_trainer(run[0], **SAVES).train(resume_from_checkpoint=str(run[0] / "checkpoint-3"))


def test_a_checkpoint_without_an_optimizer_is_refused(tmp_path, fitted_heads):
    make_trainer(tmp_path, heads=fitted_heads, save_only_model=True, **SAVES).train()
    with pytest.raises(ValueError, match="saved with save_only_model, without the optimizer"):
        make_trainer(tmp_path, **SAVES).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_other_processes_goes_on_with_a_word(run, capsys):
    marker = run[0] / "checkpoint-2" / MARKER
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"processes": 2}))
    make_trainer(run[0], **SAVES).train(resume_from_checkpoint=str(run[0] / "checkpoint-2"))
    assert "was saved by 2 process(es) and this run has 1" in capsys.readouterr().out


def test_a_run_that_had_reached_its_end_is_loaded_and_trains_no_step_more(run, capsys):
    folder, end = run
    trainer = make_trainer(folder, **SAVES)
    trainer.train(resume_from_checkpoint=True)
    assert "nothing is left to train" in capsys.readouterr().out
    assert trainer.state.global_step == 3 and same(trainer.model.state_dict(), end)


def test_what_a_killed_save_had_finished_but_for_its_name_gets_it(run):
    folder = run[0]
    (folder / UNFINISHED).mkdir()
    (folder / "checkpoint-3").rename(folder / UNFINISHED / "checkpoint-3")
    shutil.copytree(folder / "checkpoint-2", folder / UNFINISHED / "checkpoint-9")
    (folder / UNFINISHED / "checkpoint-9" / MARKER).unlink()
    checkpoints.tidy(folder)
    assert damage(folder / "checkpoint-3") is None
    assert not (folder / "checkpoint-9").exists() and not (folder / UNFINISHED).exists()


# A folder belongs to one run


def test_a_new_run_does_not_remove_the_checkpoints_of_another(run):
    before = sorted(path.name for path in run[0].iterdir())
    with pytest.raises(ValueError, match=r"holds checkpoint-3, and the checkpoint belongs to another run.*forget set"):
        make_trainer(run[0], forget=("cat",), **SAVES | {"save_total_limit": 1}).train()
    assert sorted(path.name for path in run[0].iterdir()) == before


def test_the_same_run_may_start_anew_and_is_told_of_its_checkpoints(run, capsys):
    trainer = make_trainer(run[0], **SAVES)
    trainer.train()
    assert "checkpoint-3 of this very run" in capsys.readouterr().out
    assert same(trainer.model.state_dict(), run[1])


HOLD = """
import sys, time
from ec_hf.training.lock import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process at work in the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.launch
def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(tmp_path, holder, capsys, fitted_heads):
    with pytest.raises(RuntimeError, match=rf"is in use by process {holder.pid} on .*two runs in one folder"):
        make_trainer(tmp_path, heads=fitted_heads).train()
    holder.kill()
    holder.wait()
    make_trainer(tmp_path, heads=fitted_heads, max_steps=1).train()
    assert f"left by process {holder.pid}" in capsys.readouterr().out
    assert not (tmp_path / LOCK).exists()


def test_a_run_that_fails_lets_go_of_its_folder(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path) as word:
        assert word is None


# Signals


class SendSigterm(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_ends_with_a_code_of_its_own_and_the_run_goes_on_to_the_bit(run, tmp_path, capsys, fitted_heads):
    options = SAVES | {"save_strategy": "no"}
    before = signal.getsignal(signal.SIGTERM)
    killed = make_trainer(tmp_path / "new", heads=fitted_heads, callbacks=[SendSigterm()], **options)
    with pytest.raises(SystemExit) as ended:
        killed.train()
    assert ended.value.code == 143
    assert "SIGTERM: step 2 is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before and not hasattr(killed.model, "ec_heads")
    resumed = make_trainer(tmp_path / "new", **options)
    resumed.train(resume_from_checkpoint=True)
    assert same(resumed.model.state_dict(), run[1])


@pytest.mark.slow
@pytest.mark.launch
def test_several_processes_share_a_folder_and_end_together_at_sigterm(tmp_path):
    script = Path(__file__).parent / "terminate_together.py"
    printed = launch(script, tmp_path / "together", processes=2)
    assert printed.count("ended with 143 at step 2") == 2
    assert printed.count("went on to step 3") == 2
    assert ModelFolder(tmp_path / "together").damage() is None
    assert not (tmp_path / "together" / UNFINISHED).exists() and not (tmp_path / "together" / LOCK).exists()


def test_out_of_memory_names_the_settings_that_need_less(tmp_path, fitted_heads):
    trainer = make_trainer(tmp_path, heads=fitted_heads)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.compute_loss = fail
    with pytest.raises(torch.OutOfMemoryError, match="per_device_train_batch_size=8") as caught:
        trainer.train()
    assert "CUDA out of memory" in str(caught.value) and "gradient_accumulation_steps=2" in str(caught.value)


# A disk that is full, or cannot be written


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_the_disk(monkeypatch, stage):
    """From now on there is no room for one kind of file."""
    targets = {
        "weights": ("transformers.modeling_utils.safe_save_file", safetensors_full),
        "optimizer": ("torch.save", torch_full),
        "record": ("ec_hf.training.saving.ModelFolder.write", full),
        "state": ("transformers.trainer_callback.TrainerState.save_to_json", full),
        "sync": ("ec_hf.training.checkpoints.sync_folder", full),
        "marker": ("ec_hf.training.checkpoints.write_json", full),
    }
    monkeypatch.setattr(*targets[stage])


def safetensors_full(*args, **kwargs):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def torch_full(value, path, *args, **kwargs):
    Path(path).write_bytes(b"half")
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")


@pytest.mark.parametrize("stage", ["weights", "optimizer", "record", "state", "sync", "marker"])
def test_a_full_disk_ends_a_run_with_its_last_whole_checkpoint(tmp_path, monkeypatch, fitted_heads, stage):
    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                fill_the_disk(monkeypatch, stage)

    trainer = make_trainer(tmp_path, heads=fitted_heads, callbacks=[Fill()], **SAVES)
    with pytest.raises(OSError, match=r"no space left on the disk.*checkpoint-1: mend this and go on"):
        trainer.train()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert damage(tmp_path / "checkpoint-1") is None


@pytest.mark.parametrize("stage", ["weights", "record"])
def test_a_full_disk_leaves_the_model_from_before(tmp_path, monkeypatch, fitted_heads, stage):
    trainer = make_trainer(tmp_path, heads=fitted_heads, max_steps=1)
    trainer.train()
    trainer.save_model()
    before = load_file(tmp_path / "model.safetensors")
    trainer.model.classifier.bias.data += 1
    fill_the_disk(monkeypatch, stage)
    with pytest.raises(OSError, match=r"no space left on the disk\. What lay there before is unchanged"):
        trainer.save_model()
    assert same(load_file(tmp_path / "model.safetensors"), before)
    assert ModelFolder(tmp_path).damage() is None and not (tmp_path / UNFINISHED).exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(tmp_path, monkeypatch, number):
    trainer = make_trainer(tmp_path)
    open_file = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if self.name == LOCK:
            raise OSError(number, os.strerror(number))
        return open_file(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"cannot be written: .*Name a folder that can be written as output_dir"):
        trainer.train()
    assert not trainer.eraser.heads_fitted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB, for those who may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("this user may mount nothing")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_keeps_what_was_whole(small_disk, fitted_heads):
    trainer = make_trainer(small_disk / "run", heads=fitted_heads, **SAVES)
    with pytest.raises(OSError, match=r"no space left on the disk.*checkpoint-1: mend this"):
        trainer.train()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["checkpoint-1"]
    assert damage(small_disk / "run" / "checkpoint-1") is None


def test_a_disk_that_has_become_read_only_keeps_what_was_whole(small_disk, fitted_heads):
    trainer = make_trainer(small_disk / "run", heads=fitted_heads, **SAVES | {"max_steps": 1})
    trainer.train()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"read-only\. What lay there before is unchanged"):
        trainer.save_model()
    with pytest.raises(OSError, match=r"read-only\. Name a folder that can be written"):
        make_trainer(small_disk / "run", heads=fitted_heads, **SAVES).train(resume_from_checkpoint=True)
    with pytest.raises(OSError, match=r"read-only\. The last whole checkpoint is .*checkpoint-1: mend this"):
        trainer._save_checkpoint(trainer.model, trial=None)
    assert damage(small_disk / "run" / "checkpoint-1") is None


def test_a_real_full_disk_is_told_from_a_programming_error(tmp_path):
    with pytest.raises(OSError, match="no space left"), explained_writing("/dev/full"):
        Path("/dev/full").write_text("x")
    with pytest.raises(ZeroDivisionError), explained_writing(tmp_path):
        print(1 / 0)


# Whole models


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_that_is_cut_short_or_missing_is_known_without_loading_it(tmp_path, name):
    make_model("ViT").save_pretrained(tmp_path)
    assert ModelFolder(tmp_path).damage() is None
    content = (tmp_path / name).read_bytes()
    for cut in (0, 5, len(content) // 2, len(content) - 2):
        (tmp_path / name).write_bytes(content[:cut])
        assert ModelFolder(tmp_path).damage(), cut
    (tmp_path / name).unlink()
    assert name in ModelFolder(tmp_path).damage()


def test_each_shard_of_a_model_is_looked_at(tmp_path):
    make_model("ViT").save_pretrained(tmp_path, max_shard_size="20KB")
    assert ModelFolder(tmp_path).damage() is None
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name} is missing" == ModelFolder(tmp_path).damage()


# The retain floor


class Script(TrainerCallback):
    """Retain accuracy falls from the first evaluation to the second."""

    def on_evaluate(self, args, state, control, **kwargs):
        entry = state.log_history[-1]
        if "eval_retain_accuracy" in entry:
            entry["eval_retain_accuracy"] = 0.9 if state.global_step == 0 else 0.6


def evaluated(folder, **options):
    evaluation = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}
    return make_trainer(
        folder,
        eval_dataset=evaluation_parts(),
        callbacks=[Script()],
        **SAVES | evaluation | {"save_steps": 3} | options,
    )


def test_a_run_that_only_did_harm_fails_and_says_how_to_accept_it(tmp_path, fitted_heads):
    with pytest.raises(
        BelowFloorError, match=r"ended at 60\.00%, below its floor of 89\.00%.*retain_floor=0\.3 "
    ) as caught:
        evaluated(tmp_path, heads=fitted_heads).train()
    assert "resume_from_checkpoint=True" in str(caught.value)
    accepted = evaluated(tmp_path, retain_floor=0.3)
    accepted.train(resume_from_checkpoint=True)
    kept = type(accepted.model).from_pretrained(tmp_path / "checkpoint-3")
    assert same(accepted.model.state_dict(), kept.state_dict())


def test_minimum_steps_above_the_length_of_the_run_are_lowered_with_a_word(tmp_path, fitted_heads):
    trainer = make_trainer(
        tmp_path, heads=fitted_heads, eval_dataset=evaluation_parts(), eval_strategy="epoch", eval_on_start=True,
        max_steps=-1, num_train_epochs=2, min_steps=100,
    )  # fmt: skip
    assert trainer.total_steps() == 10
    assert "stops after 5 steps (min_steps=100 is above the run's length) or later" in str(trainer.plan)
