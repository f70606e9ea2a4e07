"""Supervision points: where in a vision classifier EC looks at the features.

Every `AutoModelForImageClassification`, timm models through `TimmWrapperForImageClassification` included, returns its
intermediate features when it is called with `output_hidden_states=True`. Those come in many forms (tokens with and
without prefix tokens, maps, pairs of both); here each becomes one of two normal forms:

- ``tokens``: ``(batch, prefix + height * width, channels)``, prefix tokens (CLS, distillation, registers) first;
- ``map``: ``(batch, channels, height, width)``.

The outputs of named modules (`ec_hf.models.modules`) stand behind them, in the same forms, and then the penultimate
layer of `ec_hf.models.penultimate`, a ``vector``: ``(batch, channels)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.models.trial import trial_images

AUTO_DEPTHS = 4
BLOCKS = "blocks"
PENULTIMATE = "penultimate"
VECTOR = "vector"


@dataclass(frozen=True)
class SupervisionPoint:
    """One hidden state of a model, the output of one of its modules, or the penultimate layer, with its shape.

    Attributes:
        index: position in the model's `hidden_states`, counted from the input side; named modules come next, in the
            order in which they run, and then the penultimate layer.
        kind: ``"tokens"``, ``"map"`` or ``"vector"``, the normal form that `take` gives.
        channels: width of the features.
        height: rows of the patch grid or map (of the input size that the point was sized with).
        width: columns of the patch grid or map.
        prefix: number of tokens before the patch tokens; 0 for maps.
        module: name of the module whose output it is; empty for hidden states and the penultimate layer.
        channels_last: whether that module gives maps as ``(batch, height, width, channels)``.
        label: name of a hidden state, where the model gives its own ones names (`ec_hf.models.own_network`).
    """

    index: int
    kind: str
    channels: int
    height: int
    width: int
    prefix: int = 0
    module: str = ""
    channels_last: bool = False
    label: str = ""

    @property
    def name(self) -> str:
        """Name used in logs, reports and layer-wise tables."""
        return PENULTIMATE if self.is_penultimate else self.module or self.label or f"hidden_states.{self.index}"

    @property
    def is_penultimate(self) -> bool:
        """Whether it is what the classifier reads."""
        return self.kind == VECTOR and not self.module

    @property
    def is_hidden_state(self) -> bool:
        """Whether it is one of the model's `hidden_states`."""
        return self.kind != VECTOR and not self.module

    def __str__(self) -> str:
        if self.kind == VECTOR:
            return f"{self.name} ({self.channels} channels)"
        prefix = f"{self.prefix} prefix + " if self.prefix else ""
        shape = f"{prefix}{self.height}x{self.width} {self.kind}"
        return f"{self.name} ({shape}, {self.channels} channels)"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; those of named modules only where it is one, the label where it has one."""
        left_out = [] if self.module else ["module", "channels_last"]
        left_out += [] if self.label else ["label"]
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def hidden_state_kwargs(model: nn.Module) -> dict[str, Any]:
    """Keyword arguments that make `model` return its hidden states in full, prefix tokens included.

    timm drops the prefix tokens unless it is asked for them, and the classifier of many ViTs reads nothing else.
    """
    kwargs: dict[str, Any] = {"output_hidden_states": True}
    timm_model: Any = getattr(model, "timm_model", None)
    if getattr(timm_model, "num_prefix_tokens", 0) and (
        "return_prefix_tokens" in inspect.signature(timm_model.forward_intermediates).parameters
    ):
        kwargs |= {"return_prefix_tokens": True, "output_fmt": "NLC"}
    return kwargs


def take(hidden_states: Sequence[Any], point: SupervisionPoint) -> Tensor:
    """The features of one supervision point, in the normal form that `point.kind` names.

    Args:
        hidden_states: those of a model; for named modules and the penultimate layer with what
            `ec_hf.models.penultimate.Penultimate.after` adds.
        point: where to look.
    """
    if point.is_penultimate:
        return hidden_states[-1]
    state = hidden_states[point.index]
    if point.channels_last:
        state = state.permute(0, 3, 1, 2)
    if isinstance(state, (tuple, list)):  # timm gives (patch tokens, prefix tokens)
        patches, prefix = state
        state = torch.cat([prefix, patches], dim=1)
    if point.kind == VECTOR:
        return state
    if point.kind == "tokens":
        return state.flatten(2).transpose(1, 2) if state.dim() == 4 else state
    if state.dim() == 3:
        state = state[:, point.prefix :]
        grid = (state.shape[0], point.channels, point.height, point.width)
        return state.transpose(1, 2).reshape(grid) if _fits(state, point) else _to_square(state)
    return state


def pool(features: Tensor, point: SupervisionPoint, pooling: str) -> Tensor:
    """One vector an image, ``(batch, channels)``.

    Maps give their spatial mean. Tokens give token 0 for ``pooling="cls"``, the mean over the patch tokens for
    ``"mean"`` and the mean over all tokens, prefix included, for ``"all"``. Vectors stay as they are.
    """
    if point.kind == VECTOR:
        return features
    if point.kind == "map":
        return features.mean(dim=(2, 3))
    return features[:, pooled_rows(point, pooling)].mean(dim=1)


def pooled_rows(point: SupervisionPoint, pooling: str) -> slice:
    """The tokens whose mean `pool` takes."""
    if pooling == "cls":
        return slice(0, 1)
    return slice(0 if pooling == "all" else point.prefix, None)


def image_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """``(channels, height, width)`` of the images that a model is configured for; 3x224x224 where it does not say."""
    config: Any = getattr(model.config, "vision_config", model.config)
    timm_config = getattr(config, "pretrained_cfg", None) or getattr(
        getattr(model, "timm_model", None), "pretrained_cfg", None
    )
    timm_size = (timm_config or {}).get("input_size")
    if timm_size:
        return tuple(timm_size)
    size: Any = getattr(config, "image_size", None) or 224
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", None) or 3, height, width


def describe_hidden_states(
    model: PreTrainedModel, shape: tuple[int, int, int] | None = None
) -> list[SupervisionPoint]:
    """All hidden states of a model, found by one forward pass over a blank image.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        shape: ``(channels, height, width)`` of the images that the model will see; read from its configuration
            when left out.

    Raises:
        ValueError: the model returns no hidden states.
    """
    channels, height, width = shape or image_shape(model)
    blank = torch.zeros(1, channels, height, width, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        _, states = _forward(model, blank)
    raw = [_shape_of(state, (height, width)) for state in states]
    isotropic = len({(shape["channels"], shape["height"], shape["width"]) for shape in raw}) == 1
    kind = "tokens" if isotropic and len(raw) > 1 else "map"
    labels = getattr(model, "hidden_names", None) or [""] * len(raw)
    named = zip(raw, labels, strict=True)
    return [SupervisionPoint(index, kind, **shape, label=label) for index, (shape, label) in enumerate(named)]


def is_module_name(entry: int | str) -> bool:
    """Whether an entry of `points` means modules: "blocks", or what is neither an index nor another word."""
    if isinstance(entry, int) or entry in ("auto", PENULTIMATE):
        return False
    return not entry.removeprefix("-").isdecimal()


def select_points(
    model: PreTrainedModel, states: Sequence[SupervisionPoint], points: str | Sequence[int | str] = "auto"
) -> tuple[SupervisionPoint, ...]:
    """The supervision points among a model's hidden states, named modules and its penultimate layer.

    Args:
        model: the model that the hidden states belong to (its configuration tells how many layers it has).
        states: what `describe_hidden_states` gave, or `ec_hf.models.modules.with_modules` where modules are named,
            and what `ec_hf.models.penultimate.penultimate_point` gave, shallow to deep.
        points: ``"auto"`` for about four depths: the ends of the last four stages of a hierarchical model, the
            quartiles of an isotropic one. ``"blocks"`` for all repeated blocks. Otherwise a list of indices into the
            hidden states, negative ones counted from the output, of names of modules, and of ``"penultimate"`` and
            ``"blocks"``. An empty list selects none.

    Returns:
        The points in the order of `states`.

    Raises:
        ValueError: the model has no such index, or a layer is named twice; the message shows the choice.
    """
    if points == "auto" or list(points) == ["auto"]:
        hidden = [state for state in states if state.is_hidden_state]
        if not hidden:
            raise ValueError("points='auto': the model returns no hidden states; name its modules, or 'blocks'.")
        return tuple(hidden[index] for index in _auto_indices(model, hidden))
    entries = [points] if isinstance(points, str) else list(points)
    chosen = [_place(entry, states) for entry in entries if entry != BLOCKS]
    if len({states[place].name for place in chosen}) != len(chosen):
        raise ValueError(f"points={entries}: the same hidden state or module is named twice.")
    if BLOCKS in entries:
        chosen += [k for k, state in enumerate(states) if state.module and k not in chosen]
    return tuple(states[place] for place in sorted(chosen))


def _place(entry: int | str, states: Sequence[SupervisionPoint]) -> int:
    """The place among `states` that an entry of `points` means."""
    if entry == PENULTIMATE:
        if not (found := [k for k, state in enumerate(states) if state.is_penultimate]):
            raise ValueError("points: no linear layer gives the model's logits, so it has no penultimate layer.")
        return found[0]
    hidden = [k for k, state in enumerate(states) if state.is_hidden_state]
    if entry == "auto":
        raise ValueError("points: 'auto' stands alone, and not in a list with others.")
    if is_module_name(entry):
        if not (found := [k for k, state in enumerate(states) if state.module == entry]):
            raise ValueError(
                f"points: {entry!r} is not an index, no module, and none of 'auto', 'blocks' and 'penultimate'."
            )
        return found[0]
    index = int(entry)
    if not -len(hidden) <= index < len(hidden):
        have = ", ".join(str(states[k]) for k in hidden)
        raise ValueError(f"points: the model has no hidden state {index}; it has {len(hidden)}: {have}.")
    return hidden[index]


def classifier_pooling(model: PreTrainedModel, state: SupervisionPoint) -> str:
    """``"cls"`` if the model's classifier reads token 0 of its last hidden state, else ``"mean"``.

    Found by differentiation where the last hidden state lies on the way to the logits, so that no model has to be
    known by name; timm hands out a copy that does not, but states what it pools.
    """
    if state.kind == "map" or state.prefix == 0:
        return "mean"
    timm_model = getattr(model, "timm_model", None)
    if timm_model is not None:
        return "cls" if getattr(timm_model, "global_pool", None) == "token" else "mean"
    with torch.enable_grad():
        output, last = _forward(model, trial_images(model, image_shape(model), count=1))
        gradient = torch.autograd.grad(output.logits.square().sum(), last[-1], allow_unused=True)[0]
    return "mean" if gradient is None or not gradient[:, 0].any() else "cls"


def _forward(model: PreTrainedModel, images: Tensor) -> tuple[Any, Sequence[Any]]:
    """The model's output and its hidden states, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        output = model(pixel_values=images, **hidden_state_kwargs(model))
    finally:
        model.train(was_training)
    states = getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(
            f"{type(model).__name__} returned no hidden states for output_hidden_states=True, so there is no layer to "
            "supervise. Use a model of transformers or timm that returns them, or points=[] with an objective that "
            "needs the logits alone."
        )
    return output, states


