"""`erase`: from a model, a dataset and a request to a finished folder, in one call."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from ec_hf.auditing.audit import audit
from ec_hf.auditing.earlier import checked_again
from ec_hf.auditing.report import AuditReport
from ec_hf.auditing.settings import AuditSettings
from ec_hf.auditing.subjects import info, retrained_by_name
from ec_hf.command import public
from ec_hf.data.class_lists import RandomClasses
from ec_hf.data.columns import find_label_column, matched_by_order
from ec_hf.data.erasure import ErasureData
from ec_hf.data.holding_out import SHARE
from ec_hf.data.manifests import earlier_manifests
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.sources import load_images, stream_images
from ec_hf.data.streamed_erasure import StreamedErasure, check_test_split, index_of
from ec_hf.files import CARD, MANIFEST, ModelFolder, local_folder
from ec_hf.models.inputs import collator_for, preparation
from ec_hf.models.loading import load_model
from ec_hf.models.own_network import OwnClassifier
from ec_hf.models.wrapping import classifier_for
from ec_hf.publishing.card import card
from ec_hf.publishing.contents import unlearned_name
from ec_hf.publishing.disclosure import DETAILS
from ec_hf.reporting.findings import Finding
from ec_hf.reporting.verdict import findings
from ec_hf.reporting.writing import write_audit
from ec_hf.training.config import ECConfig
from ec_hf.training.heads_cache import HeadsCache, fitted_on
from ec_hf.training.output_folder import check_apart, check_new_folder
from ec_hf.training.piloting import erased
from ec_hf.training.retain_floor import lead_of_original, retain_floor_for
from ec_hf.training.rewinding import with_base
from ec_hf.training.trainer import ECTrainer

__all__ = ["Erased", "Original", "erase", "images_of", "resolved"]

Reference = Callable[["Original", ErasureData], Any]
"""Trains, or finds, the retrained model of a request, when the data is split."""


@dataclass(frozen=True)
class Original:
    """The model that is to unlearn.

    Attributes:
        model: the model, or the module of which `for_images` makes one; it is never changed.
        processor: its image processor; None for images that hold ``pixel_values``.
        history: manifests of the requests that it met before, oldest first.
        by_name: whether it was loaded by its name, under which the report may name it.
    """

    model: Any
    processor: Any = None
    history: Sequence[dict[str, Any]] = ()
    by_name: bool = False

    @classmethod
    def of(cls, model: nn.Module | str | Path, processor: Any = None, revision: str | None = None) -> Original:
        """A model by its name, or one in memory; its history is read where it was loaded from.

        Raises:
            FileNotFoundError: as `load_model`.
            OSError: as `load_model`.
            ValueError: as `load_model`, and for a manifest that cannot be read.
        """
        if isinstance(model, (str, Path)):
            loaded, its_own = load_model(model, revision=revision)
            commit = getattr(loaded.config, "_commit_hash", None)  # a local model has none
            history = earlier_manifests(loaded.config._name_or_path, revision=commit)
            return cls(loaded, processor or its_own, history, by_name=True)
        source = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
        saved = bool(source) and (Path(source).is_dir() or isinstance(model, OwnClassifier))
        return cls(model, processor, earlier_manifests(source) if saved else ())

    def for_images(self, images: Mapping[str, Dataset], **columns: str | None) -> Original:
        """The same with a model that this package works on, whatever module it was; see `ec_hf.as_classifier`.

        Args:
            images: splits, of which the first tells the names of the classes and the size of the images.
            **columns: image_column and label_column, where they cannot be told.

        Raises:
            TypeError: as `ec_hf.as_classifier`.
            ValueError: as `ec_hf.as_classifier`, and where images cannot be prepared.
        """
        model, processor = classifier_for(self.model, self.processor, next(iter(images.values())), **columns)
        return replace(self, model=model, processor=processor)


@dataclass(frozen=True)
class Erased:
    """What `erase` gives.

    Attributes:
        model: the unlearned model.
        processor: its image processor.
        report: what the audit found.
        folder: the finished folder: model, processor, heads, record, manifest, audit, figures, card.
        data: what the request made of the dataset, and which images decided.
        trainer: the `ECTrainer`, with the log of the run.
        url: where it was published, if it was.
    """

    model: PreTrainedModel
    processor: Any
    report: AuditReport
    folder: Path
    data: ErasureData
    trainer: ECTrainer
    url: str | None = None

    @property
    def headline(self) -> Finding:
        """The audit's headline on this model."""
        name = unlearned_name(self.report)
        return next(each for each in findings(self.report) if each.model == name and each.topic == "summary")

    @property
    def status(self) -> str:
        """What the headline comes to, for programs.

        With a retrained model it is one of `ec_hf.auditing.report.STATUSES`; without one it is "known" or "unclear".
        """
        return self.headline.kind

    def to_dict(self) -> dict[str, Any]:
        """Folder, status, headline and accuracies as JSON values."""
        accuracies: dict[str, dict[str, float | None]] = {}
        for each in self.report.find("accuracy"):
            accuracies.setdefault(each.model, {})[str(each.split)] = each.value
        return {
            "folder": str(self.folder),
            "model": unlearned_name(self.report),
            "status": self.status,
            "headline": self.headline.text,
            "accuracies": accuracies,
            "decided_on": self.data.held_out.to_dict(),
            "cost": dict(self.trainer.cost),
            "url": self.url,
        }


