"""Label-Agnostic Forgetting against its published formula, written anew here."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ec_hf.objectives import Part, Progress, Setting, Step, get_objective
from ec_hf.objectives import laf as laf_file
from ec_hf.objectives.laf import Autoencoder, alignment, bounded_error, fitted, with_unit_gradient


class Tiny(nn.Module):
    """Images of one pixel and eight channels; the classifier reads a sigmoid of a linear layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)
        self.config = SimpleNamespace(num_labels=3, num_channels=8, image_size=1)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.eval()

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.last(self.features(pixel_values)))

    def features(self, pixel_values):
        return self.first(pixel_values.flatten(1)).sigmoid()


def images(rows, seed):
    return torch.randn(rows, 8, 1, 1, generator=torch.Generator().manual_seed(seed))


def setting_of(model, seed=0):
    def batches(pixels):
        return lambda every=1: [{"pixel_values": each} for each in pixels[::every].split(16)]

    return Setting(model, batches(images(20, 1) + 1), batches(images(50, 2)), model.features, (2,), seed)


def part(model, pixels):
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    features = model.features(pixels)
    return Part(model.last(features), features, labels, pixels)


def step_of(model, **changes):
    return Step(part(model, images(5, 3) + 1), part(model, images(7, 4)), **changes)


@pytest.fixture(scope="module")
def prepared():
    original = Tiny()
    objective = get_objective("laf", fit_epochs=3)
    objective.prepare(setting_of(original))
    return objective, copy.deepcopy(original)


def decoded(network, features, noise):
    """The published network, layer by layer."""
    hidden = F.relu(network.encoder[2](F.relu(network.encoder[0](features))))
    code = network.mean(hidden) + torch.exp(0.5 * network.log_variance(hidden)) * noise
    return torch.sigmoid(network.decoder[4](F.relu(network.decoder[2](F.relu(network.decoder[0](code))))))


def noise_of(seed, *shapes):
    """What a step draws with a random state of that seed: a generator of its own for each set."""
    torch.manual_seed(seed)
    seeds = [int(torch.randint(2**62, ())) for _ in shapes]
    return [
        torch.randn(*shape, generator=torch.Generator().manual_seed(s)) for s, shape in zip(seeds, shapes, strict=True)
    ]


def published(objective, model, original, step, seed):
    """Extractor loss and alignment as the authors' code has them, sums over the batch, over the number of rows."""
    r, u = step.retain.features, step.forget.features
    noise_r, noise_u = noise_of(seed, (len(r), 16), (len(u), 16))

    def nmse(network, e, noise):
        mse = F.mse_loss(decoded(network, e, noise), e, reduction="none").sum(dim=1)
        return torch.sum(torch.exp(mse / (mse + 1)))

    extractor = nmse(objective._of_all, r, noise_r) / len(r) - nmse(objective._of_forget, u, noise_u) / len(u)
    r0, u0 = original.features(step.retain.pixel_values), original.features(step.forget.pixel_values)
    cos_r = F.cosine_embedding_loss(r, r0, torch.ones(len(r)), reduction="none")
    cos_u = F.cosine_embedding_loss(u, u0, torch.ones(len(u)), reduction="none")
    aligned = torch.sum(torch.log(torch.exp(cos_r) / torch.sum(torch.exp(cos_u / 20)))) / len(r)
    return extractor, aligned


def test_both_losses_are_those_of_the_published_code(prepared):
    objective, original = prepared
    model = Tiny(seed=1)
    now = step_of(model)
    extractor, aligned = published(objective, model, original, now, seed=5)
    torch.manual_seed(5)
    losses = objective(now)
    assert losses["extractor"].item() == pytest.approx(0.2 * extractor.item(), abs=1e-6)
    assert losses["alignment"].item() == pytest.approx(aligned.item(), abs=1e-6)
    features = now.forget.features, now.retain.features
    for name, loss, weight in (("extractor", extractor, 0.2), ("alignment", aligned, 1.0)):
        expected = torch.autograd.grad(loss, features, retain_graph=True)
        size = torch.cat([each.flatten() for each in expected]).norm()
        found = torch.autograd.grad(losses[name], features, retain_graph=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, weight * theirs / size, rtol=1e-4, atol=1e-6)


