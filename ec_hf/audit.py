"""`audit`: what models still know of a forget set, layer by layer, in one pass over the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what computes is imported when an audit starts, so that a command line answers at once
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ec_hf.report import AuditReport
    from ec_hf.requests import ForgetRequest

__all__ = ["AuditSettings", "audit"]


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class AuditSettings:
    """How an audit measures; every field is a keyword of `audit` and a flag of `ec-hf audit`."""

    seed: int = _setting(0, "Seed of samples, bootstrap, probes, random weights and t-SNE.")
    batch_size: int = _setting(64, "Images a batch and process.")
    num_workers: int = _setting(0, "Processes that load images.")
    pooling: str = _setting("all", "What of a layer's tokens is compared: the mean of all, of the patches, or cls.")
    max_images: int | None = _setting(None, "Look at a random, class-stratified part of each split, at most so many.")
    train_sample: int = _setting(2000, "About how many training images keep their features, for probes and k-NN.")
    test_sample: int = _setting(1000, "About how many test images keep their features.")
    embedding: bool = _setting(True, "Compute the t-SNE picture.")
    int8: bool = _setting(True, "Measure the unlearned models with 8-bit weights too.")
    cka_mode: str = _setting("debiased", "uuef: also give CKA as UUEF computes it, to compare with its tables.")
    relearning: bool = _setting(False, "Also measure how fast the forget set is learnt again.")
    svc: bool = _setting(False, "Also attack membership with a support vector classifier.")
    idi: bool = _setting(False, "Also estimate the information difference index; needs a retrained model.")
    downstream_features: str = _setting("penultimate", "Features of the k-NN on the downstream set.")

    def __post_init__(self) -> None:
        for name in ("batch_size", "train_sample", "test_sample", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        choices = {
            "pooling": ("all", "mean", "cls"),
            "cka_mode": ("debiased", "uuef"),
            "downstream_features": ("penultimate", "logits"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {list(allowed)}")


def audit(
    original: PreTrainedModel | str | Path,
    unlearned: PreTrainedModel | str | Path | Mapping[str, PreTrainedModel | str | Path],
    *,
    retrained: PreTrainedModel | str | Path | None = None,
    train: Dataset | None = None,
    test: Dataset | None = None,
    request: ForgetRequest | None = None,
    splits: Mapping[str, Dataset] | None = None,
    downstream: Dataset | Mapping[str, Dataset] | None = None,
    processor: Any = None,
    dataset_name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    id_column: str | None = None,
    **settings: Any,
) -> AuditReport:
    """Measures what is left of a forget set in any unlearned image classifier, in its output and layer by layer.

    All models see an image together and once; accuracy, CKA, probes, k-NN, membership inference and the rest are fed
    from that one pass. Started on several processes, they share the images and all return the same report.

    Args:
        original: the model before unlearning: a model, or a Hub id, local folder or timm name.
        unlearned: the model after it, or several by name: ``{"ec": ..., "delete": ...}``.
        retrained: a model trained without the forget set, the best reference there is. Without it a model of random
            weights joins as a floor.
        train: the data that the original was trained on.
        test: held-out data of the same form.
        request: what was to be forgotten of them.
        splits: in place of train and test, the four parts themselves: forget_train, retain_train, forget_test,
            retain_test; any may be missing or empty but not all forgotten ones.
        downstream: other labelled images, for k-NN on frozen features: a dataset, which is divided at random 80 to 20
            with seed 2 as UUEF does, or ``{"train": ..., "test": ...}``.
        processor: image processor of all models, or of some by name; comes along with a model that is given by name.
        dataset_name: for the report.
        image_column: as for `ec_hf.batches.collator_for`.
        label_column: as for `ec_hf.batches.collator_for`.
        id_column: as for `ec_hf.split`.
        **settings: fields of `AuditSettings`.

    Returns:
        The report: every number with direction, chance level, image count and, where a sample matters, a 95 %
        interval. What could not be measured stands in its notes.

    Raises:
        TypeError: for unknown settings, and for inputs of the wrong type.
        ValueError: for inputs that do not fit each other: label sets, image sizes, requests, splits. All of it before
            the pass begins.

    Example:
        >>> report = audit("me/vit", "me/vit-forgot-cats", train=train, test=test, request=request)  # doctest: +SKIP
        >>> report.save("audit.json")  # doctest: +SKIP
    """
    chosen = AuditSettings(**settings)
    from ec_hf.auditing import parts_of, report_of

    parts = parts_of(train, test, request, splits, label_column, id_column)
    return report_of(
        chosen,
        original,
        unlearned,
        retrained,
        parts,
        request,
        downstream,
        processor=processor,
        dataset_name=dataset_name,
        image_column=image_column,
        label_column=label_column,
    )


# --- temporary: until the recipe uses audit

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
