"""Trains a network of each kind for two steps, alone or as one of several processes; run by test_processes.py.

usage: train_kinds.py OUT RETAIN_IMAGES_A_PROCESS KIND...
"""

import json
import sys
from pathlib import Path

import torch
from helpers.families import make_family
from helpers.models import make_images
from helpers.own import OWN, TRANSFORM, make_own
from safetensors.torch import save_file

from ec_hf import ECConfig, ECHeads, ECTrainer, ForgetRequest, as_classifier, split
from ec_hf.models.points import describe_hidden_states, select_points

out, batch, *kinds = sys.argv[1:]
parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
sizes = {}
for number, kind in enumerate(kinds):
    given = make_own(kind) if kind in OWN else make_family(kind)[0]
    model = as_classifier(given.double(), image_shape=(3, 32, 32))  # double, so that a difference is no rounding
    states = describe_hidden_states(model, (3, 32, 32))
    points = [point.to_dict() for point in select_points(model, states)]
    torch.manual_seed(0)
    trainer = ECTrainer(
        model,
        ECConfig(
            output_dir=str(Path(out, str(number))),
            objective="contrastive",
            use_cpu=True,
            disable_tqdm=True,
            per_device_train_batch_size=int(batch),
            per_device_forget_batch_size=int(batch) // 2,
            max_steps=2,
            optim="sgd",
            learning_rate=0.01,
            batch_norm="retain",
            save_strategy="no",
            eval_strategy="no",
            eval_on_start=False,
        ),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        processing_class=TRANSFORM,
        heads=ECHeads(points, states[-1].to_dict(), 5).double(),
    )
    collate = trainer.data_collator
    trainer.data_collator = lambda examples, collate=collate: (
        collate(examples) | {"pixel_values": collate(examples)["pixel_values"].double()}
    )
    trainer.train()
    sizes[kind] = trainer.args.world_size
    if trainer.is_world_process_zero():
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, Path(out, f"{kind}.safetensors")
        )
if trainer.is_world_process_zero():
    Path(out, "sizes.json").write_text(json.dumps(sizes))
trainer.end()
