"""Numbers that are none, images that are damaged or unusual, layers that are frozen: noticed, named, honoured."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from helpers.models import NAMES, make_images, make_model, make_processor
from helpers.trainers import evaluation_parts, make_trainer, settings
from PIL import Image as Pil
from torch.nn import functional as F

from ec_hf import ECTrainer, ForgetRequest, split
from ec_hf.data.fingerprint import same_images
from ec_hf.models.inputs import ImageCollator, eight_bits
from ec_hf.models.loading import load_model
from ec_hf.objectives import Objective
from ec_hf.training.loss import DivergedError

# Numbers that are none


class Steep(Objective):
    """A finite loss whose gradient is not: the square root at 0."""

    def __call__(self, step):
        nothing = (step.retain.logits - step.retain.logits.detach()).square().sum().sqrt()
        return {"fine": F.cross_entropy(step.retain.logits, step.retain.labels), "steep": nothing}


def test_a_gradient_that_is_no_number_is_found_at_its_step_and_named(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(tmp_path, objective=f"{__name__}:Steep", points=[], **options)
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(DivergedError, match=r"step 0: the gradient is nan, by steep/steep\. The run has diverged"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_the_point_of_a_gradient_that_is_no_number_is_named(tmp_path, fitted_heads):
    trainer = make_trainer(tmp_path, heads=fitted_heads)
    forward = trainer.eraser.loss._at_point

    def steep(place, outputs, *args):
        terms = forward(place, outputs, *args)
        if place == 1:
            flat = outputs.features[place]
            root = (flat - flat.detach()).square().sum().sqrt()
            terms["contrast"] = terms["contrast"]._replace(value=terms["contrast"].value + root)
        return terms

    trainer.eraser.loss._at_point = steep
    with pytest.raises(DivergedError, match=r"the gradient is nan, by hidden_states\.2/contrast\."):
        trainer.train()


@pytest.mark.parametrize(("row", "named"), [(2, "forget row 2"), (25, "retain row 5")])
def test_the_row_of_pixels_that_are_no_numbers_is_named(tmp_path, fitted_heads, row, named):
    trainer = make_trainer(tmp_path, heads=fitted_heads, per_device_forget_batch_size=20)
    collate = trainer.data_collator

    def broken(examples):
        batch = collate(examples)
        batch["pixel_values"][batch["rows"] == row] = float("nan")
        return batch

    trainer.data_collator = broken
    trainer.args.max_steps = 10
    with pytest.raises(DivergedError, match=f"Images that are NaN or infinite: {named}\\."):
        trainer.train()


def test_data_whose_pixel_values_are_no_numbers_names_the_forget_row(tmp_path):
    pixels = torch.rand(12, 3, 32, 32)
    pixels[3, 0, 0, 0] = float("inf")
    rows = [{"pixel_values": each, "label": place % 2} for place, each in enumerate(pixels)]
    options = settings(tmp_path, points=[], objective="finetune")
    trainer = ECTrainer(make_model("ViT"), options, forget_dataset=rows[:6], retain_dataset=rows[6:])
    with pytest.raises(ValueError, match="pixel values are NaN or infinite: forget row 3"):
        trainer.train()


# Images


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def stored(contents, labels):
    features = Features({"image": Image(), "label": ClassLabel(names=NAMES)})
    return Dataset.from_dict({"image": [{"bytes": each} for each in contents], "label": labels}, features=features)


def with_one_broken_image(count=10, broken=4, label=None):
    images = [encoded(image) for image in make_images(count)["image"]]
    images[broken] = images[broken][:100]
    return stored(images, [place % 5 if label is None else label for place in range(count)])


def trainer_on(folder, forget, retain, evaluation=None, **options):
    return ECTrainer(
        make_model("ViT"),
        settings(folder, **options),
        forget_dataset=forget,
        retain_dataset=retain,
        eval_dataset=evaluation,
        processing_class=make_processor(),
    )


def parts_with_a_broken_image():
    return split(with_one_broken_image(), ForgetRequest(classes=["bee"]))


def test_a_damaged_image_is_found_before_training_and_named_by_set_and_row(tmp_path):
    parts = parts_with_a_broken_image()
    trainer = trainer_on(tmp_path, parts["forget"], parts["retain"])
    with pytest.raises(ValueError, match=r"images that cannot be read: retain row 3: .*Take these rows out"):
        trainer.train()
    assert not trainer.eraser.heads_fitted


def test_a_damaged_image_that_was_not_looked_for_is_named_where_it_is_met(tmp_path):
    parts = parts_with_a_broken_image()
    trainer = trainer_on(
        tmp_path, parts["forget"], parts["retain"], check_images=False, points=[], objective="finetune"
    )
    with pytest.raises(ValueError, match=r"retain row 3 cannot be read.*check_images=True"):
        trainer.train()
    evaluation = {"forget": parts["forget"], "retain": parts["retain"]}
    trainer = trainer_on(tmp_path, *evaluation_parts().values(), evaluation, check_images=False)
    with pytest.raises(ValueError, match="evaluation retain row 3"):
        trainer.evaluate()


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)
    decoded = Pil.open(io.BytesIO(encoded(Pil.fromarray(values))))
    scaled = np.asarray(eight_bits(decoded))
    assert scaled.dtype == np.uint8
    np.testing.assert_array_equal(scaled, np.rint(values / 257))
    collator = ImageCollator(make_processor(), num_channels=3)
    batch = collator([{"image": decoded, "label": 0}, {"image": Pil.fromarray(scaled), "label": 0}])
    assert torch.equal(*batch["pixel_values"])
    assert batch["pixel_values"].unique().numel() > 20, "clipped, it would be white almost everywhere"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_eight_bits_are_left_as_they_are(mode):
    image = Pil.new(mode, (4, 4))
    assert eight_bits(image) is image


def test_a_second_load_of_the_same_images_is_noticed(tmp_path):
    first, second = make_images(), make_images()
    parts = split(first, ForgetRequest(classes=["bee"]))
    assert same_images(parts["forget"], second) == (20, 20)
    assert same_images(parts["forget"], parts["retain"]) == (0, 20)
    assert same_images(parts["forget"], make_images(seed=3)) == (0, 20)
    assert same_images([1], second) == (0, 0)
    with pytest.warns(UserWarning, match="20 of 20 images of the forget set .* second load of the same data"):
        trainer_on(tmp_path, parts["forget"], second)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer_on(tmp_path, parts["forget"], parts["retain"])


# Layers that are frozen


@pytest.mark.parametrize("objective", ["damp", "retrain", "ssd", "finetune"])
def test_what_is_frozen_stays_as_it_is(tmp_path, objective):
    model = make_model("ResNet")
    frozen = ("classifier", "resnet.embedder")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    before = copy.deepcopy(model.state_dict())
    settings = {"ssd": {"alpha": 1.0}}.get(objective)
    trainer = make_trainer(
        tmp_path, model=model, objective=objective, objective_kwargs=settings, points=[], max_steps=2
    )
    trainer.train()
    named = dict(trainer.model.named_parameters())
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed & set(named)
    assert not [name for name in changed & set(named) if not named[name].requires_grad]


def test_a_classifier_that_is_frozen_is_refused_by_what_edits_nothing_else(tmp_path):
    model = make_model("ViT")
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="edits the classifier alone, and that is frozen"):
        make_trainer(tmp_path, model=model, objective="esc", points=[]).train()


def test_a_model_that_is_cut_short_is_refused_with_its_file(tmp_path):
    make_model("ViT").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"is damaged: model\.safetensors is .* bytes long where its header says"):
        load_model(tmp_path)
