"""CKA of all models to the references at all layers, streamed over one pass and over processes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from ec_hf.auditing.collected import CKAByLayer
from ec_hf.distributed import from_all
from ec_hf.metrics import BatchedCKA, CKAStream

__all__ = ["Similarity", "layer_pairs"]

UUEF_BATCH = 512
NOT_FINITE = "the model's values are not finite on some images"


class Similarity:
    """CKA of all models to the references at all layers, streamed.

    Args:
        layers: model -> names of its layers, the logits last.
        references: names of models that the others are compared with.
        uuef: also in UUEF's way.
    """

    def __init__(self, layers: Mapping[str, Sequence[str]], references: Sequence[str], *, uuef: bool = False) -> None:
        self._layers = layers
        self._partner: dict[tuple[str, str], dict[int, int]] = {}  # pair -> layer -> layer of the reference
        together: dict[Any, dict[tuple[str, str], tuple[int, int]]] = {}  # one stream serves all models at one depth
        for reference in references:
            for name in layers:
                pairs_of_layers = layer_pairs(layers[name], layers[reference])
                same = list(layers[name]) == list(layers[reference])
                if name == reference or (same and (reference, name) in self._partner):
                    continue
                self._partner[name, reference] = dict(pairs_of_layers)
                for i, j in pairs_of_layers:
                    key = (len(layers[name]), i) if same else (name, reference, i)
                    together.setdefault(key, {})[name, reference] = i, j
        self._streams: list[tuple[CKAStream, dict[str, int]]] = []
        self._place: dict[tuple[tuple[str, str], int], int] = {}
        for pairs in together.values():
            index = {name: k for pair, place in pairs.items() for name, k in zip(pair, place, strict=True)}
            self._place |= {(pair, i): len(self._streams) for pair, (i, _) in pairs.items()}
            self._streams.append((CKAStream(pairs), index))
        self._batched = {place: BatchedCKA(UUEF_BATCH) for place in self._place} if uuef else {}
        self._images = 0
        self._broken: set[tuple[str, int]] = set()  # layers with a value that was not finite
        self._undefined: set[tuple[tuple[str, str], int]] = set()  # in one of UUEF's batches

    def update(self, features: Mapping[str, Sequence[Tensor]]) -> None:
        """Takes in the features of one batch, by model and layer."""
        clean = {name: list(layers) for name, layers in features.items()}
        for name, layers in clean.items():
            for i, layer in enumerate(layers):
                if not torch.isfinite(layer).all():  # the other models and layers are still worth a number
                    self._broken.add((name, i))
                    layers[i] = torch.zeros_like(layer)
        self._images += len(next(iter(clean.values()))[0])
        for stream, index in self._streams:
            stream.update({name: clean[name][i] for name, i in index.items()})
        for (pair, i), batched in self._batched.items():
            try:
                batched.update(clean[pair[0]][i], clean[pair[1]][self._partner[pair][i]])
            except ValueError:
                self._undefined.add((pair, i))

    def values(self) -> dict[str, dict[tuple[str, str], CKAByLayer]]:
        """Over all processes: metric -> (model, reference) -> layer of the model -> value, or None and why."""
        broken, undefined = set(from_all(list(self._broken))), set(from_all(list(self._undefined)))
        streams = [_merged(stream) for stream, _ in self._streams]
        values: dict[str, dict[tuple[str, str], CKAByLayer]] = {}
        for (pair, i), place in self._place.items():
            lost = (pair[0], i) in broken or (pair[1], self._partner[pair][i]) in broken
            layer = self._layers[pair[0]][i]
            computed: dict[str, Callable[[], float]] = {"linear_cka": partial(streams[place].compute, *pair)}
            if self._batched:
                computed["linear_cka_uuef"] = partial(self._batch_mean, (pair, i), (pair, i) in undefined)
            for metric, compute in computed.items():
                of_pair = values.setdefault(metric, {}).setdefault(pair, {})
                of_pair[layer] = (None, NOT_FINITE) if lost else _or_reason(compute)
        return values

    def _batch_mean(self, key: tuple[tuple[str, str], int], undefined: bool) -> float:
        """The mean over the batches of all processes, each of which had whole batches."""
        batches = -(-self._images // UUEF_BATCH)
        value, reason = _or_reason(self._batched[key].compute) if batches else (0.0, None)
        shares = from_all([(batches, value, reason)])
        if undefined or any(reason for _, _, reason in shares):
            raise ValueError(next((reason for _, _, reason in shares if reason), "undefined in one of the batches"))
        return float(np.average([value for _, value, _ in shares], weights=[count for count, _, _ in shares]))


def _or_reason(compute: Callable[[], float]) -> tuple[float | None, str | None]:
    try:
        return compute(), None
    except ValueError as error:
        return None, str(error).split(":")[0].rstrip(".")


def _merged(stream: CKAStream) -> CKAStream:
    """The stream over the images of all processes."""
    if PartialState().num_processes == 1:
        return stream
    buffer = io.BytesIO()
    torch.save(stream, buffer)  # so that what lies on one process's GPU can be read by the others
    first, *others = (
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=False) for data in from_all([buffer.getvalue()])
    )
    for other in others:
        first.merge(other)
    return first


def layer_pairs(own: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """Which layer of a reference each of a model's layers is compared with, by index.

    Of the hidden states and named modules it is the same depth where both have as many, the nearest relative depth
    where not. The penultimate layer is compared with the other penultimate layer, where there is one, and the logits
    with the logits.

    Args:
        own: names of the model's layers, the logits last.
        other: names of the reference's layers, the logits last.
    """
    depth, depth_of_other = (sum(layer not in ("penultimate", "logits") for layer in each) for each in (own, other))
    scale = 1.0 if depth == depth_of_other else (depth_of_other - 1) / max(depth - 1, 1)
    hidden = [(i, round(i * scale)) for i in range(depth)] if depth_of_other else []
    places = {layer: k for k, layer in enumerate(other)}
    return [*hidden, *((i, places[own[i]]) for i in range(depth, len(own)) if own[i] in places)]
