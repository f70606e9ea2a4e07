"""Short erasures whose every number is kept on disk, so that a change of the mathematics shows in a diff.

    python tests/training/trajectories.py        # writes the files anew; say in the commit why the numbers changed

A trajectory is eight steps on a tiny network in float64: the terms of the loss at each step, and three projections of
the final weights. SGD and heads that were not fitted, because AdamW makes steps of full size out of gradients that are
rounding errors; weights from NumPy, because torch's normal draws differ between processors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).with_name("trajectories")
FAMILIES = ("ViT", "Swin", "ResNet", "timm ViT")
METHODS: dict[str, dict[str, Any]] = {
    "contrastive": {"objective": "contrastive"},
    "delete with EC": {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}},
    "delete calibrated": {"objective": "delete", "calibrated": True, "probe_weight": 0.5},
    "scrub with EC": {"objective": "scrub", "contrast": "csul", "detach_retain": False, "train_heads": True},
    "esc then EC": {"objective": "esc", "contrast": "uuef"},
}


def set_weights(model: torch.nn.Module) -> None:
    """Weights of a usual size that are the same on every machine."""
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            drawn = torch.from_numpy(rng.normal(0.0, size, tuple(parameter.shape)))
            parameter.copy_(drawn + (parameter.ndim == 1 and bool((parameter == 1).all())))


def trajectory(family: str, method: str, folder: str | Path) -> dict[str, Any]:
    """Run one erasure and return its numbers."""
    from helpers.models import make_images, make_model, make_processor

    from ec_hf import ECConfig, ECHeads, ECTrainer, ForgetRequest, split
    from ec_hf.models.points import classifier_pooling, describe_hidden_states, select_points

    parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
    model = make_model(family).double()
    set_weights(model)
    states = describe_hidden_states(model, (3, 32, 32))
    points = [point.to_dict() for point in select_points(model, states)]
    heads = ECHeads(points, states[-1].to_dict(), 5, last_pooling=classifier_pooling(model, states[-1])).double()
    set_weights(heads)
    trainer = ECTrainer(
        model,
        ECConfig(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=16,
            per_device_forget_batch_size=8,
            max_steps=8,
            optim="sgd",
            learning_rate=0.02,
            batch_norm="retain",
            save_strategy="no",
            eval_strategy="no",
            **METHODS[method],
        ),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        processing_class=make_processor(),
        heads=heads,
    )
    collate = trainer.data_collator
    trainer.data_collator = lambda examples: {
        name: value.double() if name == "pixel_values" else value for name, value in collate(examples).items()
    }
    steps: list[dict[str, float]] = []
    watch(trainer, steps)
    trainer.train()
    weights = torch.cat([value.double().flatten() for value in model.state_dict().values()])
    wave = torch.sin(torch.arange(1, len(weights) + 1, dtype=torch.float64))
    ends = {"sum": weights.sum(), "absolute sum": weights.abs().sum(), "against a wave": weights @ wave}
    return {"steps": steps, "weights": {name: value.item() for name, value in ends.items()}}


def watch(trainer: Any, steps: list[dict[str, float]]) -> None:
    """Note the value of each loss term at each step."""

    def note(module: Any, args: Any, terms: Any) -> None:
        steps.append({name: value.item() for name, value in terms.logged().items()})

    trainer.eraser.loss.register_forward_hook(note)


def file_of(family: str, method: str) -> Path:
    """Where the numbers of a trajectory are kept."""
    return FOLDER / f"{family} {method}.json".lower().replace(" ", "_")


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parents[1]))
    for family in FAMILIES:
        for method in METHODS:
            with tempfile.TemporaryDirectory() as folder:
                text = json.dumps(trajectory(family, method, folder), indent=1)
            file_of(family, method).write_text(text + "\n")
            print("wrote", file_of(family, method).name)
