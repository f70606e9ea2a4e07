from __future__ import annotations

import copy

import pytest
import torch
from helpers.models import make_images, make_model, make_processor
from helpers.trainers import make_trainer
from torch.nn import functional as F
from transformers import TrainerCallback

from ec_hf.training.saliency import saliency_mask


def batches(size):
    images = make_images()
    pixels = make_processor()(list(images["image"]), return_tensors="pt")["pixel_values"][1::5]
    return [{"pixel_values": part, "labels": torch.full((len(part),), 1)} for part in pixels.split(size)]


def masks_of(trainer):
    """The mask that a run must have, from the model as it is before it."""
    model = trainer.model.eval()
    return saliency_mask(model, batches(16), trainer.eraser.saliency)


def start_of(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def held_and_moved(trainer, masks, start):
    """Whether every masked weight is where it was, and the share of the others that is not."""
    held, moved, free = True, 0, 0
    for name, value in trainer.model.named_parameters():
        same = value == start[name]
        held &= bool(same[~masks[name]].all())
        moved += int((~same[masks[name]]).sum())
        free += int(masks[name].sum())
    return held, moved / free


def test_the_mask_is_the_share_of_all_weights_with_the_largest_mean_gradient():
    model = make_model("ViT").double().eval()
    data = [{**batch, "pixel_values": batch["pixel_values"].double()} for batch in batches(20)]
    loss = F.cross_entropy(model(pixel_values=data[0]["pixel_values"]).logits, data[0]["labels"])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    every = torch.cat([gradient.abs().flatten() for gradient in gradients])
    limit = every.sort(descending=True).values[round(0.3 * len(every)) - 1]
    masks = saliency_mask(model, data, 0.3)
    assert list(masks) == [name for name, _ in model.named_parameters()]
    for mask, gradient in zip(masks.values(), gradients, strict=True):
        sure = (gradient.abs() - limit).abs() > 1e-12
        assert torch.equal(mask[sure], (gradient.abs() >= limit)[sure])
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.3 * len(every))
    shares = [mask.double().mean().item() for mask in masks.values()]
    assert min(shares) < 0.1 and max(shares) > 0.9, "the ranking is over all weights together, not by tensor"


def test_the_mask_does_not_depend_on_the_batches():
    model = make_model("ViT").double().eval()
    data = [[{**b, "pixel_values": b["pixel_values"].double()} for b in batches(size)] for size in (7, 20)]
    one, other = (saliency_mask(model, each, 0.5) for each in data)
    assert all(torch.equal(mask, other[name]) for name, mask in one.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "optimizer",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9", "weight_decay": 0.1},
        {"optim": "sgd", "optim_args": "momentum=0.9,nesterov=True", "weight_decay": 0.1},
        {"optim": "adamw_torch", "weight_decay": 0.1},
    ],
    ids=["momentum", "nesterov", "adamw"],
)
@pytest.mark.parametrize(("objective", "points"), [("saliency", []), ("finetune", "auto")])
def test_masked_weights_do_not_move_by_a_bit(tmp_path, optimizer, objective, points):
    share = {} if objective == "saliency" else {"saliency": 0.5}
    trainer = make_trainer(tmp_path, objective=objective, points=points, **optimizer, **share)
    masks, start = masks_of(trainer), start_of(trainer)
    trainer.train()
    held, moved = held_and_moved(trainer, masks, start)
    assert held
    assert moved > 0.9


def test_without_the_mask_every_weight_would_move(tmp_path):
    trainer = make_trainer(tmp_path, objective="random_label", points=[], optim="sgd", weight_decay=0.1)
    start = start_of(trainer)
    trainer.train()
    changed = [(value != start[name]).double().mean() for name, value in trainer.model.named_parameters()]
    assert sum(changed) / len(changed) > 0.8


def test_a_resumed_run_holds_the_same_weights(tmp_path):
    options = {
        "objective": "delete",
        "saliency": 0.3,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "weight_decay": 0.1,
    }
    options |= {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    whole = make_trainer(tmp_path, **options)
    masks, start = masks_of(whole), start_of(whole)
    whole.train()
    resumed = make_trainer(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert held_and_moved(resumed, masks, start)[0]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_ec_heads_are_never_masked_and_take_their_whole_gradient(tmp_path):
    trainer = make_trainer(tmp_path, saliency=0.01, train_heads=True, layer_weights=[1, 1, 1, 1])
    trainer.fit_heads()
    before = copy.deepcopy(trainer.heads.state_dict())
    trainer.train()
    moved = [
        (value != before[name]).double().mean().item()
        for name, value in trainer.heads.heads[:3].state_dict(prefix="heads.").items()
    ]
    assert sum(moved) / len(moved) > 0.9


def test_the_gradient_norm_counts_only_what_may_move(tmp_path):
    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            self.gradients = {name: each.grad.clone() for name, each in model.named_parameters()}

    look = Norm()
    trainer = make_trainer(tmp_path, objective="finetune", points=[], saliency=0.1, max_steps=1, callbacks=[look])
    masks = masks_of(trainer)
    trainer.train()
    norm = trainer.state.log_history[0]["grad_norm"]
    assert all((gradient[~masks[name]] == 0).all() for name, gradient in look.gradients.items())
    clipped = torch.cat([gradient.flatten() for gradient in look.gradients.values()]).norm().item()
    assert clipped == pytest.approx(min(norm, 1.0), rel=1e-3)


def test_the_model_is_free_again_after_training_and_after_a_failure(tmp_path):
    class Fails(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("power cut")

    for callbacks in ([], [Fails()]):
        trainer = make_trainer(tmp_path, objective="saliency", points=[], max_steps=1, callbacks=callbacks)
        try:
            trainer.train()
        except RuntimeError:
            assert callbacks
        trainer.model.zero_grad()
        trainer.model(**batches(4)[0]).loss.backward()
        gradient = torch.cat([each.grad.flatten() for each in trainer.model.parameters()])
        assert (gradient != 0).double().mean() > 0.6


def test_a_share_out_of_range_is_refused(tmp_path):
    for share in (0.0, 1.5, 50):
        with pytest.raises(ValueError, match=r"saliency=.*a share above 0 and at most 1"):
            make_trainer(tmp_path, saliency=share)
