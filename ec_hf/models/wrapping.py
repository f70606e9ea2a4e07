"""Networks that are no models of transformers: timm objects, torchvision models, modules of one's own, compiled ones.

The rest of the package works on `PreTrainedModel`. Here anything that gives logits gets that face, and keeps its
weights and the names of its modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.data.columns import IMAGE_COLUMNS, find_image_column, find_label_column, shown
from ec_hf.files import CONFIG, WEIGHTS, find_file, first_line, read_json
from ec_hf.models.adapters import is_adapted
from ec_hf.models.inputs import PIL_MODES, eight_bits
from ec_hf.models.modules import blocks_of, described, single_layers
from ec_hf.models.own_network import MODEL_TYPE, OwnClassifier, OwnConfig, faced, logits_in, uncompiled
from ec_hf.models.penultimate import classifier_of
from ec_hf.models.points import SupervisionPoint
from ec_hf.models.timm_objects import as_timm_wrapper, is_timm, timm_image_shape, timm_processor
from ec_hf.models.transforms import as_processor
from ec_hf.models.trial import TRIAL_IMAGES, trial_images

__all__ = ["as_classifier", "classifier_for", "saved_state"]

TRIAL_SIZES = (256, 320)
NO_SIZE = (
    "model: the size of its images is not known. Give image_shape=(channels, height, width) to ec_hf.as_classifier or "
    "Eraser, or an image processor or a transform that brings all images to one size."
)
NO_PROCESSOR = (
    "model: how images become its input is not known. Give an image processor of transformers, or a function from a "
    "PIL image to a float tensor such as torchvision's weights.transforms(), as `processing_class` of ECTrainer or "
    "`processor` of erase, audit and as_classifier; or data that holds pixel_values."
)


def as_classifier(
    module: nn.Module,
    *,
    labels: Sequence[str] | Dataset | None = None,
    processor: Any = None,
    image_shape: tuple[int, int, int] | None = None,
    layers: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    new: Callable[[], nn.Module] | None = None,
    weights: str | Path | None = None,
) -> PreTrainedModel:
    """Any network that gives logits, as a model that this package erases from and audits.

    `ECTrainer`, `Eraser`, `erase` and `audit` do it by themselves. Call it where they cannot know something: the names
    of the classes, the modules that count as hidden states, how a timm object was made. The weights are those of the
    given module, and what trains the model trains the module.

    An object of timm becomes a `TimmWrapperForImageClassification`, which is saved as a checkpoint that
    `AutoModelForImageClassification` loads. Of any other network the state dict is saved, under its own keys.
    `torch.compile` is taken off, and a model of transformers is given back as it is.

    Args:
        module: takes images (n, channels, height, width) and gives logits (n, classes), alone, or as ``logits`` or the
            first of several outputs.
        labels: names of the classes in the order of the logits, or a dataset whose `ClassLabel` has them.
        processor: an image processor of transformers, or a function from a PIL image to a float tensor (channels,
            height, width). That of a timm object is told by its ``pretrained_cfg``.
        image_shape: (channels, height, width) of the images; told by processor and dataset if left out.
        layers: names of the modules whose outputs are the hidden states; the blocks that repeat if left out, and in a
            network without any its layers.
        model_args: further arguments with which `timm.create_model` made the object, such as ``img_size``.
        new: makes a network of the same kind with new weights, for references of random weights and for objectives
            that start anew. Without it every module with a `reset_parameters` is drawn anew by that, and parameters
            of others keep their values in random order.
        weights: a folder that such a network was saved into, or its Hub id; weights, names and layers are read from
            it, and the next request knows the earlier ones.

    Returns:
        The model.

    Raises:
        TypeError: the module is wrapped, or gives no logits for such images.
        ValueError: the size of the images cannot be told, names and logits differ in number, a layer cannot be taken,
            or the weights do not fit.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.Linear(8, 2))
        >>> model = as_classifier(network, labels=["cat", "dog"], image_shape=(3, 4, 4))
        >>> model(torch.zeros(1, 3, 4, 4)).logits.shape, model.hidden_names
        (torch.Size([1, 2]), ['1'])
    """
    module = uncompiled(module)
    if isinstance(module, PreTrainedModel) or is_adapted(module):
        return module  # type: ignore[return-value]
    _refuse(module)
    known = _read(weights)
    names = [*known["id2label"].values()] if known and labels is None else _names(labels)
    dataset = labels if isinstance(labels, Dataset) else None
    return _made(
        module,
        names,
        as_processor(processor),
        image_shape or _shape_of(known),
        dataset,
        layers=layers or known.get("hidden_layers"),
        model_args=model_args,
        new=new,
        weights=weights,
    )


def classifier_for(
    model: Any,
    processor: Any,
    dataset: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Any, Any]:
    """Any network as a model that suits a dataset, and how its images are prepared; see `as_classifier`.

    Args:
        model: a module.
        processor: image processor, function, or None for what the model brings along.
        dataset: with a first row; a `Dataset` tells the names of the classes too.
        image_column: as for `ec_hf.data.columns.find_image_column`.
        label_column: as for `ec_hf.data.columns.find_label_column`.

    Raises:
        TypeError: as `as_classifier`.
        ValueError: as `as_classifier`, and where images cannot be prepared.
    """
    processor, model = as_processor(processor), uncompiled(model)
    if isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel) and not is_adapted(model):
        _refuse(model)
        names = _names(dataset, label_column) if isinstance(dataset, Dataset) else None
        model = _made(model, names, processor, None, dataset, image_column=image_column)
    return model, processor or getattr(model, "image_processor", None)


def saved_state(model: PreTrainedModel, folder: str | Path) -> dict[str, Tensor]:
    """The weights and buffers that a model of the same kind was saved with, under the names that they have in memory.

    Args:
        model: of the kind.
        folder: that `save_pretrained` wrote.
    """
    if isinstance(model, OwnClassifier):
        return load_file(Path(folder) / WEIGHTS)
    return type(model).from_pretrained(folder).state_dict()


def _made(
    module: nn.Module,
    names: Sequence[str] | None,
    processor: Any,
    shape: tuple[int, int, int] | None,
    dataset: Any,
    *,
    image_column: str | None = None,
    layers: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    new: Callable[[], nn.Module] | None = None,
    weights: str | Path | None = None,
) -> PreTrainedModel:
    channels = next((each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)), 3)
    if shape is None and processor is None and is_timm(module):
        shape = timm_image_shape(module)
    if processor is None and is_timm(module):
        processor = timm_processor(module, shape)
    shape = shape or _shape_seen(processor, channels, dataset, image_column)
    count = _number_of_logits(module, shape)
    if names is not None and len(names) != count:
        raise ValueError(
            f"model: {type(module).__name__} gives {count} logits for an image, and there are {len(names)} classes, "
            f"{shown(names)}: give a network that was trained for these classes, or the name of each logit "
            "(ec_hf.as_classifier(network, labels=[...]))"
        )
    labels = _label_settings(names or [f"LABEL_{label}" for label in range(count)])
    if is_timm(module) and weights is None and layers is None:
        wrapped, why_not = as_timm_wrapper(module, shape, labels, processor, model_args or {})
        if wrapped is not None:
            return wrapped
        warnings.warn(why_not, stacklevel=4)
    config = OwnConfig(
        **labels,
        image_size=list(shape[1:]),
        num_channels=shape[0],
        network=f"{type(module).__module__}.{type(module).__qualname__}",
        how_to_load=(
            f"Build the {type(module).__name__} with its own code, then call load_state_dict("
            f"safetensors.torch.load_file('{WEIGHTS}')) on it."
        ),
        architectures=[type(module).__name__],
    )
    if weights:
        config.name_or_path = str(weights)
        _load(module, weights)
    model = faced(module, config, processor, new)
    model.hidden_points = _hidden_points(model, shape, layers)
    config.hidden_layers = model.hidden_names
    return model


def _refuse(module: Any) -> None:
    """Refuse what is wrapped or compiled in a way that no hook sees."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise TypeError(
            f"model: it is wrapped in {type(module).__name__}. Pass model.module, and start one process a GPU with "
            "`accelerate launch`."
        )
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"model: expected an image classifier of transformers, its name or a torch.nn.Module, got "
            f"{type(module).__name__}"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("model: it is a TorchScript, whose layers cannot be seen. Pass the module that it came from.")
    if inner := [name for name, each in module.named_modules() if hasattr(each, "_orig_mod")]:
        raise TypeError(f"model: its part {inner[0]!r} is compiled by torch.compile. Pass the model as it was before.")
    if any(each.is_meta for each in module.parameters()):
        raise ValueError("model: its weights are on the meta device, so they hold nothing. Load it on a real device.")
    if not any(True for _ in module.parameters()):
        raise TypeError(f"model: {type(module).__name__} has no weights, so nothing can be erased from it.")


