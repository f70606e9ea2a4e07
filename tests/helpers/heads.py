"""EC heads of a model, not fitted."""

from __future__ import annotations

from ec_hf.models.heads import ECHeads
from ec_hf.models.points import describe_hidden_states, select_points


def make_heads(model, points="auto", pooling="mean"):
    states = describe_hidden_states(model, (3, 32, 32))
    chosen = [point.to_dict() for point in select_points(model, states, points)]
    return ECHeads(chosen, states[-1].to_dict(), model.config.num_labels, pooling)
