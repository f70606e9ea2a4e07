"""The population attack: a threshold for each class, from images of that class that the model never saw."""

from __future__ import annotations

import numpy as np

from ec_hf.metrics.arrays import Array, checked_labels, numbers

__all__ = ["population_scores"]


def population_scores(
    losses: Array, labels: Array, population: Array, population_labels: Array, *, within: bool = False
) -> np.ndarray:
    """Share of unseen images of its class whose loss is above an image's own, ties half; higher is more of a member.

    "Attack P" of Ye et al. 2022 (arXiv 2111.09679), with a threshold for each class: an image is called a member at a
    false-positive rate α where its score is above 1 - α. It needs no other model. Of unseen images the scores are
    uniform from 0 to 1 in each class, however easy that class is.

    Args:
        losses: `(n,)` cross-entropies of the images.
        labels: `(n,)` their label ids.
        population: `(m,)` losses of images that the model never saw.
        population_labels: `(m,)` their label ids; each class of `labels` among them.
        within: whether the images are the population itself; each is then held against the others of its class.

    Raises:
        ValueError: A class without unseen images (with `within`, without a second one), shapes that do not fit, or a
            loss that is not finite.
    """
    losses, population = numbers(losses, "losses"), numbers(population, "population")
    labels = checked_labels(labels, "labels", len(losses))
    of_population = checked_labels(population_labels, "population_labels", len(population))
    scores = np.empty(len(losses))
    for label in np.unique(labels):
        rows, unseen = labels == label, np.sort(population[of_population == label])
        others = len(unseen) - within
        if others < 1:
            raise ValueError(f"population has too few images of class {label}: hold out images of this class.")
        own = losses[rows]
        below, up_to = (np.searchsorted(unseen, own, side) for side in ("left", "right"))
        ties = up_to - below - within
        scores[rows] = (len(unseen) - up_to + ties / 2) / others
    return scores
