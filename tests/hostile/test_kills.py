"""Two random kills, one of them inside a save; `kills.py` does more of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.launching import launch


@pytest.mark.slow
@pytest.mark.launch
def test_a_killed_run_goes_on_to_the_same_end(tmp_path):
    printed = launch(Path(__file__).parent / "kills.py", "--kills", "2", "--in_a_save", "1", processes=1)
    assert "2 kills" in printed and ", 0 failures" in printed
