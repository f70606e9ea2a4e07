from __future__ import annotations

import pytest
import torch
from helpers.models import FAMILIES, NAMES, TIMM, make_model
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
)

from ec_hf.models.finish import UNREACHABLE, finished, logit_layers

FORGOTTEN = [1, 3]
KEPT = [0, 2, 4]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits_of(model):
    with torch.no_grad():
        return model.eval()(pixel_values=IMAGES).logits


def reloaded(model, folder):
    model.save_pretrained(folder)
    loaded, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return loaded


def trained(family):
    """A model whose last layer was moved off its initial value, which is zero in some families."""
    model = make_model(family)
    with torch.no_grad():
        for layer in logit_layers(model):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2)))
    return model


@pytest.mark.parametrize("how", ["mask", "drop"])
@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_the_finished_model_of_every_family_is_a_plain_checkpoint_with_the_other_logits_unchanged(
    family, how, tmp_path
):
    model = trained(family)
    before = logits_of(model)
    loaded = reloaded(finished(model, FORGOTTEN, how), tmp_path)
    after = logits_of(loaded)
    names = [loaded.config.id2label[label] for label in range(after.shape[1])]
    if how == "mask":
        assert names == NAMES
        assert (after[:, FORGOTTEN] == UNREACHABLE).all()
        after = after[:, KEPT]
    else:
        assert names == ["ant", "cat", "elk"] and loaded.config.label2id == {"ant": 0, "cat": 1, "elk": 2}
        assert loaded.config.num_labels == 3
    assert torch.allclose(after, before[:, KEPT], atol=1e-6)
    assert torch.equal(logits_of(model), before), "the given model stays as it was"


def test_both_heads_of_a_distilled_model_are_finished():
    model = DeiTForImageClassificationWithTeacher(FAMILIES["DeiT"]())
    before = logits_of(model)
    assert logit_layers(model) == [model.cls_classifier, model.distillation_classifier]
    assert (logits_of(finished(model, FORGOTTEN, "mask"))[:, FORGOTTEN] == UNREACHABLE).all()
    assert torch.allclose(logits_of(finished(model, FORGOTTEN, "drop")), before[:, KEPT], atol=1e-6)


def test_a_masked_class_stays_finite_in_half_precision():
    model = finished(trained("ViT"), FORGOTTEN, "mask").half()
    assert torch.isfinite(model.classifier.bias).all()


def test_layers_as_wide_as_there_are_classes_are_not_taken_for_the_classifier():
    config = FAMILIES["ViT"]()
    config.num_labels = config.hidden_size
    model = ViTForImageClassification(config)
    assert logit_layers(model) == [model.classifier]


def test_keep_changes_nothing():
    model = trained("ViT")
    assert torch.equal(logits_of(finished(model, [], "keep")), logits_of(model))


def test_a_last_layer_without_bias_can_be_dropped_but_not_masked():
    model = trained("ViT")
    model.classifier = nn.Linear(32, 5, bias=False)
    with pytest.raises(ValueError, match=r"no bias .* finish='drop'"):
        finished(model, FORGOTTEN, "mask")
    assert logits_of(finished(model, FORGOTTEN, "drop")).shape == (3, 3)


def test_logits_that_no_layer_gives_are_refused():
    model = trained("ViT")
    model.classifier = nn.Sequential(model.classifier, nn.Tanh())
    with pytest.raises(ValueError, match="ViTForImageClassification are not the output of its last linear layer"):
        finished(model, FORGOTTEN, "mask")


@pytest.mark.parametrize(
    ("classes", "how", "message"),
    [
        ([], "mask", "no class is known to be forgotten as a whole"),
        ([7], "drop", r"no label \[7\]"),
        ([0, 1, 2, 3], "drop", "leave 1 of 5 classes"),
        ([1], "hide", "one of keep, mask, drop"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(classes, how, message):
    with pytest.raises(ValueError, match=message):
        finished(make_model("ViT"), classes, how)
