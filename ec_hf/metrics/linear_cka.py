"""Linear CKA between sets of features of the same images, exact in one pass over batches of any size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ec_hf.metrics.arrays import Array, matrix, same_rows

__all__ = ["BatchedCKA", "CKAStream", "LinearCKA", "linear_cka"]


def linear_cka(
    x: Array,
    y: Array,
    debiased: bool = True,
    mode: Literal["exact", "uuef"] = "exact",
    batch_size: int = 512,
) -> float:
    """Linear centred kernel alignment of two feature matrices whose rows belong to the same images.

    See `CKAStream` for the formula, its sources and the errors, and `BatchedCKA` for `mode="uuef"`.

    Args:
        x: Features `(n, p)`, tensor or array of any real dtype; computed in float64.
        y: Features `(n, q)` of the same n images, in the same order.
        debiased: Use the unbiased estimator HSIC_1. The biased one rises with p / n even for unrelated features.
        mode: "exact" over all rows at once; "uuef" for the way of the published tables of UUEF, which is biased,
            whatever `debiased` says, and depends on the batch size and the order of the rows.
        batch_size: Rows of a batch, read with mode "uuef" only.

    Returns:
        The similarity: at most 1, and 0 in expectation for independent features when debiased (so it may be negative).

    Example:
        >>> features = torch.randn(100, 8)
        >>> round(linear_cka(features, 3 * features + 1), 6)
        1.0
    """
    if mode not in ("exact", "uuef"):
        raise ValueError(f'mode={mode!r}: expected "exact" or "uuef".')
    x, y = matrix(x, "x"), matrix(y, "y")
    if mode == "uuef":
        batched = BatchedCKA(batch_size)
        batched.update(x, y)
        return batched.compute()
    metric = LinearCKA()
    metric.update(*(_narrowed(features) for features in (x, y)))
    return metric.compute(debiased)


class CKAStream:
    r"""Streaming linear CKA between several models' features of the same images, for the pairs that are asked for.

    Neither the order of the rows nor how they are cut into batches changes a value. With `K = X Xᵀ` and `L = Y Yᵀ`,
    `CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` (Kornblith et al. 2019, arXiv 1905.00414). Debiased, HSIC is the
    unbiased HSIC_1 (Song et al. 2012, JMLR 13; for CKA: Nguyen et al. 2021, arXiv 2010.15327). Both estimators leave
    a shift of all rows without effect, so the rows may be taken about their mean; their row sums then vanish and,
    with `a_i = ‖x_i‖²` and `b_i = ‖y_i‖²`,

        biased:    HSIC ∝ ‖XᵀY‖²
        debiased:  HSIC ∝ ‖XᵀY‖² - n / (n - 2) · Σ a_i b_i + Σ a_i · Σ b_i / ((n - 1) (n - 2))

    Every term is an entry or a block of `WₓᵀW_y`, where the rows of `Wₓ` are `(x_i, a_i, 1)`. That matrix of size
    (p + 2) × (q + 2) is all that is kept of a pair, and one such matrix of each model with itself, which its pairs
    share; all in float64 and about the mean of the first batch. To shift all rows of a model is to multiply its
    matrices by a known one: so they are brought to the exact mean, and so two accumulators are merged.

    Args:
        pairs: The pairs of names that will be compared.

    Example:
        >>> stream = CKAStream([("unlearned", "original"), ("retrained", "original")])
        >>> for batch in torch.randn(100, 8).split(16):
        ...     stream.update({"original": batch, "unlearned": -batch, "retrained": batch[:, :4]})
        >>> round(stream.compute("unlearned", "original"), 6)
        1.0
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = list(dict.fromkeys(pairs))
        self.names = list(dict.fromkeys(name for pair in self.pairs for name in pair))
        if not self.names:
            raise ValueError("pairs is empty: name at least one pair of features to compare.")
        self.rows = 0  # images seen
        self.widths: dict[str, int] = {}
        self._shift: dict[str, Tensor] = {}  # (p,): what has been subtracted from every row
        self._gram: dict[tuple[str, str], Tensor] = {}  # (p + 2, q + 2) of each pair and each (x, x)

    def update(self, features: Mapping[str, Array]) -> None:
        """Take in the features of one batch.

        Args:
            features: For every name, features `(n, p)` of the same n images in the same order, tensor or array of any
                real dtype. Sums are kept on the device of the first batch.

        Raises:
            ValueError: Names other than those of the pairs, not matrices of equally many rows, other widths than
                before, or a value that is not finite. What was summed before then stays as it is.
        """
        if set(features) != set(self.names):
            raise ValueError(f"features are named {sorted(features)}: expected {sorted(self.names)}.")
        batch = {name: matrix(features[name], name) for name in self.names}
        first = self.names[0]
        for name in self.names[1:]:
            same_rows(batch[first], batch[name], first, name)
        widths = {name: x.shape[1] for name, x in batch.items()}
        if self.widths and widths != self.widths:
            raise ValueError(
                f"features are {widths} wide, earlier batches were {self.widths}: use one stream a layer."
            )
        if not len(batch[first]):
            return
        if not self.rows:
            self.widths = widths
            device = batch[first].device
            self._shift = {name: x.mean(0).to(device) for name, x in batch.items()}
            for x, y in self._kept():
                self._gram[x, y] = batch[x].new_zeros(widths[x] + 2, widths[y] + 2, device=device)
        self.rows += len(batch[first])
        augmented = {}
        for name, shift in self._shift.items():
            about = batch[name].to(shift.device) - shift
            augmented[name] = torch.cat([about, about.square().sum(1, keepdim=True), torch.ones_like(about[:, :1])], 1)
        for (x, y), gram in self._gram.items():
            gram.addmm_(augmented[x].T, augmented[y])

    def merge(self, other: CKAStream) -> None:
        """Take in the rows that another accumulator saw (another shard of the data, another process).

        Args:
            other: An accumulator of the same pairs and the same layer, left as it is. No row may have been seen by
                both.

        Raises:
            ValueError: The two hold other pairs, or features of different widths.
        """
        if other.pairs != self.pairs:
            raise ValueError(f"Cannot merge the pairs {other.pairs} into {self.pairs}.")
        if not other.rows:
            return
        if not self.rows:
            self.rows, self.widths = other.rows, dict(other.widths)
            self._shift = {name: shift.clone() for name, shift in other._shift.items()}
            self._gram = {pair: gram.clone() for pair, gram in other._gram.items()}
            return
        if other.widths != self.widths:
            raise ValueError(f"Cannot merge features {other.widths} wide into features {self.widths} wide.")
        self.rows += other.rows
        by = {name: shift - self._shift[name].to(shift.device) for name, shift in other._shift.items()}
        for (x, y), gram in self._gram.items():
            gram += _moved(other._gram[x, y], by[x], by[y]).to(gram.device)

    def compute(self, x: str, y: str, debiased: bool = True) -> float:
        """The similarity of one pair over all rows seen; more may follow.

        Args:
            x: The one name.
            y: The other; the order does not matter.
            debiased: Use the unbiased estimator HSIC_1.

        Raises:
            ValueError: A pair that is not kept, fewer than 4 rows (2 when biased), or features so alike in all rows
                that CKA is undefined.
        """
        x, y = (x, y) if (x, y) in self.pairs else (y, x)
        if (x, y) not in self.pairs:
            raise ValueError(f"The pair {(y, x)} is not kept: this stream was made for {self.pairs}.")
        n, needed = self.rows, 4 if debiased else 2
        if n < needed:
            raise ValueError(f"Linear CKA needs at least {needed} rows, got {n}: give it the features of more images.")
        mean = {name: self._gram[name, name][:-2, -1] / n for name in (x, y)}
        grams = {(i, j): _moved(self._gram[i, j], -mean[i], -mean[j]) for i, j in {(x, x), (y, y), (x, y)}}

        def hsic(i: str, j: str) -> float:
            gram = grams[i, j]
            value = gram[:-2, :-2].square().sum()
            if debiased:
                value = value - n / (n - 2) * gram[-2, -2] + gram[-2, -1] * gram[-1, -2] / ((n - 1) * (n - 2))
            return value.item()

        for name in (x, y):
            # Rounding of the mean leaves a spread of about 1e-16 of the features' size: 1e-12 is above it.
            size = (mean[name] + self._shift[name]).square().sum().item()
            spread = grams[name, name][-2, -1].item()
            if spread <= n * 1e-24 * size or hsic(name, name) <= 1e-12 * spread**2:
                raise ValueError(
                    f"The features {name} do not tell the {n} rows apart (all equal, all but one equal, or all as far "
                    "from each other), so their CKA is undefined: leave out this layer, or give more varied images."
                )
        return hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5

    def _kept(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys([*((name, name) for name in self.names), *self.pairs]))


