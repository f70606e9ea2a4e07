"""Named modules as supervision points, and the repeated blocks of any family.

Nothing is known of a family ahead: one forward over two random images shows which modules run, in which order, and
what shape their outputs have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ec_hf.models.points import (
    BLOCKS,
    VECTOR,
    SupervisionPoint,
    hidden_state_kwargs,
    image_shape,
    is_module_name,
    token_shape,
)
from ec_hf.models.trial import TRIAL_IMAGES, trial_images

__all__ = ["blocks_of", "described", "modules_at", "single_layers", "tensor_of", "with_modules"]

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
Fingerprint = tuple[int, float, float]


def tensor_of(output: Any) -> Tensor | None:
    """The features in what a module returns: the tensor itself, or the first one of a tuple or a mapping."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def modules_at(model: nn.Module, points: Iterable[SupervisionPoint]) -> dict[str, nn.Module]:
    """The modules that points are named after, by name, in the order of their features among the states."""
    named = sorted((point.index, point.module) for point in points if point.module)
    return {name: model.get_submodule(name) for _, name in named}


def with_modules(
    model: PreTrainedModel,
    hidden: Sequence[SupervisionPoint],
    points: str | Sequence[int | str],
    shape: tuple[int, int, int] | None = None,
) -> list[SupervisionPoint]:
    """The hidden states of a model and the modules that `points` names, shallow to deep.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        hidden: its hidden states, as `ec_hf.models.points.describe_hidden_states` gives them; there may be none.
        points: as for `ec_hf.models.points.select_points`; "blocks" means the modules that `blocks_of` finds.
        shape: ``(channels, height, width)`` of the images that the model will see; read from its configuration
            when left out.

    Returns:
        The points in the order in which the model computes them. The index of a module's point counts on from the
        hidden states, in that order too.

    Raises:
        ValueError: there is no such module, it does not run once in a forward, or its output is none that has the
            images in its first dimension and a known place for the channels; and as `blocks_of`.
    """
    names = [str(entry) for entry in ([points] if isinstance(points, str) else points) if is_module_name(entry)]
    if not names:
        return list(hidden)
    forward = _Forward.of(model, bool(hidden), shape)
    wanted = {name for name in names if name != BLOCKS}
    if BLOCKS in names:
        wanted |= set(_blocks(model, forward))
    found = {name: forward.describe(name) for name in wanted}
    in_order = sorted(found, key=forward.place)
    tokens = _token_shapes(hidden, found.values())
    named = [
        replace(found[name], index=len(hidden) + k, kind=_kind(found[name], tokens)) for k, name in enumerate(in_order)
    ]
    depths = [(place, 0, point.index, point) for place, point in zip(forward.places_of_states(), hidden, strict=True)]
    depths += [(forward.place(point.module), 1, point.index, point) for point in named]
    return [point for *_, point in sorted(depths, key=lambda each: each[:3])]


def blocks_of(model: PreTrainedModel, shape: tuple[int, int, int] | None = None) -> list[str]:
    """Names of the blocks that a model repeats, in the order in which they run.

    A block is a module in a `ModuleList`, `Sequential` or `ModuleDict` of which the model has several of one class,
    each with two or more weight matrices or kernels. Modules that hold several such themselves are stages: their
    blocks are looked for inside them. Where there are none, blocks are what repeats under any module, as in timm's
    RegNet, and then what repeats with a single weight matrix or kernel, as in MobileNet V1 and VGG.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        shape: ``(channels, height, width)`` of the images; read from its configuration when left out.

    Raises:
        ValueError: nothing repeats.
    """
    return _blocks(model, _Forward.of(model, False, shape))


def described(
    model: PreTrainedModel, names: Iterable[str], shape: tuple[int, int, int] | None = None
) -> list[SupervisionPoint]:
    """Modules as points that are maps or vectors, numbered in the order in which they run.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        names: of modules.
        shape: ``(channels, height, width)`` of the images; read from its configuration when left out.

    Raises:
        ValueError: as `with_modules`.
    """
    forward = _Forward.of(model, False, shape)
    in_order = sorted(names, key=lambda name: forward.runs.get(name, [-1])[-1])
    return [replace(forward.describe(name), index=index) for index, name in enumerate(in_order)]


def single_layers(
    model: PreTrainedModel, shape: tuple[int, int, int] | None = None, leave_out: Iterable[str] = ()
) -> list[str]:
    """Names of the innermost modules whose features can be taken, in the order in which they run.

    Those with weights, where there are any; those with positions, where there are any. None before the first weight.

    Args:
        model: an image classifier; its mode and its gradients are left as they were.
        shape: ``(channels, height, width)`` of the images; read from its configuration when left out.
        leave_out: names of modules that do not count, such as the classifier.
    """
    forward = _Forward.of(model, False, shape)
    modules = dict(model.named_modules())
    single = [name for name in forward.runs if not any(modules[name].children())]
    first = min((forward.place(name) for name in single if _matrices(modules[name])), default=0)
    kept = [name for name in single if name not in set(leave_out) and forward.place(name) >= first]
    found = [name for name in kept if forward.can_be_taken(name)]
    found = [name for name in found if _matrices(modules[name])] or found
    found = [name for name in found if forward.shows_positions(name)] or found
    return sorted(found, key=forward.place)


