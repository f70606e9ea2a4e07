"""Fine-tuning towards sparse weights as a host objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ec_hf.files import HEADS
from ec_hf.losses.distillation import cross_entropy
from ec_hf.objectives.base import Objective, Step
from ec_hf.objectives.checks import not_negative, share
from ec_hf.objectives.published import sgd

__all__ = ["L1Sparse"]


@dataclass
class L1Sparse(Objective):
    """Cross-entropy on retain plus an l1 penalty on the weights that fades out.

        loss = CE(retain) + α_t · ‖θ‖₁,   α_t = α · max(0, 1 − t / (1 − u)),   t = step / number of steps

    ‖θ‖₁ is the sum over all trainable weights of the model, EC heads not among them.

    Published settings: α 1e-4 (2e-4 for half of CIFAR-100, 1e-3 for faces), u 0, SGD 0.9/5e-4, learning rate 0.01, 10
    epochs over retain. The 0.2 that the published script has as the default of its argument is not what was used.
    There α falls once an epoch, here at every step.

    Args:
        alpha: α ≥ 0 at the first step.
        without: u, the share of the run at its end without penalty.

    Raises:
        ValueError: a setting out of range.
    """

    alpha: float = 1e-4
    without: float = 0.0

    name = "l1_sparse"
    uses = "retain"
    published: ClassVar = sgd(
        0.01,
        weight_decay=5e-4,
        num_train_epochs=10,
        per_device_train_batch_size=256,
        batch_norm="retain",
        objective_kwargs={"alpha": 1e-4, "without": 0.0},
    )
    source = "Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023, arXiv 2304.04934"

    def __post_init__(self) -> None:
        not_negative(self, "alpha")
        share(self, "without")

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Components "retain_ce" and "l1"; logs "alpha"."""
        penalised = (1 - self.without) * step.progress.total
        alpha = self.alpha * max(0.0, 1 - step.progress.index / penalised) if penalised else 0.0
        norms = [
            parameter.abs().sum()
            for name, parameter in step.model.named_parameters()
            if parameter.requires_grad and not name.startswith(f"{HEADS}.")
        ]
        step.log["alpha"] = step.retain.logits.new_tensor(alpha)
        return {
            "retain_ce": cross_entropy(step.retain.logits, step.retain.labels),
            "l1": alpha * torch.stack(norms).sum(),
        }