def _names(labels: Any, label_column: str | None = None) -> list[str] | None:
    """Class names, where they are given or a dataset has them."""
    if labels is None or not isinstance(labels, Dataset):
        return None if labels is None else [str(name) for name in labels]
    feature = labels.features[find_label_column(labels, label_column)]
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _label_settings(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: label for label, name in enumerate(names)},
    }


def _shape_seen(processor: Any, channels: int, dataset: Any, image_column: str | None) -> tuple[int, int, int]:
    """The shape of what the network will see: by the first image of a dataset, else by blank ones of two sizes."""
    mode = PIL_MODES.get(channels, "RGB")
    example = dataset[0] if dataset is not None and len(dataset) else {}
    if "pixel_values" in example:
        return tuple(torch.as_tensor(example["pixel_values"]).shape)  # type: ignore[return-value]
    if processor is None:
        raise ValueError(NO_PROCESSOR if example else NO_SIZE)
    images = [Image.new(mode, (size, size)) for size in TRIAL_SIZES]
    if example:
        of_dataset = find_image_column(dataset, image_column) if isinstance(dataset, Dataset) else None
        key = of_dataset or image_column or next((name for name in IMAGE_COLUMNS if name in example), None)
        image = example.get(key)
        images = [eight_bits(image).convert(mode)] if isinstance(image, Image.Image) else images
    prepared = [processor([each], return_tensors="pt")["pixel_values"] for each in images]
    shapes = {tuple(torch.as_tensor(each[0]).shape) for each in prepared}
    if len(shapes) > 1:
        raise ValueError(NO_SIZE)
    return shapes.pop()  # type: ignore[return-value]


