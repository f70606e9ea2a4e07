"""The audit's one pass: all models see a batch together, and what they show is kept in a form that stays small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ec_hf.auditing.outputs import distances, outputs_of
from ec_hf.auditing.similarity import UUEF_BATCH, Similarity
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import from_all, in_order, own_share

__all__ = ["Collected", "collect", "evaluating", "features_of"]


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
        pooling: see `ec_hf.models.points.pool`.
        batch_size: images a batch and process.
        num_workers: processes that load images, as in `DataLoader`.
        name: of the split, for the progress bar.
    """
    found, block = Collected(labels, rows), UUEF_BATCH if uuef else 1
    layers = {each: subject.layers for each, subject in subjects.items()}
    similarity = Similarity(layers, references, uuef=uuef)
    outputs: dict[str, dict[str, list[np.ndarray]]] = {each: {} for each in subjects}
    kept: dict[str, list[list[Tensor]]] = {each: [[] for _ in layers[each]] for each in subjects}
    own = own_share(len(labels), block)
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


@torch.inference_mode()
def features_of(
    subjects: Mapping[str, Subject], dataset: Dataset, *, pooling: str = "all", batch_size: int = 64, title: str = ""
) -> dict[str, np.ndarray]:
    """The first of each model's layers `(n, width)` on all images of a dataset: the logits, where it has no points."""
    count = len(dataset)  # type: ignore[arg-type]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in subjects}
    for pixels, _ in _batches(subjects, dataset, own_share(count), batch_size, title=title):
        for name, subject in subjects.items():
            parts[name].append(subject.run(pixels[name], pooling)[0].cpu().numpy())
    return {name: in_order(np.concatenate(each) if each else None, np.arange(count)) for name, each in parts.items()}


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
        found.outputs[name] = {key: in_order(figures.get(key), every, block) for key in keys}
        found.features[name] = {
            layer: in_order(torch.cat(parts).numpy() if parts else None, found.rows, block)
            for layer, parts in zip(layers[name], kept[name], strict=True)
        }


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
