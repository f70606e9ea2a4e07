"""Several processes do what one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.launching import launch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.launch]

HERE = Path(__file__).parent


def record(folder: Path):
    found = json.loads((folder / "record.json").read_text())
    weights = load_file(folder / "model.safetensors") | {
        f"heads.{name}": value for name, value in load_file(folder / "ec_heads" / "model.safetensors").items()
    }
    return found["world_size"], found["log"], weights


@pytest.fixture(scope="module", params=[("ViT", "contrastive"), ("ResNet", "contrastive"), ("ViT", "delete")])
def runs(request, tmp_path_factory):
    """One process with 16 retain images a step, and two with 8 each; the host "delete" erases calibrated."""
    folders = {processes: tmp_path_factory.mktemp(f"{'-'.join(request.param)}-{processes}") for processes in (1, 2)}
    for processes, folder in folders.items():
        launch(HERE / "train_paired.py", folder, *request.param, 16 // processes, processes=processes)
    return request.param, folders


def test_two_processes_train_as_one_with_the_same_global_batch(runs):
    _, folders = runs
    (size_one, log_one, one), (size_two, log_two, two) = (record(folders[n]) for n in (1, 2))
    assert (size_one, size_two) == (1, 2)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    for ours, theirs in zip(log_one, log_two, strict=True):
        measured = [
            name for name in ours if any(part in name for part in ("contrast", "retain_ce", "probe", "accuracy"))
        ]
        for name in measured:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-4, abs=2e-5), name


def test_two_processes_resume_to_the_bit(runs, tmp_path):
    what, folders = runs
    launch(HERE / "train_paired.py", tmp_path, *what, 8, folders[2] / "checkpoint-4", processes=2)
    _, _, whole = record(folders[2])
    _, _, resumed = record(tmp_path)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


KINDS = ["Swin", "timm ViT", "timm object ViT", "torchvision ResNet", "own LeNet"]
"""A row of the family table of each kind: transformers, timm, its objects, torchvision, networks of one's own."""


def test_two_processes_train_every_kind_of_network_as_one_does(tmp_path):
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        launch(HERE / "train_kinds.py", folder, 16 // processes, *KINDS, processes=processes)
        assert json.loads((folder / "sizes.json").read_text()) == dict.fromkeys(KINDS, processes)
    for kind in KINDS:
        one, two = (load_file(tmp_path / str(processes) / f"{kind}.safetensors") for processes in (1, 2))
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(
                two[name], value, rtol=1e-9, atol=1e-10, msg=lambda text, at=f"{kind}: {name}": f"{at}: {text}"
            )
