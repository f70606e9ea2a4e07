"""The audit's one pass: all models see a batch together, and what they show is kept in a form that stays small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ec_hf.auditing.collected import Collected
from ec_hf.auditing.per_image import mean_distances_to, output_figures
from ec_hf.auditing.similarity import UUEF_BATCH, Similarity
from ec_hf.auditing.subjects import Subject
from ec_hf.distributed import from_all, in_order, own_share

__all__ = ["collect", "evaluating", "features_of"]


@torch.inference_mode()
def collect(
    subjects: Mapping[str, Subject],
    dataset: Dataset,
    labels: np.ndarray,
    kept: np.ndarray,
    *,
    references: Sequence[str] = (),
    targets: Sequence[str] = (),
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
        kept: ascending rows whose features are kept.
        references: names of models that the others are compared with by CKA.
        targets: names of models that the outputs of the others are compared with.
        uuef: also compute CKA as UUEF does, under "linear_cka_uuef".
        masked: label ids whose logits are masked for `hit_masked`.
        pooling: see `ec_hf.models.points.pool`.
        batch_size: images a batch and process.
        num_workers: processes that load images, as in `DataLoader`.
        name: name of the split, for the progress bar.
    """
    block = UUEF_BATCH if uuef else 1
    own = own_share(len(labels), block)
    own_kept = torch.from_numpy(np.isin(own, kept))
    similarity = Similarity({model: subject.layers for model, subject in subjects.items()}, references, uuef=uuef)
    figures: dict[str, list[dict[str, np.ndarray]]] = {model: [] for model in subjects}
    features: dict[str, list[list[Tensor]]] = {model: [] for model in subjects}
    batches = _batches(subjects, dataset, own, batch_size, num_workers, title=f"Audit of {name}")
    done = 0
    for pixels, asked in batches:
        chosen = own_kept[done : (done := done + len(asked))]
        layers = {model: subject.run(pixels[model], pooling) for model, subject in subjects.items()}
        for model, batch_figures in _figures(layers, asked.numpy(), masked, targets).items():
            figures[model].append(batch_figures)
            if chosen.any():
                features[model].append([layer[chosen.to(layer.device)].cpu() for layer in layers[model]])
        similarity.update(layers)
    return Collected(
        labels,
        kept,
        outputs={model: _figures_of_all(parts, len(labels), block) for model, parts in figures.items()},
        features={model: _features_of_all(parts, subjects[model], kept, block) for model, parts in features.items()},
        cka=similarity.values(),
    )


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
    rows = np.arange(count)
    return {name: in_order(np.concatenate(own) if own else None, rows) for name, own in parts.items()}


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
    for batch in tqdm(loader, desc=title, disable=silent or None, leave=False):  # None: where stderr is no terminal
        pixels = {name: batch[id(subject.collator)]["pixel_values"] for name, subject in subjects.items()}
        yield pixels, next(iter(batch.values()))["labels"]


def _figures(
    layers: Mapping[str, Sequence[Tensor]], labels: np.ndarray, masked: Sequence[int], targets: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """The figures of each image of a batch by model, with the distances to targets other than itself, if there are."""
    logits = {model: values[-1].cpu().numpy() for model, values in layers.items()}
    figures = {model: output_figures(own, labels, masked) for model, own in logits.items()}
    for model, own in logits.items():
        others = [logits[target] for target in targets if target != model]
        figures[model] |= mean_distances_to(others, own) if others else {}
    return figures


def _figures_of_all(own: list[dict[str, np.ndarray]], count: int, block: int) -> dict[str, np.ndarray]:
    """The figures of the batches of all processes, in the order of the split."""
    keys = max(from_all([list(own[0]) if own else []]), key=len)  # a process may have seen no image
    joined = {key: np.concatenate([batch[key] for batch in own]) if own else None for key in keys}
    return {key: in_order(values, np.arange(count), block) for key, values in joined.items()}


def _features_of_all(own: list[list[Tensor]], subject: Subject, kept: np.ndarray, block: int) -> dict[str, np.ndarray]:
    """The kept features of all processes by layer, in the order of the kept rows."""
    joined = [torch.cat(parts).numpy() for parts in zip(*own, strict=True)] if own else [None] * len(subject.layers)
    return {layer: in_order(values, kept, block) for layer, values in zip(subject.layers, joined, strict=True)}


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
