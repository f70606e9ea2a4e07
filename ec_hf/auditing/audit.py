"""`audit`: what models still know of a forget set, layer by layer, in one pass over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from torch import nn

from ec_hf.auditing.downstream import bank_and_queries
from ec_hf.auditing.forward import evaluating
from ec_hf.auditing.question import checked_splits, question_of
from ec_hf.auditing.report import AuditReport
from ec_hf.auditing.run import Clock, answer
from ec_hf.auditing.sense import check_models, splits_without_sense
from ec_hf.auditing.settings import AuditSettings
from ec_hf.auditing.shadows import seen_by_shadows, shadows_by_side
from ec_hf.auditing.subjects import load_models, model_class_names, subjects_of
from ec_hf.data.requests import ForgetRequest
from ec_hf.models.inputs import label_ids_of

__all__ = ["audit"]


def audit(
    original: nn.Module | str | Path,
    unlearned: nn.Module | str | Path | Mapping[str, nn.Module | str | Path],
    *,
    retrained: nn.Module | str | Path | Sequence[Any] | Mapping[str, Any] | None = None,
    shadows: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
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
        original: the model before unlearning: a model, or a Hub id, local folder or timm name. Any module that gives
            logits is a model, here and below; see `ec_hf.as_classifier`.
        unlearned: the model after it, or several by name: ``{"ec": ..., "delete": ...}``.
        retrained: a model trained without the forget set, the best reference there is, or several of other seeds, in
            a list or by name: how far these differ is the unit that the unlearned models are measured in. Without any
            a model of random weights joins as a floor.
        shadows: other trainings, for attacks on membership by shadow models (LiRA): a list of models, or of their
            names, that were trained without the forget set; with "in=" before a name, of one that was trained with
            it; or ``{"out": [...], "in": [...]}``. The retrained models are shadow models too. For U-LiRA, the models
            of "in" were trained with the forget set and then unlearned it as the audited model did.
        train: the data that the original was trained on.
        test: held-out data of the same form.
        request: what was to be forgotten of them.
        splits: in place of train and test, the four parts themselves: forget_train, retain_train, forget_test,
            retain_test; any may be missing or empty but not all forgotten ones.
        downstream: other labelled images, for k-NN on frozen features: a dataset, which is divided at random 80 to 20
            with seed 2 as UUEF does, or ``{"train": ..., "test": ...}``.
        processor: image processor of all models, or of some by name, or a function from a PIL image to a tensor; comes
            along with a model that is given by name.
        dataset_name: for the report.
        image_column: as for `ec_hf.models.inputs.collator_for`.
        label_column: as for `ec_hf.models.inputs.collator_for`.
        id_column: as for `ec_hf.split`.
        **settings: fields of `AuditSettings`.

    Returns:
        The report: every number with direction, chance level, image count and, where a sample matters, a 95 %
        interval. What could not be measured stands in its notes.

    Raises:
        TypeError: for unknown settings, and for inputs of the wrong type.
        ValueError: for inputs that do not fit each other: label sets, image sizes, requests, splits, a retrained model
            with the weights of the original. All of it before the pass begins.

    Example:
        >>> report = audit("me/vit", "me/vit-forgot-cats", train=train, test=test, request=request)  # doctest: +SKIP
        >>> report.save("audit.json")  # doctest: +SKIP
    """
    chosen = AuditSettings(**settings)
    clock = Clock()
    sides = shadows_by_side(shadows)
    given = checked_splits(train, test, request, splits, label_column=label_column, id_column=id_column)
    halves = None if downstream is None else bank_and_queries(downstream)
    with clock("loading"):
        shown = next(part for part in given.values() if len(part))
        columns = {"image_column": image_column, "label_column": label_column}
        loaded = load_models(
            original, unlearned, retrained, processor=processor, seed=chosen.seed, images=shown, **columns
        )
    with evaluating((each.model for each in loaded.values()), PartialState().device):
        notes = [
            *check_models({name: (each.model, each.info) for name, each in loaded.items()}),
            *splits_without_sense(given, image_column, chosen.max_images),
        ]
        subjects, limits = subjects_of(loaded, given, pooling=chosen.pooling, layers=chosen.layers, **columns)
        collator = subjects["original"].collator
        question = question_of(
            {name: each.info for name, each in loaded.items()},
            given,
            {name: label_ids_of(part, collator, label_column) for name, part in given.items()},
            model_class_names(loaded["original"].model, shown, label_column),
            chosen,
            request=request,
            downstream=halves,
            dataset_name=dataset_name,
        )
        with clock("shadows"):
            seen = seen_by_shadows(sides, question, loaded, PartialState().device, **columns)
        if any(sides.values()) and seen is None:
            notes.append("shadows: there is no held-out image of a forgotten class, so no shadow model was used.")
        return answer(question, subjects, [*limits, *notes], clock, seen)
