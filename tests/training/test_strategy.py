"""What wraps a model for several processes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from helpers.models import make_model
from helpers.trainers import make_trainer

from ec_hf.training.strategy import check_strategy, strategy_of, unused_parameters

RECIPES = Path(__file__).parents[2] / "recipes" / "accelerate"


def test_sharding_that_the_machine_does_not_give_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but Accelerate runs this as"):
        make_trainer(tmp_path)


def test_a_strategy_that_is_the_real_one_passes(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_strategy(None, DistributedType.FSDP)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    check_strategy(None, DistributedType.MULTI_CPU)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed was asked for"):
        check_strategy(None, DistributedType.MULTI_CPU)


def test_the_start_of_a_run_says_what_wraps_the_model(tmp_path, capsys):
    make_trainer(tmp_path, max_steps=1).train()
    assert "strategy: nothing wraps the model, which trains in one process" in capsys.readouterr().out
    assert strategy_of(torch.nn.Linear(1, 1), 2) == "Linear over 2 processes"


def test_parameters_that_a_forward_leaves_out_are_found_and_nothing_else_changes():
    model = make_model("Beit", use_mask_token=True).eval()
    state, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    assert unused_parameters(model, (3, 32, 32), output_hidden_states=True) == ["beit.embeddings.mask_token"]
    assert not model.training and torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for family in ("ViT", "ResNet"):
        assert not unused_parameters(make_model(family), (3, 32, 32))


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("zero2", "DEEPSPEED"), ("zero3", "DEEPSPEED")]
)
def test_the_configurations_of_accelerate_are_read_by_accelerate(name, kind):
    from accelerate.commands.config.config_args import load_config_from_file

    path = RECIPES / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.num_processes == 2
    assert yaml.safe_load(path.read_text())["distributed_type"] == kind
