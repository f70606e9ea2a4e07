"""`OwnClassifier`: a network of one's own with the face of a model of transformers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ec_hf.data.columns import shown
from ec_hf.files import HEADS, WEIGHTS
from ec_hf.models.modules import modules_at
from ec_hf.models.penultimate import Penultimate
from ec_hf.models.points import VECTOR, SupervisionPoint

__all__ = ["MODEL_TYPE", "OwnClassifier", "OwnConfig", "drawn_anew", "faced", "logits_in", "uncompiled"]

MODEL_TYPE = "own_network"
"""The `model_type` in config.json of a network that only its owner's code can build."""


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
        other = faced(network, copy.deepcopy(self.config), self.image_processor, self.new)
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


def faced(network: nn.Module, config: OwnConfig, processor: Any, new: Callable[[], nn.Module] | None) -> OwnClassifier:
    """In a class that is called as the network's, by which reports and errors name it."""
    kind = type(type(network).__name__, (OwnClassifier,), {"__module__": __name__})
    return kind(network, config, processor, new)


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


def _as_state(features: Tensor, point: SupervisionPoint) -> Tensor:
    """What a module gave, in a form of hidden states: tokens, or a map with its channels first."""
    if point.kind == VECTOR:
        return features[:, :, None, None]
    return features.permute(0, 3, 1, 2) if point.channels_last else features


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
