"""FSDP2 against DDP on the same batches, on the CPU; run by test_processes.py as two processes.

usage: shard_paired.py OUT
"""

import copy
import json
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate import PartialState
from helpers.models import make_images, make_model, make_processor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ec_hf import Eraser, EraserConfig, ForgetRequest, split
from ec_hf.models.inputs import ImageCollator


def own_batch(parts):
    collate = ImageCollator(make_processor())
    forget, retain = (
        [{**part[i], "is_forget": name == "forget"} for i in range(state.process_index, 16, 2)]
        for name, part in parts.items()
    )
    batch = collate(forget + retain)
    return batch | {"pixel_values": batch["pixel_values"].double()}


state = PartialState(cpu=True)
parts = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
batch = own_batch(parts)
mesh = init_device_mesh("cpu", (state.num_processes,))
found = {"processes": state.num_processes, "families": {}}
for family in ("ViT", "ConvNext"):
    config = EraserConfig(objective="delete", objective_kwargs={"retain_weight": 1.0}, calibrated=True)
    plain = make_model(family).double()
    erasers = [Eraser(each, config, forget_classes=[1, 3]) for each in (plain, copy.deepcopy(plain))]
    erasers[1].heads.load_state_dict(erasers[0].heads.state_dict())
    gradients, losses = [], []
    for sharded, eraser in enumerate(erasers):
        eraser.heads_fitted = True
        eraser.heads.double()
        with eraser.attached():
            model = eraser.model.train()
            if sharded:
                blocks = [each for each in model.modules() if type(each).__name__ in model._no_split_modules]
                for block in reversed(blocks):  # inner ones first
                    fully_shard(block, mesh=mesh)
                fully_shard(model, mesh=mesh)
                assert isinstance(model, FSDPModule)
                assert all(isinstance(each, DTensor) for each in model.ec_heads.parameters())
            loss = eraser(batch).total
            loss.backward()
            losses.append(loss.item())
            moved = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
            for name, value in moved.items():
                if not sharded:
                    dist.all_reduce(value)
                    moved[name] = value / state.num_processes  # what DDP makes of it
            gradients.append({n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in moved.items()})
    ddp, fsdp = gradients
    local = sum(each.to_local().numel() for each in erasers[1].model.parameters())
    found["families"][family] = {
        "losses": losses,
        "same names": ddp.keys() == fsdp.keys(),
        "apart": max((fsdp[name] - value).abs().max().item() for name, value in ddp.items()),
        "largest": max(value.abs().max().item() for value in ddp.values()),
        "share of the weights": local / sum(each.numel() for each in erasers[0].model.parameters()),
    }
if state.is_main_process:
    Path(sys.argv[1], "found.json").write_text(json.dumps(found))
state.wait_for_everyone()
dist.destroy_process_group()
