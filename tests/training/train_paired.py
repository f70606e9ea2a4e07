"""Trains a tiny model for a few steps, alone or as one of several processes; run by test_processes.py.

usage: train_paired.py OUT FAMILY OBJECTIVE RETAIN_IMAGES_A_PROCESS [RESUME_FROM]
"""

import json
import sys
from pathlib import Path

from helpers.models import make_images, make_model, make_processor

from ec_hf import ECConfig, ECHeads, ECTrainer, ForgetRequest, split
from ec_hf.models.points import describe_hidden_states, select_points

out, family, objective, batch, *resume = sys.argv[1:]
parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
model = make_model(family).double()  # so that what is left of a difference is no rounding
states = describe_hidden_states(model, (3, 32, 32))
points = [point.to_dict() for point in select_points(model, states)]
trainer = ECTrainer(
    model,
    ECConfig(
        output_dir=out,
        objective=objective,
        calibrated=objective == "delete",
        use_cpu=True,
        disable_tqdm=True,
        per_device_train_batch_size=int(batch),
        per_device_forget_batch_size=int(batch) // 2,
        max_steps=6,
        logging_steps=1,
        optim="sgd",
        learning_rate=0.01,
        batch_norm="retain",
        save_strategy="steps",
        save_steps=4,  # in the middle of an epoch of 3 global batches
        eval_on_start=False,
        eval_strategy="steps",
        eval_steps=6,
        retain_floor=1.0,
    ),
    forget_dataset=parts["forget"],
    retain_dataset=parts["retain"],
    eval_dataset=dict(parts),
    processing_class=make_processor(),
    heads=ECHeads(
        points, states[-1].to_dict(), 5
    ).double(),  # the same in every run; how they are fitted is tested elsewhere
)
collate = trainer.data_collator
trainer.data_collator = lambda examples: (
    collate(examples) | {"pixel_values": collate(examples)["pixel_values"].double()}
)
trainer.evaluate()  # after which Accelerate would leave out the wrapper that adds up the gradients of all processes
trainer.train(resume_from_checkpoint=resume[0] if resume else None)
trainer.save_model()
if trainer.is_world_process_zero():
    record = {"world_size": trainer.args.world_size, "log": trainer.state.log_history}
    Path(out, "record.json").write_text(json.dumps(record))
trainer.end()
