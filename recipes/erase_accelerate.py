"""Erase three digits in a bare Accelerate loop: `accelerate launch recipes/erase_accelerate.py [MODEL_FOLDER]`."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import ConcatDataset, DataLoader
from transformers import get_scheduler

from ec_hf import Eraser, EraserConfig, ForgetRequest, split
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.data.sources import load_images
from ec_hf.models.inputs import collator_for
from ec_hf.models.loading import load_model
from ec_hf.objectives import Progress
from ec_hf.training.classifier import ClassifierConfig, train_classifier


def erase(eraser, parts, collate, *, batch=64, epochs=4, lr=3e-3):
    """Erase parts["forget"]; a step of all processes together sees `batch` retain and as many forget images."""
    accelerator, model, seed = Accelerator(), eraser.model, eraser.config.seed
    share, sizes = batch // accelerator.num_processes, [len(parts["forget"]), len(parts["retain"])]
    if not eraser.heads_fitted:
        images = DataLoader(ConcatDataset([*parts.values()]), share, shuffle=True, collate_fn=collate)
        eraser.fit_heads(accelerator.prepare(images), accelerator)
    shares = {"forget_batch_size": share, "retain_batch_size": share, "num_processes": accelerator.num_processes}
    sampler = PairedBatchSampler(*sizes, seed=seed, **shares)
    pairs = PairedDataset(parts["forget"], parts["retain"], seed=seed)
    loader = accelerator.prepare(DataLoader(pairs, batch_sampler=sampler, collate_fn=collate))
    with eraser.attached():
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.0)
        schedule = get_scheduler("linear", optimizer, 0, epochs * len(loader))
        wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for step, paired in enumerate(loader, start=epoch * len(loader)):
                terms = eraser(paired, Progress(step, epochs * len(loader), len(loader)), model=wrapped)
                accelerator.backward(terms.finite_total(step))
                accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                eraser.after_step(optimizer)
                schedule.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    images, folder = load_images("mnist5k"), Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/original")
    if len(sys.argv) == 1 and not (folder / "config.json").exists():
        train_classifier(ClassifierConfig(output_dir=str(folder)), images["train"], images["test"])
    model, processor = load_model(folder)
    parts = split(images["train"], ForgetRequest(classes=[3, 5, 8]))
    eraser = Eraser(model.to(Accelerator().device), EraserConfig("delete", calibrated=True), forget_classes=[3, 5, 8])
    erase(eraser, parts, collator_for(model, processor, parts))
    if Accelerator().is_main_process:
        model.save_pretrained("outputs/erase_accelerate")
        processor.save_pretrained("outputs/erase_accelerate")
        eraser.save("outputs/erase_accelerate")
    Accelerator().end_training()
