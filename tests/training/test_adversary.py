"""The adversaries that train beside calibrated erasure."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ec_hf.losses.distillation import distillation
from ec_hf.training.adversary import Adversary


def blobs(rows: int = 60, channels: int = 12):
    """Features of three classes, a blob each; the first is to be forgotten and lies nearest to the second."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(3, channels, generator=draw)
    centres[0] = centres[1] + 0.5 * torch.randn(channels, generator=draw)
    labels = torch.arange(3).repeat_interleave(rows)
    return centres[labels] + 0.2 * torch.randn(3 * rows, channels, generator=draw), labels


def readable(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the forget images that a probe fitted afterwards tells from the others."""
    rows = torch.nn.functional.layer_norm(features, features.shape[1:]).detach().numpy()
    fitted = LogisticRegression(max_iter=2000).fit(rows[::2], labels[::2])
    return float((fitted.predict(rows[1::2]) == labels[1::2].numpy())[labels[1::2].numpy() == 0].mean())


def test_it_learns_the_true_labels_and_leaves_the_features_alone():
    features, labels = blobs()
    probe = Adversary(12, 3)
    assert torch.equal(probe(features), torch.zeros(180, 3))
    features.requires_grad_()
    for _ in range(20):
        probe.fit(features, labels)
    assert features.grad is None
    assert (probe(features).argmax(1) == labels).float().mean() > 0.95


def test_its_logits_move_the_features_and_not_the_probe():
    features, labels = blobs()
    probe = Adversary(12, 3)
    probe.fit(features, labels)
    before = probe.weight.clone()
    probe.zero_grad(set_to_none=True)
    features.requires_grad_()
    probe(features).sum().backward()
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert probe.weight.grad is None and torch.equal(probe.weight, before)


def test_what_it_no_longer_reads_a_probe_fitted_afterwards_does_not_read_either():
    features, labels = blobs()
    forget = torch.nn.Parameter(features[:60].clone())
    teacher = torch.tensor([[-torch.inf, 4.0, 0.0]]).expand(60, 3)  # without the first class, the second
    probe, optimizer = Adversary(12, 3), torch.optim.SGD([forget], 0.3)
    assert readable(features, labels) > 0.9
    for _ in range(400):
        everything = torch.cat([forget, features[60:]])
        probe.fit(everything, labels)
        optimizer.zero_grad()
        distillation(probe(forget), teacher).backward()
        optimizer.step()
    assert readable(torch.cat([forget, features[60:]]), labels) < 0.7


def test_it_goes_on_from_its_state_to_the_bit():
    features, labels = blobs()
    whole, resumed = Adversary(12, 3), Adversary(12, 3)
    whole.fit(features, labels)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for each in (whole, resumed):
        each.fit(features, labels)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_features_of_any_precision_are_read_in_its_own(dtype):
    features, labels = blobs()
    probe = Adversary(12, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        probe.fit(features.to(dtype), labels)
        assert probe(features.to(dtype)).dtype == torch.float32
    outside = Adversary(12, 3)
    outside.fit(features.to(dtype).float(), labels)
    assert torch.equal(probe.weight, outside.weight)
