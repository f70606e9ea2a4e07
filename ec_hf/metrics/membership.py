"""Membership inference: can a model's outputs tell images it was trained on from images it never saw?"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

from ec_hf.metrics.arrays import Array, checked_labels, numbers, probabilities
from ec_hf.metrics.outputs import entropy, hits, modified_entropy, true_probability

__all__ = [
    "SVC_FEATURES",
    "class_matched",
    "membership_auc",
    "membership_svc",
    "membership_tpr",
    "placements",
    "share_by_class_mix",
]

SVC_FEATURES: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "correctness": lambda log_p, labels: hits(log_p, labels)[:, None].astype(float),
    "confidence": lambda log_p, labels: true_probability(log_p, labels)[:, None],
    "entropy": lambda log_p, _: entropy(log_p)[:, None],
    "m_entropy": lambda log_p, labels: modified_entropy(log_p, labels)[:, None],
    "prob": lambda log_p, _: np.exp(log_p),
}


def membership_auc(member_scores: Array, nonmember_scores: Array, higher_is_member: bool = True) -> float:
    """Chance that a member's score beats a non-member's, ties counting half: area under the ROC curve.

    0.5 is chance: the scores do not tell the two apart. Above it, members are still recognised; below it, they are
    told apart by the opposite sign, which gives the forgotten images away just as well. Both sides should show the
    same classes, see `class_matched`: otherwise the classes are told apart, not membership. Attacks that train shadow
    models find more than this one, so chance here is no proof of privacy (Hayes et al. 2024, arXiv 2403.01218).

    Args:
        member_scores: `(n,)` of training images, such as the model's confidence in the label.
        nonmember_scores: `(m,)` of held-out images.
        higher_is_member: False for scores that are low on training images, such as the loss.

    Raises:
        ValueError: An empty side, or a score that is not finite.
    """
    members, others = numbers(member_scores, "member_scores"), numbers(nonmember_scores, "nonmember_scores")
    ordered = np.sort(others)
    wins = np.searchsorted(ordered, members, "left") + np.searchsorted(ordered, members, "right")
    area = float(wins.mean() / (2 * len(others)))
    return area if higher_is_member else 1 - area


def placements(member_scores: np.ndarray, nonmember_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the non-members that each member beats, and of the members that beat each non-member; ties count half.

    Both have the mean `membership_auc`; how they vary from image to image is how that varies with the images.

    Args:
        member_scores: `(n,)`, higher on training images.
        nonmember_scores: `(m,)` of held-out images.
    """
    sides = member_scores, nonmember_scores
    first, second = (
        (np.searchsorted(np.sort(b), a, "left") + np.searchsorted(np.sort(b), a, "right")) / (2 * len(b))
        for a, b in (sides, sides[::-1])
    )
    return first, 1 - second


def membership_tpr(member_scores: Array, nonmember_scores: Array, false_positives: float = 0.01) -> float:
    """Share of the members that are found while at most so many non-members are taken for members.

    At few false alarms an attack accuses single images with good reason, which the area under the curve does not show
    (Carlini et al. 2022, arXiv 2112.03570, §III). Chance is `false_positives`. Of fewer than `1 / false_positives`
    non-members none may be taken for a member, so the share is then a lower bound.

    Args:
        member_scores: `(n,)`, higher on training images.
        nonmember_scores: `(m,)` of held-out images.
        false_positives: share of the non-members, from 0 to below 1.

    Raises:
        ValueError: An empty side, a score that is not finite, or a share outside 0..1.
    """
    members, others = numbers(member_scores, "member_scores"), numbers(nonmember_scores, "nonmember_scores")
    if not 0 <= false_positives < 1:
        raise ValueError(f"false_positives={false_positives}: expected a share from 0 to below 1.")
    allowed = int(false_positives * len(others) + 1e-9)
    threshold = np.sort(others)[len(others) - 1 - allowed]
    return float((members > threshold).mean())


