"""A Trainer that saves whole checkpoints and goes on from them, in a folder that it has for itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ec_hf.files import RECORD, ModelFolder, explained_writing, move_files, read_json
from ec_hf.models.loading import require_finite
from ec_hf.training.checkpoints import MARKER, UNFINISHED, checkpoints, finish, last_whole, tidy, why_not_resumed
from ec_hf.training.eraser import Eraser
from ec_hf.training.hub_trainer import PublishingTrainer
from ec_hf.training.lock import lock
from ec_hf.training.plan import RunPlan
from ec_hf.training.record import run_record

__all__ = ["SavingTrainer"]


class SavingTrainer(PublishingTrainer):
    """A `Trainer` of an `Eraser` whose checkpoints, and whose model, become visible whole.

    A checkpoint is written aside, brought to the disk, given a marker with the sizes of its files, and renamed. If
    the save fails, what was written of it goes away and the checkpoints from before stay.

    What is private here is so in `Trainer`, which has no public place for it.
    """

    model: Any
    eraser: Eraser
    plan: RunPlan
    cost: dict[str, float]
    on_record: dict[str, Any]
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
        left = (
            f"The last whole checkpoint is {last}: mend this and go on from it." if last else "No checkpoint is lost."
        )
        self._aside = run / UNFINISHED
        try:
            with explained_writing(run, left):
                super()._save_checkpoint(model, trial)
                self.save_place(self._aside / final.name)
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

    def save_place(self, folder: Path) -> None:
        """Write into a checkpoint where in its data this process is, if `Trainer` does not know."""
        return None

    def _name_the_best(self, final: Path) -> None:
        """`Trainer` looks for the best checkpoint beside the new one, which is not in its place yet."""
        if self.state.best_global_step:
            best = final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _marks(self) -> dict[str, Any]:
        return {"resumable": not self.args.save_only_model, "processes": self.args.world_size}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Also write the record and the heads, and no pickle but in a checkpoint, which is for this machine alone.

        Weights that are not finite are refused: nothing may take them for a result. Beside a checkpoint, which is
        written aside as a whole, each file takes the place of an earlier one once all are written.
        """
        require_finite("the model of this run", self.model)
        folder = Path(output_dir or self.args.output_dir or "")
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR) or not self.args.should_save:  # the others write nothing
            self._write(folder, state_dict, resumable=not self.args.save_only_model)
            return
        aside = folder / UNFINISHED
        shutil.rmtree(aside, ignore_errors=True)
        try:
            with explained_writing(folder, "What lay there before is unchanged, and the checkpoints stay."):
                self._write(aside, state_dict, resumable=False)
                move_files(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _write(self, folder: Path, state_dict: dict | None, *, resumable: bool) -> None:
        super()._save(str(folder), state_dict)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            ModelFolder(folder).write(RECORD, run_record(self.plan, self.model.config, self.cost) | self.on_record)
            self.eraser.save(folder, resumable=resumable)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """`Trainer` reads the file into the model in memory, whose keys have other names in several families."""
        self.eraser.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, for the same reason."""
        assert self.state.best_model_checkpoint is not None  # Trainer calls this only then
        self.eraser.load(self.state.best_model_checkpoint)
