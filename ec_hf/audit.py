"""What models know of each split, layer by layer, in one pass over its images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ec_hf.metrics import LinearCKA
from ec_hf.points import SupervisionPoint, hidden_state_kwargs, pool, take


@dataclass
class Profile:
    """Figures of one model.

    Attributes:
        accuracy: top-1 accuracy (a share) by split.
        cka: debiased linear CKA of its pooled features to those of each reference model: reference, split, point. None
            where it is not defined: fewer than four images, or features that are all alike.
    """

    accuracy: dict[str, float] = field(default_factory=dict)
    cka: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        return asdict(self)


@torch.inference_mode()
def profile(
    models: Mapping[str, PreTrainedModel],
    splits: Mapping[str, Dataset],
    collator: Callable,
    points: Sequence[SupervisionPoint],
    *,
    pooling: str = "all",
    references: Sequence[str] = ("original", "retrained"),
    batch_size: int = 128,
    accelerator: Accelerator | None = None,
) -> dict[str, Profile]:
    """Accuracy of several models of one architecture, and the similarity of their features to reference models.

    All models see a batch together, so that an image is read once; features are consumed as they come. With several
    processes each reads its share, and all return the same figures, those of one process.

    Args:
        models: models by name.
        splits: datasets by name; empty ones are left out of the figures.
        collator: makes ``pixel_values`` and ``labels`` of their rows.
        points: the hidden states to compare.
        pooling: see `ec_hf.points.pool`; by default tokens count all alike, also where the classifier reads one only.
        references: names of models that the others are compared with; those that are absent are left out.
        batch_size: images a batch and process.
        accelerator: of the run; made if left out.
    """
    accelerator = accelerator or Accelerator()
    references = [name for name in references if name in models]
    profiles = {name: Profile(cka={r: {} for r in references if r != name}) for name in models}
    for model in models.values():
        model.to(accelerator.device).eval()
    for split, dataset in splits.items():
        if len(dataset) == 0:  # type: ignore[arg-type]
            continue
        loader = accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=collator))
        hits = dict.fromkeys(models, 0)
        streams = {(name, r): [LinearCKA() for _ in points] for name in models for r in profiles[name].cka}
        for batch in tqdm(loader, desc=f"Comparing on {split}", disable=not accelerator.is_local_main_process):
            features: dict[str, list[torch.Tensor]] = {}
            for name, model in models.items():
                output = model(pixel_values=batch["pixel_values"], **hidden_state_kwargs(model))
                pooled = [pool(take(output.hidden_states, point), point, pooling) for point in points]
                right = output.logits.argmax(-1) == batch["labels"]
                right, *features[name] = accelerator.gather_for_metrics((right, *pooled))
                hits[name] += int(right.sum())
            for (name, reference), each in streams.items():
                for stream, own, other in zip(each, features[name], features[reference], strict=True):
                    stream.update(own, other)
        for name, count in hits.items():
            profiles[name].accuracy[split] = count / len(dataset)  # type: ignore[arg-type]
        for (name, reference), each in streams.items():
            profiles[name].cka[reference][split] = {
                point.name: _value(stream) for point, stream in zip(points, each, strict=True)
            }
    return profiles


def _value(stream: LinearCKA) -> float | None:
    try:
        return stream.compute()
    except ValueError:
        return None