def erase(
    model: nn.Module | str | Path | Original,
    dataset: Mapping[str, Dataset] | Dataset | str | Path,
    request: ForgetRequest | RandomClasses,
    *,
    output_dir: str | Path,
    args: ECConfig | None = None,
    processor: Any = None,
    model_revision: str | None = None,
    dataset_config: str | None = None,
    id_column: str | None = None,
    hold_out: float = SHARE,
    retrained: Any | Reference = None,
    with_delete: bool = False,
    heads_cache: str | Path | None = None,
    audit_settings: Mapping[str, Any] | None = None,
    manifest_detail: str = "hashes",
    finish: str = "keep",
    with_heads: bool | str = False,
    streaming: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> Erased:
    """Erase a request from an image classifier, audit what is left, and leave a finished folder.

    When to stop, and whether to go back, is decided on images held out of training; the audit alone sees test
    images. What earlier requests named, as the manifest of an unlearned model tells, is not retained and is checked
    again. Started on several processes, all return the same.

    Args:
        model: Hub id, local folder or timm name, or a model in memory, which is not changed; any module that gives
            logits, see `ec_hf.as_classifier`.
        dataset: Hub id, local folder or "mnist5k", or the splits: ``{"train": ..., "test": ...}``. Without a test
            split, a part of the training images is taken for it.
        request: what to forget; classes to be drawn at random are on record as they were drawn.
        output_dir: the folder; it may hold no file that a finished folder has and, unless the run is resumed, no
            checkpoints.
        args: settings of the erasure.
        processor: image processor, where the model does not bring its own, or a function from a PIL image to a tensor.
        model_revision: branch, tag or commit of the model on the Hub.
        dataset_config: name of a subset, where the dataset has several.
        id_column: column that identifies an image; its duplicates are forgotten together.
        hold_out: share of the training images on which the run decides, 0 to 0.5; see `ec_hf.data.holding_out`.
        retrained: a model that never saw what is forgotten, or several, as for `audit`; or a function that gives them,
            called with the `Original` and the `ErasureData` before anything is erased.
        with_delete: also erase with DELETE at the logits alone, and audit it for contrast.
        heads_cache: folder where fitted EC heads are kept for later requests to the same model and data; for another
            model or other data it is refused.
        audit_settings: fields of `AuditSettings`; the seed is that of `args` if left out.
        manifest_detail: what card and push tell of the request, one of "hashes", "classes" and "rows".
        finish: what becomes of the forgotten classes' logits in the copy that is pushed: keep, mask or drop.
        with_heads: whether to push the EC heads too, as for `ec_hf.push`.
        streaming: stream the retain set of a dataset that is larger than this machine. All rows are read twice before
            the erasure, without decoding their images: once for the request, and once to store forget set, held-out
            images, test set and a sample of the retain set for the audit in the output folder, until the end of the
            run. The dataset is a name, and has a test split.
        callbacks: further callbacks of the trainer.
        **settings: fields of `ECConfig`, over those of `args`.

    Returns:
        Model, report and folder. The folder's model loads where `ec_hf` is not installed; that of a network of one's
        own by its own code.

    Raises:
        FileExistsError: output_dir holds a model, a file that would be replaced, or an interrupted run; or
            heads_cache holds something else than EC heads.
        PushError: publishing failed; the folder is finished.
        TypeError: for unknown settings, and as `split`.
        ValueError: for a request, columns, labels, folders or settings that do not fit, before anything is trained.

    Example:
        >>> done = erase("me/vit", "me/animals", ForgetRequest(classes=["cat"]), output_dir="out")  # doctest: +SKIP
        >>> done.status, done.folder  # doctest: +SKIP
    """
    if args is not None and settings.get("preset", args.preset) != args.preset:
        raise ValueError(f"preset={settings['preset']!r} fills in what `args` leaves out: give it to that ECConfig")
    settings["output_dir"] = str(output_dir)
    config = ECConfig(**settings) if args is None else replace(args, **settings)
    check_new_folder(config)
    check_apart(output_dir, dataset, heads_cache)
    if heads_cache:
        HeadsCache(heads_cache).holds_heads()
    if manifest_detail not in DETAILS:
        raise ValueError(f"manifest_detail={manifest_detail!r}: expected one of {', '.join(DETAILS)}")
    measured_by = AuditSettings(**{"seed": config.seed, **(audit_settings or {})})
    state = PartialState(cpu=config.use_cpu)
    original = model if isinstance(model, Original) else Original.of(model, processor, model_revision)
    how: dict[str, Any] = {"share": hold_out, "seed": config.seed, "label_column": config.label_column}
    how |= {"id_column": id_column, "history": original.history}
    name: str | None
    if streaming:
        refuse_with_streams(dataset, retrained, heads_cache)
        data, name = _streamed(str(dataset), dataset_config, request, Path(output_dir), **how)
    else:
        images, name = images_of(dataset, dataset_config)
        request = resolved(request, images, config.label_column)
        state.print(request.summary())
        data = ErasureData.of(images, request, **how)
    columns = {"image_column": config.image_column, "label_column": config.label_column}
    original = original.for_images({"train": data.train}, **columns)
    state.print(data.summary(), *_taken_for_granted(original, data, config), sep="\n")
    state.wait_for_everyone()  # no process writes before all have looked
    name_of_model = original.model.config._name_or_path if original.by_name else None
    config = with_base(config, original.model, name_of_model, original.history)
    config = replace(config, label_column=data.columns["label_column"], **_fit_for(config, data, original))
    config = replace(config, retain_rows=data.retain_rows or config.retain_rows)

    if callable(retrained) and not isinstance(retrained, nn.Module):
        retrained = retrained(original, data)
    for each in retrained_by_name(retrained).values():
        if isinstance(each, (str, Path)):
            local_folder(each)  # a folder that is not there is told before anything is trained
    trainer = _erase(original, config, data, heads_cache, callbacks)
    unlearned = {_method_name(config, trainer): trainer.model}
    if with_delete:
        unlearned["delete"] = _erase_logits(original, config, data)
    report = _audited(original, unlearned, retrained, data, trainer, measured_by, name)
    if state.is_main_process:
        folder = ModelFolder(output_dir)
        folder.write(MANIFEST, data.manifest(name))
        write_audit(report, folder.path)
        folder.write(CARD, card(folder.path, manifest_detail=manifest_detail))
    state.wait_for_everyone()
    url = None
    if config.push_to_hub:
        choices: dict[str, Any] = {"manifest_detail": manifest_detail, "finish": finish}
        choices["with_heads"] = with_heads if trainer.eraser.points else False  # who follows a pilot has none
        url = trainer.push_to_hub(commit_message="Unlearned model", **choices)
    data.release()
    return Erased(trainer.model, trainer.processing_class, report, Path(output_dir), data, trainer, url and str(url))


def _streamed(
    dataset: str, config: str | None, request: ForgetRequest | RandomClasses, output_dir: Path, **how: Any
) -> tuple[ErasureData, str]:
    """What a request makes of a dataset that is streamed, and the dataset's name."""
    streams, state = stream_images(dataset, config=config), PartialState()
    rows = index_of(streams)
    check_test_split(rows, find_label_column(next(iter(rows.values())), how["label_column"]))
    request = resolved(request, rows, how["label_column"])
    state.print(request.summary())
    index = ErasureData.of(rows, request, **how)
    folder = output_dir / f"streamed-{platform.node()}"
    with state.local_main_process_first():
        first = state.is_local_main_process
        data = StreamedErasure.of_streams(streams, rows, index, folder, write=first, seed=how["seed"])
    return data, dataset


def refuse_with_streams(dataset: Any, retrained: Any, heads_cache: Any) -> None:
    """Refuse what a streamed erasure cannot do.

    Raises:
        TypeError: the dataset is not given by its name.
        ValueError: for a retrained model that is yet to be trained, and for cached heads.
    """
    if not isinstance(dataset, (str, Path)):
        raise TypeError(
            f"streaming: expected the dataset's name or folder, got {type(dataset).__name__}. Of streams that are "
            "loaded, give the retain set to ECTrainer."
        )
    if callable(retrained) and not isinstance(retrained, nn.Module):
        raise ValueError(
            "streaming: a retrained model is trained on images that lie on this machine. Leave it out, or give one "
            "that is there already."
        )
    if heads_cache:
        raise ValueError("streaming: heads_cache knows data by its rows, and a stream has none. Leave it out.")


def images_of(
    dataset: Mapping[str, Dataset] | Dataset | str | Path, config: str | None = None
) -> tuple[Mapping[str, Dataset], str | None]:
    """The splits of a dataset, and its name.

    Args:
        dataset: a name, as for `load_images`, one split, or splits by name.
        config: name of a subset, where a dataset on the Hub has several.

    Raises:
        FileNotFoundError: as `load_images`.
        TypeError: for anything else.
        ValueError: as `load_images`.
    """
    if isinstance(dataset, (str, Path)):
        return load_images(dataset, config=config), str(dataset)
    if isinstance(dataset, Dataset):
        return DatasetDict(train=dataset), None
    if not isinstance(dataset, Mapping) or not all(isinstance(part, Dataset) for part in dataset.values()):
        raise TypeError(
            f"dataset: expected a name, a datasets.Dataset or {{'train': ..., 'test': ...}} of these, got "
            f"{type(dataset).__name__}; streamed data is not supported"
        )
    return dataset, None


def resolved(
    request: ForgetRequest | RandomClasses, images: Mapping[str, Dataset], label_column: str | None = None
) -> ForgetRequest:
    """The request itself, or what is drawn of a dataset's classes.

    Args:
        request: what to forget.
        images: datasets by split name.
        label_column: as for `split`.

    Raises:
        ValueError: as `RandomClasses.among`.
    """
    if isinstance(request, ForgetRequest):
        return request
    return request.among(images["train"] if "train" in images else next(iter(images.values())), label_column)


def _taken_for_granted(original: Original, data: ErasureData, config: ECConfig) -> list[str]:
    """Sentences on what only the user can check: which class is which, and how images are prepared."""
    model, column = original.model, data.columns["label_column"]
    collator = collator_for(
        model, original.processor, {"train": data.train}, image_column=config.image_column, label_column=column
    )
    lines = [f"{preparation(collator, data.train[0])} See that your model was trained so."]
    if pairs := matched_by_order(data.train, column, model.config.id2label or {}):
        few = ", ".join([*(f"{old} is {new!r}" for old, new in list(pairs.items())[:10]), *["..."][: len(pairs) > 10]])
        lines.append(
            f"Model and data share no class name, so they are matched by their order: {few}. If your model was "
            "trained with another order, name its labels in config.json (id2label, label2id)."
        )
    return lines


def _fit_for(config: ECConfig, data: ErasureData, original: Original) -> dict[str, Any]:
    """The retain floor of this run, where there is one; said in the output."""
    floor = retain_floor_for(config, data)
    if floor == config.retain_floor:
        return {}
    lead = lead_of_original(config, data, original.model, original.processor)
    which = f" that the original was trained on and names {lead:.1%} better than test images" if lead else ""
    floor = min(1.0, floor + lead)
    count = len(data.held_out.evaluated["retain"])
    why = f"on {count:,} images{which}, where some of a fall is chance, "
    PartialState().print(f"Retain accuracy may fall by {config.retain_floor:.1%}; {why}that is {floor:.1%}.")
    return {"retain_floor": floor}


def _erase(
    original: Original,
    config: ECConfig,
    data: ErasureData,
    heads_cache: str | Path | None,
    callbacks: Sequence[TrainerCallback],
) -> ECTrainer:
    """Erase from a copy of the original, and save it; fitted heads are kept for every later request."""

    def first(config: ECConfig) -> ECTrainer:
        cache = HeadsCache(heads_cache) if heads_cache and not config.heads else None
        wanted = fitted_on(original.model, data.train, config) if cache else {}
        trainer = _trainer_for(original, config, data, heads=cache and cache.of(wanted), callbacks=callbacks)
        if cache and not trainer.eraser.heads_fitted:
            trainer.fit_heads()
            if trainer.is_world_process_zero():
                cache.keep(trainer.heads, wanted)
            trainer.accelerator.wait_for_everyone()  # of two runs the second takes them from there
        return trainer

    def again(config: ECConfig) -> ECTrainer:
        return _trainer_for(original, config, data, callbacks=callbacks)

    trainer = erased(config, first, again)
    trainer.save_model(_internal_call=True)  # it is pushed once it is audited
    return trainer


def _trainer_for(original: Original, config: ECConfig, data: ErasureData, **kwargs: Any) -> ECTrainer:
    trainer = ECTrainer(
        model=copy.deepcopy(original.model),
        args=config,
        forget_dataset=data.held_out.train["forget"],
        retain_dataset=data.held_out.train["retain"],
        eval_dataset=data.held_out.evaluated,
        processing_class=original.processor,
        **kwargs,
    )
    trainer.on_record["evaluated"] = data.held_out.to_dict()
    return trainer


def _erase_logits(original: Original, config: ECConfig, data: ErasureData) -> PreTrainedModel:
    """DELETE with retain cross-entropy and no supervision points: what changing the last layer's output gives."""
    args = replace(
        config,
        preset="default",
        objective="delete",
        objective_kwargs={"retain_weight": 1.0},
        points=[],
        heads=None,
        output_dir=str(Path(str(config.output_dir)) / "delete"),
        save_strategy="no",
        retain_floor=1.0,  # it is shown as it comes out
        pilot=False,
        push_to_hub=False,
    )
    trainer = _trainer_for(original, args, data)
    trainer.train()
    return trainer.model


def _method_name(config: ECConfig, trainer: ECTrainer) -> str:
    """What the unlearned model is called in the report."""
    if not trainer.eraser.points:
        return trainer.args.objective
    return "EC" if config.objective == "contrastive" else f"{config.objective} + EC"


def _audited(
    original: Original,
    unlearned: Mapping[str, PreTrainedModel],
    retrained: Any,
    data: ErasureData,
    trainer: ECTrainer,
    settings: AuditSettings,
    name: str | None,
) -> AuditReport:
    """Audit all models, and ask the unlearned ones again about earlier requests."""
    report = audit(
        original.model,
        unlearned,
        retrained=retrained,
        splits=data.splits,
        request=data.request,
        processor=trainer.processing_class,
        dataset_name=public(name),
        image_column=trainer.args.image_column,
        label_column=data.columns["label_column"],
        **asdict(settings),
    )
    report.measurements += checked_again(
        data.earlier_sets(),
        {"original": original.model, **unlearned},
        trainer.data_collator,
        label_column=data.columns["label_column"],
    )
    report.notes += [*data.notes, *data.held_out.sentences()]
    if original.by_name:
        report.models["original"] = info(original.model, "original", by_name=True)
    return report