def _blocks(model: nn.Module, forward: _Forward) -> list[str]:
    for containers, least in ((CONTAINERS, 2), (nn.Module, 2), (CONTAINERS, 1)):
        siblings = _siblings(model, forward, containers, least)
        stages = {
            place
            for place, names in siblings.items()
            if any(_inside(other, name) for name in names for other, inner in siblings.items() if len(inner) > 1)
        }
        names = [name for place, group in siblings.items() if place not in stages for name in group]
        outer = [name for name in names if not any(other != name and _inside((name,), other) for other in names)]
        if outer:
            return sorted(outer, key=forward.place)
    raise ValueError(
        f"points: {type(model).__name__} has no blocks that repeat inside a ModuleList or Sequential; name its "
        f"modules one by one, such as {', '.join(forward.examples())}."
    )


def _siblings(model: nn.Module, forward: _Forward, containers: Any, least: int) -> dict[tuple[str, type], list[str]]:
    """Names of the modules that may be blocks or stages, by the container that they lie in and their class."""
    groups: dict[tuple[str, type], list[str]] = {}
    for container, each in model.named_modules():
        if isinstance(each, containers):
            for key, child in each.named_children():
                name = f"{container}.{key}" if container else key
                if _matrices(child) >= least and forward.shows_positions(name):
                    groups.setdefault((container, type(child)), []).append(name)
    often = Counter(kind for (_, kind), names in groups.items() for _ in names)
    return {place: names for place, names in groups.items() if often[place[1]] > 1}


def _matrices(module: nn.Module) -> int:
    """Number of weight matrices and kernels; not of embeddings of positions and the like."""
    return sum(name.endswith("weight") and weight.dim() > 1 for name, weight in module.named_parameters())


def _inside(place: tuple[Any, ...], name: str) -> bool:
    """Whether a place, of which the first entry is a name, lies in a module of another name, or is it."""
    return f"{place[0]}.".startswith(f"{name}.")


