"""The audit's one pass: all models see a batch together, and what they show is kept in a form that stays small."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from scipy.special import softmax
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ec_hf.metrics import BatchedCKA, CKAStream, confidence, entropy, hits, loss, masked_hits
from ec_hf.metrics.distances import per_image
from ec_hf.subjects import Subject

__all__ = [
    "Collected",
    "Similarity",
    "collect",
    "distances",
    "evaluating",
    "features_of",
    "from_all",
    "layer_pairs",
    "outputs_of",
    "spread",
]

Result = TypeVar("Result")
UUEF_BATCH = 512
NOT_FINITE = "the model's values are not finite on some images"


@dataclass
class Collected:
    """What the models showed on one split; all rows in the split's order.

    Attributes:
        labels: `(n,)` label ids.
        rows: `(m,)` rows of the split whose features were kept.
        outputs: model -> figure of `outputs_of` or `distances` -> `(n,)`, one entry an image.
        features: model -> layer -> `(m, width)` float32, of the kept rows.
        cka: metric -> (model, reference) -> layer of the model -> value over all rows, or None and the reason.
    """

    labels: np.ndarray
    rows: np.ndarray
    outputs: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    features: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    cka: dict[str, dict[tuple[str, str], dict[str, tuple[float | None, str | None]]]] = field(default_factory=dict)

    @property
    def kept_labels(self) -> np.ndarray:
        """`(m,)` label ids of the kept rows."""
        return self.labels[self.rows]


@torch.inference_mode()
def collect(
    subjects: Mapping[str, Subject],
    dataset: Dataset,
    labels: np.ndarray,
    rows: np.ndarray,
    *,
    references: Sequence[str] = (),
    uuef: bool = False,
    masked: Sequence[int] = (),
    pooling: str = "all",
    batch_size: int = 64,
    num_workers: int = 0,
    name: str = "",
) -> Collected:
    """Runs every model once over every image of a split.

    Of an image remain a few figures a model; of a layer the sums that CKA needs, and the features of the rows that
    were chosen ahead. Processes take every n-th image and put their results together at the end: no image is dropped
    or seen twice, and all processes return the same.

    Args:
        subjects: the models by name, on their device and in evaluation mode.
        dataset: the split; it may be empty.
        labels: `(n,)` label ids of all its rows.
        rows: ascending rows whose features are kept.
        references: names of models that the others are compared with by CKA.
        uuef: also compute CKA as UUEF does, under "linear_cka_uuef".
        masked: label ids whose logits are masked for `hit_masked`.
        pooling: see `ec_hf.points.pool`.
        batch_size: images a batch and process.
        num_workers: processes that load images, as in `DataLoader`.
        name: of the split, for the progress bar.
    """
    found, block = Collected(labels, rows), UUEF_BATCH if uuef else 1
    layers = {each: subject.layers for each, subject in subjects.items()}
    similarity = Similarity(layers, references, uuef=uuef)
    outputs: dict[str, dict[str, list[np.ndarray]]] = {each: {} for each in subjects}
    kept: dict[str, list[list[Tensor]]] = {each: [[] for _ in layers[each]] for each in subjects}
    own = _share(len(labels), block)
    keeps, done = np.isin(own, rows), 0
    for pixels, targets in _batches(subjects, dataset, own, batch_size, num_workers, f"Audit of {name}"):
        chosen = torch.as_tensor(keeps[done : (done := done + len(targets))])
        features = {each: subject.run(pixels[each], pooling) for each, subject in subjects.items()}
        logits = {each: values[-1].cpu().numpy() for each, values in features.items()}
        for each, values in features.items():
            figures = outputs_of(logits[each], targets.numpy(), masked)
            if "retrained" in logits and each != "retrained":
                figures |= distances(logits[each], logits["retrained"])
            for key, figure in figures.items():
                outputs[each].setdefault(key, []).append(figure)
            if chosen.any():
                for into, value in zip(kept[each], values, strict=True):
                    into.append(value[chosen.to(value.device)].cpu())
        similarity.update(features)
    _put_together(found, layers, outputs, kept, block)
    found.cka = similarity.values()
    return found


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
                depths = len(layers[name]) - 1, len(layers[reference]) - 1
                same = depths[0] == depths[1]
                if name == reference or (same and (reference, name) in self._partner):
                    continue
                self._partner[name, reference] = dict(layer_pairs(*depths))
                for i, j in layer_pairs(*depths):
                    key = (depths[0], i) if same else (name, reference, i)
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

    def values(self) -> dict[str, dict[tuple[str, str], dict[str, tuple[float | None, str | None]]]]:
        """Over all processes: metric -> (model, reference) -> layer of the model -> value, or None and why."""
        broken, undefined = set(from_all(list(self._broken))), set(from_all(list(self._undefined)))
        streams = [_merged(stream) for stream, _ in self._streams]
        found: dict[str, dict[tuple[str, str], dict[str, tuple[float | None, str | None]]]] = {}
        for (pair, i), place in self._place.items():
            lost = (pair[0], i) in broken or (pair[1], self._partner[pair][i]) in broken
            layer = self._layers[pair[0]][i]
            computed: dict[str, Callable[[], float]] = {"linear_cka": partial(streams[place].compute, *pair)}
            if self._batched:
                computed["linear_cka_uuef"] = partial(self._batch_mean, (pair, i), (pair, i) in undefined)
            for metric, compute in computed.items():
                value = (None, NOT_FINITE) if lost else _or_reason(compute)
                found.setdefault(metric, {}).setdefault(pair, {})[layer] = value
        return found

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


def outputs_of(logits: np.ndarray, labels: np.ndarray, masked: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """What is kept of each image's output, `(n,)` each: prediction, hit, confidence, entropy, loss.

    See `ec_hf.metrics.outputs`. `hit_masked` is the hit when the logits of the `masked` label ids are left out; it is
    missing without such ids. Images whose logits are not finite have NaN.
    """
    finite = np.isfinite(logits).all(axis=1)
    logits = np.where(finite[:, None], logits, 0.0)
    figures = {
        "hit": hits(logits, labels),
        "confidence": confidence(logits),
        "entropy": entropy(logits),
        "loss": loss(logits, labels),
    }
    if 0 < len(masked) < logits.shape[1]:
        figures["hit_masked"] = masked_hits(logits, labels, masked)
    return {"prediction": logits.argmax(1)} | {key: np.where(finite, each, np.nan) for key, each in figures.items()}


def distances(logits: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """How far each image's output is from the retrained model's, `(n,)` each; see `ec_hf.metrics.distances`."""
    finite = np.isfinite(logits).all(axis=1) & np.isfinite(target).all(axis=1)
    p, q = (softmax(np.where(finite[:, None], each, 0.0).astype(np.float64), axis=1) for each in (logits, target))
    return {key: np.where(finite, each, np.nan) for key, each in per_image(p, q).items()}


@torch.inference_mode()
def features_of(
    subjects: Mapping[str, Subject], dataset: Dataset, *, pooling: str = "all", batch_size: int = 64, title: str = ""
) -> dict[str, np.ndarray]:
    """The first of each model's layers `(n, width)` on all images of a dataset: the logits, where it has no points."""
    count = len(dataset)  # type: ignore[arg-type]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in subjects}
    for pixels, _ in _batches(subjects, dataset, _share(count), batch_size, title=title):
        for name, subject in subjects.items():
            parts[name].append(subject.run(pixels[name], pooling)[0].cpu().numpy())
    return {name: _in_order(np.concatenate(each) if each else None, np.arange(count)) for name, each in parts.items()}


