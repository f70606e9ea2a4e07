"""What a run shows while it trains: a line an evaluation, and on a terminal a bar with the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ec_hf.training.stopping import accuracies

__all__ = ["ProgressTable"]

WIDTHS = {"step": 12, "loss": 9, "forget": 9, "retain": 9, "time left": 11}
POSITION = "position/"
"""What stands before the name of a supervision point in the log, where its position is told."""


class ProgressTable(TrainerCallback):
    """Prints accuracy on forget and retain images at each evaluation, in place of the logged dictionaries.

    A run that evaluates no forget and retain images gets a line each time it logs. All that is logged goes to
    `report_to` as before. On a terminal a bar follows the steps, unless `disable_tqdm` is set; elsewhere there are the
    lines alone.

    Args:
        console: where to print; standard output if left out.
        doing: what the run does, for the bar.
        accuracies: whether the lines have columns for accuracy on forget and retain images.
        layers: supervision points whose position, 0 as the original and 1 as expected of a retrained model, has a
            column; the log holds it under "position/" and the name.
    """

    def __init__(
        self,
        console: Console | None = None,
        doing: str = "erasing",
        accuracies: bool = True,
        layers: Sequence[str] = (),
    ) -> None:
        self._given, self._doing = console, doing
        titles = [title for title in WIDTHS if accuracies or title not in ("forget", "retain")]
        self._titles = [*titles[:-1], *layers, titles[-1]]
        self._positions: dict[str, str] = {}
        self._bar: Progress | None = None
        self._began: tuple[float, int] | None = None
        self._loss: float | None = None
        self._shown: set[int] = set()
        self._titled = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, and the bar."""
        self._began = time.monotonic(), state.global_step
        self._titled = False  # other lines were printed since the original was evaluated
        console = self._console()
        if state.is_world_process_zero and console.is_terminal and not args.disable_tqdm:
            self._bar = Progress(
                TextColumn(self._doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                console=console, transient=True,
            )  # fmt: skip
            self._bar.add_task(self._doing, total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Keep the loss for the next line; it is a line itself where nothing is evaluated."""
        if not logs:
            return
        self._positions |= {
            key.removeprefix(POSITION): f"{value:.2f}" for key, value in logs.items() if key.startswith(POSITION)
        }
        if "loss" not in logs:
            return
        self._loss = float(logs["loss"])
        if args.eval_strategy == "no":
            self._show(state, None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print a line once both forget and retain images were evaluated."""
        if (both := accuracies(state.log_history).get(state.global_step)) is not None:
            self._show(state, both)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _console(self) -> Console:
        return self._given or Console(file=sys.stdout, highlight=False)

    def _show(self, state: Any, both: tuple[float, float] | None) -> None:
        step = state.global_step
        if not state.is_world_process_zero or step in self._shown:
            return
        console = self._console() if self._bar is None else self._bar.console
        if not self._titled:
            console.print(_line({title: title for title in self._titles}), markup=False)
            self._titled = True
        self._shown.add(step)
        told = {
            "step": f"{step}/{state.max_steps}" if state.max_steps else str(step),
            "loss": "" if self._loss is None or not step else f"{self._loss:.3f}",
            **{name: f"{share:.1%}" for name, share in zip(("forget", "retain"), both or (), strict=False)},
            **self._positions,
            "time left": self._time_left(state),
        }
        console.print(_line({title: told.get(title, "") for title in self._titles}), markup=False)

    def _time_left(self, state: Any) -> str:
        began, first = self._began or (0.0, state.global_step)
        if state.global_step <= first:
            return ""
        seconds = (time.monotonic() - began) / (state.global_step - first) * (state.max_steps - state.global_step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _line(cells: dict[str, str]) -> str:
    return "".join(f"{cell:>{WIDTHS.get(title, len(title) + 2)}}" for title, cell in cells.items())
