"""What the processes of a run share: tensors, so that a loss can see the global batch, and rows and jobs.

Every function is the identity when `torch.distributed` is not initialised or has one process. For the gathers all
processes must bring the same shape, as the paired batches of this package do. That is not checked, because a check
would cost a collective of its own at every step; if a run hangs or fails here, `TORCH_DISTRIBUTED_DEBUG=DETAIL` makes
torch compare the shapes and name the process that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor

__all__ = [
    "from_all",
    "gather",
    "gather_with_grad",
    "in_order",
    "own_share",
    "rank_generator",
    "rank_of",
    "rank_offset",
    "spread",
]

Result = TypeVar("Result")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: Tensor) -> Tensor:
    """Stack a tensor of every process along the first dimension, in rank order, without gradient.

    Args:
        tensor: (N, ...), the same shape and dtype in every process.

    Returns:
        (processes * N, ...); `tensor` itself when there is one process.
    """
    if _world_size() == 1:
        return tensor
    tensor = tensor.detach().contiguous()
    gathered = tensor.new_empty(_world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather_into_tensor(gathered, tensor)
    return gathered


def rank_offset(rows: int) -> int:
    """Index of this process's first row in what `gather` returns for tensors of `rows` rows."""
    return dist.get_rank() * rows if _world_size() > 1 else 0


def rank_generator() -> torch.Generator:
    """A CPU generator for random draws of this process alone.

    Its seed is one draw from torch's own generator, which training seeds and a resume restores, plus the rank: the
    draws differ between processes and steps, and are the same whenever a run is repeated.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())) + rank_offset(1))


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(_ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)  # all_reduce writes in place
        dist.all_reduce(grad)
        rows = len(grad) // _world_size()
        return grad[rank_offset(rows) :][:rows]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """As `gather`, and the gradient flows back to the process that each row came from.

    A row's gradient is summed over the losses of all processes. With DistributedDataParallel, which averages
    gradients, the mean of the processes' losses is then what is minimised, exactly as one process would do it.

    Args:
        tensor: (N, ...), the same shape and dtype in every process.

    Returns:
        (processes * N, ...); `tensor` itself when there is one process.
    """
    return tensor if _world_size() == 1 else _GatherWithGrad.apply(tensor)


def spread(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of independent jobs in their order: the processes share the work, and all get all results."""
    own = [(int(i), jobs[i]()) for i in own_share(len(jobs))]
    return [result for _, result in sorted(from_all(own), key=lambda pair: pair[0])]


def from_all(items: list) -> list:
    """The items of all processes in the order of their ranks."""
    return gather_object(items) if PartialState().num_processes > 1 else items


def own_share(count: int, block: int = 1) -> np.ndarray:
    """The rows of a split that this process sees: every n-th block of them."""
    rows = np.arange(count)
    return rows[rank_of(rows, block) == PartialState().process_index]


def rank_of(rows: np.ndarray, block: int) -> np.ndarray:
    """The process that sees each row, where they take turns in blocks."""
    return rows // block % PartialState().num_processes


def in_order(own: np.ndarray | None, rows: np.ndarray, block: int = 1) -> np.ndarray:
    """What all processes have for their share of some rows, in the order of these rows; float32 or as it is."""
    shares = from_all([own])
    like = next((share for share in shares if share is not None and len(share)), np.zeros(0, dtype=np.float32))
    whole = np.zeros((len(rows), *like.shape[1:]), dtype=like.dtype)
    for rank, share in enumerate(shares):
        if share is not None and len(share):
            whole[rank_of(rows, block) == rank] = share
    return whole
