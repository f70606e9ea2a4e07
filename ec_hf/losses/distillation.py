"""Cross-entropy, and distillation from a teacher: whole, or blind to what must be forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ec_hf.losses.precision import full_precision

__all__ = ["cross_entropy", "delete_kl", "distillation", "hide", "hide_classes"]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy −log p_i[y_i], of the model or of an auxiliary head.

    Args:
        logits: (n, classes).
        labels: (n,) int64.
        reduction: over the rows, "mean", "sum" or "none".

    Returns:
        Scalar, or (n,) for "none", in float32 or in float64.
    """
    return F.cross_entropy(full_precision(logits), labels, reduction=reduction)


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of a student from its teacher.

        loss = T² · mean_i KL( softmax(teacher_logits_i / T) ‖ softmax(logits_i / T) )

    The mean is over rows ("batchmean"): the default reduction of `kl_div` would divide by the number of classes too.
    T² keeps the size of the gradient the same over temperatures.

    Source: Hinton et al., arXiv 1503.02531.

    Args:
        logits: (n, classes) of the student.
        teacher_logits: (n, classes), which may hold −∞; no gradient flows into them.
        temperature: T > 0.

    Returns:
        Scalar, in float32 or in float64.
    """
    target = (full_precision(teacher_logits).detach() / temperature).softmax(dim=1)
    student = (full_precision(logits) / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div(student, target, reduction="batchmean")


def hide_classes(teacher_logits: Tensor, labels: Tensor, forget_classes: Sequence[int] | None = None) -> Tensor:
    """A teacher's logits with −∞ at what must be forgotten.

    Args:
        teacher_logits: (n, classes).
        labels: (n,) int64; each row's own label is hidden.
        forget_classes: label ids to hide in every row beside its own label.

    Returns:
        (n, classes), in float32 or in float64, detached.

    Raises:
        ValueError: no class is left, in any row, or one is named that the logits do not have.
    """
    classes = teacher_logits.shape[1]
    hidden = set(forget_classes or ())
    if not all(0 <= label < classes for label in hidden):
        raise ValueError(f"forget_classes must be label ids from 0 to {classes - 1}, got {sorted(hidden)}")
    if max(len(hidden), 1) >= classes:
        raise ValueError(
            f"all {classes} classes would be masked and nothing is left to distil: "
            "forget fewer classes, or none of them as a whole"
        )
    mask = torch.zeros_like(teacher_logits, dtype=torch.bool)
    mask[:, sorted(hidden)] = True
    mask.scatter_(1, labels[:, None], True)
    if len(hidden) == classes - 1 and mask.all(dim=1).any():  # a look that a GPU is asked for in this case alone
        raise ValueError(
            f"a row has the only class, of {classes}, that is not in forget_classes {sorted(hidden)}, so nothing is "
            "left to distil: forget_classes must hold the label of every forget image"
        )
    return full_precision(teacher_logits).detach().masked_fill(mask, -math.inf)


def hide(teacher_logits: Tensor, classes: Sequence[int]) -> Tensor:
    """A teacher's logits (n, classes) with −∞ at some classes of every row, detached, in float32 or in float64.

    Args:
        teacher_logits: (n, classes).
        classes: label ids; not all of them.

    Raises:
        ValueError: no class is left.
    """
    hidden = full_precision(teacher_logits).detach().clone()
    hidden[:, sorted(set(classes))] = -math.inf
    if torch.isneginf(hidden).all(dim=1).any():
        raise ValueError("all classes would be hidden from the teacher, and nothing is left to distil")
    return hidden


def delete_kl(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, forget_classes: Sequence[int] | None = None
) -> Tensor:
    """Distillation from a teacher that has been made blind to what must be forgotten.

        loss = mean_i KL( q_i ‖ softmax(logits_i) ),   q_i = softmax of teacher_logits_i with −∞ at the masked classes

    As published only the sample's own label is masked, so its probability may flow to other forgotten classes.
    `forget_classes` masks these too, which is right where whole classes go.

    Source: DELETE, CVPR 2025; the mean over samples is its `batchmean`.

    Args:
        logits: (n, classes) of the model being unlearned, on the forget batch.
        teacher_logits: (n, classes) of the original model; no gradient flows into them.
        labels: (n,) int64.
        forget_classes: label ids to mask in every row beside its own label.

    Returns:
        Scalar, in float32 or in float64.

    Raises:
        ValueError: the mask leaves no class to distil, or names one that the logits do not have.
    """
    return distillation(logits, hide_classes(teacher_logits, labels, forget_classes))
