"""Whether a model that in part started anew will come back to its accuracy by the end of the run."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ec_hf.training.stopping import BelowFloorError, accuracies

__all__ = ["ComingBack", "NotComingBackError"]

SHARE = 0.6
"""Of the retain accuracy that the end must have, what half of the run must have. Chosen by hand, between networks that
came back and a pretrained one that did not."""


class NotComingBackError(BelowFloorError):
    """A run whose new weights are too far from what they must come back to, half of the run before its end."""


class ComingBack(TrainerCallback):
    """Look at the retain accuracy at half of the run, and end a run that is lost.

    Args:
        floor: share by which retain accuracy may have fallen at the end.
        total_steps: length of the run.
    """

    def __init__(self, floor: float, total_steps: int) -> None:
        self.floor, self.half = floor, total_steps // 2

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Evaluate at half of the run, where the run evaluates at all."""
        control.should_evaluate |= args.eval_strategy != "no" and state.global_step == self.half
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Runs after each evaluated split.

        Raises:
            NotComingBackError: half of the run is over, and retain accuracy is too low.
        """
        seen = accuracies(state.log_history)
        if state.global_step != self.half or not {0, self.half} <= set(seen):
            return control
        before, now = seen[0][1], seen[self.half][1]
        if now < SHARE * (before - self.floor):
            raise NotComingBackError(
                f"Half of the run is over and retain accuracy is {now:.1%}, of {before - self.floor:.1%} that the end "
                f"must have: the original's {before:.1%} less retain_floor={self.floor:.3g}. So much of a network "
                "does not come back from new weights on these images. For a fine-tuned network give the checkpoint "
                "that it was fine-tuned from: --base_model ID, or objective_kwargs={'base': ID}. Or let less of it "
                "start anew, with a smaller depth in objective_kwargs; or train longer, with num_train_epochs."
            )
        return control
