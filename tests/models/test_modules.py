from __future__ import annotations

import pytest
import torch
import transformers
from helpers.models import LABELS, make_model
from torch import nn

from ec_hf.models.heads import ECHeads
from ec_hf.models.modules import blocks_of, modules_at, with_modules
from ec_hf.models.penultimate import Penultimate, classifier_of, penultimate_point
from ec_hf.models.points import describe_hidden_states, hidden_state_kwargs, pool, select_points, take

SHAPE = (3, 32, 32)


def points_of(model, points, shape=SHAPE):
    hidden = describe_hidden_states(model, shape)
    states = with_modules(model, hidden, points, shape)
    return select_points(
        model, [*states, *penultimate_point(classifier_of(model, shape).values(), len(states))], points
    )


def resnet(depths=(2, 2, 2, 3), layer_type="bottleneck"):
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 24, 32, 48], depths=list(depths), layer_type=layer_type, **LABELS
        )
    )


def run(model, points):
    """The features of points in one forward, by name."""
    with torch.no_grad(), Penultimate(classifier_of(model, SHAPE).values(), modules_at(model, points)) as penultimate:
        output = model.eval()(pixel_values=torch.rand(2, *SHAPE), **hidden_state_kwargs(model))
        states = penultimate.after(output.hidden_states)
    return {point.name: take(states, point) for point in points}, output


def test_the_three_blocks_inside_the_last_stage_of_a_resnet_are_points():
    model = resnet()
    names = [f"resnet.encoder.stages.3.layers.{k}" for k in range(3)]
    points = points_of(model, names)
    assert [point.name for point in points] == names
    assert {(point.kind, point.channels, point.height, point.width) for point in points} == {("map", 48, 1, 1)}
    features, output = run(model, points)
    assert torch.equal(features[names[2]], output.hidden_states[-1]), "the last block gives the stage's output"
    assert not torch.equal(features[names[0]], features[names[1]])


def test_points_stand_in_the_order_in_which_the_model_computes_them():
    model = resnet()
    late, early = "resnet.encoder.stages.3.layers.1", "resnet.encoder.stages.0.layers.0"
    points = points_of(model, [late, "penultimate", -1, 0, early, 2])
    assert [point.name for point in points] == [
        "hidden_states.0",
        early,
        "hidden_states.2",
        late,
        "hidden_states.4",
        "penultimate",
    ]


def test_tokens_of_a_transformer_block_are_those_of_its_hidden_states():
    model = make_model("ViT")
    points = points_of(model, ["vit.layers.1"])
    assert (points[0].kind, points[0].channels, points[0].prefix) == ("tokens", 32, 1)
    features, output = run(model, points)
    assert torch.equal(features["vit.layers.1"], output.hidden_states[2])


def test_a_module_that_gives_one_vector_an_image_is_a_vector():
    model = resnet()
    points = points_of(model, ["classifier.0"])
    assert (points[0].kind, points[0].channels, points[0].name) == ("vector", 48, "classifier.0")
    features, _ = run(model, points)
    assert pool(features["classifier.0"], points[0], "mean").shape == (2, 48)


def test_channels_in_the_last_place_are_told_by_the_images_proportions():
    config = transformers.TimmWrapperConfig(
        architecture="swin_tiny_patch4_window7_224",
        model_args={"img_size": 32, "window_size": 4, "patch_size": 2, "embed_dim": 24, "depths": (1, 1, 2, 1)},
        **LABELS,
    )
    model = transformers.TimmWrapperForImageClassification(config)
    points = points_of(model, "blocks")
    assert len(points) == 5 and all(point.channels_last for point in points)
    assert [(point.channels, point.height, point.width) for point in points] == [
        (24, 16, 16),
        (48, 8, 8),
        (96, 4, 4),
        (96, 4, 4),
        (192, 2, 2),
    ]
    for point, features in zip(points, run(model, points)[0].values(), strict=True):
        assert features.shape == (2, point.channels, point.height, point.width)


