from __future__ import annotations

import pytest
import torch
import transformers
from helpers.models import FAMILIES, TIMM, make_model

from ec_hf.models.points import (
    SupervisionPoint,
    classifier_pooling,
    describe_hidden_states,
    hidden_state_kwargs,
    pool,
    select_points,
    take,
)


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_every_family_gives_sized_points_that_match_its_features(family):
    model = make_model(family).eval()
    states = describe_hidden_states(model, (3, 32, 32))
    points = select_points(model, states)
    assert 3 <= len(points) <= 4
    assert points[-1] == states[-1], "the deepest hidden state is always among the automatic points"
    output = model(pixel_values=torch.rand(2, 3, 32, 32), **hidden_state_kwargs(model))
    assert len(output.hidden_states) == len(states)
    for state in states:
        features = take(output.hidden_states, state)
        if state.kind == "map":
            assert features.shape == (2, state.channels, state.height, state.width)
        else:
            assert features.shape == (2, state.prefix + state.height * state.width, state.channels)
        assert pool(features, state, "mean").shape == (2, state.channels)


@pytest.mark.parametrize(
    ("family", "indices"),
    [("ViT", [1, 2, 3, 4]), ("ResNet", [1, 2, 3, 4]), ("Swin", [1, 2, 3, 4]), ("PvtV2", [0, 1, 2, 3])],
)
def test_automatic_points_leave_out_the_embedding_and_end_at_the_last_state(family, indices):
    model = make_model(family)
    points = select_points(model, describe_hidden_states(model, (3, 32, 32)))
    assert [point.index for point in points] == indices


def test_deep_isotropic_models_get_the_quartiles():
    model = make_model("ViT")
    states = describe_hidden_states(model)
    deep = [states[1]] * 13
    model.config.num_hidden_layers = 12
    assert select_points(model, deep) == tuple(deep[i] for i in (3, 6, 9, 12))


@pytest.mark.parametrize(
    ("family", "prefix"),
    [("ViT", 1), ("DeiT", 2), ("Dinov2WithRegisters", 5), ("Siglip", 0), ("timm ViT", 1), ("timm ViT registers", 4)],
)
def test_prefix_tokens_are_counted(family, prefix):
    states = describe_hidden_states(make_model(family), (3, 32, 32))
    assert {state.prefix for state in states} == {prefix}


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("ViT", "cls"), ("DeiT", "cls"), ("Beit", "mean"), ("Siglip", "mean"), ("Swin", "mean"), ("timm ViT", "cls")],
)
def test_pooling_follows_the_tokens_that_the_classifier_reads(family, pooling):
    model = make_model(family)
    assert classifier_pooling(model, describe_hidden_states(model, (3, 32, 32))[-1]) == pooling


def test_token_grids_become_maps_in_row_major_order():
    model = make_model("Swin").eval()
    states = describe_hidden_states(model)
    output = model(pixel_values=torch.rand(2, 3, 32, 32), **hidden_state_kwargs(model))
    for state, reshaped in zip(states, output.reshaped_hidden_states, strict=True):
        torch.testing.assert_close(take(output.hidden_states, state), reshaped)


def test_a_map_leaves_out_the_prefix_tokens_of_its_stage():
    tokens = torch.rand(2, 5, 3)
    point = SupervisionPoint(index=0, kind="map", channels=3, height=2, width=2, prefix=1)
    torch.testing.assert_close(take([tokens], point).flatten(2).transpose(1, 2), tokens[:, 1:])


@pytest.mark.parametrize("architecture", ["cait_xxs24_224", "convit_tiny"])
def test_timm_models_that_keep_their_prefix_tokens_to_themselves_work(architecture):
    config = transformers.TimmWrapperConfig(architecture=architecture, num_labels=5)
    model = transformers.TimmWrapperForImageClassification(config)
    assert len(select_points(model, describe_hidden_states(model))) == 4


def test_non_square_images_are_sized_by_their_proportions():
    model = make_model("Swin")
    states = describe_hidden_states(model, (3, 32, 64))
    assert (states[0].height, states[0].width) == (16, 32)


def test_a_list_picks_points_by_index_from_either_end_in_order_of_depth():
    model = make_model("ViT")
    states = describe_hidden_states(model)
    assert [p.index for p in select_points(model, states, [-1, "2"])] == [2, 4]
    assert select_points(model, states, []) == ()


@pytest.mark.parametrize(
    ("points", "message"),
    [([9], "no hidden state 9; it has 5"), ([1, -4], "named twice"), (["deep"], "not an index"), ("all", "'auto'")],
)
def test_points_that_the_model_does_not_have_are_refused(points, message):
    model = make_model("ViT")
    with pytest.raises(ValueError, match=message):
        select_points(model, describe_hidden_states(model), points)


def test_a_model_without_hidden_states_is_refused():
    model = make_model("ResNet")
    forward = model.forward
    model.forward = lambda **kw: forward(**{**kw, "output_hidden_states": False})
    with pytest.raises(ValueError, match="returned no hidden states"):
        describe_hidden_states(model)
