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
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            rows = _standardised(features, self.weight)
            truth = F.one_hot(labels, len(self.bias)).to(rows.dtype)
            for _ in range(STEPS):  # the gradient of the mean cross-entropy, written out: autograd costs more than it
                slope = (F.linear(rows, self.weight, self.bias).softmax(dim=1) - truth) / len(rows)
                self.weight.grad, self.bias.grad = slope.T @ rows, slope.sum(dim=0)
                self.optimizer.step()

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, labels), in the probe's precision, that move the features (n, channels) and never the probe."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(_standardised(features, self.weight), self.weight.detach(), self.bias.detach())

    def get_extra_state(self) -> dict:
        """The optimiser's state, which `state_dict` holds beside the weights."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        """Go on with the optimiser's state that `get_extra_state` gave."""
        self.optimizer.load_state_dict(state)


def _standardised(features: Tensor, weight: Tensor) -> Tensor:
    """Features over their channels, in the precision of the probe."""
    return F.layer_norm(features.to(weight.dtype), features.shape[1:])
