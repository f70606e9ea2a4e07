"""A stock Trainer with `ECCallback`, then `ECTrainer` on the same batches; run by test_callback.py.

usage: train_stock.py OUT
"""

import copy
import json
import sys
from pathlib import Path

from helpers.models import make_images, make_model
from helpers.stock import Recorded, replayed, stock_trainer, with_pixels

from ec_hf import ECCallback, Eraser, EraserConfig, ForgetRequest, split

out = Path(sys.argv[1])
settings = {"objective": "delete", "calibrated": True}
parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
eraser = Eraser(make_model("ViT"), EraserConfig(**settings), forget_classes=[1, 3])
eraser.heads_fitted = True  # the same in both runs; how they are fitted is tested elsewhere
heads, recorded = copy.deepcopy(eraser.heads), Recorded()
callback = ECCallback(eraser, **{name: with_pixels(part) for name, part in parts.items()})
small = {"per_device_train_batch_size": 8}
stock = stock_trainer(out / "stock", eraser.model, callback.train_dataset, [callback], collate=recorded, **small)
stock.train()
trainer = replayed(out / "ec", recorded.batches[:6], make_model("ViT"), heads, **settings, **small)
trainer.train()
original = make_model("ViT").state_dict()
pairs = [
    (value, trainer.model.state_dict()[name], original[name]) for name, value in eraser.model.state_dict().items()
]
if trainer.is_world_process_zero():
    found = {
        "processes": trainer.args.world_size,
        "steps": trainer.state.global_step,
        "apart": max((mine - its).abs().max().item() for mine, its, _ in pairs),
        "moved": max((mine - before).abs().max().item() for mine, _, before in pairs),
    }
    (out / "found.json").write_text(json.dumps(found))
trainer.end()
