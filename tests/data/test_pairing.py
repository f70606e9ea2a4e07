from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader, skip_first_batches
from datasets import ClassLabel, Dataset, Value, concatenate_datasets
from helpers.models import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from transformers import ViTImageProcessor, ViTImageProcessorPil
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

from ec_hf.data.pairing import PairedBatchSampler, PairedDataset
from ec_hf.models.inputs import ImageCollator, collator_for


def numbered():
    """Ten rows that know their position."""
    return Dataset.from_dict({"row": list(range(10)), "label": [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]})


# --- paired dataset ----------------------------------------------------------------------------------------------


def noisy(batch):
    """A transform that draws from all three generators."""
    draws = [(torch.rand(()).item(), np.random.rand(), random.random()) for _ in batch["row"]]
    return {"row": batch["row"], "draw": draws}


def global_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_pairs_keep_the_order_asked_for_and_mark_forget_rows():
    paired = PairedDataset(numbered().select(range(4)), numbered().select(range(4, 10)))
    assert len(paired) == 10
    examples = paired.__getitems__([9, 0, np.int64(4), 3, 0])
    assert [example["row"] for example in examples] == [9, 0, 4, 3, 0]
    assert [example["is_forget"] for example in examples] == [False, True, False, True, True]
    assert paired[3]["is_forget"] is True
    assert [example["row"] for example in paired] == list(range(10))


def test_halves_without_batched_fetching_work():
    paired = PairedDataset([{"row": 0}], [{"row": 1}, {"row": 2}])
    assert paired.__getitems__([2, 0]) == [
        {"row": 2, "is_forget": False, "paired_row": 2},
        {"row": 0, "is_forget": True, "paired_row": 0},
    ]


def test_random_transforms_depend_on_seed_and_indices_alone():
    data = numbered().with_transform(noisy)
    paired = PairedDataset(data.select(range(4)), data.select(range(4, 10)), seed=3)
    first, second = paired.__getitems__([0, 5, 6]), paired.__getitems__([1, 7])
    torch.rand(3), np.random.rand(), random.random()
    again = PairedDataset(data.select(range(4)), data.select(range(4, 10)), seed=3)
    assert again.__getitems__([1, 7]) == second
    assert again.__getitems__([0, 5, 6]) == first
    assert first[0]["draw"] != first[1]["draw"] != second[0]["draw"]
    assert PairedDataset(paired.forget, paired.retain, seed=4).__getitems__([0, 5, 6]) != first


def test_fetching_leaves_no_trace_in_any_random_state(monkeypatch):
    def refuse(*_):
        raise AssertionError("the GPUs' state was set")

    def broken(batch):
        noisy(batch)
        raise RuntimeError("transform")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = global_states()
    PairedDataset(numbered().with_transform(noisy), numbered().with_transform(noisy)).__getitems__([0, 12])
    with pytest.raises(RuntimeError, match="transform"):
        PairedDataset(numbered().with_transform(broken), numbered())[0]
    assert global_states() == before


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_both_halves_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"index {index} is outside the 10 rows"):
        PairedDataset(numbered().select(range(4)), numbered().select(range(4, 10)))[index]


def test_halves_that_give_no_dicts_are_refused():
    with pytest.raises(TypeError, match="dicts"):
        PairedDataset([(0, 1)], [(0, 1)])[0]


# --- paired sampler ----------------------------------------------------------------------------------------------

SAMPLERS = st.fixed_dictionaries(
    {
        "num_forget_rows": st.integers(1, 40),
        "num_retain_rows": st.integers(1, 60),
        "forget_batch_size": st.integers(1, 8),
        "retain_batch_size": st.integers(1, 8),
        "seed": st.integers(0, 2**32),
        "num_processes": st.integers(1, 4),
    }
)


