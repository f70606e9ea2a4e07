"""Scripts in processes of their own, one or several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
DDP = TESTS.parent / "recipes" / "accelerate" / "ddp.yaml"


def launch(script: Path, *arguments: str, processes: int, **environment: str) -> str:
    """Run a script with one process or, as a user would on GPUs, with several of them on the CPU."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(DDP)]
    accelerate += ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [*(accelerate if processes > 1 else [sys.executable]), str(script), *map(str, arguments)]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout
