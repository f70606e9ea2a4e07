"""Networks that are no models of transformers: timm objects, torchvision models, modules of one's own, compiled ones.

The rest of the package works on `PreTrainedModel`. Here anything that gives logits gets that face, and keeps its
weights and the names of its modules.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ec_hf.data.columns import IMAGE_COLUMNS, find_image_column, find_label_column, shown
from ec_hf.files import CONFIG, HEADS, WEIGHTS, find_file, first_line, read_json
from ec_hf.models.adapters import is_adapted
from ec_hf.models.inputs import PIL_MODES, eight_bits
from ec_hf.models.modules import blocks_of, described, modules_at, single_layers
from ec_hf.models.penultimate import Penultimate, classifier_of
from ec_hf.models.points import VECTOR, SupervisionPoint
from ec_hf.models.timm_objects import as_timm_wrapper, is_timm, timm_image_shape, timm_processor
from ec_hf.models.transforms import as_processor
from ec_hf.models.trial import TRIAL_IMAGES, trial_images

__all__ = ["MODEL_TYPE", "OwnClassifier", "OwnConfig", "as_classifier", "classifier_for", "saved_state"]

MODEL_TYPE = "own_network"
"""The `model_type` in config.json of a network that only its owner's code can build."""
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


class OwnConfig(PreTrainedConfig):
    """Configuration of a network of one's own: what is known of it beside its code.

    Attributes:
        image_size: height and width of its images.
        num_channels: channels of its images.
        hidden_layers: names of the modules whose outputs are its hidden states.
        network: module and name of its class.
        how_to_load: how its weights are loaded, in words.
    """

    model_type = MODEL_TYPE

    image_size: list[int] | None = None
    num_channels: int = 3
    hidden_layers: list[str] | None = None
    network: str = ""
    how_to_load: str = ""


class OwnClassifier(PreTrainedModel):
    """A network of one's own with the face of a model of transformers.

    Its modules, parameters and buffers are those of the network, under the same names; so are the keys of its state
    dict and of the file that `save_pretrained` writes. Its hidden states are the outputs of some of its modules.

    Args:
        network: the module; ``network(pixel_values)`` gives its logits.
        config: what is known of it.
        image_processor: prepares its images, if that is known.
        new: makes a new network of the same kind, if that is known.

    Attributes:
        own: the network.
        image_processor: as given.
        hidden_points: the modules whose outputs are the hidden states.
    """

    config: OwnConfig
    config_class = OwnConfig
    own: nn.Module
    main_input_name = "pixel_values"

    def __init__(
        self,
        network: nn.Module,
        config: OwnConfig,
        image_processor: Any = None,
        new: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(config)
        self.post_init()  # while there is no weight yet that it could draw anew
        self.image_processor, self.new = image_processor, new
        self.hidden_points: list[SupervisionPoint] = []
        vars(self)["own"] = network  # not as a submodule, which would change all names
        shared = ("_parameters", "_buffers", "_non_persistent_buffers_set")
        vars(self).update({name: getattr(network, name) for name in shared}, _modules=dict(network._modules))
        vars(self)["training"] = network.training

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> ImageClassifierOutput:
        """Logits, the cross-entropy where labels are given, and the hidden states where they are asked for.

        Args:
            pixel_values: (n, channels, height, width) images.
            labels: (n,) label ids.
            output_hidden_states: whether to return hidden states.
        """
        points = self.hidden_points if output_hidden_states else []
        with Penultimate((), modules_at(self, points)) as taps:
            logits = logits_in(self.own(pixel_values))
        states = tuple(_as_state(each, point) for each, point in zip(taps.after(()), points, strict=True))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states or None)

    @property
    def hidden_names(self) -> list[str]:
        """Names of the modules whose outputs are the hidden states."""
        return [point.module for point in self.hidden_points]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        network = vars(self).get("own")
        if network is not None and (name == "training" or name in network._modules):
            setattr(network, name, value)

    def train(self, mode: bool = True) -> OwnClassifier:
        """As the network's own, which may keep some of its layers in evaluation mode."""
        super().train(mode)
        self.own.train(mode)
        return self

    def get_submodule(self, target: str) -> nn.Module:
        """A module of the network, also where `PreTrainedModel` has something else under its name."""
        if not target or target.split(".")[0] == HEADS:
            return super().get_submodule(target)
        return self.own.get_submodule(target)

    def renewed(self) -> OwnClassifier:
        """A network of the same kind with new weights, from the current random state; see `as_classifier`."""
        network = drawn_anew(self.own) if self.new is None else uncompiled(self.new())
        other = _classifier(network, copy.deepcopy(self.config), self.image_processor, self.new)
        if (ours := _shapes(self)) != (theirs := _shapes(other)):
            odd = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
            raise ValueError(f"new: it makes another network, which differs in {shown(odd)}")
        other.hidden_points = self.hidden_points
        return other

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Write the network's state dict, under its own keys, and what is known of it beside its code.

        Args:
            save_directory: the folder, made if it is missing.
            is_main_process: whether this process writes.
            state_dict: the weights; the current ones if left out.
            push_to_hub: must stay off; `ec_hf.push` publishes.

        Raises:
            ValueError: for `push_to_hub`.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True: save the network, and publish the folder with ec_hf.push")
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(folder)
        ignored = set(self._keys_to_ignore_on_save or ())
        state = self.state_dict() if state_dict is None else state_dict
        kept = {name: value for name, value in state.items() if name not in ignored}
        kept = {name: value.detach().cpu().contiguous().clone() for name, value in kept.items()}  # tied ones too
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Any:
        """Refused: only the owner's code can build the network.

        Raises:
            ValueError: always; it says what loads the weights.
        """
        raise ValueError("a network of one's own is loaded by ec_hf.as_classifier(network, weights=folder)")


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