BLOCKS = {
    "ViT": (lambda: make_model("ViT"), [f"vit.layers.{k}" for k in range(4)]),
    "bottlenecks": (
        resnet,
        [f"resnet.encoder.stages.{s}.layers.{k}" for s, n in enumerate((2, 2, 2, 3)) for k in range(n)],
    ),
    "basic blocks and a stage of one": (
        lambda: resnet((1, 1, 2, 1), "basic"),
        [f"resnet.encoder.stages.{s}.layers.{k}" for s, n in enumerate((1, 1, 2, 1)) for k in range(n)],
    ),
    "one convolution each": (
        lambda: transformers.MobileNetV1ForImageClassification(
            transformers.MobileNetV1Config(image_size=32, depth_multiplier=0.25, **LABELS)
        ),
        [f"mobilenet_v1.layer.{k}" for k in range(26)],
    ),
    "timm ViT": (lambda: make_model("timm ViT"), [f"timm_model.blocks.{k}" for k in range(6)]),
}


@pytest.mark.parametrize("what", BLOCKS)
def test_blocks_are_found_without_knowing_the_family(what):
    make, names = BLOCKS[what]
    assert blocks_of(make(), SHAPE) == names


def test_blocks_may_stand_beside_other_points():
    model = make_model("ViT")
    points = points_of(model, ["blocks", "vit.embeddings", "penultimate"])
    assert [point.name for point in points] == ["vit.embeddings", *BLOCKS["ViT"][1], "penultimate"]
    assert [point.index for point in points[:-1]] == [5, 6, 7, 8, 9], "in the order of the hooks"


def test_a_model_without_repeated_blocks_says_what_could_be_named():
    model = make_model("ViT")
    model.vit.layers = nn.ModuleList(model.vit.layers[:1])
    model.config.num_hidden_layers = 1
    with pytest.raises(ValueError, match=r"no blocks that repeat.*such as .*vit"):
        blocks_of(model, SHAPE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit.layers.9", r"no module 'vit.layers.9'.*Close names: .*vit\.layers\.\d"),
        ("layers.2", r"Close names: vit\.layers\.2"),
        ("vit.layers", r"module 'vit.layers' did not run.*Close names: vit\.layers\.\d"),
    ],
)
def test_a_name_that_catches_nothing_is_refused_with_close_names(name, message):
    with pytest.raises(ValueError, match=message):
        points_of(make_model("ViT"), [name])


def test_modules_that_show_no_single_layer_are_refused():
    model = make_model("ViT")
    model.vit.layers[1] = model.vit.layers[0]
    with pytest.raises(ValueError, match="runs 2 times"):
        points_of(model, ["vit.layers.0"])
    swin = make_model("Swin")
    window = next(name for name, _ in swin.named_modules() if name.endswith("blocks.0.attention"))
    with pytest.raises(ValueError, match=r"of 2 images, module .* gives \(128, 4, 8\)"):
        points_of(swin, [window])


def test_an_output_that_a_later_layer_changes_in_place_is_refused():
    model = resnet()
    for each in model.modules():
        for name, child in each.named_children():
            if isinstance(child, nn.ReLU):
                setattr(each, name, nn.ReLU(inplace=True))
    with pytest.raises(ValueError, match=r"changes the output of module .*normalization' in place"):
        points_of(model, ["resnet.embedder.embedder.normalization"])


def test_a_shape_that_leaves_the_channels_open_is_refused():
    model = resnet()
    model.resnet.embedder.pooler = nn.Sequential(nn.Unflatten(1, (8,)), nn.MaxPool2d(2))  # 8 channels, 8 x 8
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 8\) .* does not tell which dimension holds the channels"):
        points_of(model, ["resnet.embedder.pooler"])


def test_looking_changes_nothing_of_the_model():
    model = make_model("ResNet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    points_of(model, "blocks")
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_heads_stand_on_named_modules_and_save_and_load_with_them(tmp_path):
    model = resnet()
    hidden = describe_hidden_states(model, SHAPE)
    points = points_of(model, ["resnet.encoder.stages.2.layers.0", 4, "classifier.0", "penultimate"])
    heads = ECHeads([point.to_dict() for point in points], hidden[-1].to_dict(), 5)
    heads.save_pretrained(tmp_path)
    loaded = ECHeads.from_pretrained(tmp_path)
    assert loaded.points == points
    loaded.attach(model)
    output = model.train()(pixel_values=torch.rand(2, *SHAPE), output_hidden_states=True)
    assert [tuple(each.shape) for each in output.features] == [(2, 48)] * 4
    sum(each.sum() for each in output.head_logits).backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    loaded.detach()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_module_that_is_skipped_while_training_is_an_error_and_no_stale_features():
    model = make_model("ViT")
    points = points_of(model, ["vit.layers.1"])
    with pytest.raises(RuntimeError, match=r"1 of the 1 modules .* did not run"):
        Penultimate((), modules_at(model, points)).after(())
