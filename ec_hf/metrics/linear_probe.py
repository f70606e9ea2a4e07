"""How well a linear classifier reads the forgotten classes off frozen features."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ec_hf.metrics.arrays import Array, checked_labels, matrix

__all__ = ["linear_probe", "probe_hits"]


def linear_probe(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    classes: Iterable[int] | None = None,
    *,
    c: float = 0.1,
    max_iterations: int = 30,
) -> float:
    """Accuracy, on the test rows of some classes, of a multinomial logistic regression over all classes.

    The probe decides among all classes: between the forgotten ones alone even poor features do well. Features are
    standardised by the training rows. The objective is `½ ‖W‖² + c · Σ cross-entropy` with a row of W for each class
    and a free intercept. The converged probe is that of scikit-learn's `LogisticRegression(C=c)` for three classes and
    more. For two it is that of `LogisticRegression(C=2c)`: scikit-learn then has one row, the difference of the two
    here, and penalises it twice as much.

    Args:
        train_x: Features `(n, p)`, tensor or array; fitted in float32.
        train_y: Label ids `(n,)`, of at least two classes, the forgotten ones among them.
        test_x: Features `(m, p)`.
        test_y: Label ids `(m,)`.
        classes: Label ids of the test rows that count (the forgotten ones); all if left out.
        c: Inverse weight of the penalty, per training row. It suits a few hundred to a few thousand rows; a stronger
            penalty (0.01) hides part of what early layers hold.
        max_iterations: Most iterations of L-BFGS; 30 come within half a point of the converged accuracy.

    Raises:
        ValueError: Shapes that do not fit, one class in `train_y`, no test row of `classes`, or one of them that
            `train_y` lacks.
    """
    return float(probe_hits(train_x, train_y, test_x, test_y, classes, c=c, max_iterations=max_iterations).mean())


def probe_hits(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    classes: Iterable[int] | None = None,
    *,
    c: float = 0.1,
    max_iterations: int = 30,
) -> np.ndarray:
    """Which of the test rows that count the probe gets right, as booleans in their order.

    Args:
        train_x: Features `(n, p)`, tensor or array; fitted in float32.
        train_y: Label ids `(n,)`, of at least two classes.
        test_x: Features `(m, p)`.
        test_y: Label ids `(m,)`.
        classes: Label ids of the test rows that count; all if left out.
        c: Inverse weight of the penalty, per training row.
        max_iterations: Most iterations of L-BFGS.

    Raises:
        ValueError: As `linear_probe`.
    """
    train, test, train_labels, test_labels, counted = checked_split(train_x, train_y, test_x, test_y, classes)
    present, targets = np.unique(train_labels, return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"train_y holds only class {present.tolist()}: a probe over all classes needs at least two.")
    if c <= 0:
        raise ValueError(f"c={c}: expected a positive number.")
    mean, spread = train.mean(0), train.std(0, correction=0)
    scale = torch.where(spread > 1e-12 * (mean.abs() + 1), spread, torch.inf)  # a constant channel tells nothing
    train, test = (((x - mean) / scale).float() for x in (train, test[torch.from_numpy(counted).to(test.device)]))
    if 2 * len(train) <= train.shape[1]:  # rotate to as many dimensions as there are rows: scalar products stay
        basis = torch.linalg.qr(train.T).Q
        train, test = train @ basis, test @ basis
    weight, bias = _fit(train, torch.from_numpy(targets).to(train.device), len(present), c, max_iterations)
    predicted = present[(test @ weight.T + bias).argmax(1).cpu().numpy()]
    return predicted == test_labels[counted]


def checked_split(
    train_x: Array,
    train_y: Array,
    test_x: Array,
    test_y: Array,
    classes: Iterable[int] | None,
    names: tuple[str, str] = ("train", "test"),
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test features in float64, their label ids, and the positions of the test rows that count."""
    first, second = names
    train, test = matrix(train_x, f"{first}_x"), matrix(test_x, f"{second}_x")
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"{first}_x is {train.shape[1]} wide, {second}_x {test.shape[1]}: expected features of one layer."
        )
    if not len(train):
        raise ValueError(f"{first}_x has no rows.")
    train_labels = checked_labels(train_y, f"{first}_y", len(train))
    test_labels = checked_labels(test_y, f"{second}_y", len(test))
    counted = np.arange(len(test_labels))
    if classes is not None:
        wanted = {int(each) for each in classes}
        if absent := wanted - set(train_labels.tolist()):
            raise ValueError(f"{first}_y lacks the classes {sorted(absent)}: they could not be recognised.")
        counted = np.flatnonzero(np.isin(test_labels, sorted(wanted)))
    if not len(counted):
        of = "at all" if classes is None else f"of the classes {sorted(wanted)}"
        raise ValueError(f"{second}_y has no row {of}.")
    return train, test.to(train.device), train_labels, test_labels, counted


def _fit(x: Tensor, targets: Tensor, classes: int, c: float, max_iterations: int) -> tuple[Tensor, Tensor]:
    """Weights `(classes, p)` and bias of the minimum of `½ ‖W‖² + c · Σ cross-entropy`.

    L-BFGS on `V` with `W = V L⁻¹`, where `L Lᵀ` is the Hessian of each class at W = 0: it then takes some twenty steps
    whatever the spectrum of the features is, where it would take hundreds on `W` itself.
    """
    from scipy.optimize import minimize  # slow to import

    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    penalty = torch.ones_like(x[0])
    penalty[-1] = 0  # the intercept is free
    hessian = c / classes * (x.T @ x)
    hessian.diagonal().add_(penalty.clamp_min(1e-6))
    inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(hessian), torch.eye(len(hessian)).to(x), upper=False)
    one_hot = torch.nn.functional.one_hot(targets, classes).to(x).T

    def weights(flat: np.ndarray) -> Tensor:
        return torch.from_numpy(flat).to(x).view(classes, -1) @ inverse

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = weights(flat)
        logits = weight @ x.T
        cross_entropy = (logits.logsumexp(0) - (logits * one_hot).sum(0)).double().sum()
        loss = c * cross_entropy + (penalty * weight.square()).double().sum() / 2
        gradient = c * ((logits.softmax(0) - one_hot) @ x) + penalty * weight
        return loss.item(), (gradient @ inverse.T).double().flatten().cpu().numpy()

    options = {"maxiter": max_iterations, "ftol": 1e-9, "gtol": 1e-3 * (c * len(x)) ** 0.5 / classes}
    start = np.zeros(len(hessian) * classes)
    result = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    weight = weights(result.x)
    return weight[:, :-1], weight[:, -1]
