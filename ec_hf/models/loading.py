"""Classifiers by name: from the Hub, from local folders, or by their timm name."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
from transformers.utils import logging

from ec_hf.data.columns import shown
from ec_hf.files import ADAPTER_CONFIG, CONFIG, WEIGHTS, ModelFolder, first_line, local_folder
from ec_hf.models.adapters import base_name, load_adapted, original_state
from ec_hf.models.own_network import MODEL_TYPE, OwnClassifier
from ec_hf.models.penultimate import classifier_of

__all__ = [
    "configured",
    "contents_hash",
    "load_model",
    "load_with_new_head",
    "new_like",
    "require_finite",
    "weights_hash",
]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of transformers, which name what is expected here as if it were a fault."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _processor(source: str, **hub: Any) -> Any:
    """The image processor of a model; a processor of timm always says that it lacks a backend."""
    with _quietly():
        return AutoImageProcessor.from_pretrained(source, **hub)


def _near(name_or_path: str | Path) -> str:
    """Local folders whose names begin like one that is not there, in brackets."""
    path = Path(name_or_path)
    near = sorted(str(each) for each in path.parent.glob(f"{path.name}*") if each.is_dir()) if path.name else []
    return f" (there is {', '.join(near[:3])})" if near else ""


def load_model(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[PreTrainedModel, Any | None]:
    """An image classifier in float32, whatever type it was saved in, and its image processor.

    `model.config._commit_hash` holds the commit of a model that comes from the Hub. Adapters of PEFT in a local folder
    are loaded with the model that they name, and merged into it.

    Args:
        name_or_path: a Hub id, a local folder, or a timm name with or without tag ("resnet18", "resnet18.a1_in1k",
            "timm/resnet18"), which is loaded from timm's own repository on the Hub.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Returns:
        The model in evaluation mode and the processor; None and a warning if there is no processor.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no config.json.
        OSError: the Hub has no such model, or does not give it.
        ValueError: the model is no image classifier, or one that only its owner's code can build; its file of weights
            is cut short, it has no trained classification head, or its weights are not finite.
    """
    if adapters := _adapters_folder(name_or_path):
        base, processor = load_model(base_name(adapters), token=token)
        return load_adapted(adapters, base).eval(), processor
    source = _model_source(name_or_path)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}
    config = _configuration(name_or_path, source, hub)
    if commit := _commit(source, revision):
        config._commit_hash, hub["revision"] = commit, commit
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"{source!r} is a {config.model_type!r} model, which is no image classifier that "
            "AutoModelForImageClassification loads: name one such as a ViT, Swin, ResNet, ConvNeXt or timm classifier"
        )
    if (folder := Path(source)).is_dir() and (folder / WEIGHTS).exists() and (wrong := ModelFolder(folder).damage()):
        raise ValueError(f"the model in {source!r} is damaged: {wrong}; take another copy, or make it again")
    headless = (
        "come without a trained classification head: name a checkpoint that was trained as a classifier, or train "
        "a head on it first"
    )
    if config.num_labels == 0:
        raise ValueError(f"the weights of {source!r} {headless}")
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, **hub
        )
    except (RuntimeError, SafetensorError) as error:
        why = "cannot be read" if isinstance(error, SafetensorError) else f"do not fit its {CONFIG}"
        raise ValueError(f"the weights of {source!r} {why} ({first_line(error)}): copy or save it again") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"the weights of {source!r} lack {', '.join(missing[:4])}, so they {headless}")
    require_finite(repr(source), model)
    try:
        processor = _processor(source, **hub)
    except (OSError, ValueError) as error:
        warnings.warn(
            f"no image processor for {source!r} ({first_line(error)}): save the one it was trained with beside it "
            "(AutoImageProcessor.from_pretrained(...).save_pretrained(folder)), or give data that holds pixel_values",
            stacklevel=2,
        )
        processor = None
    return model, processor


def _configuration(name_or_path: str | Path, source: str, hub: dict[str, Any]) -> Any:
    """The configuration of a model that `AutoConfig` knows."""
    try:
        return AutoConfig.from_pretrained(source, **hub)
    except OSError as error:
        raise OSError(
            f"no model {str(name_or_path)!r}: it is no local folder{_near(name_or_path)}, and the Hub did not give "
            f"{source!r} ({first_line(error)}). A private or gated model needs token=."
        ) from error
    except RecursionError as error:
        raise ValueError(f"the {CONFIG} of {source!r} is nested too deeply to be one") from error
    except ValueError as error:
        if MODEL_TYPE not in str(error):
            raise
        raise ValueError(
            f"{source!r} holds the weights of a network of one's own, which only its owner's code can build: in "
            f"Python, give ec_hf.as_classifier(network, weights={source!r}) in place of the name"
        ) from error


def load_with_new_head(
    name_or_path: str | Path,
    class_names: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A pretrained network in float32 with a new classification head, and its image processor.

    The head has random weights from the current random state, also where the checkpoint has one of the same size.

    Args:
        name_or_path: as for `load_model`; a checkpoint without a head, such as a backbone, will do.
        class_names: names of the classes, in the order of their ids.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Returns:
        The model, and the processor; None if there is none.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no config.json.
        OSError: the Hub has no such model, or does not give it.
        ValueError: the network is none that `AutoModelForImageClassification` loads, its weights do not fit it or are
            not finite, or its head cannot be told.
    """
    source = _model_source(name_or_path)
    hub: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}
    names = {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}
    try:
        config = AutoConfig.from_pretrained(source, num_labels=len(class_names), **names, **hub)
    except OSError as error:
        raise OSError(f"no base model {str(name_or_path)!r}: {first_line(error)}") from error
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"base model {source!r} is a {config.model_type!r} model, which cannot classify images")
    with _quietly():  # what is missing is looked at below
        model, report = AutoModelForImageClassification.from_pretrained(
            source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, **hub
        )
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    head = classifier_of(model)
    body = [key for key in model.state_dict() if not any(key.startswith(f"{name}.") for name in head)]
    if body and 2 * len(lacking.intersection(body)) > len(body):
        raise ValueError(f"base model {source!r} has no weights for {type(model).__name__}: lacking {shown(lacking)}")
    if not head:
        raise ValueError(f"base model {source!r}: no linear layer of {type(model).__name__} gives the logits alone")
    for layer in head.values():
        layer.reset_parameters()
    require_finite(repr(source), model)
    try:
        return model, _processor(source, **hub)
    except (OSError, ValueError):
        return model, None


