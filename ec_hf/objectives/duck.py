"""DUCK as a host objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ec_hf.losses.contrast import similarity
from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Progress, Setting, Step
from ec_hf.objectives.checks import not_negative, positive, prepared
from ec_hf.objectives.published import adam

__all__ = ["Duck", "class_centroids", "distance_to_nearest_wrong", "is_last"]


@dataclass
class Duck(Objective):
    """Forget features move to the nearest centroid of another class.

        loss = λ₁ · mean_i (1 − max_{c ≠ y_i} cos(f_i, μ_c)) + λ₂ · CE(g(x_j) / T, y_j) over retain

    f is what the classifier reads, μ_c its mean over the retain images of class c in the original model. In the last
    passes over retain, at most half of the run, λ₁ is a tenth and λ₂ is 1.

    The nearest wrong centroid is found for each image as it is now. The published code fixes it at the first pass by
    the number of the batch, though it shuffles the forget set, so that an image may be drawn to the centroid of
    another one; and it has centroids of the first 50 retain batches, here of all. It keeps one forget batch for r + 1
    steps, each with a new retain batch (r = 40 for CIFAR-10, 5 for CIFAR-100 and Tiny-ImageNet; the loop ends one
    late). Here each step has a new forget batch, so one of its epochs is `forget_epochs` r + 1. Its last two epochs
    have one forget batch, retain batches of 512 and a learning rate of 1e-4; here the run's own go on.

    Published settings: λ₁ 1, λ₂ 1.4, T 2, Adam, learning rate 4e-4, batch 256, until forget accuracy is below 1 %,
    then two epochs as above. Label smoothing 0.2 on Tiny-ImageNet. UUEF: λ₁ and λ₂ 1.5.

    Args:
        forget_weight: λ₁ ≥ 0.
        retain_weight: λ₂ ≥ 0.
        temperature: T > 0.
        last_epochs: passes over retain at the end, 0 or more, in which λ₁ is a tenth and λ₂ is 1.

    Raises:
        ValueError: a setting out of range.
    """

    forget_weight: float = 1.0
    retain_weight: float = 1.4
    temperature: float = 2.0
    last_epochs: float = 2.0
    _centroids: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    name = "duck"
    covers_last_point = True
    source = "DUCK, arXiv 2312.02052"
    conflict = "the last point: EC leaves it to this objective, so that it is not pulled twice"
    published: ClassVar = adam(
        4e-4,
        num_train_epochs=7,
        per_device_train_batch_size=256,
        batch_norm="retain",
        objective_kwargs={"forget_weight": 1.0, "retain_weight": 1.4, "temperature": 2.0, "last_epochs": 2.0},
    )

    def __post_init__(self) -> None:
        not_negative(self, "forget_weight", "retain_weight", "last_epochs")
        positive(self, "temperature")

    def prepare(self, setting: Setting) -> None:
        """Take the centroids of the retain classes in the original model.

        Raises:
            ValueError: retain has one class, which forget has too, so that there is no wrong centroid.
        """
        self._centroids = class_centroids(setting)
        known = int(self._centroids.isfinite().all(dim=1).sum())
        if known < 2 and setting.forget_classes is None:
            raise ValueError("duck: retain has one class only, so there is no wrong one to move the forget set to")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "centroid" and "retain_ce"; logs "last_epochs", whether this step is of those."""
        centroids = prepared(self, self._centroids)
        distance = distance_to_nearest_wrong(step.forget.features, step.forget.labels, centroids)
        last = is_last(step.progress, self.last_epochs)
        step.log["last_epochs"] = distance.new_tensor(float(last))
        pull, keep = (self.forget_weight / 10, 1.0) if last else (self.forget_weight, self.retain_weight)
        return {
            "centroid": pull * distance,
            "retain_ce": keep * cross_entropy(step.retain.logits / self.temperature, step.retain.labels),
        }


def is_last(progress: Progress, epochs: float) -> bool:
    """Whether a step lies in the last passes over retain, which are at most half of the run."""
    return progress.total - progress.index <= min(epochs * progress.epoch_steps, progress.total // 2)


@torch.no_grad()
def class_centroids(setting: Setting) -> Tensor:
    """Mean feature (classes, width) of each class over the retain set; NaN where it has none of a class."""
    sums = counts = torch.zeros(())
    for batch in setting.retain():
        members = F.one_hot(batch["labels"], setting.model.config.num_labels).T.float()
        sums, counts = sums + members @ setting.features(batch["pixel_values"]).float(), counts + members.sum(dim=1)
    return sums / counts[:, None]


def distance_to_nearest_wrong(features: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    """Mean cosine distance of features (n, width) to the nearest centroid of a class other than each one's label.

    Args:
        features: (n, width).
        labels: (n,) int64.
        centroids: (classes, width), NaN for a class that has none.

    Returns:
        Scalar, in float32 or in float64.
    """
    missing = centroids.isnan().any(dim=1)
    own = F.one_hot(labels, len(centroids)).bool()
    cosine = similarity(features, centroids.nan_to_num().to(features)).masked_fill(own | missing, -math.inf)
    return (1 - cosine.max(dim=1).values).mean()
