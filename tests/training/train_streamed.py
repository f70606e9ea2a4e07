"""Trains a tiny model on a stream, alone or as one of several processes; run by test_streamed.py.

usage: train_streamed.py OUT [--resume CHECKPOINT] SHARD...
"""

import argparse
import json
from pathlib import Path

from datasets import load_dataset
from helpers.models import make_images, make_model, make_processor
from helpers.trainers import settings

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.models.loading import weights_hash

parser = argparse.ArgumentParser()
parser.add_argument("out", type=Path)
parser.add_argument("--resume")
parser.add_argument("shards", nargs="+")
arguments = parser.parse_args()
retain = load_dataset("parquet", data_files=arguments.shards, split="train", streaming=True)
pictures = {bytes(row["image"].tobytes()): number for number, row in enumerate(retain)}
trainer = ECTrainer(
    make_model("ViT"),
    settings(arguments.out, max_steps=8, retain_rows=160, save_strategy="steps", save_steps=4, points=[-3]),
    forget_dataset=split(make_images(200), ForgetRequest(classes=["bee"]))["forget"],
    retain_dataset=retain,
    processing_class=make_processor(),
)
numbers, collate = [], trainer.streamed.collator


def noting(examples):
    numbers.append([pictures[bytes(row["image"].tobytes())] for row in examples if not row["is_forget"]])
    return collate(examples)


if trainer.eraser.heads_fitted is False and not arguments.resume:
    trainer.fit_heads()
trainer.streamed.collator = noting
trainer.train(resume_from_checkpoint=arguments.resume)
found = {"world_size": trainer.args.world_size, "numbers": numbers, "hash": weights_hash(trainer.model)}
(arguments.out / f"seen-{trainer.args.process_index}.json").write_text(json.dumps(found))
trainer.end()
