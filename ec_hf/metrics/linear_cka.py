"""Linear CKA between two sets of features of the same images, exact in one pass over batches of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Features = Any  # a tensor or anything `torch.as_tensor` reads (a NumPy array, a list of rows)


def linear_cka(x: Features, y: Features, debiased: bool = True) -> float:
    """Linear centred kernel alignment of two feature matrices whose rows belong to the same images.

    See `LinearCKA` for the formula, its sources and the errors.

    Args:
        x: Features `(n, p)`, tensor or array of any real dtype; computed in float64.
        y: Features `(n, q)` of the same n images, in the same order.
        debiased: Use the unbiased estimator HSIC_1. The biased one rises with p / n even for unrelated features.

    Returns:
        The similarity: at most 1, and 0 in expectation for independent features when debiased (so it may be negative).

    Example:
        >>> features = torch.randn(100, 8)
        >>> round(linear_cka(features, 3 * features + 1), 6)
        1.0
    """
    x, y = _rows(x, "x"), _rows(y, "y")
    metric = LinearCKA()
    metric.update(*(_narrowed(features) for features in (x, y)))
    return metric.compute(debiased)


class LinearCKA:
    r"""Streaming linear CKA: neither the order of the rows nor how they are cut into batches changes the value.

    With `K = X Xᵀ` and `L = Y Yᵀ`, `CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` (Kornblith et al. 2019, arXiv
    1905.00414). Debiased, HSIC is the unbiased HSIC_1 (Song et al. 2012, JMLR 13; for CKA: Nguyen et al. 2021, arXiv
    2010.15327). Both estimators leave a shift of all rows without effect, so the rows may be taken about their mean;
    their row sums then vanish and, with `a_i = ‖x_i‖²` and `b_i = ‖y_i‖²`,

        biased:    HSIC ∝ ‖XᵀY‖²
        debiased:  HSIC ∝ ‖XᵀY‖² - n / (n - 2) · Σ a_i b_i + Σ a_i · Σ b_i / ((n - 1) (n - 2))

    Every term is an entry or a block of `WᵀW` with rows `w_i = (x_i, y_i, a_i, b_i, 1)`. That square matrix of size
    p + q + 3 is all that is kept, in float64 and about the mean of the first batch. To shift all rows is to multiply
    it from both sides by a known matrix: so it is brought to the exact mean, and so two accumulators are merged.

    Example:
        >>> metric = LinearCKA()
        >>> for batch in torch.randn(100, 8).split(16):
        ...     metric.update(batch, -batch)
        >>> round(metric.compute(), 6)
        1.0
    """

    def __init__(self) -> None:
        self.widths: tuple[int, int] | None = None  # p and q
        self._shift: Tensor  # (p + q,): what has been subtracted from every row (x_i, y_i)
        self._gram: Tensor  # (p + q + 3, p + q + 3): WᵀW

    @property
    def rows(self) -> int:
        """Number of rows (images) seen."""
        return 0 if self.widths is None else round(self._gram[-1, -1].item())

    def update(self, x: Features, y: Features) -> None:
        """Take in the features of one batch.

        Args:
            x: Features `(n, p)`, tensor or array of any real dtype. Sums are kept on the device of the first batch.
            y: Features `(n, q)` of the same images, in the same order.

        Raises:
            ValueError: Not two matrices of equally many rows, other widths than before, or a value that is not finite.
        """
        x, y = _rows(x, "x"), _rows(y, "y")
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} rows and y has {len(y)}: expected the features of the same images.")
        if self.widths not in (None, widths := (x.shape[1], y.shape[1])):
            raise ValueError(
                f"x and y are {widths} wide, earlier batches were {self.widths}: use one LinearCKA a pair."
            )
        if not len(x):
            return
        batch = torch.cat([x, y.to(x.device)], dim=1)
        if self.widths is None:
            self.widths = widths
            self._shift = batch.mean(0)
            self._gram = batch.new_zeros(len(self._shift) + 3, len(self._shift) + 3)
        batch = batch.to(self._shift.device) - self._shift
        norms = [part.square().sum(1, keepdim=True) for part in batch.split(widths, dim=1)]
        augmented = torch.cat([batch, *norms, torch.ones_like(norms[0])], dim=1)
        self._gram += augmented.T @ augmented

    def merge(self, other: LinearCKA) -> None:
        """Take in the rows that another accumulator saw (another shard of the data, another process).

        Args:
            other: An accumulator of the same pair of layers, left as it is. No row may have been seen by both.

        Raises:
            ValueError: The two hold features of different widths.
        """
        if other.widths is None:
            return
        if self.widths is None:
            self.widths, self._shift, self._gram = other.widths, other._shift.clone(), other._gram.clone()
            return
        if other.widths != self.widths:
            raise ValueError(f"Cannot merge features {other.widths} wide into features {self.widths} wide.")
        moved = _moved(other._gram, other._shift - self._shift.to(other._shift.device), self.widths)
        self._gram += moved.to(self._gram.device)

    def compute(self, debiased: bool = True) -> float:
        """The similarity over all rows seen; more may follow.

        Args:
            debiased: Use the unbiased estimator HSIC_1.

        Raises:
            ValueError: Fewer than 4 rows (2 when biased), or features so alike in all rows that CKA is undefined.
        """
        n, needed = self.rows, 4 if debiased else 2
        if self.widths is None or n < needed:
            raise ValueError(f"Linear CKA needs at least {needed} rows, got {n}: give it the features of more images.")
        mean = self._gram[:-3, -1] / n
        gram = _moved(self._gram, -mean, self.widths)
        features = (slice(0, self.widths[0]), slice(self.widths[0], sum(self.widths)))

        def hsic(i: int, j: int) -> float:
            value = gram[features[i], features[j]].square().sum()
            if debiased:
                value -= n / (n - 2) * gram[i - 3, j - 3]
                value += gram[i - 3, -1] * gram[j - 3, -1] / ((n - 1) * (n - 2))
            return value.item()

        for i, name in enumerate("xy"):
            # Rounding of the mean leaves a spread of about 1e-16 of the features' size: 1e-12 is above it.
            size = (mean + self._shift)[features[i]].square().sum().item()
            spread = gram[i - 3, -1].item()
            if spread <= n * 1e-24 * size or hsic(i, i) <= 1e-12 * spread**2:
                raise ValueError(
                    f"The features {name} do not tell the {n} rows apart (all equal, all but one equal, or all as far "
                    "from each other), so their CKA is undefined: leave out this layer, or give more varied images."
                )
        return hsic(0, 1) / (hsic(0, 0) * hsic(1, 1)) ** 0.5


def _moved(gram: Tensor, by: Tensor, widths: Sequence[int]) -> Tensor:
    """`WᵀW` after adding `by` to every row `(x_i, y_i)`: `TᵀWᵀW T`, where `W T` has the shifted rows and norms."""

    def times_t(matrix: Tensor) -> Tensor:
        product, ones = matrix.clone(), matrix[:, -1]
        product[:, :-3] += torch.outer(ones, by)
        start = 0
        for column, width in zip((-3, -2), widths, strict=True):
            part = by[start : start + width]
            product[:, column] += 2 * matrix[:, start : start + width] @ part + part.square().sum() * ones
            start += width
        return product

    return times_t(times_t(gram).T)


def _narrowed(features: Tensor) -> Tensor:
    """Features with the same scalar products but no wider than they are many, so that wide maps stay affordable."""
    rows, width = features.shape
    return features if width <= rows else torch.linalg.qr((features - features.mean(0)).T, mode="r").R.T


def _rows(features: Features, name: str) -> Tensor:
    """The features as a finite float64 matrix."""
    tensor = torch.as_tensor(features).detach()
    if tensor.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected (rows, width); pool or flatten it first.")
    tensor = (tensor.cpu() if tensor.device.type == "mps" else tensor).double()  # MPS has no float64
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values: CKA is undefined for them.")
    return tensor
