"""Kills runs with SIGKILL at random moments, goes on with each, and compares the end with a run that nobody killed.

    python tests/hostile/kills.py --kills 20 --in_a_save 8 --seed 0

Each run is a process of its own: it forgets one class in 6 steps, saves at each of them, and at the end the model. It
tells this program of every step, and of every file that it has half written, brings to the disk, renames or removes,
and waits a moment there, so that a kill can fall between. After a kill the same run is started again with
resume_from_checkpoint=True, and its weights, heads and losses must be those of the undisturbed run to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.models import make_images, make_model
from helpers.trainers import make_trainer
from transformers import TrainerCallback

from ec_hf.training.checkpoints import UNFINISHED

PAUSE = 0.01
START = 1.0  # seconds within which a run that is killed at its start makes its model and fits its heads
STEPS = 6


class Tell:
    """Names each moment to the parent process, and waits there."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def __call__(self, moment: str) -> None:
        os.write(self.pipe, f"{moment}\n".encode())
        time.sleep(PAUSE)


class Steps(TrainerCallback):
    """Tells of each step."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def on_step_end(self, args, state, control, **kwargs):
        self.tell("step")


def slow_down_saving(tell: Tell) -> None:
    """Have what writes, syncs, renames and removes files tell of it; of pickles the first half lies on the disk."""
    save, sync, rename, rmtree = torch.save, os.fsync, Path.rename, shutil.rmtree

    def save_in_halves(value, path, *args, **kwargs):
        buffer = io.BytesIO()
        save(value, buffer, *args, **kwargs)
        content = buffer.getvalue()
        with Path(path).open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            tell("save: half a file")
            file.write(content[len(content) // 2 :])

    def told_sync(descriptor):
        tell("save: to the disk")
        sync(descriptor)

    def told_rename(self, target):
        tell("save: before a name")
        result = rename(self, target)
        tell("save: after a name")
        return result

    def rmtree_in_halves(path, *args, **kwargs):
        files = sorted(each for each in Path(path).rglob("*") if each.is_file())
        if files:
            files[0].unlink()
            tell("save: half removed")
        rmtree(path, *args, **kwargs)

    torch.save, os.fsync, Path.rename, shutil.rmtree = save_in_halves, told_sync, told_rename, rmtree_in_halves


def train(folder: Path, resume: bool, tell: Tell) -> None:
    """One run to its end, with a file of what came out."""
    slow_down_saving(tell)
    tell("start")
    trainer = make_trainer(
        folder,
        model=make_model("ViT", hidden_dropout_prob=0.1),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        train_heads=True,
        callbacks=[Steps(tell)],
    )
    try:
        trainer.train(resume_from_checkpoint=resume)
    except ValueError as error:
        if "no whole checkpoint" not in str(error):
            raise
        trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    files = ["model.safetensors", "ec_heads/model.safetensors"]
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files]
    (folder / "end.json").write_text(json.dumps({"losses": losses, "hashes": hashes}))


def start(folder: Path, resume: bool) -> tuple[int, int]:
    """Fork a run; its process id, and the pipe on which it tells of itself."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(read)
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            train(folder, resume, Tell(write))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    os.close(write)
    return process, read


def moments(read: int, until: int | None = None) -> list[str]:
    """What a run tells, up to its end or to a number of moments."""
    told: list[str] = []
    with os.fdopen(read) as pipe:
        for line in pipe:
            told.append(line.strip())
            if until is not None and len(told) > until:
                break
    return told


def run_to_the_end(folder: Path, resume: bool = False) -> list[str]:
    """A run that is not killed; what it told."""
    process, read = start(folder, resume)
    told = moments(read)
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"a run failed:\n{folder.with_suffix('.log').read_text()[-3000:]}")
    return told


def kill_and_go_on(folder: Path, moment: int, rng: random.Random) -> str:
    """Kill a run at a moment, go on with it; at what it was killed."""
    process, read = start(folder, resume=False)
    told = moments(read, until=moment)
    time.sleep(rng.uniform(0, START if told[-1] == "start" else PAUSE))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    run_to_the_end(folder, resume=True)
    return told[-1]


def main() -> int:
    """Run it; the exit code is the number of runs that did not come out as the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--in_a_save", type=int, default=8, help="So many of them fall inside a save.")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    make_images()  # imports all that the runs need, once
    failures, kinds = 0, []
    with tempfile.TemporaryDirectory() as work:
        told = run_to_the_end(Path(work) / "undisturbed")
        end = (Path(work) / "undisturbed" / "end.json").read_text()
        saving = [place for place, moment in enumerate(told) if moment.startswith("save")]
        between = [place for place, moment in enumerate(told) if not moment.startswith("save")]
        for kill in range(args.kills):
            place = rng.choice(saving if kill < args.in_a_save else between)
            folder = Path(work) / f"killed-{kill}"
            kinds.append(kill_and_go_on(folder, place, rng))
            same = (folder / "end.json").read_text() == end and not (folder / UNFINISHED).exists()
            words = [
                line
                for line in folder.with_suffix(".log").read_text().splitlines()
                if "passed over" in line or "takes it over" in line
            ]
            print(
                f"{kill + 1:3} moment {place:3} of {len(told)}, {kinds[-1]:20} {'to the bit' if same else 'DIFFERS'}",
                *words,
            )
            failures += not same
    inside = sum(kind.startswith("save") for kind in kinds)
    print(f"{args.kills} kills, {inside} of them inside a save, {failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main())