def _shape_of(state: Any, image_size: tuple[int, int]) -> dict[str, Any]:
    prefix = 0
    if isinstance(state, (tuple, list)):
        state, prefix_tokens = state
        prefix = prefix_tokens.shape[1]
    if state.dim() == 4:
        return {"channels": state.shape[1], "height": state.shape[2], "width": state.shape[3], "prefix": 0}
    return token_shape(state, image_size, prefix)


def token_shape(tokens: Tensor, image_size: tuple[int, int], prefix: int = 0) -> dict[str, Any]:
    """Channels, grid and prefix of tokens ``(batch, tokens, channels)``.

    The patch grid has the image's proportions; what remains beside the largest such grid are prefix tokens.

    Args:
        tokens: of a layer.
        image_size: height and width of the images.
        prefix: number of prefix tokens that were taken off before.
    """
    count, ratio = tokens.shape[1], image_size[0] / image_size[1]
    width = int(math.sqrt(count / ratio) + 1e-6)
    while width > 1 and round(width * ratio) * width > count:
        width -= 1
    height = max(1, round(width * ratio))
    return {
        "channels": tokens.shape[2],
        "height": height,
        "width": max(1, width),
        "prefix": prefix + count - height * max(1, width),
    }


def _auto_indices(model: PreTrainedModel, states: Sequence[SupervisionPoint]) -> list[int]:
    config: Any = getattr(model.config, "vision_config", model.config)
    depths = getattr(config, "depths", None)
    layers = len(depths) if depths else getattr(config, "num_hidden_layers", None)
    first = 1 if layers == len(states) - 1 else 0  # entry 0 is then the embedding, which no layer has worked on
    if states[0].kind == "tokens":
        count = len(states) - first
        wanted = min(AUTO_DEPTHS, count)
        return [first + round(count * (k + 1) / wanted) - 1 for k in range(wanted)]
    if len(states) > AUTO_DEPTHS + 2:  # one state a block: keep the last one of each resolution
        ends = [
            i
            for i, state in enumerate(states)
            if i + 1 == len(states) or (states[i + 1].height, states[i + 1].width) != (state.height, state.width)
        ]
    else:
        ends = list(range(first, len(states)))
    return ends[-AUTO_DEPTHS:]


def _fits(state: Tensor, point: SupervisionPoint) -> bool:
    return state.shape[1] == point.height * point.width


def _to_square(state: Tensor) -> Tensor:
    side = math.isqrt(state.shape[1])
    if side * side != state.shape[1]:
        raise ValueError(
            f"{state.shape[1]} tokens do not form the grid that the supervision point was sized with; build the EC "
            "heads again with the image size that is used now."
        )
    return state.transpose(1, 2).reshape(state.shape[0], state.shape[2], side, side)
