"""Gathers over the processes of a run, so that a loss can see the global batch.

Every function is the identity when `torch.distributed` is not initialised or has one process. All processes must
bring the same shape, as the paired batches of this package do. That is not checked, because a check would cost a
collective of its own at every step; if a run hangs or fails here, `TORCH_DISTRIBUTED_DEBUG=DETAIL` makes torch
compare the shapes and name the process that differs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather", "gather_with_grad", "rank_generator", "rank_offset"]


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
    def forward(ctx, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
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
