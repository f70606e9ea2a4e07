"""How well classes stand apart in feature space, and how well forgotten ones do beside those that stay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from ec_hf.metrics.arrays import Array, checked_labels, matrix

__all__ = ["Relative", "relative_separability", "separability"]


def separability(x: Array, y: Array) -> np.ndarray:
    """How often an image of the same class is nearer to an image than one of another class, of each image.

    Nearness is the cosine about the mean of all features. The figure is the area under the ROC curve of telling images
    of the same class from others by it: 1 where the class lies apart, ½ at random. It needs neither a fit nor as many
    images of each class as neighbours would, and tells forgetting in shallow layers where k-NN has too much noise.

    Args:
        x: Features `(n, p)`.
        y: Label ids `(n,)`.

    Returns:
        `(n,)` float64, NaN for an image that is alone in its class, or whose class is alone.

    Raises:
        ValueError: Shapes that do not fit, or a value that is not finite.
    """
    from scipy.stats import rankdata  # slow to import

    features = matrix(x, "x")
    labels = checked_labels(y, "y", len(features))
    centred = torch.nn.functional.normalize(features - features.mean(0), dim=1, eps=1e-30)
    similarity = centred @ centred.T
    similarity.fill_diagonal_(-torch.inf)  # the lowest of its row, so that it takes rank 1 and no part
    ranks = rankdata(similarity.cpu().numpy(), axis=1) - 1
    same = labels[:, None] == labels[None]
    np.fill_diagonal(same, False)
    own = same.sum(1)
    others = len(labels) - 1 - own
    with np.errstate(invalid="ignore"):
        return ((ranks * same).sum(1) - own * (own + 1) / 2) / (own * others)


class Relative(NamedTuple):
    """A figure that compares two kinds of images, or a difference of two such figures.

    Args:
        value: the figure.
        error: its standard error over images.
    """

    value: float
    error: float


def relative_separability(x: Array, y: Array, classes: Iterable[int]) -> Relative:
    """How well images of some classes (the forgotten ones) stand apart, by how well the others do.

    Both are mean `separability` above ½, so 1 says that a layer tells them as well as the classes that stay, and 0
    that it does not tell them at all. How good the layer is in general drops out.

    Args:
        x: Features `(n, p)` of one layer.
        y: Label ids `(n,)`.
        classes: Label ids of the forgotten classes.

    Returns:
        NaN where either kind has no class with two images, or the others do not stand apart.

    Raises:
        ValueError: As `separability`.
    """
    areas = separability(x, y) - 0.5
    chosen = np.isin(np.asarray(y), list(classes))
    named, others = (part[np.isfinite(part)] for part in (areas[chosen], areas[~chosen]))
    if min(len(named), len(others)) < 2 or others.mean() <= 0:
        return Relative(math.nan, math.nan)
    ratio = named.mean() / others.mean()
    errors = [part.std(ddof=1) / math.sqrt(len(part)) for part in (named, others)]
    return Relative(float(ratio), float(math.hypot(errors[0], ratio * errors[1]) / others.mean()))
