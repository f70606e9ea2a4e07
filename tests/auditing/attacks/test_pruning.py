from __future__ import annotations

import copy

import pytest
import torch
from helpers.attacks import subject_and_images
from helpers.models import make_model
from torch import nn

from ec_hf.auditing.attacks.pruning import Pruning, pruned


@pytest.mark.parametrize("family", ["ViT", "ResNet"])
def test_the_smallest_weights_of_all_layers_together_are_0_and_no_others(family):
    model = make_model(family)
    before = copy.deepcopy(model.state_dict())
    sparse = pruned(model, 0.3)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items()), "a copy is pruned"
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    states = before, sparse.state_dict()
    old, new = (torch.cat([state[f"{name}.weight"].flatten() for name in layers]) for state in states)
    assert ((new == 0) & (old != 0)).sum() == int(0.3 * len(old))
    assert old[new == 0].abs().max() <= old[new != 0].abs().min()
    assert torch.equal(new[new != 0], old[new != 0])
    others = set(before) - {f"{name}.weight" for name in layers}
    assert all(torch.equal(before[name], sparse.state_dict()[name]) for name in others)


def test_nothing_pruned_is_the_model_and_other_shares_are_refused():
    model = make_model("ViT")
    kept = pruned(model, 0.0).state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in model.state_dict().items())
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="expected a share from 0 to below 1"):
            pruned(model, share)


def test_the_curve_ascends_in_sparsity():
    outcome = Pruning().run(*subject_and_images("ViT"))
    assert outcome.unit == "sparsity" and list(outcome.x) == sorted(outcome.x)
    assert outcome.hits.shape == (len(outcome.x), 12)