def spread(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of independent jobs in their order: the processes share the work, and all get all results."""
    own = [(int(i), jobs[i]()) for i in _share(len(jobs))]
    return [result for _, result in sorted(from_all(own), key=lambda pair: pair[0])]


def layer_pairs(own: int, other: int) -> list[tuple[int, int]]:
    """Which layer of a reference each of a model's layers is compared with, by index; the logits are the last ones.

    The same depth where both have as many hidden states, the nearest relative depth where not.

    Args:
        own: number of the model's hidden states.
        other: number of the reference's hidden states.
    """
    hidden = [(i, i) for i in range(own)]
    if own != other:
        hidden = [(i, round(i * (other - 1) / max(own - 1, 1))) for i in range(own)] if other else []
    return [*hidden, (own, other)]


def _batches(
    subjects: Mapping[str, Subject],
    dataset: Dataset,
    rows: np.ndarray,
    batch_size: int,
    num_workers: int = 0,
    title: str = "",
) -> Iterable[tuple[dict[str, Tensor], Tensor]]:
    """Pixels by model, and the labels; images are read once, and prepared once for each distinct collator."""
    collators = {id(subject.collator): subject.collator for subject in subjects.values()}

    def collate(examples: Any) -> dict[int, Any]:
        return {key: collator(examples) for key, collator in collators.items()}

    loader = DataLoader(
        Subset(dataset, rows.tolist()),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
    )
    silent = not title or not len(rows) or not PartialState().is_local_main_process
    for batch in tqdm(loader, desc=title, disable=silent, leave=False):
        pixels = {name: batch[id(subject.collator)]["pixel_values"] for name, subject in subjects.items()}
        yield pixels, next(iter(batch.values()))["labels"]


def _put_together(
    found: Collected,
    layers: Mapping[str, Sequence[str]],
    outputs: Mapping[str, Mapping[str, list[np.ndarray]]],
    kept: Mapping[str, list[list[Tensor]]],
    block: int,
) -> None:
    """Brings the figures and features of all processes into the order of the split."""
    every = np.arange(len(found.labels))
    for name in layers:
        figures = {key: np.concatenate(parts) for key, parts in outputs[name].items()}
        keys = max(from_all([list(figures)]), key=len)  # a process may have seen no image
        found.outputs[name] = {key: _in_order(figures.get(key), every, block) for key in keys}
        found.features[name] = {
            layer: _in_order(torch.cat(parts).numpy() if parts else None, found.rows, block)
            for layer, parts in zip(layers[name], kept[name], strict=True)
        }


def _share(count: int, block: int = 1) -> np.ndarray:
    """The rows of a split that this process sees: every n-th block of them."""
    rows = np.arange(count)
    return rows[_rank_of(rows, block) == PartialState().process_index]


def _rank_of(rows: np.ndarray, block: int) -> np.ndarray:
    return rows // block % PartialState().num_processes


def _in_order(own: np.ndarray | None, rows: np.ndarray, block: int = 1) -> np.ndarray:
    """What all processes have for their share of some rows, in the order of these rows; float32 or as it is."""
    shares = from_all([own])
    like = next((share for share in shares if share is not None and len(share)), np.zeros(0, dtype=np.float32))
    whole = np.zeros((len(rows), *like.shape[1:]), dtype=like.dtype)
    for rank, share in enumerate(shares):
        if share is not None and len(share):
            whole[_rank_of(rows, block) == rank] = share
    return whole


def from_all(items: list) -> list:
    """The items of all processes in the order of their ranks."""
    return gather_object(items) if PartialState().num_processes > 1 else items


@contextmanager
def evaluating(models: Iterable[PreTrainedModel], device: torch.device) -> Iterator[None]:
    """Models on a device and in evaluation mode; their mode is put back afterwards."""
    models = list(models)
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.to(device).eval()  # type: ignore[arg-type]
        yield
    finally:
        for module, training in before:
            module.training = training
