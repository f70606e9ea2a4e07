"""What `ECTrainer` has to do at points of the loop that `Trainer` offers to callbacks alone."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

__all__ = ["Loop"]


class Loop(TrainerCallback):
    """Hands the points of the loop to an `ECTrainer`.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the evaluation of the original model at the head of the log, and tell what wraps the model."""
        self.trainer.tell_strategy()
        state.log_history[:0] = self.trainer.log_of_original
        if self.trainer.steering is not None:
            self.trainer.steering.resume(state.log_history)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the sampler its epoch; after a resume in the middle of one no loader in between passes it on."""
        self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the trainer look at the points, and steer. At the end of a step its log would take the loss's place."""
        self.trainer.steer()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Let the eraser put masked weights back."""
        self.trainer.eraser.after_step(optimizer)
