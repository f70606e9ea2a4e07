from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Value
from helpers.models import make_model
from PIL import Image as PILImage
from transformers import ViTImageProcessor, ViTImageProcessorPil
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ec_hf.models.inputs import ImageCollator, collator_for, label_ids_of, normalisation, preparation

PROCESSORS = {
    "torchvision": ViTImageProcessor(size={"height": 8, "width": 8}),
    "pil": ViTImageProcessorPil(size={"height": 8, "width": 8}),
    "timm": TimmWrapperImageProcessor({"input_size": (3, 8, 8), "crop_pct": 1.0}),
}


def picture(mode, value=128):
    return PILImage.new("RGB", (12, 10), (value, 0, 255 - value)).convert(mode)


def test_pixel_values_are_used_as_they_are():
    array = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
    for held in (array, torch.from_numpy(array), array.tolist(), torch.from_numpy(array).half()):
        batch = ImageCollator()([{"pixel_values": held, "label": 3}, {"pixel_values": held, "label": np.int64(1)}])
        assert batch.keys() == {"pixel_values", "labels"}
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["pixel_values"].tolist() == [array.tolist()] * 2
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"].tolist() == [3, 1]


@pytest.mark.parametrize("held", [torch.zeros(3, 2, 2, dtype=torch.uint8), np.zeros((3, 2, 2), int), [[[0, 1]]]])
def test_integer_pixel_values_are_refused(held):
    with pytest.raises(TypeError, match="pixel_values are integers: scale"):
        ImageCollator(PROCESSORS["pil"])([{"pixel_values": held, "label": 0}])


def test_pixel_values_of_different_or_flat_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\), \(1, 3, 2\)"):
        ImageCollator()([{"pixel_values": torch.zeros(1, size, 2), "label": 0} for size in (2, 3)])
    with pytest.raises(ValueError, match=r"one shape \(C, H, W\), got \[\(2, 2\)\]"):
        ImageCollator()([{"pixel_values": torch.zeros(2, 2), "label": 0}])


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_turn_images_of_any_mode_into_one_batch(name):
    examples = [{"img": picture(mode), "labels": i} for i, mode in enumerate(["RGB", "L", "RGBA", "P"])]
    batch = ImageCollator(PROCESSORS[name], num_channels=3)(examples)
    assert batch["pixel_values"].shape == (4, 3, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][2])  # opaque alpha changes nothing
    expected = PROCESSORS[name]([picture("RGB")], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"][:1], expected)


def test_one_channel_models_get_grey_images():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])
    examples = [{"image": picture(mode), "label": 0} for mode in ("RGB", "L")]
    assert ImageCollator(processor, num_channels=1)(examples)["pixel_values"].shape == (2, 1, 8, 8)


def test_processor_is_called_once_a_batch_with_the_named_column():
    calls = []

    def processor(images, return_tensors):
        calls.append((len(images), return_tensors))
        return {"pixel_values": torch.zeros(len(images), 3, 2, 2, dtype=torch.uint8)}

    examples = [{"photo": picture("L"), "image": None, "y": 0, "label": 9}] * 3
    batch = ImageCollator(processor, image_column="photo", label_column="y")(examples)
    assert calls == [(3, "pt")]
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 0, 0]


def test_images_without_a_processor_are_refused():
    with pytest.raises(ValueError, match=r"no image processor.*\['image', 'label'\].*AutoImageProcessor"):
        ImageCollator()([{"image": picture("L"), "label": 0}])


def test_missing_keys_are_refused_with_the_keys_there_are():
    with pytest.raises(ValueError, match=r"image_column: none of.*\['label', 'x'\]"):
        ImageCollator(PROCESSORS["pil"])([{"x": picture("L"), "label": 0}])
    with pytest.raises(ValueError, match=r"label_column: none of.*\['pixel_values', 'y'\]"):
        ImageCollator()([{"pixel_values": torch.zeros(1, 2, 2), "y": 0}])
    with pytest.raises(ValueError, match="label_column: none of z"):
        ImageCollator(label_column="z")([{"pixel_values": torch.zeros(1, 2, 2), "label": 0}])


def test_labels_are_mapped_and_unknown_ones_refused():
    image = {"pixel_values": torch.zeros(1, 2, 2)}
    collate = ImageCollator(label_ids={"cat": 4, 2: 5})
    assert collate([{**image, "label": "cat"}, {**image, "label": torch.tensor(2)}])["labels"].tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"label 'dog' is not in label_ids.*\['cat', 2\]"):
        collate([{**image, "label": "dog"}])
    for label in ("cat", None, 0.5):
        with pytest.raises(TypeError, match="is no integer: pass label_ids"):
            ImageCollator()([{**image, "label": label}])


