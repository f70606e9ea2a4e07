"""The bare loop of recipes/erase_accelerate.py, then `ECTrainer` with the same settings; run by test_adoption.py.

usage: bare_loop.py OUT RETAIN_IMAGES_A_PROCESS
"""

import copy
import json
import runpy
import sys
from pathlib import Path

from helpers.models import make_model, make_processor
from helpers.trainers import make_trainer

from ec_hf import Eraser
from ec_hf.models.inputs import ImageCollator

RECIPES = Path(__file__).parents[2] / "recipes"
out, share = Path(sys.argv[1]), int(sys.argv[2])
sys.path.insert(0, str(RECIPES))
recipe = runpy.run_path(str(RECIPES / "erase_accelerate.py"))
trainer = make_trainer(
    out,
    forget=("bee", "dog"),
    objective="delete",
    calibrated=True,
    per_device_train_batch_size=share,
    per_device_forget_batch_size=share,
    max_steps=-1,
    num_train_epochs=2,
    learning_rate=1e-3,
    warmup_steps=0,
    optim="adamw_torch",
)
model = make_model("ViT")
eraser = Eraser(model, trainer.eraser.config, forget_classes=[1, 3], heads=copy.deepcopy(trainer.eraser.heads))
trainer.eraser.heads_fitted = True  # the same in both runs; how they are fitted is tested elsewhere
parts = {"forget": trainer.train_dataset.forget, "retain": trainer.train_dataset.retain}
collate = ImageCollator(make_processor())
recipe["erase"](eraser, parts, collate, batch=share * trainer.args.world_size, epochs=2, lr=1e-3)
trainer.train()
if trainer.is_world_process_zero():
    apart = [(value - trainer.model.state_dict()[name]).abs().max() for name, value in model.state_dict().items()]
    moved = [(value - make_model("ViT").state_dict()[name]).abs().max() for name, value in model.state_dict().items()]
    found = {"processes": trainer.args.world_size, "apart": max(apart).item(), "moved": max(moved).item()}
    (out / "found.json").write_text(json.dumps(found))
trainer.end()