class LinearCKA:
    """Streaming linear CKA of one pair; see `CKAStream`.

    Example:
        >>> metric = LinearCKA()
        >>> for batch in torch.randn(100, 8).split(16):
        ...     metric.update(batch, -batch)
        >>> round(metric.compute(), 6)
        1.0
    """

    def __init__(self) -> None:
        self._stream = CKAStream([("x", "y")])

    @property
    def rows(self) -> int:
        """Number of rows (images) seen."""
        return self._stream.rows

    def update(self, x: Array, y: Array) -> None:
        """Take in the features `(n, p)` and `(n, q)` of one batch; see `CKAStream.update`."""
        self._stream.update({"x": x, "y": y})

    def merge(self, other: LinearCKA) -> None:
        """Take in the rows that another accumulator saw; see `CKAStream.merge`."""
        self._stream.merge(other._stream)

    def compute(self, debiased: bool = True) -> float:
        """The similarity over all rows seen; see `CKAStream.compute`."""
        return self._stream.compute("x", "y", debiased)


class BatchedCKA:
    """Linear CKA as UUEF's tables have it (arXiv 2503.06991, its repository's `CKA/CKA.py` and `utils.py`).

    The biased estimator on batches of `batch_size` rows in the order in which they come, averaged over the batches;
    a short last batch weighs as much as a full one. For unrelated features it is near 1 / (1 + batch_size / p), so
    compare such values only with others of the same width, batch size and order, and see `cka_floor`.

    Args:
        batch_size: Rows a batch, however they are cut when they come in.
    """

    def __init__(self, batch_size: int = 512) -> None:
        if batch_size < 2:
            raise ValueError(f"batch_size={batch_size}: CKA needs at least 2 rows.")
        self.batch_size = batch_size
        self._waiting: list[Tensor] = []  # x and y of the batch that is not full yet
        self._values: list[float] = []

    def update(self, x: Array, y: Array) -> None:
        """Take in features `(n, p)` and `(n, q)` of the next n images.

        Raises:
            ValueError: Not two matrices of equally many rows, or a batch whose CKA is undefined.
        """
        x, y = matrix(x, "x"), matrix(y, "y")
        same_rows(x, y)
        if self._waiting:
            x, y = (torch.cat([old, new.to(old.device)]) for old, new in zip(self._waiting, (x, y), strict=True))
        size, full = self.batch_size, len(x) // self.batch_size * self.batch_size
        self._values += [linear_cka(x[i : i + size], y[i : i + size], debiased=False) for i in range(0, full, size)]
        self._waiting = [x[full:].clone(), y[full:].clone()]

    def compute(self) -> float:
        """The mean over the batches so far; more rows may follow.

        Raises:
            ValueError: No rows, or a last batch of one row.
        """
        values = list(self._values)
        if self._waiting and len(self._waiting[0]):
            x, y = self._waiting
            values.append(linear_cka(x, y, debiased=False))
        if not values:
            raise ValueError("Linear CKA needs at least 2 rows, got 0: give it the features of more images.")
        return sum(values) / len(values)


def _moved(gram: Tensor, by_left: Tensor, by_right: Tensor) -> Tensor:
    """`WₓᵀW_y` after adding `by_left` to every row `x_i` and `by_right` to every row `y_i`, norms included."""

    def shifted(matrix: Tensor, by: Tensor) -> Tensor:  # the columns are (y, b, 1)
        product, ones = matrix.clone(), matrix[:, -1]
        product[:, :-2].addr_(ones, by)
        product[:, -2] += 2 * matrix[:, :-2] @ by + by.square().sum() * ones
        return product

    return shifted(shifted(gram, by_right).T, by_left).T


def _narrowed(features: Tensor) -> Tensor:
    """Features with the same scalar products but no wider than they are many, so that wide maps stay affordable."""
    count, width = features.shape
    return features if width <= count else torch.linalg.qr((features - features.mean(0)).T, mode="r").R.T
