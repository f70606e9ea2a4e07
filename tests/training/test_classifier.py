"""Training classifiers: originals, fine-tuned networks and retrained references."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from helpers.models import NAMES, make_images, make_model, make_processor
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from transformers.utils import logging

from ec_hf.models.inputs import ImageCollator
from ec_hf.models.loading import load_model, load_with_new_head
from ec_hf.models.penultimate import classifier_of
from ec_hf.training import architectures, augmentation, classifier

FAST = {
    "architecture": "resnet",
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "use_cpu": True,
    "disable_tqdm": True,
}


def train(folder, train_dataset, eval_dataset, like=None, processor=None, **settings):
    config = classifier.ClassifierConfig(output_dir=str(folder), **settings)
    return classifier.train_classifier(config, train_dataset, eval_dataset, like=like, processor=processor)


def few(dataset):
    return dataset.select(range(10))


def logits(model, processor, image):
    return model(**processor([image], return_tensors="pt")).logits


@pytest.mark.parametrize("architecture", ["vit", "resnet", "test_vit", "test_resnet"])
def test_what_is_saved_is_the_trained_classifier(architecture, images, held_out, tmp_path, capsys):
    model, processor = train(tmp_path, images, held_out, **FAST | {"architecture": architecture})
    image = held_out[0]["image"]
    saved = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    again = logits(saved, AutoImageProcessor.from_pretrained(tmp_path), image)
    assert torch.allclose(again, logits(model, processor, image), atol=1e-6)
    assert not model.training
    assert saved.config.id2label == dict(enumerate(images.features["label"].names))
    assert saved.config.label2id["cat"] == 2
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("checkpoint-*"))
    assert f"saved in {tmp_path}" in capsys.readouterr().out


def test_training_learns_and_reports_its_accuracy(images, held_out, tmp_path, capsys):
    model, processor = train(tmp_path, images, held_out, **FAST | {"max_steps": 40})
    right = [logits(model, processor, row["image"]).argmax().item() == row["label"] for row in held_out]
    assert sum(right) / len(right) > 0.9
    out = capsys.readouterr().out
    assert f"{sum(right) / len(right):.2%} on the test images" in out
    assert out.split()[:4] == ["step", "loss", "time", "left"] and "{" not in out  # lines, not dictionaries


def test_a_seed_fixes_the_weights(images, held_out, tmp_path):
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        torch.manual_seed(run)  # what ran before is of no account
        model, _ = train(tmp_path / str(run), few(images), few(held_out), seed=seed, **FAST)
        weights.append(torch.cat([value.flatten() for value in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_gray_images_give_a_model_that_a_pipeline_runs(images, held_out, tmp_path):
    gray = [part.map(lambda row: {"image": row["image"].convert("L").resize((28, 28))}) for part in (images, held_out)]
    train(tmp_path, *gray, **FAST | {"architecture": "vit"})
    classify = pipeline("image-classification", model=str(tmp_path), device="cpu")
    assert {answer["label"] for answer in classify(gray[1][0]["image"])} == set(images.features["label"].names)


@pytest.mark.parametrize("kind", ["ClassLabel", "text", "integers"])
def test_a_class_missing_from_training_keeps_its_place(kind, images, held_out, tmp_path):
    names = images.features["label"].names
    parts = [images, held_out]
    if kind != "ClassLabel":
        labels = [[names[i] if kind == "text" else i for i in part["label"]] for part in parts]
        parts = [
            part.remove_columns("label").add_column("label", new) for part, new in zip(parts, labels, strict=True)
        ]
    retain = parts[0].filter(lambda label: label not in ("elk", 4), input_columns="label")
    model, _ = train(tmp_path, retain, parts[1], **FAST)
    assert list(model.config.id2label.values()) == (names if kind != "integers" else list("01234"))


def test_pixel_values_are_used_as_they_are(tmp_path):
    data = Dataset.from_dict({"pixel_values": torch.rand(16, 1, 12, 12).tolist(), "labels": [0, 1] * 8})
    model, processor = train(tmp_path, data, data, **FAST | {"architecture": "vit"})
    assert processor is None and not (tmp_path / "preprocessor_config.json").exists()
    assert (model.config.num_channels, model.config.image_size) == (1, 12)


def test_a_model_on_disk_is_replaced_only_when_told(images, held_out, tmp_path):
    parts = few(images), few(held_out)
    train(tmp_path, *parts, **FAST)
    before = load_model(tmp_path)[0].state_dict()
    with pytest.raises(FileExistsError, match="holds a model: load it, name another folder, or set overwrite"):
        train(tmp_path, *parts, seed=1, **FAST)
    assert all(torch.equal(value, before[key]) for key, value in load_model(tmp_path)[0].state_dict().items())
    train(tmp_path, *parts, seed=1, overwrite=True, **FAST)
    assert not all(torch.equal(value, before[key]) for key, value in load_model(tmp_path)[0].state_dict().items())


def test_unknown_architectures_and_missing_labels_are_refused_before_training(images, held_out, tmp_path):
    with pytest.raises(ValueError, match=r"unknown architecture 'vitt': neither in .*'vit'.* nor a timm"):
        train(tmp_path, images, held_out, **FAST | {"architecture": "vitt"})
    unlabelled = held_out.map(lambda row: {"label": -1}, features=held_out.features)
    with pytest.raises(ValueError, match="'label' has rows without a label"):
        train(tmp_path, images, unlabelled, **FAST)


# What training starts from


@pytest.fixture
def base(tmp_path):
    """A pretrained network of other classes, in a folder."""
    model = make_model("ViT", seed=3)
    model.config.id2label = {i: f"other {i}" for i in range(5)}
    model.save_pretrained(tmp_path / "base")
    make_processor().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_base_model_gives_the_weights_that_training_starts_from(base, images, held_out, tmp_path):
    model, _ = train(tmp_path / "out", images, held_out, base_model=str(base), learning_rate=1e-12, **FAST)
    before = load_model(base)[0].state_dict()
    head = {"classifier.weight", "classifier.bias"}
    assert set(model.state_dict()) == set(before)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-9) != (name in head), name
    assert list(model.config.id2label.values()) == NAMES


@pytest.mark.parametrize("family", ["ResNet", "DeiT", "timm ViT", "timm ResNet", "Dinov2"])
def test_a_new_head_has_other_weights_and_the_body_the_same(family, tmp_path):
    old = make_model(family)
    old.save_pretrained(tmp_path)
    heads = {}
    for names in (NAMES, ["one", "two", "three"]):
        torch.manual_seed(1)
        new, _ = load_with_new_head(tmp_path, names)
        assert new.config.num_labels == len(names)
        heads[len(names)] = classifier_of(new, (3, 32, 32))
        body = [name for name in new.state_dict() if not name.startswith(tuple(heads[len(names)]))]
        assert all(torch.equal(new.state_dict()[name], old.state_dict()[name]) for name in body)
    for name, layer in heads[5].items():
        assert layer.weight.shape == old.get_submodule(name).weight.shape
        assert not torch.equal(layer.weight, old.get_submodule(name).weight)


def test_a_reference_sees_images_as_the_model_does_that_it_is_compared_with(base, images, held_out, tmp_path):
    (own := make_processor()).image_mean = [0.1, 0.2, 0.3]
    like = make_model("ViT")
    _, processor = train(tmp_path / "out", images, held_out, base_model=str(base), like=like, processor=own, **FAST)
    for each in (load_model(tmp_path / "out")[1], processor):
        assert list(each.image_mean) == [0.1, 0.2, 0.3]
    _, others = train(tmp_path / "alone", images, held_out, base_model=str(base), **FAST)
    assert list(others.image_mean) == list(make_processor().image_mean) != [0.1, 0.2, 0.3]


def test_a_new_head_is_no_reason_for_a_report_of_missing_weights(base, capfd):
    before = logging.get_verbosity()
    load_with_new_head(base, ["one", "two"])
    assert "MISMATCH" not in capfd.readouterr().err
    assert logging.get_verbosity() == before


def test_a_base_model_that_is_not_there_is_told_before_training(images, held_out, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        train(tmp_path, images, held_out, base_model=str(tmp_path / "nowhere"), **FAST)


def test_a_model_to_be_like_gives_classes_and_architecture_with_new_weights(images, held_out, tmp_path):
    original = make_model("ResNet")
    names = dict(enumerate(reversed(NAMES)))
    original.config.id2label, original.config.label2id = names, {name: i for i, name in names.items()}
    model, _ = train(tmp_path, images, held_out, like=original, processor=make_processor(), **FAST | {"max_steps": 40})
    assert type(model) is type(original) and model.config.id2label == names
    assert not torch.equal(next(model.parameters()), next(original.parameters()))
    saved, processor = load_model(tmp_path)
    right = [names[logits(saved, processor, row["image"]).argmax().item()] == NAMES[row["label"]] for row in held_out]
    assert sum(right) / len(right) > 0.8, "classes are matched by name"


def test_each_seed_has_its_folder_and_none_is_trained_where_one_is_taken(images, held_out, tmp_path):
    config = classifier.ClassifierConfig(output_dir=str(tmp_path / "model"), **FAST)
    folders = classifier.train_seeds(config, 2, few(images), few(held_out))
    assert folders == [str(tmp_path / "model-1"), str(tmp_path / "model-2")]
    first, second = (load_model(folder)[0] for folder in folders)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    (tmp_path / "model-1").rename(tmp_path / "away")
    with pytest.raises(FileExistsError, match="model-2"):
        classifier.train_seeds(config, 2, few(images), few(held_out))
    assert not (tmp_path / "model-1").exists()


def test_reference_models_are_trained_once_for_the_same_data_and_settings(images, held_out, tmp_path):
    config = classifier.ClassifierConfig(output_dir=str(tmp_path / "model"), **FAST)
    (first,) = classifier.train_once(config, 1, few(images), few(held_out))
    before = load_model(first)[0].state_dict()
    assert classifier.train_once(config, 1, few(images), few(held_out)) == [first]
    assert all(torch.equal(value, before[name]) for name, value in load_model(first)[0].state_dict().items())
    (other,) = classifier.train_once(config, 1, few(make_images(seed=5)), few(held_out))
    assert other != first


@pytest.mark.parametrize(("base", "rate", "epochs"), [(None, 3e-3, 24), ("some/model", 1e-4, 4)])
def test_a_pretrained_network_is_trained_more_gently(base, rate, epochs):
    config = classifier.ClassifierConfig(output_dir="out", base_model=base, use_cpu=True)
    assert (config.learning_rate, config.num_train_epochs) == (rate, epochs)
    assert classifier.ClassifierConfig(base_model=base, learning_rate=0.5, use_cpu=True).learning_rate == 0.5


# Batches and moves


def test_only_training_batches_are_moved_and_by_other_draws_each_time(images):
    collator = ImageCollator(architectures.build("vit", 32, 3, ["a"])[1], num_channels=3)
    plain = images.with_transform(augmentation.Batches(collator))
    moved = images.with_transform(augmentation.Batches(collator, augmentation.COLOUR))
    assert torch.equal(plain[:8]["pixel_values"], plain[:8]["pixel_values"])
    assert not torch.equal(moved[:8]["pixel_values"], moved[:8]["pixel_values"])
    assert torch.equal(moved[:8]["labels"], plain[:8]["labels"])


STILL = {"degrees": 0, "zoom": 0, "shift": 0, "flip": 0}


def test_shifts_are_whole_pixels_and_mirroring_is_exact():
    images = torch.rand(200, 1, 8, 10)
    assert torch.allclose(augmentation.move(images, **STILL), images, atol=1e-5)
    assert torch.allclose(augmentation.move(images, **STILL | {"flip": 1}), images.flip(-1), atol=1e-5)
    offsets = set()
    for before, after in zip(images, augmentation.move(images, **STILL | {"shift": 0.2}), strict=True):
        found = [
            (i, j)
            for i in range(-2, 3)
            for j in range(-2, 3)
            if torch.allclose(after[:, 3:5, 3:7], before[:, 3 + i : 5 + i, 3 + j : 7 + j], atol=1e-5)
        ]
        assert len(found) == 1
        offsets.update(found)
    assert {i for i, _ in offsets} == {j for _, j in offsets} == {-2, -1, 0, 1, 2}


def test_turns_and_zooms_differ_for_each_image_and_stay_in_range():
    bar = torch.zeros(100, 1, 65, 65)
    bar[..., 32, 12:53] = 1  # 41 long
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")

    def angles_and_lengths(images):
        weight = images / images.sum((-1, -2), keepdim=True)
        xx, yy, xy = ((weight * product).sum((1, 2, 3)) for product in (x * x, y * y, x * y))
        return torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2), (12 * (xx + yy)).sqrt()

    angles, lengths = angles_and_lengths(augmentation.move(bar, **STILL | {"degrees": 10}))
    assert 8 < angles.max() <= 10.5 and -10.5 <= angles.min() < -8
    assert lengths.sub(41).abs().max() < 1
    angles, lengths = angles_and_lengths(augmentation.move(bar, **STILL | {"zoom": 0.1}))
    assert angles.abs().max() < 0.1
    assert 41 / 1.12 < lengths.min() < 39 and 43 < lengths.max() < 41 / 0.88
