"""A fine-tuning script in the manner of transformers' run_image_classification.py, and `ECTrainer` on its batches."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from ec_hf import ECTrainer
from helpers.models import make_processor
from helpers.trainers import make_trainer

ARGUMENTS = {
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "per_device_train_batch_size": 16,
    "max_steps": 6,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "warmup_steps": 0,
    "remove_unused_columns": False,
    "save_strategy": "no",
}


def with_pixels(dataset):
    """The dataset with the transform that such a script gives it."""
    processor = make_processor()

    def transform(examples):
        examples["pixel_values"] = processor(examples["image"], return_tensors="pt")["pixel_values"]
        return examples

    return dataset.with_transform(transform)


def collate_fn(examples):
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


def stock_trainer(
    folder, model, train_dataset, callbacks=(), trainer=Trainer, collate=collate_fn, eval_dataset=None, **settings
):
    """The script's Trainer; `train_dataset` and `callbacks` are all that erasing changes of it."""
    return trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **(ARGUMENTS | settings)),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        callbacks=list(callbacks),
    )


class Recorded:
    """A collator that keeps the batches that it made."""

    def __init__(self):
        self.batches = []

    def __call__(self, examples):
        self.batches.append(collate_fn(examples))
        return dict(self.batches[-1])


class Replaying(ECTrainer):
    """An `ECTrainer` that takes the steps of another loop: its batches, in their order, one a process."""

    batches = ()

    def get_train_dataloader(self):
        super().get_train_dataloader()  # which makes the sampler
        paired = [{**batch, "num_forget": len(batch["labels"]) // 2} for batch in self.batches]
        return DataLoader(paired, batch_size=1, collate_fn=lambda one: one[0])


def replayed(folder, batches, model, heads, **settings):
    """An `ECTrainer` of these batches, before its training."""
    shared = {name: value for name, value in ARGUMENTS.items() if name not in ("report_to", "use_cpu")}
    settings["per_device_forget_batch_size"] = settings["per_device_train_batch_size"]
    settings.setdefault("cache_teacher", False)  # these batches do not say which rows they hold
    trainer = make_trainer(
        folder, model=model, forget=("bee", "dog"), heads=heads, trainer=Replaying, **(shared | settings)
    )
    trainer.batches = batches
    return trainer
