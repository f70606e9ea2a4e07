"""What the metrics accept: tensors, NumPy arrays and lists, checked once and computed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any  # a tensor, or anything that `numpy.asarray` reads (an array, a list of rows)


def as_tensor(values: Array) -> Tensor:
    """A tensor of the values in their own precision; Python floats are float64, as in NumPy."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))  # a copy where torch could not share it


def matrix(features: Array, name: str) -> Tensor:
    """Features as a finite float64 matrix `(n, p)`, left on their device.

    Raises:
        ValueError: Not a matrix, or a value that is not finite.
    """
    tensor = as_tensor(features)
    if tensor.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected (rows, width); pool or flatten it first.")
    tensor = (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # MPS has no float64
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values: the metric is undefined for them.")
    return tensor


def same_rows(x: Tensor, y: Tensor, first: str = "x", second: str = "y") -> None:
    """Refuses matrices of different numbers of rows."""
    if len(x) != len(y):
        raise ValueError(
            f"{first} has {len(x)} rows and {second} has {len(y)}: expected those of the same images in one order."
        )


def checked_labels(labels: Array, name: str, count: int) -> np.ndarray:
    """Labels as an integer vector of `count` entries.

    Raises:
        ValueError: Another shape or number of entries, or labels that are no integers.
    """
    tensor = as_tensor(labels).cpu()
    if tensor.shape != (count,):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected one label id for each of {count} images.")
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{name} has dtype {tensor.dtype}: expected integer label ids.")
    return tensor.numpy().astype(np.int64)


def numbers(values: Array, name: str) -> np.ndarray:
    """Values as a finite float64 vector with at least one entry.

    Raises:
        ValueError: Another shape, no value, or one that is not finite.
    """
    array = as_tensor(values).cpu().double().numpy()
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} has shape {array.shape}: expected a vector with at least one value.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values: the metric is undefined for them.")
    return array


def shares(values: Array, name: str) -> np.ndarray:
    """Values as `numbers` gives them, all between 0 and 1.

    Raises:
        ValueError: What `numbers` refuses, or a value outside 0..1, such as a percentage.
    """
    array = numbers(values, name)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name} has values from {array.min():g} to {array.max():g}: expected shares from 0 to 1.")
    return array


def share(value: float, name: str) -> float:
    """One share, see `shares`."""
    return float(shares([float(value)], name)[0])


def probabilities(values: Array, name: str) -> np.ndarray:
    """Rows of class probabilities `(n, c)` in float64.

    Raises:
        ValueError: Not a matrix with rows, not finite, negative, or rows that do not sum to 1 (within 1e-2, the
            rounding of half precision), such as logits.
    """
    array = matrix(values, name).cpu().numpy()
    if not array.size:
        raise ValueError(f"{name} has shape {array.shape}: expected at least one row.")
    if array.min() < 0 or np.abs(array.sum(1) - 1).max() > 1e-2:
        raise ValueError(f"the rows of {name} are no probabilities: expected softmax outputs that sum to 1.")
    return array