@settings(deadline=None)
@given(sizes=SAMPLERS, epoch=st.integers(0, 5))
def test_batches_are_forget_then_retain_and_cover_an_epoch(sizes, epoch):
    sampler = PairedBatchSampler(**sizes)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    forget_rows, forget_size = sizes["num_forget_rows"], sizes["forget_batch_size"]
    retain_rows, retain_size = sizes["num_retain_rows"], sizes["retain_batch_size"]
    processes = sizes["num_processes"]
    assert len(batches) == len(sampler) == max(retain_rows // (processes * retain_size), 1) * processes
    assert {len(batch) for batch in batches} == {sampler.batch_size} == {forget_size + retain_size}
    assert all(type(index) is int for batch in batches for index in batch)

    forget = [batch[:forget_size] for batch in batches]
    retain = [batch[forget_size:] for batch in batches]
    assert all(0 <= index < forget_rows for batch in forget for index in batch)
    assert all(forget_rows <= index < forget_rows + retain_rows for batch in retain for index in batch)

    seen = Counter(index for batch in retain for index in batch)
    if retain_rows >= processes * retain_size:
        assert set(seen.values()) == {1}
        assert retain_rows - len(seen) < processes * retain_size
    else:
        assert len(seen) == retain_rows
        assert max(seen.values()) - min(seen.values()) <= 1

    for batch in forget:
        assert len({*batch}) == min(forget_size, forget_rows)
    if forget_rows >= processes * forget_size:  # every pass takes every row once
        stream = [index for batch in forget for index in batch]
        for start in range(0, len(stream), forget_rows):
            one_pass = stream[start : start + forget_rows]
            assert len({*one_pass}) == len(one_pass)


@settings(deadline=None)
@given(sizes=SAMPLERS, epoch=st.integers(0, 5))
def test_processes_together_see_the_batch_of_a_single_process(sizes, epoch):
    processes, forget_size = sizes["num_processes"], sizes["forget_batch_size"]
    one = {
        **sizes,
        "forget_batch_size": forget_size * processes,
        "retain_batch_size": sizes["retain_batch_size"] * processes,
        "num_processes": 1,
    }
    many, single = PairedBatchSampler(**sizes), PairedBatchSampler(**one)
    many.set_epoch(epoch)
    single.set_epoch(epoch)
    shards = [list(BatchSamplerShard(many, processes, rank)) for rank in range(processes)]
    assert {len(shard) for shard in shards} == {len(single)}
    for whole, *deals in zip(single, *shards, strict=True):
        forget = [index for deal in deals for index in deal[:forget_size]]
        retain = [index for deal in deals for index in deal[forget_size:]]
        assert forget + retain == whole
        if sizes["num_forget_rows"] >= forget_size * processes:
            assert len({*forget}) == len(forget)


def test_order_depends_on_seed_and_epoch_alone():
    def batches(epoch, **changes):
        sizes = {"forget_batch_size": 4, "retain_batch_size": 5, "seed": 1, **changes}
        sampler = PairedBatchSampler(20, 50, **sizes)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = batches(0)
    torch.manual_seed(1)
    assert batches(0) == first
    for other in (batches(1), batches(0, seed=2)):
        assert [batch[:4] for batch in other] != [batch[:4] for batch in first]
        assert [batch[4:] for batch in other] != [batch[4:] for batch in first]
    sampler = PairedBatchSampler(20, 50, forget_batch_size=4, retain_batch_size=5, seed=1)
    assert list(sampler) == list(sampler) == first


def test_forget_order_is_fresh_at_each_pass():
    sampler = PairedBatchSampler(10, 50, forget_batch_size=5, retain_batch_size=5)
    stream = [index for batch in sampler for index in batch[:5]]
    passes = [tuple(stream[start : start + 10]) for start in range(0, 50, 10)]
    assert all(sorted(one_pass) == list(range(10)) for one_pass in passes)
    assert len({*passes}) == 5


def test_accelerate_deals_the_batches_and_resumes_in_the_middle_of_an_epoch():
    paired = PairedDataset(numbered().select(range(4)), concatenate_datasets([numbered()] * 2).select(range(4, 20)))
    sampler = PairedBatchSampler(4, 16, forget_batch_size=2, retain_batch_size=2, num_processes=2)
    sampler.set_epoch(3)
    whole = [[paired.__getitems__(batch) for batch in islice(sampler, rank, None, 2)] for rank in range(2)]
    for rank in range(2):
        loader = torch.utils.data.DataLoader(paired, batch_sampler=sampler, collate_fn=list)
        dealt = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        assert list(dealt) == whole[rank]
        resumed = skip_first_batches(dealt, 1)
        sampler.set_epoch(3)
        assert list(resumed) == whole[rank][1:]


@pytest.mark.parametrize("position", range(5))
def test_sampler_refuses_sizes_below_one(position):
    sizes = [4, 4, 2, 2, 1]
    sizes[position] = 0
    names = ["num_forget_rows", "num_retain_rows", "forget_batch_size", "retain_batch_size", "num_processes"]
    with pytest.raises(ValueError, match=f"{names[position]} must be at least 1, got 0"):
        PairedBatchSampler(**dict(zip(names, sizes, strict=True)))


# --- collator ----------------------------------------------------------------------------------------------------

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
