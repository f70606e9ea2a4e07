"""Label-Agnostic Forgetting as a host objective."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ec_hf.distributed import gather, gather_with_grad, rank_generator
from ec_hf.losses.distillation import cross_entropy
from ec_hf.losses.precision import full_precision
from ec_hf.models.penultimate import Penultimate, classifier_of
from ec_hf.objectives.base import Objective, Setting, Step
from ec_hf.objectives.checks import not_negative, positive, prepared, share, whole
from ec_hf.objectives.published import adam

__all__ = ["Autoencoder", "Laf", "alignment", "bounded_error", "fitted", "with_unit_gradient"]

WIDTHS = 128, 32
LEARNING_RATE, ROWS = 1e-3, 32
"""With which autoencoders are fitted, as published."""
STILL = 1e-6
"""A gradient below this is that of a loss at rest, as the alignment is at the first step."""


@dataclass
class Laf(Objective):
    """Forget features leave their own distribution, retain features stay as they were, and no label is read.

        loss = w · E + A,   each with its gradient in the features brought to size 1
        E = mean_j h(r_j; V_D) − mean_i h(f_i; V_F),   h(e; V) = exp(s / (s + 1)),   s = ‖V(e) − e‖²
        A = mean_j d(r_j, r⁰_j) − log Σ_i exp(d(f_i, f⁰_i) / τ),   d the cosine distance

    f and r are what the classifier reads of forget and retain images, f⁰ and r⁰ the same in the original model. V_D
    and V_F are variational autoencoders of these original features, V_D of all images and V_F of the forget set. They
    are fitted once before training, by s + β · KL(q(z | e) ‖ N(0, 1)), and draw a z at every step.

    The published code has an Adam optimiser for the extractor loss E, learning rate 1e-5, and one for the alignment A,
    learning rate 5e-5, which step in turn. Adam does not see how large a loss is, so the two rates alone weigh them.
    Here one optimiser takes one step for both: the losses are brought to gradients of one size, w is the ratio of the
    rates, and the learning rate is their sum. Published losses are sums over the batch and not means, which Adam does
    not see either.

    Published settings (CIFAR-10, one class; ResNet-18 with a layer of 256 in front of the classifier): z of 16, β
    0.025, τ 20, autoencoders fitted in 10 passes, then 40 passes over the forget set in batches of 32. Random images:
    second rate 4e-5. MNIST and Fashion-MNIST: z of 8, rates 5e-5 and 1e-4, 20 passes, τ 5 for random images. "LAF+R"
    repairs the classifier with labels of retain images afterwards, by a schedule that is not public.

    Args:
        temperature: τ > 0.
        extractor_weight: w ≥ 0.
        latent: dimensions of z, at least 1.
        fit_epochs: passes in which an autoencoder is fitted, at least 1.
        kl_weight: β ≥ 0.
        repair: share of the run, at its end, in which the cross-entropy on retain is the loss.
        every: k, the autoencoders are fitted to each k-th image of a set, in the order of its rows.

    Raises:
        ValueError: a setting out of range.
    """

    temperature: float = 20.0
    extractor_weight: float = 0.2
    latent: int = 16
    fit_epochs: int = 10
    kl_weight: float = 0.025
    repair: float = 0.0
    every: int = 1
    _of_all: Any = field(default=None, init=False, repr=False, compare=False)
    _of_forget: Any = field(default=None, init=False, repr=False, compare=False)
    _original: Any = field(default=None, init=False, repr=False, compare=False)

    name = "laf"
    covers_last_point = True
    source = "Label-Agnostic Forgetting (LAF), ICLR 2024, arXiv 2404.00506"
    conflict = "the last point: EC leaves it to this objective, so that it is not pulled twice"
    published: ClassVar = adam(
        6e-5,
        forget_epochs=40,
        per_device_train_batch_size=32,
        objective_kwargs={
            "temperature": 20.0,
            "extractor_weight": 0.2,
            "latent": 16,
            "fit_epochs": 10,
            "kl_weight": 0.025,
            "repair": 0.0,
            "every": 1,
        },
    )

    def __post_init__(self) -> None:
        positive(self, "temperature")
        not_negative(self, "extractor_weight", "kl_weight")
        whole(self, "latent", "fit_epochs", "every")
        share(self, "repair")

    def prepare(self, setting: Setting) -> None:
        """Keep the original model, and fit the autoencoders to its features on the CPU, from the seed of the run.

        Raises:
            ValueError: no linear layer gives the model's logits, so there is nothing that it reads.
        """
        forget = features_of(setting, setting.forget(self.every))
        everything = torch.cat([features_of(setting, setting.retain(self.every)), forget])
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(setting.seed)  # torch.manual_seed would also set every GPU's state
            self._of_all, self._of_forget = (
                fitted(features, self.latent, self.fit_epochs, self.kl_weight).to(setting.model.device)
                for features in (everything, forget)
            )
        self._original = Original(setting)

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "extractor" and "alignment", or "retain_ce" in the repair."""
        progress = step.progress
        if progress.total - progress.index <= self.repair * progress.total:
            return {"retain_ce": cross_entropy(step.retain.logits, step.retain.labels)}
        forget, retain = full_precision(step.forget.features), full_precision(step.retain.features)
        extractor = bounded_error(prepared(self, self._of_all), retain).mean()
        extractor = extractor - bounded_error(prepared(self, self._of_forget), forget).mean()
        pixels = torch.cat([step.forget.pixel_values, step.retain.pixel_values])
        forget_before, retain_before = prepared(self, self._original)(pixels).split([len(forget), len(retain)])
        aligned = alignment(forget, retain, forget_before, retain_before, self.temperature)
        unused = 0 * (step.forget.logits.sum() + step.retain.logits.sum())  # DDP wants a gradient of the classifier
        return {
            "extractor": self.extractor_weight * with_unit_gradient(extractor, forget, retain) + unused,
            "alignment": with_unit_gradient(aligned, forget, retain),
        }


