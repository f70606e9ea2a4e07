from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from conftest import make_images, make_model, make_processor

from ec_hf.audit import profile
from ec_hf.batches import ImageCollator
from ec_hf.metrics import linear_cka
from ec_hf.points import describe_hidden_states, hidden_state_kwargs, select_points


def run(models, splits, **kwargs):
    points = select_points(models["original"], describe_hidden_states(models["original"], (3, 32, 32)))
    collator = ImageCollator(make_processor())
    return points, profile(models, splits, collator, points, accelerator=Accelerator(cpu=True), **kwargs)


@pytest.mark.parametrize("batch_size", [7, 50])
def test_figures_are_those_of_the_whole_split_however_it_is_cut(batch_size):
    models = {"original": make_model("ViT"), "other": make_model("ViT", seed=1)}
    images = make_images(50)
    points, profiles = run(models, {"test": images}, batch_size=batch_size)
    batch = make_processor()(list(images["image"]), return_tensors="pt")
    with torch.no_grad():
        outputs = {name: model(**batch, **hidden_state_kwargs(model)) for name, model in models.items()}
    for name, output in outputs.items():
        right = output.logits.argmax(-1) == torch.tensor(images["label"])
        assert profiles[name].accuracy["test"] == pytest.approx(right.float().mean().item())
    for point in points:
        ours, theirs = (outputs[name].hidden_states[point.index].mean(dim=1) for name in ("other", "original"))
        expected = linear_cka(ours, theirs)
        assert profiles["other"].cka["original"]["test"][point.name] == pytest.approx(expected, abs=1e-4)
    assert profiles["original"].cka == {}, "no model is compared with itself, or with a reference that is not there"


def test_splits_too_small_for_a_similarity_keep_their_accuracy():
    models = {"original": make_model("ViT"), "other": make_model("ViT", seed=1)}
    images = make_images(10)
    _, profiles = run(models, {"none": images.select([]), "three": images.select(range(3))})
    assert set(profiles["other"].accuracy) == {"three"}
    assert set(profiles["other"].cka["original"]["three"].values()) == {None}