def _number_of_logits(module: nn.Module, shape: tuple[int, int, int]) -> int:
    images = trial_images(module, shape)
    was_training = module.training
    expected = (
        f"model: expected an image classifier of transformers, or a module that gives logits (images, classes); "
        f"{type(module).__name__}, asked about {TRIAL_IMAGES} images of shape {shape},"
    )
    try:
        with torch.no_grad():
            logits = logits_in(module.eval()(images))
    except Exception as error:  # whatever a network of one's own may raise
        raise TypeError(
            f"{expected} fails: {first_line(error)}. Images of another size are told by image_shape= of "
            "ec_hf.as_classifier, or by the image processor"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != TRIAL_IMAGES:
        shape_of = f" of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
        what = f"a {type(logits).__name__}{shape_of}"
        raise TypeError(f"{expected} gives {what}: put a classifier on it, or a module around it that returns logits")
    return logits.shape[1]


def _hidden_points(
    model: OwnClassifier, shape: tuple[int, int, int], layers: Sequence[str] | None
) -> list[SupervisionPoint]:
    """The modules whose outputs are the hidden states: those that are named, else blocks, else single layers."""
    try:
        if not layers:
            try:
                layers = blocks_of(model, shape)
            except ValueError:
                layers = single_layers(model, shape, leave_out=classifier_of(model, shape))
        if layers:
            return described(model, layers, shape)
    except ValueError as error:
        raise ValueError(
            f"layers, of {type(model).__name__}: {str(error).removeprefix('points: ')} Name others with "
            "ec_hf.as_classifier(network, layers=[...]); `dict(network.named_modules())` shows the names."
        ) from error
    raise ValueError(
        f"layers: no module of {type(model).__name__} but its classifier gives features that can be taken. Features "
        "are taken from modules, so call layers as modules, and name them with ec_hf.as_classifier(network, "
        "layers=[...])."
    )


def _read(weights: str | Path | None) -> dict[str, Any]:
    """The configuration beside saved weights; empty without any."""
    if weights is None:
        return {}
    path = find_file(weights, CONFIG)
    known = read_json(path) if path else {}
    if known.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"weights={str(weights)!r} holds no network of one's own: load it with load_model, or by its name"
        )
    return known


def _shape_of(known: Mapping[str, Any]) -> tuple[int, int, int] | None:
    return (known["num_channels"], *known["image_size"]) if known else None


def _load(module: nn.Module, weights: str | Path) -> None:
    path = find_file(weights, WEIGHTS)
    if path is None:
        raise ValueError(f"weights={str(weights)!r} holds no {WEIGHTS}")
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"weights={str(weights)!r} are those of another network than {type(module).__name__}: {first_line(error)} "
            f"{' '.join(str(error).split()[:60])}"
        ) from error
