"""The mathematics of an erasure, to 1e-12: processors that round otherwise differ by up to 2e-13 here."""

from __future__ import annotations

import json

import pytest
from trajectories import FAMILIES, METHODS, file_of, trajectory


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_erasure_takes_the_steps_that_are_on_record(tmp_path, family, method):
    recorded = json.loads(file_of(family, method).read_text())
    now = trajectory(family, method, tmp_path)
    assert len(now["steps"]) == len(recorded["steps"]) == 8
    for number, (ours, theirs) in enumerate(zip(now["steps"], recorded["steps"], strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12), f"step {number}"
    assert now["weights"] == pytest.approx(recorded["weights"], rel=1e-12, abs=1e-12)
