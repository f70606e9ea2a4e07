"""What a run shows while it trains."""

from __future__ import annotations

import io

from helpers.trainers import evaluation_parts, make_trainer
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback

from ec_hf.training.progress import ProgressTable


def shown(tmp_path, heads, *, terminal=False, **settings):
    """The lines that a run of four steps prints."""
    trainer = make_trainer(tmp_path, forget=("bee",), heads=heads, max_steps=4, **settings)
    stream = io.StringIO()
    trainer.remove_callback(ProgressTable)
    trainer.add_callback(ProgressTable(Console(file=stream, force_terminal=terminal, width=100)))
    trainer.train()
    return stream.getvalue().splitlines()


def test_the_dictionaries_of_the_trainer_give_way_to_a_table(tmp_path, fitted_heads):
    trainer = make_trainer(tmp_path, forget=("bee",), heads=fitted_heads)
    kinds = [type(each) for each in trainer.callback_handler.callbacks]
    assert kinds.count(ProgressTable) == 1
    assert PrinterCallback not in kinds and ProgressCallback not in kinds


def test_each_evaluation_is_a_line_with_both_accuracies_the_original_first(tmp_path, fitted_heads):
    evaluated = {"eval_dataset": evaluation_parts(), "eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True}
    lines = shown(tmp_path, fitted_heads, **evaluated, retain_floor=1.0, forget_target=-1)
    assert lines[0].split() == ["step", "loss", "forget", "retain", "time", "left"]
    assert [line.split()[0] for line in lines[1:]] == ["0/4", "2/4", "4/4"]
    assert lines[1].count("%") == 2 and len(lines[1].split()) == 3  # no loss yet
    assert lines[-1].split()[-1] == "0:00" and lines[-1].count("%") == 2


def test_a_run_without_evaluation_has_a_line_each_time_it_logs(tmp_path, fitted_heads):
    lines = shown(tmp_path, fitted_heads, eval_strategy="no", logging_steps=2)
    assert [line.split()[0] for line in lines[1:]] == ["2/4", "4/4"]
    assert not any("%" in line for line in lines)


def test_a_terminal_has_a_bar_beside_and_keeps_the_lines(tmp_path, fitted_heads):
    text = "\n".join(
        shown(tmp_path, fitted_heads, terminal=True, eval_strategy="no", logging_steps=2, disable_tqdm=False)
    )
    assert "erasing" in text and "4/4" in text


def test_a_table_that_other_lines_broke_off_has_its_titles_again(tmp_path, fitted_heads):
    looks = {"objective": "duck"}  # which looks at the original, so that it is evaluated before the run begins
    evaluated = {"eval_dataset": evaluation_parts(), "eval_strategy": "steps", "eval_steps": 4, "eval_on_start": True}
    lines = shown(tmp_path, fitted_heads, **looks, **evaluated, retain_floor=1.0, forget_target=-1)
    assert [line.split()[0] for line in lines] == ["step", "0", "step", "4/4"]
