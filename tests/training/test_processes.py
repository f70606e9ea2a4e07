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
    """World size, log and weights of a finished run."""
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
        printed = launch(HERE / "train_paired.py", folder, *request.param, 16 // processes, processes=processes)
        (folder / "printed.txt").write_text(printed)
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


KINDS = ["ConvNext", "timm ViT", "timm object ViT", "torchvision ResNet", "own LeNet"]
"""A row of the family table of each kind: transformers, timm, its objects, torchvision, networks of one's own. None
has stochastic depth, whose draws are a process's own."""


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


def test_one_process_goes_on_with_what_two_began(runs, tmp_path):
    what, folders = runs
    launch(HERE / "train_paired.py", tmp_path, *what, 16, folders[2] / "checkpoint-4", processes=1)
    (world, _, resumed), (_, _, whole) = record(tmp_path), record(folders[2])
    assert world == 1
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-9, atol=1e-10, msg=name)


def test_ddp_looks_for_no_unused_parameters_where_there_are_none(runs):
    _, folders = runs
    printed = (folders[2] / "printed.txt").read_text()
    assert "strategy: DDP over 2 processes, each with the whole model; it expects no parameters" in printed


def test_shards_of_a_model_get_the_loss_and_the_gradients_of_ddp(tmp_path):
    launch(HERE / "shard_paired.py", tmp_path, processes=2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["processes"] == 2
    for family, each in found["families"].items():
        assert each["losses"][0] == pytest.approx(each["losses"][1], rel=1e-12), family
        assert each["same names"] and each["largest"] > 1e-3, family
        assert each["apart"] < 1e-12, family
        assert each["share of the weights"] < 0.6, family