class Autoencoder(nn.Module):
    """The published variational autoencoder of features: width to 128, 32 and z, and back, to values from 0 to 1.

    Args:
        width: of the features.
        latent: dimensions of z.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        outer, inner = WIDTHS
        self.encoder = nn.Sequential(nn.Linear(width, outer), nn.ReLU(), nn.Linear(outer, inner), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(inner, latent), nn.Linear(inner, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, inner), nn.ReLU(), nn.Linear(inner, outer), nn.ReLU(), nn.Linear(outer, width)
        )

    def forward(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What features (n, width) become by way of z = mean + deviation · noise (n, latent), and their KL (n,)."""
        hidden = self.encoder(features)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        decoded = self.decoder(mean + (log_variance / 2).exp() * noise).sigmoid()
        return decoded, -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=1)


class Original:
    """What the classifier of the original model reads, whatever becomes of the model.

    Args:
        setting: the model is copied.

    Raises:
        ValueError: no linear layer gives the model's logits.
    """

    def __init__(self, setting: Setting) -> None:
        channels, height, width = next(iter(setting.forget()))["pixel_values"].shape[1:]
        self.model = copy.deepcopy(setting.model).eval().requires_grad_(False)
        self.layers = classifier_of(self.model, (channels, height, width))
        if not self.layers:
            raise ValueError("objective 'laf': no linear layer gives the model's logits: choose another objective")

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Features (rows, width)."""
        with Penultimate(self.layers.values()) as penultimate:
            self.model(pixel_values=pixel_values)
        features = penultimate.take()
        assert features is not None  # a model with a classifier gives some
        return full_precision(features)


@torch.no_grad()
def features_of(setting: Setting, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """What the classifier of the original model reads of all images, (images, width) float32 on the CPU."""
    return torch.cat([setting.features(batch["pixel_values"]).float().cpu() for batch in batches])


def fitted(features: Tensor, latent: int, epochs: int, kl_weight: float) -> Autoencoder:
    """An autoencoder that was fitted to features and is frozen.

    Args:
        features: (n, width).
        latent: dimensions of z.
        epochs: passes over the features, shuffled, in batches of 32, by Adam at 1e-3.
        kl_weight: of the KL against the squared error, each summed over its dimensions.
    """
    network = Autoencoder(features.shape[1], latent)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(epochs):
        for rows in torch.randperm(len(features)).split(ROWS):
            decoded, divergence = network(features[rows], torch.randn(len(rows), latent))
            error = (decoded - features[rows]).square().sum(dim=1)
            optimizer.zero_grad()
            (error + kl_weight * divergence).mean().backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def bounded_error(network: Autoencoder, features: Tensor) -> Tensor:
    """exp(s / (s + 1)) of each row, from 1 to e, s its squared error under an autoencoder that draws a z.

    Args:
        network: on the device of the features.
        features: (n, width).

    Returns:
        (n,).
    """
    latent = network.mean.out_features
    noise = torch.randn(len(features), latent, generator=rank_generator()).to(features)
    error = (network.to(features.dtype)(features, noise)[0] - features).square().sum(dim=1)
    return (error / (error + 1)).exp()


def alignment(
    forget: Tensor, retain: Tensor, forget_before: Tensor, retain_before: Tensor, temperature: float
) -> Tensor:
    """Cosine distance of retain features to the original's, against that of forget features.

        mean_j d(r_j, r⁰_j) − log Σ_i exp(d(f_i, f⁰_i) / τ)

    Under several processes the sum runs over the forget rows of all of them.

    Args:
        forget: (n, width).
        retain: (m, width).
        forget_before: (n, width) in the original model.
        retain_before: (m, width) in the original model.
        temperature: τ > 0.

    Returns:
        Scalar.
    """
    kept = 1 - F.cosine_similarity(retain, retain_before)
    moved = gather_with_grad(1 - F.cosine_similarity(forget, forget_before))
    return kept.mean() - torch.logsumexp(moved / temperature, dim=0)


def with_unit_gradient(loss: Tensor, *features: Tensor) -> Tensor:
    """A loss of the same value, with a gradient of size 1 in the features of all processes together."""
    gradients = torch.autograd.grad(loss, features, retain_graph=True)
    squares = gather(torch.stack([each.detach().square().sum() for each in gradients]).sum()[None])
    size = (squares.sum().sqrt() / len(squares)).clamp(min=STILL)
    return loss.detach() + (loss - loss.detach()) / size
