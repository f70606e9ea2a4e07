"""When to stop an erasure, and which checkpoint to keep when it does harm."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

FORGET, RETAIN, MATCHED = "eval_forget_accuracy", "eval_retain_accuracy", "eval_matched_accuracy"


class BelowFloorError(RuntimeError):
    """A run that did more harm to the retain set than `retain_floor` allows, with no earlier state to go back to."""


def accuracies(log_history: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Forget and retain accuracy by step, for the steps at which both were evaluated, in order."""
    by_step: dict[int, dict[str, float]] = {}
    for entry in log_history:
        for name in (FORGET, RETAIN):
            if name in entry:
                by_step.setdefault(entry["step"], {})[name] = entry[name]
    return {step: (both[FORGET], both[RETAIN]) for step, both in sorted(by_step.items()) if len(both) == 2}


def _matched(log_history: list[dict[str, Any]], step: int) -> float | None:
    """Accuracy at a step on images that stay of the forgotten rows' classes, once these are evaluated."""
    return next((each[MATCHED] for each in log_history if each["step"] == step and MATCHED in each), None)


class StoppingRule(TrainerCallback):
    """Stop once the forget set is forgotten and the retain set intact; remember the last step that was still good.

    All it knows it reads from the log history, so that it goes on after a resume. The original's retain accuracy is
    the evaluation at step 0 (`eval_on_start`).

    Args:
        target: forget accuracy, as a share, at or below which the forgetting is done; None for the accuracy on the
            part "matched", images that stay of the forgotten rows' classes.
        floor: share by which retain accuracy may fall below the original's.
        min_steps: steps before which it does not stop. In a run that is shorter than that it would never stop; it is
            then half of the run.
        total_steps: length of the run, where it is known.
    """

    def __init__(self, target: float | None, floor: float, min_steps: int = 0, total_steps: int | None = None) -> None:
        self.target = target
        self.floor = floor
        self.lowered_from = min_steps if total_steps is not None and min_steps > total_steps else None
        self.min_steps = min_steps if self.lowered_from is None or total_steps is None else total_steps // 2

    @property
    def never_stops(self) -> bool:
        """Whether the run goes on to its end, which alone is to be judged."""
        return self.target is not None and self.target < 0

    def describe(self, watches: bool) -> str:
        """In words, when it stops a run.

        Args:
            watches: whether both accuracies, and those of the original, are evaluated; it cannot work without them.
        """
        if self.never_stops:
            return "no stopping rule: the forget target is below 0"
        if not watches:
            return (
                "no stopping rule: it needs eval_dataset={'forget': ..., 'retain': ...}, eval_on_start, eval_strategy"
            )
        lowered = "" if self.lowered_from is None else f" (min_steps={self.lowered_from} is above the run's length)"
        target = "that of images of the same classes that stay" if self.target is None else f"{self.target:.1%}"
        return (
            f"stops after {self.min_steps} steps{lowered} or later, once forget accuracy is at most {target} "
            f"and retain accuracy has fallen by at most {self.floor:.1%}"
        )

    def is_done(self, log_history: list[dict[str, Any]], step: int) -> bool:
        """Whether the rule stops a run at this step."""
        if not step or not self.is_good(log_history, step) or step < self.min_steps:
            return False
        target = _matched(log_history, step) if self.target is None else self.target
        return target is not None and accuracies(log_history)[step][0] <= target

    def harm(self, log_history: list[dict[str, Any]], *, resumable: bool) -> BelowFloorError:
        """The error of a run that ended below the floor, with what may be done.

        Args:
            log_history: of the run.
            resumable: whether it has left a checkpoint.
        """
        seen = accuracies(log_history)
        before, after = seen[0][1], seen[max(seen)][1]
        accepted = math.ceil(1000 * (before - after) - 1e-6) / 1000
        return BelowFloorError(
            f"Retain accuracy ended at {after:.2%}, below its floor of {before - self.floor:.2%} (the original's "
            f"{before:.2%} less retain_floor={self.floor:g}), and no checkpoint was saved while it was above. The "
            "model is no result. A lower learning_rate or ec_weight, a higher retain_weight or fewer steps spare the "
            "retain set; smaller eval_steps and save_steps keep an earlier state. To accept the loss, start the same "
            f"run with retain_floor={accepted:g}{' and resume_from_checkpoint=True' if resumable else ''}."
        )

    def is_good(self, log_history: list[dict[str, Any]], step: int | None = None) -> bool | None:
        """Whether retain accuracy at `step` (the last one evaluated) is above its floor; None if that is not known."""
        seen = accuracies(log_history)
        step = max(seen, default=0) if step is None else step
        if 0 not in seen or step not in seen:
            return None
        return seen[step][1] >= seen[0][1] - self.floor - 1e-9

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Runs after each evaluated split; acts when all that it reads are in."""
        good = self.is_good(state.log_history, state.global_step)
        if good is None or state.global_step == 0:
            return control
        _, retain = accuracies(state.log_history)[state.global_step]
        if not good:
            if state.is_world_process_zero and not self.never_stops:
                logger.warning(
                    f"Step {state.global_step}: retain accuracy {retain:.2%} is more than {self.floor:.2%} below the "
                    "original's. If it ends so, the last checkpoint from above that floor is put back. A lower "
                    "learning rate, a higher retain_weight or fewer steps spare the retain set."
                )
            return control
        if not args.load_best_model_at_end:  # else the user's own metric names the checkpoint to keep
            state.best_global_step = state.global_step
        if self.is_done(state.log_history, state.global_step):
            control.should_training_stop = True
        return control
