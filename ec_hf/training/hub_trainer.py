"""What a Trainer sends to the Hub goes through `ec_hf.publishing.hub`: during training, at its end, and its card."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ec_hf.files import CARD, ModelFolder
from ec_hf.publishing.card import card
from ec_hf.publishing.hub import PushError, explained, push, push_later

__all__ = ["PublishingTrainer"]


class PublishingTrainer(Trainer):
    """A `Trainer` whose pushes send the allow-list of `ec_hf.publishing.export` and nothing else."""

    push_in_progress: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository before training; what stands against a push is known before any step is done."""
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={strategy.value!r} would publish optimizer states, which are pickles; use 'end' or "
                "'every_save'."
            )
        with explained(self.args.hub_model_id or Path(self.args.output_dir or "").absolute().name):
            super().init_hf_repo(token=token, private=private)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of what lies in the output folder as its README.md."""
        folder = ModelFolder(self.args.output_dir or "")
        if self.is_world_process_zero():
            folder.write(CARD, card(folder.path))

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        with_heads: bool | str = False,
        manifest_detail: str = "hashes",
        finish: str = "keep",
        license: str | None = None,
        readme: str | Path | None = None,
        overwrite: bool = False,
    ) -> Any:
        """Save the model and publish the output folder; see `ec_hf.publishing.hub.push`.

        Args:
            commit_message: title of the commit.
            blocking: whether to wait for the upload.
            token: Hub token; that of the arguments if left out.
            revision: branch; that of the arguments if left out.
            private: whether a new repository is private; as the arguments say if left out.
            with_heads: as for `push`.
            manifest_detail: as for `push`.
            finish: as for `push`.
            license: as for `push`.
            readme: as for `push`.
            overwrite: as for `push`.

        Returns:
            Address of the repository, or a future of it; None in processes other than the first.

        Raises:
            PushError: with the command that pushes again.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        target = self._push_target(token=token, revision=revision, private=private)
        return (push if blocking else push_later)(
            self.args.output_dir or "",
            commit_message=commit_message,
            with_heads=with_heads,
            manifest_detail=manifest_detail,
            finish=finish,
            license=license,
            readme=readme,
            overwrite=overwrite,
            **target,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """What `Trainer` does after a save, with what `export` lets through; a failure stops no training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        pushing = self.push_in_progress
        busy = pushing is not None and not pushing.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            job = push_later(checkpoint_folder, commit_message=message, **self._push_target())
        except PushError as error:
            warnings.warn(str(error), stacklevel=2)
            return
        self.push_in_progress = PushInProgress([*(pushing.jobs if busy else []), job])  # type: ignore[arg-type]

    def _push_target(self, **given: Any) -> dict[str, Any]:
        args = self.args
        own = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo}
        name = args.hub_model_id or Path(args.output_dir or "").absolute().name
        repo_id = getattr(self, "hub_model_id", None) or name
        return {"repo_id": repo_id} | own | {name: value for name, value in given.items() if value is not None}
