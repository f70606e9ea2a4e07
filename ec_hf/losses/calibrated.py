"""Calibrated erasure: the aim is a model that never saw the forget set, and no more forgetting than that.

A contrast that pulls forget images towards *all* other classes, as EC's does, also wipes out what a retrained model
would still see in them: it never learnt to tell a shirt from a coat, but it knows that a shirt is no boot. The
original can say which that is. With the forgotten classes hidden from its output, what is left of its belief is an
estimate of how a retrained model would take the image, and here each forget image is pulled towards the retain images
of those classes, in proportion to it. No retrained model is needed.

    loss_i = −Σ_{a ∈ retain} w_ia · log [ exp(s_ia) / (Σ_{b ∈ retain} exp(s_ib) + β · Σ_{p ∈ P(i)} exp(s_ip)) ]
    w_ia ∝ q_i(y_a),  Σ_a w_ia = 1

s_ia are cosine similarities over τ, q_i is the original's softmax on the forget image i without the forgotten classes,
and P(i) are the other rows of i's class in the forget batch, which it is pushed away from as far as β says. The pull
ends where the forget image lies among the retain images of its likeliest classes. What a linear probe could still
tell it by is the part of `ec_hf.training.adversary`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ec_hf.distributed import gather
from ec_hf.losses.contrast import check_temperature, global_rows, similarity

__all__ = ["global_guided", "guided"]


def guided(
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    repulsion: float,
    anchors: slice | None = None,
) -> Tensor:
    """The contrast at the top of this file.

    An anchor whose likely classes have no row in the retain batch takes the classes that are there, in the proportion
    of their probabilities; one to which all of those are impossible contributes nothing.

    Args:
        forget: (n, width) features of the forget batch.
        retain: (m, width) features of the retain batch.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
        targets: (n, classes) probabilities without the forgotten classes, no gradient.
        temperature: τ > 0.
        repulsion: β ≥ 0; at 1 the forget rows of i's class count like any other row.
        anchors: the rows of `forget` to compute the loss of, all by default; the mean over slices of equal size that
            tile the batch is the loss of the batch.

    Returns:
        Scalar mean over the anchors, 0 or more, in float32 or in float64.

    Raises:
        ValueError: targets of another number of rows, a temperature that is not positive, or a negative repulsion.
    """
    if len(targets) != len(forget):
        raise ValueError(f"targets have {len(targets)} rows for {len(forget)} forget images: give one a forget image")
    check_temperature(temperature)
    if not repulsion >= 0:
        raise ValueError(f"repulsion must be 0 or more, got {repulsion}; usual values are 0 to 1")
    rows = slice(None) if anchors is None else anchors
    scores = similarity(forget[rows], torch.cat([retain, forget])) / temperature
    partner = (forget_labels[:, None] == forget_labels).fill_diagonal_(False)[rows]
    counted = torch.cat([scores.new_ones(len(scores), len(retain)), repulsion * partner.to(scores.dtype)], dim=1)
    log_shares = scores - (scores + counted.log()).logsumexp(dim=1, keepdim=True)
    pull = targets[rows].to(scores.dtype)[:, retain_labels]
    pull = pull / pull.sum(dim=1, keepdim=True).clamp(min=torch.finfo(pull.dtype).tiny)
    return -(pull * log_shares[:, : len(retain)]).sum(dim=1).mean()


def global_guided(
    forget: Tensor,
    retain: Tensor,
    forget_labels: Tensor,
    retain_labels: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    repulsion: float,
) -> Tensor:
    """`guided` of this process's anchors with the rows of all processes, as `global_contrast`.

    Args:
        forget: (n, width) features of this process's forget batch, as the others.
        retain: (m, width) features of its retain batch.
        forget_labels: (n,) integer labels.
        retain_labels: (m,) integer labels.
        targets: (n, classes) probabilities without the forgotten classes, no gradient.
        temperature: τ > 0.
        repulsion: β ≥ 0, as in `guided`.

    Raises:
        ValueError: as `guided`.
    """
    rows, anchors = global_rows(forget, retain, forget_labels, retain_labels)
    return guided(*rows, gather(targets), temperature=temperature, repulsion=repulsion, anchors=anchors)
