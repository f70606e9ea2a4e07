"""A step is measured without a trace in the weights, and sizes are those of the tensors."""

from __future__ import annotations

import pytest
import torch
from helpers.trainers import make_trainer

from ec_hf.training.measuring import measure


@pytest.mark.parametrize(
    ("options", "state"),
    [({"optim": "sgd", "optim_args": "momentum=0.9"}, 4), ({"optim": "adamw_torch", "objective": "delete"}, 8)],
)
def test_a_step_is_measured_without_a_trace_in_the_weights(options, state, tmp_path):
    trainer = make_trainer(tmp_path, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = measure(trainer, images=2, repeats=1)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert list(trainer.model.state_dict()) == list(before), "the heads are off again"
    assert min(vars(found.seconds).values()) > 0
    parameters, sizes = trainer.model.num_parameters(), found.sizes
    assert sizes.weights == sizes.gradients == 4 * parameters
    assert state * parameters <= sizes.optimizer <= state * parameters + 4000, "and a counter a tensor"
    assert sizes.teacher == (4 * parameters if options.get("objective") == "delete" else 0)
    assert found.images == 4 and found.clock == "process time"


def test_activations_grow_with_the_batch_and_not_with_the_repeats(tmp_path):
    sizes = [
        measure(make_trainer(tmp_path), images=images, repeats=repeats).sizes.activations
        for images, repeats in ((2, 1), (2, 2), (6, 1))
    ]
    assert sizes[0] == sizes[1]
    assert sizes[2] == pytest.approx(sizes[0], rel=0.1), "for each image"
