"""Two processes of one run, of which one gets SIGTERM; started by a test."""

from __future__ import annotations

import os
import signal
import sys

from helpers.trainers import make_trainer
from transformers import TrainerCallback


class SendSigterm(TrainerCallback):
    """To the second process alone."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1 and args.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """End at the second step, then go on to the third."""
    options = {"max_steps": 3, "points": [], "objective": "finetune"}
    trainer = make_trainer(sys.argv[1], callbacks=[SendSigterm()], **options)
    try:
        trainer.train()
    except SystemExit as ended:
        print(f"ended with {ended.code} at step {trainer.state.global_step}", flush=True)
    trainer = make_trainer(sys.argv[1], **options)
    trainer.train(resume_from_checkpoint=True)
    print(f"went on to step {trainer.state.global_step}", flush=True)
    trainer.save_model()
    trainer.end()


if __name__ == "__main__":
    main()
