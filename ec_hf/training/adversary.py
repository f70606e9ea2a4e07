"""What a linear probe reads from a supervision point, taken out of it while the erasure runs.

A contrast draws forget images in among retain images. Directions that its cosine similarities hardly see can still set
them apart, and a probe that is fitted afterwards with the true labels finds these. So one trains beside the erasure, a
step ahead of it:

    probe:     min_V  mean_i CE(V x_i, y_i)               all images of the batch, true labels, features fixed
    features:  min_θ  mean_i KL(q_i ‖ softmax(V x_i))     forget images, V fixed

x_i is the pooled hidden state, standardised over its channels. q_i is what the original takes the image for once the
forgotten classes are hidden from it, the target of `ec_hf.losses.calibrated`: a fooled probe reads what a model would
see that never had the classes, and no less. The two sides are those of domain-adversarial training (arXiv 1505.07818).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ec_hf.distributed import gather
from ec_hf.losses.distillation import cross_entropy

__all__ = ["Adversary"]

STEPS, LEARNING_RATE = 5, 1e-2  # of the probe at each batch; the backbone moves more slowly than that


class Adversary(nn.Module):
    """A linear classifier of one supervision point's pooled hidden state, with an optimiser of its own.

    It starts at zero and sees the batches of all processes, so it is the same in each of them.

    Args:
        channels: width of the hidden state.
        num_labels: number of classes of the model.
    """

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_labels, channels))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        self.optimizer = torch.optim.Adam(self.parameters(), LEARNING_RATE)

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Train on this batch of every process; no gradient goes into the features.

        Args:
            features: (n, channels).
            labels: (n,) int64, the true ones.
        """
        features, labels = gather(features.detach()), gather(labels)
        with torch.autocast(features.device.type, enabled=False):  # the gradients too are in the probe's precision
            for _ in range(STEPS):
                self.optimizer.zero_grad()
                cross_entropy(_linear(features, self.weight, self.bias), labels).backward()
                self.optimizer.step()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, labels), in the probe's precision, that move the features (n, channels) and never the probe."""
        return _linear(features, self.weight.detach(), self.bias.detach())

    def get_extra_state(self) -> dict:
        """The optimiser's state, which `state_dict` holds beside the weights."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        """Go on with the optimiser's state that `get_extra_state` gave."""
        self.optimizer.load_state_dict(state)


def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(weight.dtype)
        return F.linear(F.layer_norm(features, features.shape[1:]), weight, bias)