def share_by_class_mix(hits: Array, labels: Array, mix: Array) -> tuple[float, float, float]:
    """Share of hits if the images had the classes of others, with its 95 % interval: `Σ_c w_c · share_c`.

    What images of the same classes get that a model never saw is what it should get on images that it forgot. The
    interval is Wilson's for as many images as would have the same variance, `1 / Σ_c w_c² / n_c`.

    Args:
        hits: `(n,)`, 1 for a hit and 0 for a miss.
        labels: `(n,)` label ids of these images.
        mix: `(m,)` label ids of the others; classes that `labels` lacks are left out.

    Returns:
        The share, and low and high end of its interval.

    Raises:
        ValueError: No class in common, or shapes that do not fit.
    """
    hits = numbers(hits, "hits")
    labels, mix = checked_labels(labels, "labels", len(hits)), checked_labels(mix, "mix", len(mix))
    common, wanted = np.unique(mix[np.isin(mix, labels)], return_counts=True)
    if not len(common):
        raise ValueError("labels and mix share no class: hold out images of the classes of the forgotten rows.")
    weights = wanted / wanted.sum()
    share = float(weights @ [hits[labels == label].mean() for label in common])
    count = 1 / float((weights**2 / [(labels == label).sum() for label in common]).sum())
    z = NormalDist().inv_cdf(0.975)
    centre, half = share + z**2 / (2 * count), z * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    low, high = ((centre + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    return share, min(max(low, 0.0), share), max(min(high, 1.0), share)


def class_matched(member_labels: Array, nonmember_labels: Array, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows to keep of members and of non-members, drawn at random, so that both have as many of every class.

    Args:
        member_labels: Label ids `(n,)`.
        nonmember_labels: Label ids `(m,)`.
        seed: Seed of the images that are drawn.

    Returns:
        Ascending row indices into either side, equally many.

    Raises:
        ValueError: No class is on both sides.
    """
    sides = [
        checked_labels(labels, name, len(labels))
        for labels, name in ((member_labels, "member_labels"), (nonmember_labels, "nonmember_labels"))
    ]
    common = np.intersect1d(sides[0], sides[1])
    if not len(common):
        raise ValueError(
            "member_labels and nonmember_labels share no class: hold out images of the forgotten classes too."
        )
    rng = np.random.default_rng(seed)
    kept: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label in common:
        rows = [np.flatnonzero(side == label) for side in sides]
        count = min(map(len, rows))
        for side, found in zip(kept, rows, strict=True):
            side.append(rng.choice(found, count, replace=False))
    members, others = (np.sort(np.concatenate(side)) for side in kept)
    return members, others


def membership_svc(
    members: tuple[Array, Array],
    nonmembers: tuple[Array, Array],
    target: tuple[Array, Array],
    features: str = "confidence",
    *,
    limit: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """The SVC attack of the unlearning literature, under both signs in which it is published.

    A support vector machine (C = 3, RBF kernel, gamma "auto") learns to tell shadow members (retain images it was
    trained on) from shadow non-members (test images), and then judges the forget images. The same number is published
    with two signs: "MIA-efficacy" (Sparse, SalUn, UUEF) is the share judged *non*-member, higher is more forgotten;
    DELETE prints the share judged member, lower is more forgotten. Neither has a fixed chance level: compare
    with the retrained model.

    Args:
        members: Probabilities `(n, c)` and label ids `(n,)` of the shadow members.
        nonmembers: The same of the shadow non-members; of the target's classes, if classes are not to give it away.
        target: The same of the forget images.
        features: What the machine sees: "correctness", "confidence" (probability of the label), "entropy",
            "m_entropy" (modified entropy, by the formula of its paper) or "prob" (all probabilities).
        limit: Both shadow sides are drawn at random down to this size, and to the smaller of the two.
        seed: Seed of the images that are drawn.

    Returns:
        "efficacy" and "member_share", which sum to 1.

    Raises:
        ValueError: Unknown `features`, rows that are no probabilities, or an empty side.
    """
    from sklearn.svm import SVC  # slow to import

    if features not in SVC_FEATURES:
        raise ValueError(f"features={features!r}: expected one of {', '.join(SVC_FEATURES)}.")
    rng = np.random.default_rng(seed)
    sides = {}
    for name, (values, labels) in {"members": members, "nonmembers": nonmembers, "target": target}.items():
        # the smallest positive number stands for 0, so that logarithms stay finite
        log_p = np.log(np.maximum(probabilities(values, name), np.finfo(np.float64).tiny))
        sides[name] = SVC_FEATURES[features](log_p, checked_labels(labels, f"labels of {name}", len(log_p)))
    size = min(limit, len(sides["members"]), len(sides["nonmembers"]))
    shadow = [sides[name][rng.permutation(len(sides[name]))[:size]] for name in ("members", "nonmembers")]
    attack = SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate(shadow), np.repeat([1, 0], size))
    share = float(attack.predict(sides["target"]).mean())
    return {"efficacy": 1 - share, "member_share": share}
