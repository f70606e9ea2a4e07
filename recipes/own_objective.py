"""A host objective of one's own: on forget images, some other class must beat the label by a margin.

python recipes/ec_vit.py --objective own_objective:Demote --objective_kwargs '{"margin": 2.0}'
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ec_hf.objectives import Objective, Step, register


@register("demote")  # a name for code that imports this file; its path needs none
@dataclass
class Demote(Objective):
    """Hinge loss on the logits of forget, cross-entropy on retain; the field is its setting."""

    margin: float = 1.0

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Each entry of the dict is logged, and their sum is minimised."""
        logits = step.forget.logits
        own = F.one_hot(step.forget.labels, logits.shape[1]).bool()
        best_other = logits.masked_fill(own, float("-inf")).amax(dim=1)
        return {
            "demote": F.relu(logits[own] - best_other + self.margin).mean(),
            "retain_ce": F.cross_entropy(step.retain.logits, step.retain.labels),
        }