def test_golden_values_of_fixed_features():
    network = Autoencoder(4, 2).double()
    with torch.no_grad():
        for number, weight in enumerate(network.parameters()):
            weight.copy_(torch.sin(torch.arange(weight.numel(), dtype=torch.float64) + number).view(weight.shape) / 8)
    features = torch.sin(torch.arange(12, dtype=torch.float64)).view(3, 4)
    code, divergence = network(features, torch.zeros(3, 2, dtype=torch.float64))
    error = (code - features).square().sum(dim=1)
    by_hand = (decoded(network, features, torch.zeros(3, 2)) - features).square().sum(dim=1)
    torch.testing.assert_close(error, by_hand)
    hidden = network.encoder(features)
    mu, sigma = network.mean(hidden), torch.exp(0.5 * network.log_variance(hidden))
    kld = -0.5 * torch.sum(torch.log(sigma.pow(2) + 1e-8) + 1 - mu.pow(2) - sigma.pow(2))
    assert divergence.sum().item() == pytest.approx(kld.item(), abs=1e-6)
    before = torch.cos(torch.arange(12, dtype=torch.float64)).view(3, 4)
    a, b = features.numpy(), before.numpy()
    distance = 1 - (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    by_hand = distance[:2].mean() - np.log(np.exp(distance / 20).sum())
    assert alignment(features, features[:2], before, before[:2], 20.0).item() == pytest.approx(by_hand, abs=1e-12)
    assert by_hand == pytest.approx(-0.2421500887, abs=1e-9)


def test_the_losses_of_several_processes_are_those_of_one_that_holds_the_whole_batch(monkeypatch):
    forget, retain = images(4, 1).flatten(1).requires_grad_(), images(4, 2).flatten(1).requires_grad_()
    before = images(4, 3).flatten(1), images(4, 4).flatten(1)
    whole = alignment(forget, retain, *before, 20.0)
    expected = torch.autograd.grad(with_unit_gradient(whole, forget, retain), (forget, retain), retain_graph=True)
    assert torch.cat(expected).norm().item() == pytest.approx(1.0, abs=1e-5)

    # Each process has two rows of each set; the gathers give it those of both.
    monkeypatch.setattr(laf_file, "gather_with_grad", lambda _rows: 1 - F.cosine_similarity(forget, before[0]))
    halves = [slice(0, 2), slice(2, 4)]
    losses = [alignment(forget[own], retain[own], before[0][own], before[1][own], 20.0) for own in halves]
    mean = torch.stack(losses).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=1e-6)
    summed = torch.autograd.grad(sum(losses), (forget, retain), retain_graph=True)  # as DDP and the gather bring it
    squares = torch.stack([torch.cat([each[own] for each in summed]).square().sum() for own in halves])
    monkeypatch.setattr(laf_file, "gather", lambda _own: squares)
    shares = [with_unit_gradient(each, forget, retain) for each in losses]
    for found, want in zip(torch.autograd.grad(sum(shares) / 2, (forget, retain)), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


def test_no_label_is_read_before_the_repair(prepared):
    objective, _ = prepared
    model, found = Tiny(seed=1), []
    for labels in (0, 2):
        now = step_of(model)
        for half in (now.forget, now.retain):
            half.labels.fill_(labels)
        torch.manual_seed(0)
        found.append([loss.item() for loss in objective(now).values()])
    assert found[0] == found[1]


def test_forget_features_leave_their_distribution_and_retain_features_keep_theirs(prepared):
    objective, original = prepared
    model = copy.deepcopy(original)
    now = step_of(model)
    optimizer = torch.optim.Adam(model.first.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(objective(step_of(model)).values())).sum().backward()
        optimizer.step()
    after = step_of(model)

    def kept(half):
        return F.cosine_similarity(getattr(after, half).features, getattr(now, half).features).mean()

    assert kept("forget") < kept("retain") - 0.01
    torch.manual_seed(0)
    before, left = (bounded_error(objective._of_forget, each.forget.features).mean() for each in (now, after))
    assert left > before


def test_a_step_from_the_original_itself_is_finite_and_reaches_every_weight(prepared):
    objective, original = prepared
    model = copy.deepcopy(original)
    torch.stack(list(objective(step_of(model)).values())).sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    assert not model.last.weight.grad.any(), "the classifier is told of, and stays"


def test_the_end_of_the_run_repairs_by_the_cross_entropy_on_retain_and_only_where_it_is_asked_to(prepared):
    repaired = copy.copy(prepared[0])
    repaired.repair = 0.25
    names = []
    for index in range(8):
        losses = repaired(now := step_of(Tiny(seed=1), progress=Progress(index=index, total=8)))
        names.append([*losses])
    assert names == [["extractor", "alignment"]] * 6 + [["retain_ce"]] * 2
    expected = F.cross_entropy(now.retain.logits, now.retain.labels)
    assert losses["retain_ce"].item() == pytest.approx(expected.item())
    last = prepared[0](step_of(Tiny(seed=1), progress=Progress(index=7, total=8)))
    assert [*last] == ["extractor", "alignment"]


def test_autoencoders_come_from_the_seed_and_leave_random_state_and_model_alone():
    model = Tiny()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        objective = get_objective("laf", fit_epochs=1)
        objective.prepare(setting_of(model, seed))
        found.append(torch.cat([each.flatten() for each in objective._of_all.parameters()]))
        assert not any(each.requires_grad for each in objective._of_all.parameters())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fitted_autoencoder_knows_the_features_that_it_was_fitted_to():
    torch.manual_seed(0)
    known, other = (torch.sigmoid(torch.randn(300, 2) @ torch.randn(2, 6) * 2) for _ in range(2))
    network = fitted(known, latent=4, epochs=30, kl_weight=0.025)
    assert bounded_error(network, known).mean() < bounded_error(network, other).mean()


def test_a_model_without_a_linear_classifier_is_refused():
    model = Tiny()
    model.forward = lambda pixel_values: SimpleNamespace(logits=model.last(model.features(pixel_values)).tanh())
    with pytest.raises(ValueError, match="no linear layer gives the model's logits"):
        get_objective("laf", fit_epochs=1).prepare(setting_of(model))
