"""SIGTERM in the middle of a run: it saves a checkpoint and ends."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["EXIT_CODE", "Interrupted", "Interruption"]

EXIT_CODE = 143
"""What a shell reports of a program that SIGTERM ended."""


class Interrupted(SystemExit):
    """The run was told to end and has saved where it was. Without a handler the program ends with `EXIT_CODE`."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interruption(TrainerCallback):
    """Asks for a checkpoint and the end of the run at the end of the step in which SIGTERM came.

    An evaluation that is due at this step is left out, as a scheduler grants little time. All processes end at the
    same step, whichever of them got the signal.

    Attributes:
        happened: whether the run was ended so.
    """

    def __init__(self) -> None:
        self.happened = self._asked = False
        self._before: Any = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the signal; only the main thread of a program may."""
        self.happened = self._asked = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, if asked to."""
        asked = self._asked
        if args.world_size > 1:
            asked = bool(reduce(torch.tensor(float(asked), device=args.device), "sum").item())
        if asked:
            self.happened = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """The checkpoint is there already."""
        if self.happened:
            control.should_save = control.should_evaluate = False
        return control

    def end_if_it_happened(self, step: int, folder: str | None) -> None:
        """End the program, or what called the trainer, after SIGTERM.

        Raises:
            Interrupted: with what to do to go on.
        """
        if self.happened:
            message = f"SIGTERM: step {step} is saved in {folder}; resume_from_checkpoint=True goes on from there."
            print(message, file=sys.stderr)
            raise Interrupted(message)

    def release(self) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
