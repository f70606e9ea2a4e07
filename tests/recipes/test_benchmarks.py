"""The benchmarks run, and what they leave has the form that is read from it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "recipes" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in ("step", "growth", "gpu", "stream", "run"):
        sys.modules.pop(name, None)


def test_a_step_is_measured_against_plain_fine_tuning(benchmark, tmp_path, capsys):
    step, path = benchmark("step"), tmp_path / "step.json"
    sizes = ["--pixels", "32", "--batch", "4", "--repetitions", "1", "--phases", "--fitting", "--fitting_batch", "6"]
    found = step.main(["--shapes", "tiny", *sizes, "--output", str(path)])["found"]["tiny"]
    assert found[step.PLAIN]["time"] == found[step.PLAIN]["memory"] == 1
    assert all(each["seconds"] > 0 and each["memory"] >= 1 for each in found.values())
    assert found["EC"]["memory"] < found[step.APART]["memory"], "one forward keeps less than three"
    assert 1 < found["EC"]["operations"] < found[step.APART]["operations"]
    assert sum(found["EC"]["phases"].values()) == pytest.approx(1, abs=0.01)
    kept = json.loads(path.read_text())
    assert {"torch", "transformers", "ec_hf"} <= kept["versions"].keys() and kept["found"]["tiny"] == found
    assert kept["fitting"]["tiny"]["time"] > 1 and kept["fitting"]["tiny"]["operations"] > 1
    assert "| EC calibrated, teacher remembered |" in capsys.readouterr().out


def test_the_operations_of_a_convolutions_backward_are_its_forwards_for_each_gradient(benchmark):
    step = benchmark("step")
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    images = torch.randn(2, 8, 4, 4, requires_grad=True)
    forward = 2 * (2 * 8 * 4 * 4) * 9  # a multiplication and an addition for each output and weight of its group
    assert step.operations(lambda: layer(images)) == forward
    assert step.operations(lambda: layer(images).sum().backward()) == 3 * forward
    assert step.operations(lambda: layer(images.detach()).sum().backward()) == 2 * forward


def test_other_ways_to_take_a_step_are_measured_against_it(benchmark):
    sizes = ["--pixels", "32", "--batch", "4", "--repetitions", "1"]
    found = benchmark("step").main(["--shapes", "tiny", "--ways", *sizes])["tiny"]
    assert found["as it is"] == {"time": 1, "memory": 1}
    assert found.keys() == {
        "as it is",
        "eager attention",
        "bf16 autocast",
        "activation checkpointing",
        "channels_last",
    }
    assert found["activation checkpointing"]["memory"] < 1


def test_a_forward_a_set_and_loss_has_the_loss_of_ec(benchmark):
    step = benchmark("step")
    with step.methods("tiny", 32, 4, 4) as methods, step.ExitStack() as stack:
        batch = step.make_batch(32, 4, 4)
        settings = {"objective": "contrastive", "detach_retain": False}
        together = step.erasing(step.make_model("tiny", 32), batch, settings, stack)
        assert methods[step.APART].loss().item() == pytest.approx(together.loss().item(), rel=1e-5)


def test_growth_leaves_data_and_a_figure(benchmark, tmp_path):
    found = benchmark("growth").main(["--small", "--output", str(tmp_path)])
    assert found.keys() == {"step", "split", "audit"}
    assert json.loads((tmp_path / "growth.json").read_text()) == found
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_script_for_a_gpu_runs_in_its_tiny_form(tmp_path):
    path = tmp_path / "gpu.json"
    subprocess.run([str(BENCHMARKS / "gpu.sh"), str(path), "--tiny"], check=True, capture_output=True)
    found = json.loads(path.read_text())
    assert "no result" in found["device"] and not found["left_out"]
    assert {(each["shape"], each["method"]) for each in found["cases"]} >= {("vit_b16", "plain"), ("resnet50", "EC")}
    for each in found["cases"]:
        assert each["images_per_second"] > 0 and each["operations"] > 0 and each["mfu"] is None
        assert each["time_over_plain"] >= 1 or each["method"] != "plain"


def test_the_share_of_a_cards_peak_is_operations_over_time(benchmark):
    gpu = benchmark("gpu")
    case = {"shape": "vit_b16", "method": "plain", "peak_gib": 2.0, "seconds": 0.5, "operations": 10**12}
    cases = [{**case, "compiled": False}, {**case, "compiled": True, "operations": None, "seconds": 0.25}]
    assert [each["mfu"] for each in gpu.with_ratios(cases, 1e13)] == [0.2, 0.4]
    with pytest.raises(SystemExit, match="finds none"):
        gpu.main(["--output", "nowhere.json"])


def test_a_streamed_erasure_tells_its_memory(benchmark):
    found = benchmark("stream").main(["--shards", "2", "--rows", "40", "--steps", "8", "--every", "4"])
    assert len(found[2]) == 2 and min(found[2]) > 0


def test_the_phases_of_a_default_run_are_told_by_their_seconds(benchmark, capsys):
    sizes = {"--images": 80, "--side": 64, "--pixels": 32, "--width": 64, "--batch": 8, "--max_steps": 4}
    run = benchmark("run")
    spent = run.main([str(each) for pair in sizes.items() for each in pair])
    assert spent.keys() == {*run.PHASES, "other"}
    assert all(value > 0 for value in spent.values())
    assert "4 steps of 8 + 4 images, 0 workers" in capsys.readouterr().out
