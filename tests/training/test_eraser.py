"""The eraser and its loss, without any trainer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.models import make_images, make_model, make_processor
from helpers.trainers import make_trainer
from torch.utils.data import ConcatDataset, DataLoader

from ec_hf import ForgetRequest, split
from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.losses import PointWeights
from ec_hf.models.inputs import ImageCollator
from ec_hf.objectives import Objective, Progress
from ec_hf.training.config import EraserConfig
from ec_hf.training.eraser import Eraser
from ec_hf.training.loss import LossTerms, Term

PARTS = split(make_images(), ForgetRequest(classes=["bee", "dog"]))
COLLATE = ImageCollator(make_processor())


def batches_of(part):
    return DataLoader(part, batch_size=16, collate_fn=COLLATE)


def paired_loader(epoch_seed=42):
    data = PairedDataset(PARTS["forget"], PARTS["retain"], seed=epoch_seed)
    sampler = PairedBatchSampler(40, 60, forget_batch_size=8, retain_batch_size=16, seed=epoch_seed)
    return DataLoader(data, batch_sampler=sampler, collate_fn=COLLATE)


def erase(eraser, steps=3, learning_rate=1e-2):
    """A bare loop: what a user writes who has no Trainer."""
    losses = []
    with eraser.attached():
        eraser.model.train()
        optimizer = torch.optim.SGD([p for p in eraser.model.parameters() if p.requires_grad], learning_rate)
        for index, batch in zip(range(steps), paired_loader(), strict=False):
            terms = eraser(batch, Progress(index=index, total=steps))
            optimizer.zero_grad()
            terms.total.backward()
            optimizer.step()
            eraser.after_step(optimizer)
            losses.append(terms)
    return losses


@pytest.fixture(scope="module")
def heads():
    model = make_model("ViT")
    eraser = Eraser(model, EraserConfig("contrastive", heads_epochs=1))
    eraser.fit_heads(batches_of(ConcatDataset([PARTS["forget"], PARTS["retain"]])))
    return eraser.heads


def test_a_bare_loop_erases_and_leaves_a_plain_model(heads, tmp_path):
    model = make_model("ViT")
    before = copy.deepcopy(model.state_dict())
    eraser = Eraser(model, EraserConfig("contrastive"), forget_classes=[1, 3], heads=copy.deepcopy(heads))
    terms = erase(eraser)
    assert all(math.isfinite(each.total.item()) for each in terms)
    assert {"contrastive/contrast", "hidden_states.1/contrast", "hidden_states.1/retain_ce"} <= set(terms[0].parts)
    assert not hasattr(model, "ec_heads") and list(model.state_dict()) == list(before)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


@pytest.mark.parametrize("settings", [{}, {"objective": "delete", "calibrated": True}])
def test_a_bare_loop_takes_the_steps_that_the_trainer_takes(heads, tmp_path, settings):
    trainer = make_trainer(
        tmp_path,
        forget=("bee", "dog"),
        heads=copy.deepcopy(heads),
        optim="sgd",
        learning_rate=1e-2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_steps=3,
        **settings,
    )
    trainer.train()
    eraser = Eraser(
        make_model("ViT"),
        EraserConfig(**({"objective": "contrastive"} | settings)),
        forget_classes=[1, 3],
        heads=copy.deepcopy(heads),
    )
    eraser.prepare(lambda every=1: batches_of(PARTS["forget"]), lambda every=1: batches_of(PARTS["retain"]))
    erase(eraser)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(eraser.model.state_dict()[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_what_is_only_logged_is_no_part_of_the_loss():
    value = torch.tensor(2.0, requires_grad=True)
    terms = LossTerms({"a": Term(0.5, value), "b": Term(2.0, 3 * value)}, {"overflow": torch.tensor(math.inf)})
    terms.total.backward()
    assert terms.total.item() == 13.0 and value.grad.item() == 6.5
    assert {name: each.item() for name, each in terms.logged().items()} == {"a": 2.0, "b": 6.0, "overflow": math.inf}


@pytest.mark.parametrize("scale", [0.1, 0.7])
def test_weights_name_the_host_and_the_points_apart(scale):
    alone = PointWeights.of("uniform", scale, 0)
    assert (alone.host, alone.points, alone.by_point) == (1.0, (), ())
    beside = PointWeights.of([1, 0.5, 2], scale, 3)
    assert (beside.host, beside.points) == (1.0, (scale, 0.5 * scale, 2 * scale)) and beside.by_point == beside.points
    instead = PointWeights.of([1, 0.5, 2], scale, 3, host_is_last_point=True)
    assert (instead.host, instead.points) == (2.0, (scale, 0.5 * scale, 0.0))
    assert instead.by_point == (scale, 0.5 * scale, 2.0)


def test_settings_are_read_and_never_changed(heads):
    config = EraserConfig(objective="delete", objective_kwargs={"retain_weight": 1.0}, calibrated=True)
    before = copy.deepcopy(vars(config))
    eraser = Eraser(make_model("ViT"), config, forget_classes=[1, 3], heads=copy.deepcopy(heads))
    erase(eraser, steps=1)
    assert vars(config) == before


def test_new_weights_follow_the_retain_statistics_whatever_the_settings_say():
    config = EraserConfig(objective="retrain", points=[])
    assert Eraser(make_model("ResNet"), config).batch_norm == "retain" and config.batch_norm == "frozen"


@pytest.mark.parametrize("family", ["ViT", "Dinov2", "MobileNetV2", "timm EfficientNet"])
def test_host_objectives_see_what_the_classifier_reads(family):
    model = make_model(family)
    eraser = Eraser(model, EraserConfig("contrastive", points=[]))
    (layer,) = eraser.classifier.values()
    pixels = next(iter(batches_of(PARTS["forget"])))["pixel_values"]
    with eraser.attached():
        model.train()
        outputs = model(pixel_values=pixels, output_hidden_states=True)
        torch.testing.assert_close(layer(outputs.last_features), outputs.logits)
    model.eval()
    torch.testing.assert_close(layer(eraser.features(pixels)), model(pixel_values=pixels).logits)
    eraser.features(pixels).sum().backward()
    assert sum(parameter.grad is not None for parameter in model.parameters()) > 1


@pytest.mark.parametrize("family", ["ViT", "Dinov2", "Swin"])
def test_closed_forms_and_new_rows_act_on_what_host_objectives_see(family):
    model = make_model(family).eval()
    eraser = Eraser(model, EraserConfig(points=[], objective="esc"), forget_classes=[1, 3])
    (layer,) = eraser.classifier.values()
    pixels = torch.cat([batch["pixel_values"] for batch in batches_of(PARTS["forget"])])
    with torch.no_grad():
        features = eraser.features(pixels)
        leading = torch.linalg.svd(features, full_matrices=False).Vh[:1].T
        expected = layer(features - features @ leading @ leading.T)
        eraser.prepare(lambda every=1: batches_of(PARTS["forget"]), lambda every=1: batches_of(PARTS["retain"]))
        torch.testing.assert_close(model(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-5)
    widened = Eraser(model, EraserConfig(points=[], objective="boundary_expand"))
    widened.prepare(lambda every=1: batches_of(PARTS["forget"]), lambda every=1: batches_of(PARTS["retain"]))
    assert widened.host._row.shape == layer.weight[0].shape


def test_the_penultimate_layer_may_be_a_supervision_point(tmp_path):
    model = make_model("Dinov2")
    config = EraserConfig(objective="delete", points=["2", "-1", "penultimate"], heads_epochs=1)
    eraser = Eraser(model, config, forget_classes=[1, 3])
    assert [str(point) for point in eraser.points[-1:]] == ["penultimate (64 channels)"]
    accuracies = eraser.fit_heads(batches_of(ConcatDataset([PARTS["forget"], PARTS["retain"]])))
    assert list(accuracies) == ["hidden_states.2", "hidden_states.4", "penultimate"]
    (terms,) = erase(eraser, steps=1)
    assert {"hidden_states.4/contrast", "penultimate/contrast", "penultimate/retain_ce"} <= set(terms.parts)
    model.save_pretrained(tmp_path)
    eraser.save(tmp_path)
    again = Eraser(make_model("Dinov2"), config, forget_classes=[1, 3], heads=tmp_path)
    again.load(tmp_path)
    assert math.isfinite(erase(again, steps=1)[0].total.item())


@pytest.mark.parametrize("points", ["penultimate", ["penultimate"], [1, "penultimate"], [1, 4]])
def test_an_objective_that_moves_the_penultimate_features_takes_the_last_point_from_ec(points):
    eraser = Eraser(make_model("ViT"), EraserConfig("contrastive", points=points), forget_classes=[1, 3])
    assert eraser.weights.host_is_last_point and eraser.weights.points[-1] == 0.0
    assert not Eraser(make_model("ViT"), EraserConfig("contrastive", points=[1, 2])).weights.host_is_last_point


@pytest.mark.parametrize(
    ("family", "points", "names"),
    [
        ("ViT", [-1, "vit.layers.3"], "hidden_states.4 and vit.layers.3"),
        ("ViT", ["blocks", 2], "hidden_states.2 and vit.layers.1"),
        ("ResNet", ["resnet.encoder", "resnet.encoder.stages.3"], "resnet.encoder.stages.3 and resnet.encoder"),
        ("ResNet", ["penultimate", "resnet.pooler"], "resnet.pooler and penultimate"),
    ],
)
def test_one_layer_under_two_names_is_refused(family, points, names):
    with pytest.raises(ValueError, match=f"{names} have the same features"):
        Eraser(make_model(family), EraserConfig("contrastive", points=points), forget_classes=[1])


@pytest.mark.parametrize(
    ("family", "point", "same"), [("ViT", "vit.layers.3", -1), ("ResNet", "resnet.pooler", "penultimate")]
)
def test_the_last_layer_has_one_weight_under_any_name(family, point, same):
    by_name, by_index = (
        Eraser(make_model(family), EraserConfig("contrastive", points=[1, each]), forget_classes=[1]).weights
        for each in (point, same)
    )
    assert by_name == by_index
    inner = Eraser(make_model(family), EraserConfig("contrastive", points=[1]), forget_classes=[1]).weights
    assert by_name.points != inner.points


def test_a_model_whose_logits_are_no_linear_layers_output_is_erased_by_its_deepest_hidden_state():
    model = make_model("ViT")
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    eraser = Eraser(model, forget_classes=[1, 3])
    pixels = next(iter(batches_of(PARTS["forget"])))["pixel_values"]
    with torch.no_grad():
        deepest = model.eval()(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(eraser.features(pixels), deepest[:, 0])
    assert math.isfinite(erase(eraser, steps=1)[0].total.item())
    with pytest.raises(ValueError, match="no linear layer gives the model's logits"):
        Eraser(model, EraserConfig("contrastive", points=["penultimate"]))


class Scheduled(Objective):
    """Notes where in the run it is told to be."""

    def __init__(self):
        self.seen = []

    def __call__(self, step):
        self.seen.append((step.progress.index, step.progress.total))
        return {"nothing": step.forget.logits.sum() * 0}


def test_an_objective_knows_of_the_run_what_its_progress_says():
    eraser = Eraser(make_model("ViT"), EraserConfig(objective=f"{__name__}:Scheduled", points=[]))
    erase(eraser)
    assert eraser.objective.seen == [(0, 3), (1, 3), (2, 3)]


def test_heads_and_adversaries_go_on_from_their_state(heads):
    config = EraserConfig(objective="delete", calibrated=True, train_heads=True)
    one, other = (
        Eraser(make_model("ViT"), config, forget_classes=[1, 3], heads=copy.deepcopy(heads)) for _ in range(2)
    )
    erase(one)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for mine, theirs in zip(one.loss.adversaries, other.loss.adversaries, strict=True):
        assert mine.weight.any() and torch.equal(mine.weight, theirs.weight)
        assert theirs.optimizer.state_dict()["state"][0]["step"] == mine.optimizer.state_dict()["state"][0]["step"]
    assert all(torch.equal(value, other.heads.state_dict()[name]) for name, value in one.heads.state_dict().items())


def test_a_failure_in_the_loop_takes_heads_and_mask_off_again(heads):
    model = make_model("ViT")
    eraser = Eraser(
        model, EraserConfig("contrastive", saliency=0.5), forget_classes=[1, 3], heads=copy.deepcopy(heads)
    )
    eraser.prepare(lambda every=1: batches_of(PARTS["forget"]), lambda every=1: batches_of(PARTS["retain"]))
    with pytest.raises(RuntimeError, match="power cut"), eraser.attached():
        raise RuntimeError("power cut")
    assert not hasattr(model, "ec_heads")
    model(**next(iter(batches_of(PARTS["forget"])))).loss.backward()
    gradient = torch.cat([each.grad.flatten() for each in model.parameters()])
    assert (gradient != 0).double().mean() > 0.6


def test_a_teacher_is_remembered_only_with_a_way_to_look_again(heads):
    config = EraserConfig(objective="delete", cache_teacher=True)
    eraser = Eraser(make_model("ViT"), config, forget_classes=[1, 3], heads=copy.deepcopy(heads))
    with pytest.raises(ValueError, match="cache_teacher=True: give prepare"):
        eraser.prepare(lambda every=1: batches_of(PARTS["forget"]), lambda every=1: batches_of(PARTS["retain"]))


def test_objective_settings_may_be_text_and_must_be_an_object():
    assert EraserConfig(objective_kwargs='{"retain_weight": 1.0}').objective_kwargs == {"retain_weight": 1.0}
    for text in ("[1]", "{", "3"):
        with pytest.raises(ValueError, match="objective_kwargs"):
            EraserConfig(objective_kwargs=text)