def test_forget_examples_are_counted_and_must_come_first():
    def example(is_forget):
        return {"pixel_values": torch.zeros(1, 2, 2), "label": 0, "is_forget": is_forget}

    assert ImageCollator()([example(True), example(True), example(False)])["num_forget"] == 2
    assert ImageCollator()([example(False)])["num_forget"] == 0
    with pytest.raises(ValueError, match="forget examples must come first"):
        ImageCollator()([example(True), example(False), example(True)])


# --- the collator of a model ---------------------------------------------------------------------------------------


def labelled(labels, kind):
    images = [picture("RGB")] * len(labels)
    return Dataset.from_dict({"image": images, "label": labels}).cast_column("label", kind)


def test_text_labels_of_all_parts_are_matched_with_the_model():
    model = make_model("ViT")  # ant bee cat dog elk
    parts = {"forget": labelled(["bee"], Value("string")), "retain": labelled(["elk", "ant"], Value("string"))}
    collator = collator_for(model, None, parts)
    assert collator.label_ids == {"ant": 0, "bee": 1, "elk": 4}
    assert (collator.image_column, collator.label_column, collator.num_channels) == ("image", "label", 3)


def test_parts_with_other_label_columns_are_refused():
    kinds = ClassLabel(names=["bee", "ant"]), ClassLabel(names=["ant", "bee"])
    parts = {"forget": labelled([0], kinds[0]), "retain": labelled([1], kinds[0]), "held out": labelled([0], kinds[1])}
    with pytest.raises(ValueError, match=r"in the held out set.*cast_column"):
        collator_for(make_model("ViT"), None, parts)


def test_a_part_that_is_no_hugging_face_dataset_does_not_switch_the_matching_off():
    forget = labelled([0], ClassLabel(names=["elk", "bee"]))
    parts = {"forget": forget, "evaluation": torch.utils.data.Subset(forget, [0])}
    assert collator_for(make_model("ViT"), None, parts).label_ids == {0: 4, 1: 1}


def test_class_names_in_another_order_than_the_models_are_matched():
    parts = {"forget": labelled([0], ClassLabel(names=["elk", "bee"]))}
    assert collator_for(make_model("ViT"), None, parts).label_ids == {0: 4, 1: 1}


# --- labels without images -----------------------------------------------------------------------------------------


def test_label_ids_are_those_that_the_model_knows_in_the_order_of_the_rows():
    data = labelled(["elk", "ant", "bee"], Value("string")).select([2, 0, 0])
    collator = collator_for(make_model("ViT"), None, {"data": data})
    assert label_ids_of(data, collator).tolist() == [1, 4, 4]
    assert label_ids_of(data.rename_column("label", "animal"), collator, "animal").tolist() == [1, 4, 4]
    assert label_ids_of(labelled([1, 0], ClassLabel(names=["ant", "bee"])), ImageCollator()).tolist() == [1, 0]
    assert label_ids_of(data.select([]), collator).dtype == np.int64


def test_how_a_processor_normalises_is_read_off_it():
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    assert normalisation(ViTImageProcessor(image_mean=mean, image_std=std)) == (tuple(mean), tuple(std))
    assert normalisation(ViTImageProcessor(do_normalize=False)) == ((0.0,), (1.0,))
    assert normalisation(ViTImageProcessor(rescale_factor=1 / 127.5)) is None
    assert normalisation(ViTImageProcessor(do_rescale=False)) is None
    assert normalisation(None) is None
    timm = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": mean, "std": std, "crop_pct": 0.9}
    processor = TimmWrapperImageProcessor(pretrained_cfg=timm, architecture="resnet18")
    assert normalisation(processor) == (tuple(mean), tuple(std))
    image = PILImage.fromarray(np.full((32, 32, 3), 51, dtype=np.uint8))
    plain = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=mean, image_std=std)
    values = plain([image], return_tensors="pt")["pixel_values"][0, :, 0, 0]
    means, stds = (torch.tensor(each) for each in normalisation(plain))
    torch.testing.assert_close(values * stds + means, torch.full((3,), 51 / 255), rtol=1e-4, atol=1e-4)


def test_how_images_go_into_a_model_is_told_in_a_sentence():
    processor = ViTImageProcessor(size={"height": 24, "width": 32}, image_mean=[0.485] * 3, image_std=[0.2] * 3)
    collator = ImageCollator(processor, num_channels=3)
    example = {"image": PILImage.new("L", (50, 40)), "label": 0}
    assert preparation(collator, example) == (
        "Images go into the model as 3 x 24 x 32, normalised by the mean 0.485 0.485 0.485 and the standard deviation "
        "0.2 0.2 0.2, as its image processor says."
    )
    ready = {"pixel_values": torch.zeros(1, 8, 8), "label": 0}
    assert preparation(ImageCollator(), ready) == "Images go into the model as 1 x 8 x 8."
