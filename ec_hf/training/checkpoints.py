"""Checkpoints that are whole or not there: how they are written, which of them can be gone on from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ec_hf.files import RECORD, ModelFolder, explained_writing, read_json, sync_folder, write_json
from ec_hf.training.hub_trainer import PublishingTrainer
from ec_hf.training.lock import lock
from ec_hf.training.plan import RunPlan

__all__ = ["MARKER", "UNFINISHED", "CheckpointingTrainer", "checkpoints", "damage", "last_whole", "tidy"]

MARKER = "checkpoint_files.json"
"""The file that is written last into a checkpoint; it holds the sizes of all others."""
UNFINISHED = ".unfinished"
"""The folder, inside that of the run, in which checkpoints are written until they are whole."""


class CheckpointingTrainer(PublishingTrainer):
    """A `Trainer` whose checkpoints become visible whole.

    A checkpoint is written aside, brought to the disk, given a marker with the sizes of its files, and renamed. If
    the save fails, what was written of it goes away and the checkpoints from before stay.
    """

    plan: RunPlan
    _aside: Path | None = None

    @contextmanager
    def folder_held(self) -> Iterator[None]:
        """Keep other runs out of the output folder, and clear away what a killed save has left in it.

        Raises:
            OSError: in every process, where the folder cannot be written.
            RuntimeError: in every process, where another run is at work in it.
        """
        trouble: Exception | None = None
        with ExitStack() as held:
            if self.is_world_process_zero():
                run = Path(self.args.output_dir or "")
                try:
                    if taken_over := held.enter_context(lock(run)):
                        self.accelerator.print(taken_over)
                    tidy(run)
                except (OSError, RuntimeError) as error:
                    trouble = error
            (trouble,) = broadcast_object_list([trouble])
            if trouble is not None:
                raise trouble
            yield

    def checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """The checkpoint to go on from, once it is known to be whole and to belong to this run.

        Args:
            resume_from_checkpoint: a checkpoint, True for the last whole one in the output folder, or nothing for a
                new run, whose folder may then hold no checkpoints of another one.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged, or belongs to another run.
        """
        run = Path(self.args.output_dir or "")
        if not resume_from_checkpoint:
            self._check_new_run(run)
            return None
        if resume_from_checkpoint is True:
            passed_over: list[str] = []
            folder = last_whole(run, passed_over)
            if folder is None:
                raise ValueError(" ".join([f"resume_from_checkpoint: no whole checkpoint in {run}.", *passed_over]))
            if passed_over:
                self.accelerator.print(*passed_over, f"The run goes on from {folder}.")
        else:
            folder = Path(resume_from_checkpoint)
            if not folder.is_dir():
                raise ValueError(f"resume_from_checkpoint: there is no checkpoint {folder}.")
            if ModelFolder(folder).has(RECORD) and (wrong := why_not_resumed(folder)):
                raise ValueError(f"resume_from_checkpoint: {folder} cannot be gone on from: {wrong}.")
        self.plan.check_resumed(ModelFolder(folder).read(RECORD))
        before = read_json(folder / MARKER).get("processes", self.args.world_size)
        if before != self.args.world_size:
            self.accelerator.print(
                f"{folder} was saved by {before} process(es) and this run has {self.args.world_size}: it goes on with "
                "other random numbers, and not to the bit."
            )
        return str(folder)

    def _check_new_run(self, run: Path) -> None:
        """Refuse a folder with checkpoints of another run, which this one would remove as it saves its own."""
        there = checkpoints(run) if self.args.save_strategy != "no" else []
        for folder in there:
            try:
                self.plan.check_resumed(ModelFolder(folder).read(RECORD))
            except ValueError as error:
                raise ValueError(f"output_dir={str(run)!r} holds {folder.name}, and {error}") from error
        if there:
            self.accelerator.print(
                f"{run} holds {there[0].name} of this very run, which starts anew; resume_from_checkpoint=True would "
                "go on with it."
            )

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # else it is called again once the folder has its place
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        final = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        last = last_whole(run)
        left = f"The last whole checkpoint is {last}: make room and go on from it." if last else "Make room first."
        self._aside = run / UNFINISHED
        try:
            with explained_writing(run, left):
                super()._save_checkpoint(model, trial)
                self._name_the_best(final)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self.state.save_to_json(str(self._aside / final.name / TRAINER_STATE_NAME))
                    finish(self._aside / final.name, final, self._marks())
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(run / UNFINISHED, ignore_errors=True)
            raise
        finally:
            self._aside = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _name_the_best(self, final: Path) -> None:
        """`Trainer` looks for the best checkpoint beside the new one, which is not in its place yet."""
        if self.state.best_global_step:
            best = final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _marks(self) -> dict[str, Any]:
        return {"resumable": not self.args.save_only_model, "processes": self.args.world_size}


def finish(aside: Path, final: Path, marks: dict[str, Any]) -> None:
    """Give a written checkpoint its marker and its place; one of the same step makes way."""
    files = {path.relative_to(aside).as_posix(): path.stat().st_size for path in aside.rglob("*") if path.is_file()}
    sync_folder(aside)
    write_json(aside / MARKER, {"files": files, **marks})
    if final.exists():
        final.rename(aside.with_name(f"replaced-{final.name}"))
    aside.rename(final)
    sync_folder(final.parent / UNFINISHED)
    shutil.rmtree(final.parent / UNFINISHED, ignore_errors=True)


def tidy(run: Path) -> None:
    """Clear away what a killed save has left; a checkpoint that lacked nothing but its place gets it."""
    for aside in (run / UNFINISHED).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if damage(aside) is None and not (run / aside.name).exists():
            aside.rename(run / aside.name)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, the latest step first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)$")
    found = {path: match for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (match := pattern.match(path.name))}
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(found[path][1]))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its marker; None where it is whole."""
    if not (folder / MARKER).is_file():
        return f"it holds no {MARKER}, which is written last, so its save did not end"
    try:
        sizes = dict(read_json(folder / MARKER)["files"])
    except (KeyError, TypeError, ValueError):
        return f"its {MARKER} is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is {path.stat().st_size:,} bytes long and was saved with {size:,}"
    return None


def why_not_resumed(folder: Path) -> str | None:
    """What stands against going on from a checkpoint; None where nothing does."""
    if wrong := damage(folder):
        return wrong
    if not read_json(folder / MARKER).get("resumable", True):
        return "it was saved with save_only_model, without the optimizer"
    return None


def last_whole(run: Path, passed_over: list[str] | None = None) -> Path | None:
    """The latest checkpoint of a run that can be gone on from.

    Args:
        run: the output folder.
        passed_over: takes a sentence on each later checkpoint that cannot.
    """
    for folder in checkpoints(run):
        wrong = why_not_resumed(folder)
        if wrong is None:
            return folder
        if passed_over is not None:
            passed_over.append(f"{folder} is passed over: {wrong}.")
    return None