def uncompiled(model: Any) -> Any:
    """What `torch.compile` was called on, with the same weights; anything else as it is.

    A module that was compiled in place (``module.compile()``) runs as written from then on, since hooks on its parts
    would not.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, nn.Module):
        for each in model.modules():
            each._compiled_call_impl = None
    return model


def logits_in(output: Any) -> Any:
    """The logits in what a network returns: itself, its ``logits``, or the first of several."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output["logits"] if "logits" in output else next(iter(output.values()), None)
        return output
    if isinstance(output, (tuple, list)) and output:
        return getattr(output, "logits", output[0])
    return getattr(output, "logits", output)


def drawn_anew(network: nn.Module) -> nn.Module:
    """A copy with new weights: by `reset_parameters` where a module has it, else the old values in random order."""
    network = copy.deepcopy(network)
    for each in network.modules():
        reset = getattr(each, "reset_parameters", None) or getattr(each, "_reset_parameters", None)
        if callable(reset) and not inspect.signature(reset).parameters:
            reset()
            continue
        for parameter in each.parameters(recurse=False):
            values = parameter.detach().flatten()
            parameter.data = values[torch.randperm(len(values)).to(values.device)].view_as(parameter).clone()
    return network


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
    model = _classifier(module, config, processor, new)
    model.hidden_points = _hidden_points(model, shape, layers)
    config.hidden_layers = model.hidden_names
    return model


def _classifier(network: nn.Module, config: OwnConfig, processor: Any, new: Any) -> OwnClassifier:
    """In a class that is called as the network's, by which reports and errors name it."""
    kind = type(type(network).__name__, (OwnClassifier,), {"__module__": __name__})
    return kind(network, config, processor, new)


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


def _as_state(features: Tensor, point: SupervisionPoint) -> Tensor:
    """What a module gave, in a form of hidden states: tokens, or a map with its channels first."""
    if point.kind == VECTOR:
        return features[:, :, None, None]
    return features.permute(0, 3, 1, 2) if point.channels_last else features


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


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
