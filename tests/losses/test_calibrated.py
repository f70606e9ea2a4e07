"""The calibrated contrast against its formula."""

from __future__ import annotations

import math

import pytest
import torch

from ec_hf.losses.calibrated import guided


def batch(width: int = 5, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    forget, retain = (torch.randn(n, width, generator=draw, dtype=torch.float64) for n in (4, 6))
    targets = torch.rand(4, 3, generator=draw, dtype=torch.float64).softmax(dim=1)
    return forget, retain, torch.tensor([7, 7, 8, 9]), torch.tensor([0, 1, 2, 2, 1, 0]), targets


@pytest.mark.parametrize("repulsion", [0.0, 0.5, 1.0])
def test_it_is_the_formula_written_out(repulsion):
    forget, retain, forget_labels, retain_labels, targets = batch()
    unit = torch.nn.functional.normalize
    total = 0.0
    for i in range(4):
        scores = [math.exp(float(unit(forget, dim=1)[i] @ row) / 0.5) for row in unit(retain, dim=1)]
        others = [j for j in range(4) if j != i and forget_labels[j] == forget_labels[i]]
        normaliser = sum(scores) + repulsion * sum(
            math.exp(float(unit(forget, dim=1)[i] @ unit(forget, dim=1)[j]) / 0.5) for j in others
        )
        weights = [float(targets[i, label]) for label in retain_labels]
        total -= sum(w / sum(weights) * math.log(s / normaliser) for w, s in zip(weights, scores, strict=True))
    assert guided(*batch(), temperature=0.5, repulsion=repulsion).item() == pytest.approx(total / 4)


def test_slices_of_the_anchors_have_the_mean_of_the_whole():
    whole = guided(*batch(), temperature=0.1, repulsion=0.5)
    halves = [guided(*batch(), temperature=0.1, repulsion=0.5, anchors=slice(i, i + 2)) for i in (0, 2)]
    assert torch.stack(halves).mean() == pytest.approx(whole)


def test_the_pull_goes_to_the_likely_class_alone():
    forget, retain, forget_labels, retain_labels, _ = batch()
    forget = forget.requires_grad_()
    targets = torch.eye(3, dtype=torch.float64)[[1, 1, 1, 1]]
    start = guided(forget.detach(), retain, forget_labels, retain_labels, targets, temperature=0.5, repulsion=0.5)
    optimizer = torch.optim.SGD([forget], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss = guided(forget, retain, forget_labels, retain_labels, targets, temperature=0.5, repulsion=0.5)
        loss.backward()
        optimizer.step()
    similar = torch.nn.functional.normalize(forget, dim=1) @ torch.nn.functional.normalize(retain, dim=1).T
    assert loss < start
    assert (similar[:, retain_labels == 1].mean(dim=1) > similar[:, retain_labels != 1].mean(dim=1)).all()


@pytest.mark.parametrize("present", [True, False])
def test_a_class_that_is_not_in_the_batch_leaves_a_finite_loss(present):
    forget, retain, forget_labels, retain_labels, targets = batch()
    targets = torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 4) if not present else torch.cat([targets, targets[:, :1]], dim=1)
    loss = guided(
        forget.requires_grad_(), retain, forget_labels, retain_labels, targets, temperature=0.1, repulsion=0.5
    )
    loss.backward()
    assert loss > 0 if present else loss == 0
    assert torch.isfinite(forget.grad).all()


def test_bad_input_is_refused():
    forget, retain, forget_labels, retain_labels, targets = batch()
    with pytest.raises(ValueError, match="targets have 3 rows for 4"):
        guided(forget, retain, forget_labels, retain_labels, targets[:3], temperature=0.1, repulsion=0.5)
    with pytest.raises(ValueError, match="temperature must be a positive"):
        guided(*batch(), temperature=0.0, repulsion=0.5)
    with pytest.raises(ValueError, match="repulsion must be 0 or more, got -1"):
        guided(*batch(), temperature=0.1, repulsion=-1)
