"""The loops that users bring themselves take the steps of `ECTrainer`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.launching import launch

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes"


@pytest.mark.slow
@pytest.mark.launch
@pytest.mark.parametrize("processes", [1, 2])
def test_the_bare_loop_takes_the_steps_of_ec_trainer(tmp_path, processes):
    launch(HERE / "bare_loop.py", tmp_path, 16 // processes, processes=processes)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] == processes
    assert found["apart"] < 1e-6 and found["moved"]


def test_the_bare_loop_is_short():
    assert len((RECIPES / "erase_accelerate.py").read_text().splitlines()) < 60