@dataclass
class _Forward:
    """What one forward over random images showed of the modules and the hidden states."""

    kinds: Mapping[str, type]
    size: tuple[int, int]
    runs: dict[str, list[int]] = field(default_factory=dict)
    outputs: dict[str, tuple[Any, int]] = field(default_factory=dict)
    prints: list[Fingerprint | None] = field(default_factory=list)
    states: Sequence[Any] = ()

    @classmethod
    def of(cls, model: PreTrainedModel, hidden: bool, shape: tuple[int, int, int] | None) -> _Forward:
        shape = shape or image_shape(model)
        images = trial_images(model, shape)
        modules = {name: each for name, each in model.named_modules() if name}
        seen = cls({name: type(each) for name, each in modules.items()}, shape[1:])
        hooks = [each.register_forward_hook(seen._keep(name)) for name, each in modules.items()]
        was_training = model.training
        try:
            with torch.no_grad():
                output = model.eval()(pixel_values=images, **(hidden_state_kwargs(model) if hidden else {}))
        finally:
            model.train(was_training)
            for each in hooks:
                each.remove()
        seen.states = output.hidden_states if hidden else ()
        return seen

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            features = tensor_of(output)
            self.runs.setdefault(name, []).append(len(self.prints))
            self.outputs[name] = (output, -1 if features is None else features._version)
            self.prints.append(None if features is None else _fingerprint([features]))

        return hook

    def place(self, name: str) -> int:
        """When a module was done, counted over all modules."""
        return self.runs[name][-1]

    def places_of_states(self) -> list[int]:
        """When each hidden state was there, by the first module that gave its values.

        A state that no module gave as it is counts as being there with the state before it.
        """
        places: list[int] = []
        for state in self.states:
            wanted = _fingerprint(state if isinstance(state, (tuple, list)) else [state])
            at = next((k for k, print_ in enumerate(self.prints) if print_ and _same(print_, wanted)), -1)
            places.append(max([at, *places[-1:]]))
        return places

    def can_be_taken(self, name: str) -> bool:
        """Whether a module can be a point."""
        try:
            return bool(self.describe(name).channels)
        except ValueError:
            return False

    def shows_positions(self, name: str) -> bool:
        """Whether a module can be a point with positions, tokens or a map."""
        try:
            return self.describe(name).kind != VECTOR
        except ValueError:
            return False

    def examples(self) -> list[str]:
        """Names of a few modules that can be points with positions."""
        return [name for name in self.runs if self.shows_positions(name)][-3:]

    def describe(self, name: str) -> SupervisionPoint:
        """The shape of what a module gives, of kind "map" or "vector"; its index is not known yet."""
        if name not in self.runs:
            close = self._close(name, self.runs)
            if name in self.kinds:
                raise ValueError(f"points: module {name!r} did not run when the model saw an image.{close}")
            words = "an index, 'auto', 'blocks', 'penultimate' or the name of a module"
            raise ValueError(f"points: the model has no module {name!r}; expected {words}.{close}")
        if len(self.runs[name]) > 1:
            raise ValueError(
                f"points: module {name!r} runs {len(self.runs[name])} times in a forward, so its features are not one "
                f"layer. Name a module around or behind it.{self._close(name, self.runs)}"
            )
        output, version = self.outputs[name]
        features = tensor_of(output)
        if features is None:
            raise ValueError(f"points: module {name!r} gives a {type(output).__name__} and no tensor of features.")
        if features._version != version:
            raise ValueError(
                f"points: a later layer changes the output of module {name!r} in place. Name the module behind it."
            )
        if features.dim() not in (2, 3, 4) or len(features) != TRIAL_IMAGES or not features.is_floating_point():
            raise ValueError(
                f"points: of {TRIAL_IMAGES} images, module {name!r} gives {tuple(features.shape)}, which is none of "
                "(images, channels), (images, tokens, channels) and (images, channels, height, width)."
            )
        return self._sized(name, features)

    def _sized(self, name: str, features: Tensor) -> SupervisionPoint:
        if features.dim() == 2:
            return SupervisionPoint(0, VECTOR, features.shape[1], 1, 1, module=name)
        if features.dim() == 3:
            return SupervisionPoint(0, "map", module=name, **token_shape(features, self.size))
        _, a, b, c = features.shape
        last = self._channels_last(features)
        if last is None:
            last = self._as_its_class(name)
        if last is None:
            raise ValueError(
                f"points: the output {tuple(features.shape)} of module {name!r} does not tell which dimension holds "
                f"the channels, with images of {self.size[0]}x{self.size[1]}. Name a module near to it, or use images "
                "of another size."
            )
        channels, height, width = (c, a, b) if last else (a, b, c)
        return SupervisionPoint(0, "map", channels, height, width, module=name, channels_last=last)

    def _channels_last(self, features: Tensor) -> bool | None:
        """Whether the last dimension of four holds the channels; None where the shape does not tell."""
        _, a, b, c = features.shape
        first, last = self._unlike(b, c), self._unlike(a, b)
        return None if first == last or min(first, last) > max(self.size) else last < first

    def _as_its_class(self, name: str) -> bool | None:
        """The same by other modules of its class, of which the shapes tell."""
        if self.kinds[name].__module__.startswith("torch.nn"):  # Sequential, Identity: one class, any layout
            return None
        told = {
            self._channels_last(features)
            for other, kind in self.kinds.items()
            if kind is self.kinds[name] and other in self.outputs
            if (features := tensor_of(self.outputs[other][0])) is not None and features.dim() == 4
        } - {None}
        return told.pop() if len(told) == 1 else None

    def _unlike(self, height: int, width: int) -> int:
        """How far a map is from the images' proportions; rounding makes up to the longer side of the image."""
        return abs(height * self.size[1] - width * self.size[0])

    def _close(self, name: str, among: Iterable[str]) -> str:
        among = list(among)
        inside = [each for each in among if each.endswith(f".{name}") or name.endswith(f".{each}")]
        close = [*inside, *get_close_matches(name, among, n=4, cutoff=0.5)][:4]
        return f" Close names: {', '.join(dict.fromkeys(close))}." if close else f" Some names: {_few(among)}."


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:: max(1, len(names) // 4)][:4])


def _fingerprint(parts: Iterable[Tensor]) -> Fingerprint:
    """Number of values, their sum and the sum of their sizes: the same whatever the layout."""
    return tuple(map(sum, zip(*_sums(parts), strict=True)))  # type: ignore[return-value]


def _sums(parts: Iterable[Tensor]) -> Iterator[Fingerprint]:
    for part in parts:
        values = part.detach().double()
        yield values.numel(), values.sum().item(), values.abs().sum().item()


def _same(a: Fingerprint, b: Fingerprint) -> bool:
    return a[0] == b[0] and math.isclose(a[2], b[2], rel_tol=1e-9) and abs(a[1] - b[1]) <= 1e-9 * a[2]


def _shape(point: SupervisionPoint) -> tuple[int, ...]:
    return point.channels, point.height, point.width, point.prefix


def _token_shapes(hidden: Sequence[SupervisionPoint], named: Iterable[SupervisionPoint]) -> set[tuple[int, ...]]:
    """The one shape of tokens that heads chain through; without hidden states that of the modules, if it is one."""
    if hidden:
        return {_shape(state) for state in hidden if state.kind == "tokens"}
    shapes = [_shape(point) for point in named if point.kind != VECTOR]
    return set(shapes) if len(shapes) > 1 and len(set(shapes)) == 1 else set()


def _kind(point: SupervisionPoint, tokens: set[tuple[int, ...]]) -> str:
    return "tokens" if point.kind != VECTOR and _shape(point) in tokens else point.kind
