"""A trainer that takes few steps on tiny data."""

from __future__ import annotations

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from helpers.models import make_images, make_model, make_processor


def settings(folder, **kwargs):
    """Few steps of EC alone, no evaluation, deterministic."""
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 16,
        "per_device_forget_batch_size": 8,
        "heads_epochs": 1,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "eval_on_start": False,
        "max_steps": 4,
        "min_steps": 0,
        "learning_rate": 1e-3,
    }
    objective = {} if "preset" in kwargs else {"objective": "contrastive"}
    return ECConfig(**(defaults | objective | kwargs))


def make_trainer(
    folder,
    family="ViT",
    forget=("bee",),
    model=None,
    eval_dataset=None,
    callbacks=(),
    heads=None,
    trainer=ECTrainer,
    **kwargs,
):
    parts = split(make_images(), ForgetRequest(classes=list(forget)))
    return trainer(
        model=make_model(family) if model is None else model,
        args=settings(folder, **kwargs),
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        eval_dataset=eval_dataset,
        processing_class=make_processor(),
        callbacks=callbacks,
        heads=heads,
    )


def evaluation_parts():
    return dict(split(make_images(50, seed=1), ForgetRequest(classes=["bee"])))
