from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from PIL import Image
from transformers import (
    BertConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from ec_hf import ForgetRequest
from ec_hf import split as cut
from ec_hf.data.sources import load_images, mnist5k, train_and_test
from ec_hf.models.loading import load_model

torch.set_num_threads(1)


def vit_config(**changes):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3, **changes)


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(vit_config()).half().save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def digits():
    return mnist5k()


# load_model


def test_a_saved_model_comes_back_with_its_processor_ready_for_use_in_float32(vit_folder):
    model, processor = load_model(vit_folder)
    saved = ViTForImageClassification.from_pretrained(vit_folder, dtype=torch.float32)
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.dtype == torch.float32 and not model.training
    batch = processor(Image.new("RGB", (20, 10)), return_tensors="pt")
    assert model(**batch).logits.shape == (1, 3)


def test_a_folder_is_found_from_the_home_folder_and_from_here(vit_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(vit_folder.parent))
    monkeypatch.chdir(vit_folder.parent)
    for name in (f"~/{vit_folder.name}", f"./{vit_folder.name}", vit_folder.name):
        assert isinstance(load_model(name)[0], ViTForImageClassification)


def test_a_timm_model_comes_back_with_its_processor(tmp_path):
    config = TimmWrapperConfig(architecture="test_vit", num_labels=3, pretrained_cfg={"input_size": [3, 160, 160]})
    TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    model, processor = load_model(tmp_path)
    assert model.config.num_labels == 3
    assert processor(Image.new("RGB", (99, 50)))["pixel_values"].shape == (1, 3, 160, 160)


def test_a_missing_processor_is_a_warning_that_names_the_mend(tmp_path):
    ViTForImageClassification(vit_config()).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"no image processor .* save the one .* pixel_values"):
        assert load_model(tmp_path)[1] is None


@pytest.mark.parametrize("name", ["some/folder/none", "./none", "../none", "/none"])
def test_a_missing_folder_is_named_without_asking_the_hub(name):
    for load in (load_model, load_images):
        with pytest.raises(FileNotFoundError, match=r"no folder '.*none'; the current folder is"):
            load(name)


def test_a_file_in_place_of_a_folder_is_refused(vit_folder):
    with pytest.raises(FileNotFoundError, match="is a file: name the folder"):
        load_model(vit_folder / "config.json")


def test_a_folder_without_config_points_to_the_checkpoint_inside(vit_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json.* save_pretrained"):
        load_model(tmp_path)
    (tmp_path / "checkpoint-7").symlink_to(vit_folder)
    with pytest.raises(FileNotFoundError, match=r"as those inside it: \['checkpoint-7'\]"):
        load_model(tmp_path)


def test_a_model_for_another_task_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'bert' model, which is no image classifier"):
        load_model(tmp_path)


def test_weights_without_a_trained_head_are_refused(tmp_path):
    ViTModel(vit_config()).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"lack classifier.bias.* without a trained classification head"):
        load_model(tmp_path / "vit")
    timm_config = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (tmp_path / "config.json").write_text(json.dumps(timm_config))
    with pytest.raises(ValueError, match="without a trained classification head"):
        load_model(tmp_path)


def test_a_timm_name_without_such_weights_lists_the_choice():
    with pytest.raises(ValueError, match=r"no weights 'resnet18.none': choose among .*'resnet18.a1_in1k'"):
        load_model("resnet18.none")


@pytest.mark.slow
@pytest.mark.launch
def test_hub_and_timm_names_load_from_the_hub_with_their_commit(vit_folder, tmp_path):
    """A Hub cache made by hand stands in for the Hub."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    config = TimmWrapperConfig(architecture="test_vit", num_labels=3, pretrained_cfg={"input_size": [3, 160, 160]})
    timm_folder = tmp_path / "timm"
    TimmWrapperForImageClassification(config).save_pretrained(timm_folder)
    for repository, folder in (("some--vit", vit_folder), ("timm--test_vit.r160_in1k", timm_folder)):
        (cached := tmp_path / "hub" / f"models--{repository}" / "refs").mkdir(parents=True)
        (cached / "main").write_text(commit)
        (cached.parent / "snapshots").mkdir()
        (cached.parent / "snapshots" / commit).symlink_to(folder)
    script = """
