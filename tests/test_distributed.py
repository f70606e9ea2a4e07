"""Two real gloo processes against one: what the processes find is computed once and read by every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ec_hf.distributed import gather, gather_with_grad, rank_offset
from ec_hf.losses.contrast import CONTRASTS, Contrast, global_contrast

pytestmark = pytest.mark.launch

WORLD = 2
LABELS = {
    "every anchor has a partner": ([0, 1, 1, 0, 2, 2], [0, 1, 2, 2, 1, 0, 1, 0]),
    "partners are on the other process": ([0, 1, 2, 0, 1, 2], [3, 4, 3, 4, 3, 4, 3, 4]),
    "some anchors have no partner": ([0, 7, 7, 9, 8, 0], [0, 1, 2, 2, 1, 0, 1, 0]),
    "one process has no anchor that counts": ([0, 0, 0, 0, 1, 0], [0] * 8),
}
CASES = [(form, labels) for form in CONTRASTS for labels in LABELS]


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 4).double()


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(6, 6, generator=generator, dtype=torch.float64),
        torch.randn(8, 6, generator=generator, dtype=torch.float64),
    )


def step(net: nn.Module, form: str, labels: str, rank: int = 0, world: int = 1, contrast=global_contrast):
    """Loss, fallbacks and gradients of one step on this process's share of the batch."""
    forget, retain, forget_labels, retain_labels = (
        rows.chunk(world)[rank] for rows in (*images(), *map(torch.tensor, LABELS[labels]))
    )
    net.zero_grad()
    features = net(torch.cat([forget, retain]))
    found: Contrast = contrast(
        form, features[: len(forget)], features[len(forget) :], forget_labels, retain_labels, temperature=0.2
    )
    found.loss.backward()
    # Cloned, because DDP's gradients are views of buckets that the next step writes over.
    gradients = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    return found.loss.detach(), found.fallbacks, gradients


def local_contrast(form: str, *rows: Tensor, temperature: float) -> Contrast:
    return CONTRASTS[form](*rows, temperature=temperature)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    own = torch.arange(6.0).reshape(3, 2).T + 10 * rank  # not contiguous, as features may be
    leaf = own.clone().requires_grad_()
    rows = gather_with_grad(leaf)
    (rows * torch.arange(1.0, 13.0).reshape(4, 3) * (rank + 1)).sum().backward()
    net = DistributedDataParallel(model())
    found = {
        "world": dist.get_world_size(),
        "offset": rank_offset(3),
        "gathered": gather(own),
        "labels": gather(torch.tensor([rank, 5])),
        "gradient": leaf.grad,
        "steps": {case: step(net, *case, rank, WORLD) for case in CASES},
        "local": step(net, "csul", "every anchor has a partner", rank, WORLD, local_contrast),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("gloo"))
    mp.spawn(work, args=(folder,), nprocs=WORLD)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def test_two_processes_took_part(ranks):
    assert [rank["world"] for rank in ranks] == [2, 2]


def test_rows_are_gathered_in_rank_order(ranks):
    own = torch.arange(6.0).reshape(3, 2).T
    for rank in ranks:
        assert torch.equal(rank["gathered"], torch.cat([own, own + 10]))
        assert torch.equal(rank["labels"], torch.tensor([0, 5, 1, 5]))
    assert [rank["offset"] for rank in ranks] == [0, 3]


def test_the_gradient_of_a_row_is_summed_over_processes_and_returns_to_its_owner(ranks):
    weights = torch.arange(1.0, 13.0).reshape(4, 3) * (1 + 2)
    assert torch.equal(torch.cat([rank["gradient"] for rank in ranks]), weights)


@pytest.mark.parametrize(("form", "labels"), CASES)
def test_two_processes_have_the_loss_and_gradients_of_one(ranks, form, labels):
    loss, fallbacks, gradients = step(model(), form, labels)
    parts = [rank["steps"][form, labels] for rank in ranks]
    torch.testing.assert_close(sum(part[0] for part in parts) / WORLD, loss, rtol=0, atol=1e-6)
    assert sum(part[1] for part in parts) == fallbacks
    for part in parts:
        torch.testing.assert_close(part[2], gradients, rtol=0, atol=1e-6)


def test_the_comparison_can_tell_a_contrast_that_sees_one_process_only(ranks):
    loss, _, gradients = step(model(), "csul", "every anchor has a partner")
    assert abs(sum(rank["local"][0] for rank in ranks) / WORLD - loss) > 1e-2
    assert max((a - b).abs().max() for a, b in zip(ranks[0]["local"][2], gradients, strict=True)) > 1e-2


def test_one_process_gathers_nothing():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather(rows) is rows and gather_with_grad(rows) is rows and rank_offset(3) == 0