def configured(
    name_or_path: str | Path | None,
    model_config: Mapping[str, Any] | None,
    *,
    revision: str | None = None,
    **over: Any,
) -> PreTrainedModel:
    """A classifier with random weights: of the sizes that are given, or of those of a model by its name.

    Args:
        name_or_path: Hub id, local folder or timm name, of which the configuration alone is read.
        model_config: ``{"model_type": "resnet", ...}``, the fields of a configuration of transformers where they
            differ from its defaults; then no name is looked up.
        revision: branch, tag or commit on the Hub.
        **over: fields of the configuration, over both.

    Raises:
        OSError: the Hub has no such model, or does not give it.
        ValueError: for a configuration of no image classifier.
    """
    if model_config:
        fields = {**model_config, **over}
        config = AutoConfig.for_model(fields.pop("model_type", ""), **fields)
    else:
        source = _model_source(str(name_or_path))
        try:
            config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **over)
        except OSError as error:
            raise OSError(
                f"no configuration of {str(name_or_path)!r} at hand ({first_line(error)}): give its sizes, such as "
                "model_config: {model_type: resnet, depths: [3, 4, 6, 3]}"
            ) from error
    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{config.model_type!r} is no image classifier that AutoModelForImageClassification loads")
    return AutoModelForImageClassification.from_config(config).eval()


def require_finite(name: str, model: nn.Module) -> None:
    """Refuse a model with weights that are NaN or infinite: it answers with its first class, whatever it sees.

    Args:
        name: what the model is called in the error.
        model: its parameters and buffers are looked at.

    Raises:
        ValueError: some weight is not finite.
    """
    if bad := [key for key, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise ValueError(
            f"{name}: weights that are NaN or infinite, in {shown(bad)}: the training that made it diverged, so take "
            "an earlier checkpoint"
        )


def weights_hash(model: nn.Module) -> str:
    """A hash by which the weights of a model are known again, from the first 256 numbers of each tensor.

    That is quick for any size, and training moves some of these in every tensor. Adapters do not count.
    """
    digest = hashlib.sha256()
    for name, value in original_state(model).items():
        digest.update(name.encode() + value.detach().flatten()[:256].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def contents_hash(tensors: Iterable[torch.Tensor]) -> str:
    """A hash by which weights are known again under any names and in any order, as files of other layouts hold them.

    It is made of the shape and the first 256 numbers of each tensor; of equal tensors, such as tied ones, one counts.
    """
    found = {
        hashlib.sha256(str(tuple(value.shape)).encode() + _first_numbers(value).tobytes()).digest()
        for value in tensors
    }
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()[:16]


def _first_numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().flatten()[:256].cpu().double().numpy()


def new_like(model: Any) -> Any:
    """A new model of the same configuration, initialised as its family is, from the current random state."""
    if isinstance(model, OwnClassifier):
        return model.renewed()
    config = copy.deepcopy(model.config)
    new = type(model)(config)
    if hasattr(new, "timm_model"):
        # The wrapper expects trained weights, and puts one normal distribution in place of timm's own initial ones.
        import timm  # slow to import

        own = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        new.timm_model.load_state_dict(own.state_dict())
    return new


def _adapters_folder(name_or_path: str | Path) -> Path | None:
    """The local folder of that name, where it holds adapters and no model."""
    folder = Path(name_or_path).expanduser()
    return folder if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file() else None


def _model_source(name_or_path: str | Path) -> str:
    """The local folder or Hub id that a model's name stands for."""
    if folder := local_folder(name_or_path):
        if not (folder / CONFIG).is_file():
            inside = sorted(config.parent.name for config in folder.glob(f"*/{CONFIG}"))
            hint = f", such as those inside it: {inside}" if inside else ""
            raise FileNotFoundError(
                f"the folder {str(folder)!r} holds no {CONFIG}: name a folder that save_pretrained wrote{hint}"
            )
        return str(folder)
    bare = str(name_or_path).removeprefix("timm/")
    return str(name_or_path) if "/" in bare else _timm_source(bare) or str(name_or_path)


def _commit(source: str, revision: str | None) -> str | None:
    """The commit of a Hub model that was just loaded, read off its place in the cache; transformers forgets it."""
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, CONFIG, revision=revision)
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