from ec_hf import ForgetRequest, split
from ec_hf.data.sources import load_images
from ec_hf.models.loading import load_model
for name in ("some/vit", "test_vit", "test_vit.r160_in1k", "timm/test_vit"):
    model, processor = load_model(name)
    print(type(model).__name__, processor is not None, model.config._commit_hash)
for load in (load_model, load_images):
    try:
        load("some/none")
    except OSError as error:
        print(error)
try:
    load_model("out/retrained")
except OSError as error:
    print(error)
"""
    (tmp_path / "out" / "retrained-1a2b").mkdir(parents=True)
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    timm_line = f"TimmWrapperForImageClassification True {commit}"
    assert lines[:4] == [f"ViTForImageClassification True {commit}", timm_line, timm_line, timm_line]
    assert lines[4].startswith("no model 'some/none': it is no local folder") and "some/none" in lines[5]
    assert lines[-1].startswith("no model 'out/retrained': it is no local folder (there is out/retrained-1a2b)")


# load_images


@pytest.mark.slow
def test_mnist5k_is_balanced_and_always_the_same(digits):
    for name, count in (("train", 400), ("test", 100)):
        assert np.bincount(digits[name]["label"][:]).tolist() == [count] * 10
    assert digits["train"].features["label"].names == list("0123456789")
    image = digits["test"][0]["image"]
    assert image.size == (28, 28) and image.mode == "L" and np.asarray(image).max() > 200
    again = load_images("mnist5k")
    assert again["test"][:50] == digits["test"][:50]
    rows = [{image.tobytes() for image in digits[name]["image"]} for name in ("train", "test")]
    assert not rows[0] & rows[1]


def test_what_save_to_disk_wrote_comes_back(digits, tmp_path):
    few = DatasetDict({"train": digits["train"].select(range(6)), "test": digits["test"].select(range(3))})
    few.save_to_disk(tmp_path / "dict")
    few["test"].save_to_disk(tmp_path / "single")
    assert {name: part["label"][:] for name, part in load_images(tmp_path / "dict").items()} == {
        name: part["label"][:] for name, part in few.items()
    }
    alone = load_images(str(tmp_path / "single"))
    assert list(alone) == ["train"] and alone["train"].features == few["test"].features


@pytest.fixture
def no_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_parquet_files_become_splits(digits, tmp_path, no_shared_cache):
    (folder := tmp_path / "parquet").mkdir()
    digits["train"].select(range(6)).to_parquet(folder / "train-00000-of-00001.parquet")
    digits["test"].select(range(3)).to_parquet(folder / "test-00000-of-00001.parquet")
    data = load_images(folder)
    assert {name: len(part) for name, part in data.items()} == {"train": 6, "test": 3}
    assert data["train"].features["label"] == digits["train"].features["label"]
    assert data["test"][2]["image"] == digits["test"][2]["image"]


def test_an_imagefolder_gives_class_names(tmp_path, no_shared_cache):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder := tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "1.png")
    data = load_images(tmp_path / "pets")
    assert set(data) == {"train", "test"} and data["train"].features["label"].names == ["cat", "dog"]


def test_images_of_a_folder_are_named_by_their_path_inside_it(tmp_path, no_shared_cache, monkeypatch):
    names = ["train/cat/a b.png", "train/cat/c.png", "train/dog/März.png"]
    for name in names:
        (file := tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    data = load_images(tmp_path / "pets")["train"]
    assert sorted(data["file_name"]) == names
    parts = cut(data, ForgetRequest(ids={"file_name": ["train/dog/März.png"]}))
    assert parts["forget"]["file_name"][:] == ["train/dog/März.png"] and len(parts["retain"]) == 2
    monkeypatch.chdir(tmp_path)
    assert sorted(load_images("pets")["train"]["file_name"]) == names


def test_images_that_are_no_files_get_no_names(digits, tmp_path, no_shared_cache):
    (folder := tmp_path / "parquet").mkdir()
    digits["test"].select(range(3)).to_parquet(folder / "train.parquet")
    assert "file_name" not in load_images(folder)["train"].column_names


def test_a_name_that_is_neither_a_folder_nor_on_the_hub_is_told_so(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'pets' on the Hub")

    monkeypatch.setattr("ec_hf.data.sources.load_dataset", unreachable)
    with pytest.raises(FileNotFoundError, match="no dataset 'pets': it is no local folder"):
        load_images("pets")


def test_a_folder_without_data_and_a_missing_subset_are_refused(digits, tmp_path, no_shared_cache):
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image data: expected parquet"):
        load_images(empty)
    (folder := tmp_path / "parquet").mkdir()
    digits["test"].select(range(3)).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=r"config='none'.*not found"):
        load_images(folder, config="none")


# train_and_test


def rows(dataset):
    return dataset["row"][:]


def labelled(labels, feature=None):
    data = Dataset.from_dict({"row": range(len(labels)), "label": labels})
    return data.cast_column("label", feature) if feature else data


@pytest.mark.parametrize("name", ["test", "validation", "valid", "val"])
def test_a_split_made_for_it_is_the_test_part(name):
    parts = {"train": labelled([0, 1]), "extra": labelled([1]), name: labelled([0, 1, 1])}
    assert train_and_test(parts) == (parts["train"], parts[name])


def test_test_goes_before_validation_unless_its_labels_are_hidden():
    parts = {"train": labelled([0, 1]), "validation": labelled([0, 1]), "test": labelled([0, 1, 1])}
    assert train_and_test(parts)[1] is parts["test"]
    for hidden in (labelled([-1, -1]), labelled([None, None]), labelled([0]).remove_columns("label")):
        assert train_and_test({**parts, "test": hidden}, label_column="label")[1] is parts["validation"]


@pytest.mark.parametrize(
    ("values", "feature"),
    [((0, 1, 2), ClassLabel(names=["a", "b", "c"])), ((7, 900, -3), None), (("cat", "dog", "élan"), None)],
)
def test_the_hold_out_is_stratified_seeded_and_disjoint(values, feature):
    labels = [values[0]] * 50 + [values[1]] * 20 + [values[2]] * 5
    data = labelled(np.random.default_rng(0).permutation(labels).tolist(), feature)
    train, test = train_and_test({"train": data})
    assert [test["label"][:].count(value) for value in values] == [10, 4, 1]
    assert sorted(rows(train) + rows(test)) == list(range(75))
    assert rows(test) == rows(train_and_test({"all": data})[1])
    assert rows(test) != rows(train_and_test({"train": data}, seed=1)[1])
    assert len(train_and_test({"train": data}, test_size=0.4)[1]) == 30


def test_the_hold_out_follows_the_rows_of_a_shuffled_selection():
    data = labelled([i % 2 for i in range(40)]).shuffle(seed=0).select(range(20))
    train, test = train_and_test({"train": data})
    assert set(rows(train)) | set(rows(test)) == set(rows(data)) and all(
        row["row"] % 2 == row["label"] for row in test
    )


def test_a_class_of_two_is_shared_and_a_class_of_one_stays_in_training():
    train, test = train_and_test({"train": labelled([0, 0, 1])}, test_size=0.1)
    assert sorted(train["label"][:]) == [0, 1] and test["label"][:] == [0]


def test_the_hold_out_reads_no_image():
    def refuse(batch):
        raise AssertionError("an image was read")

    data = labelled([0, 1] * 20)
    train, test = train_and_test({"train": data.with_transform(refuse)})
    assert (len(train), len(test)) == (32, 8)
    with pytest.raises(AssertionError):
        test[0]  # the transform goes on with the rows


def test_splits_without_train_or_a_share_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"no split named train among \['a', 'b'\]"):
        train_and_test({"a": labelled([0]), "b": labelled([0])})
    with pytest.raises(ValueError, match="between 0 and 1, got 5"):
        train_and_test({"train": labelled([0, 0, 1, 1])}, test_size=5)
    with pytest.raises(ValueError, match="leaves 0 of 2 rows"):
        train_and_test({"train": labelled([0, 1])})
