"""The losses of unlearning, as pure functions of tensors.

Contrast = similarity × which pairs × normaliser. For an anchor i of the forget batch, with N(i) the rows it is pulled
towards, Z(i) the sum in its normaliser and s_ia the similarity over the temperature τ,

    loss_i = (1 / |N(i)|) · Σ_{a ∈ N(i)} −log [ exp(s_ia) / Z(i) ]        s_ia = ⟨z_i, z_a⟩ / τ

and the three published or measured forms (`CONTRASTS`) differ only in N and Z:

    form     pulled towards N(i)             normaliser Z(i)
    csul     other-class retain rows         Σ over same-class retain rows
    supcon   other-class retain rows         Σ over N(i) and the same-class rows of retain and of the forget batch
    uuef     other-class rows of the forget  Σ over all rows of the forget batch, i included
             batch

Half-precision inputs are computed in float32, also under autocast; float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ec_hf.distributed import gather, gather_with_grad, rank_offset
from ec_hf.losses.precision import full_precision

__all__ = [
    "CONTRASTS",
    "Contrast",
    "check_contrast",
    "check_temperature",
    "csul",
    "global_contrast",
    "global_rows",
    "similarity",
    "supcon",
    "uuef",
]


LEAST_LENGTH = 1e-12
"""Rows that are no longer than this count as zeros."""


class Contrast(NamedTuple):
    """A contrastive loss and how many of its anchors had to do without a same-class partner.

    Attributes:
        loss: scalar.
        fallbacks: integer scalar, the anchors whose normaliser was the class-mode constant |N(i)|.
    """

    loss: Tensor
    fallbacks: Tensor


def similarity(rows: Tensor, columns: Tensor, normalize: bool = True) -> Tensor:
    """Inner products (n, m) of features (n, width) and (m, width), of their directions unless `normalize` is off.

    In float32 or in float64, also under autocast. A row of zeros has no direction: it stays as it is, and so its
    gradient is that of an inner product and not that of a division by almost nothing.

    Args:
        rows: (n, width) features.
        columns: (m, width) features.
        normalize: whether each is divided by its length first, which gives cosines.
    """
    with torch.autocast(rows.device.type, enabled=False):
        rows, columns = full_precision(rows), full_precision(columns)
        if normalize:
            rows, columns = _directions(rows), _directions(columns)
        return rows @ columns.T


def _directions(rows: Tensor) -> Tensor:
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(lengths > LEAST_LENGTH, lengths, 1.0)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature of a contrast that is none.

    Args:
        temperature: τ.

    Raises:
        ValueError: it is not a positive number.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, got {temperature}; usual values are 0.1 to 1.0")


def _features(forget: Tensor, retain: Tensor, forget_labels: Tensor, retain_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The features of both sets in full precision, once their shapes are checked."""
    for name, features, labels in (("forget", forget, forget_labels), ("retain", retain, retain_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"{name} features must have shape (rows, width) and {name} labels (rows,), with at least one row; got "
                f"{tuple(features.shape)} and {tuple(labels.shape)}: pool features to one vector an image first"
            )
    if forget.shape[1] != retain.shape[1]:
        raise ValueError(
            f"forget and retain features must have one width, got {forget.shape[1]} and {retain.shape[1]}: "
            "take both from the same supervision point"
        )
    return full_precision(forget), full_precision(retain)


def _contrast(
    forget: Tensor,
    columns: Tensor,
    pull: Tensor,
    total: Tensor,
    *,
    temperature: float,
    normalize: bool,
    anchors: slice | None,
) -> Contrast:
    """The formula at the top of this file.

    Args:
        forget: (n, width) features of the forget batch.
        columns: (m, width) features that the anchors are compared with.
        pull: (n, m) booleans, the pairs of N(i).
        total: (n, m) booleans, the pairs summed in Z(i). A row with none outside N(i) takes the constant |N(i)|.
        temperature: τ.
        normalize: compare directions only.
        anchors: the rows of `forget` to compute, None for all.
    """
    check_temperature(temperature)
    rows = slice(None) if anchors is None else anchors
    counted = pull.any(dim=1)
    if not len(counted[rows]):
        raise ValueError(f"anchors must select at least one of the {len(forget)} forget rows, got {anchors}")
    scores = similarity(forget[rows], columns, normalize) / temperature
    # The count is that of the whole batch, so that the mean over equal slices is the loss of the whole.
    share = len(forget) / len(scores) / counted.sum(dtype=scores.dtype).clamp(min=1)
    counted, pull, total = counted[rows], pull[rows], total[rows]

    pulled = pull.sum(dim=1, dtype=scores.dtype).clamp(min=1)
    alone = ~(total & ~pull).any(dim=1)
    # An empty sum is −inf and its gradient NaN, which no later mask removes: rows alone sum everything, unused.
    log_sum = scores.masked_fill(~(total | alone[:, None]), -math.inf).logsumexp(dim=1)
    terms = torch.where(alone, pulled.log(), log_sum) - scores.masked_fill(~pull, 0).sum(dim=1) / pulled
    return Contrast(torch.where(counted, terms, 0).sum() * share, alone.sum())


def csul(
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    *,
    temperature: float,
    normalize: bool = True,
    anchors: slice | None = None,
) -> Contrast:
    """Contrastive unlearning as published: towards other classes of retain, away from the own class in retain.

        loss_i = −(1 / |N(i)|) · Σ_{a ∈ N(i)} log [ exp(s_ia) / Σ_{p ∈ P(i)} exp(s_ip) ]

    N(i) are the retain rows of other classes, P(i) those of the anchor's class. The quotient is no probability: with
    normalised features loss_i lies within log|P(i)| ± 2/τ, with raw ones it has no lower bound. An anchor whose P(i)
    is empty takes the published constant of single-class unlearning, |N(i)|, as its denominator. An anchor whose N(i)
    is empty contributes nothing and is left out of the mean; if all are, the loss is a zero that still has a graph.

    This is the paper's equation. The authors' code weights log Σ_p with m / |N(i)| instead of 1, m the rows of retain:
    the push from the own class is then stronger, the more of the batch has that class. Of whole classes no retain row
    has the class, so the two have the same gradient there.

    Source: Lee et al., "Contrastive Unlearning", arXiv 2401.10458 (τ 0.7 in the authors' code).

    Args:
        forget: (n, width) features of the forget batch.
        retain: (m, width) features of the retain batch.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
        temperature: τ > 0.
        normalize: scale each feature to length 1 first.
        anchors: the rows of `forget` to compute the loss of, all by default. The mean of the losses over slices of
            equal size that tile the batch is the loss of the batch, which is what processes that share one need.

    Returns:
        The mean loss and the number of anchors with an empty P(i).

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive, or `anchors` that select no row.
    """
    forget, retain = _features(forget, retain, forget_labels, retain_labels)
    same = forget_labels[:, None] == retain_labels
    return _contrast(forget, retain, ~same, same, temperature=temperature, normalize=normalize, anchors=anchors)


def supcon(
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    *,
    temperature: float,
    normalize: bool = True,
    anchors: slice | None = None,
) -> Contrast:
    """Contrastive unlearning with a normaliser over both sets: the pulls of `csul`, bounded below.

        loss_i = −(1 / |N(i)|) · Σ_{a ∈ N(i)} log [ exp(s_ia) / Σ_{b ∈ N(i) ∪ P(i)} exp(s_ib) ]

    N(i) are the retain rows of other classes; P(i) are the other rows of the anchor's class in retain and in the
    forget batch. Every term is a log-probability, so loss_i ≥ log|N(i)| ≥ 0 where P(i) is not empty. An anchor whose
    P(i) is empty takes the constant |N(i)| as in `csul` (the pull towards the other classes' mean; it lies within
    log|N(i)| ± 1/τ for normalised features), and one whose N(i) is empty is left out as there.

    Source: the pairs of arXiv 2401.10458 with the softmax of supervised contrastive learning, arXiv 2004.11362.

    Args:
        forget: (n, width) features of the forget batch.
        retain: (m, width) features of the retain batch.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
        temperature: τ > 0.
        normalize: scale each feature to length 1 first.
        anchors: the rows of `forget` to compute the loss of, as in `csul`.

    Returns:
        The mean loss and the number of anchors with an empty P(i).

    Raises:
        ValueError: as `csul`.
    """
    forget, retain = _features(forget, retain, forget_labels, retain_labels)
    same = forget_labels[:, None] == retain_labels
    partner = (forget_labels[:, None] == forget_labels).fill_diagonal_(False)
    return _contrast(
        forget,
        torch.cat([retain, forget]),
        torch.cat([~same, torch.zeros_like(partner)], dim=1),
        torch.cat([torch.ones_like(same), partner], dim=1),
        temperature=temperature,
        normalize=normalize,
        anchors=anchors,
    )


def uuef(
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    *,
    temperature: float,
    normalize: bool = True,
    anchors: slice | None = None,
) -> Contrast:
    """The contrast of UUEF's code: forget rows are pulled towards forget rows of other classes.

        loss_i = −(1 / |N(i)|) · Σ_{a ∈ N(i)} log [ exp(s_ia) / Σ_{b ∈ forget} exp(s_ib) ]

    N(i) are the rows of the forget batch of other classes; the sum runs over the whole forget batch, i included. The
    retain rows play no part. With one class in the batch there is no pair, and loss and gradient are exactly 0;
    `check_contrast` refuses a forget *set* of one class.

    Source: the released code of "Are We Truly Forgetting?", arXiv 2503.06991, `unlearn/CU.py` (τ 1.0).

    Args:
        forget: (n, width) features of the forget batch.
        retain: (m, width), not used: one call serves all forms.
        forget_labels: (n,) integer labels.
        retain_labels: (m,), not used.
        temperature: τ > 0.
        normalize: scale each feature to length 1 first.
        anchors: the rows of `forget` to compute the loss of, as in `csul`.

    Returns:
        The mean loss and 0 fallbacks.

    Raises:
        ValueError: as `csul`.
    """
    forget, retain = _features(forget, retain, forget_labels, retain_labels)
    other = forget_labels[:, None] != forget_labels
    return _contrast(
        forget,
        forget,
        other,
        torch.ones_like(other),
        temperature=temperature,
        normalize=normalize,
        anchors=anchors,
    )


CONTRASTS: dict[str, Callable[..., Contrast]] = {"csul": csul, "supcon": supcon, "uuef": uuef}
"""The contrastive forms by name, all with one signature."""


def check_contrast(form: str, forget_classes: int | None = None, temperature: float | None = None) -> None:
    """Refuse, before anything is trained, a contrast that cannot work.

    Args:
        form: a name of `CONTRASTS`.
        forget_classes: number of classes in the whole forget set, where it is known.
        temperature: τ, where it is to be checked as well.

    Raises:
        ValueError: unknown name, `uuef` with a forget set of one class, or a temperature that is not positive.
    """
    if form not in CONTRASTS:
        raise ValueError(f"unknown contrast {form!r}: choose one of {', '.join(CONTRASTS)}")
    if form == "uuef" and forget_classes is not None and forget_classes < 2:
        raise ValueError(
            "contrast 'uuef' pulls forget classes towards each other and is identically zero for a forget set of "
            f"{forget_classes} class: use 'supcon' or 'csul', or forget two classes or more"
        )
    if temperature is not None:
        check_temperature(temperature)


def global_contrast(
    form: str,
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    temperature: float,
) -> Contrast:
    """A contrast of this process's anchors with the rows of all processes.

    The mean of the loss over processes, and the gradients that DistributedDataParallel averages, are those of one
    process that holds the whole batch; the sum of `fallbacks` over processes is that of the whole batch.

    Args:
        form: a name of `CONTRASTS`.
        forget: (n, width) features of this process; n is the same in every process.
        retain: (m, width) features of this process; m is the same in every process.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
        temperature: τ > 0.

    Raises:
        ValueError: unknown form, or as that form.
    """
    check_contrast(form, temperature=temperature)
    forget, retain = _features(forget, retain, forget_labels, retain_labels)
    rows, anchors = global_rows(forget, retain, forget_labels, retain_labels)
    return CONTRASTS[form](*rows, temperature=temperature, anchors=anchors)


def global_rows(
    forget: Tensor, retain: Tensor, forget_labels: Tensor, retain_labels: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], slice]:
    """The same four of all processes, features with gradient, and which of the forget rows are this process's.

    Args:
        forget: (n, width) features of this process, as the others.
        retain: (m, width) features.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
    """
    start = rank_offset(len(forget))
    rows = gather_with_grad(forget), gather_with_grad(retain), gather(forget_labels), gather(retain_labels)
    return rows, slice(start, start + len(forget))
