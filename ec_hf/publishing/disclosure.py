"""How much of what was forgotten the published files tell: hashes and counts, class names too, or everything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from itertools import count
from typing import Any

from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from ec_hf.auditing.attacks.registry import ATTACKS
from ec_hf.auditing.report import SPLITS, AuditReport, ModelInfo, RetainedClass
from ec_hf.auditing.settings import AuditSettings
from ec_hf.data.manifests import whole_class_count
from ec_hf.metrics.table import METRICS
from ec_hf.objectives.registry import BUILT_IN
from ec_hf.publishing.withheld import FLAG, Named, named_by, words_of

__all__ = ["DETAILS", "FIGURES_WITH_CLASSES", "disclosed_manifest", "disclosed_record", "disclosed_report"]

DETAILS = ("hashes", "classes", "rows")
"""From least to most: hashes and counts; the names of the classes too; the request in words, with its rows, too."""
FIGURES_WITH_CLASSES = ("confusion", "embedding")
"""Figures (`ec_hf.reporting.figures`) that name the forgotten classes: not for a reader who may see hashes only."""
EVERYWHERE = ("schema_version", "date", "forget_rows_sha256")
OF_DATASET = ("name", "fingerprint", "rows")
OF_REQUEST = ("hash", "classes", "class_count")
WITHHELD = "Some notes are withheld, as they name what was forgotten."
WITHHELD_WORD = "withheld"
MODES = ("head", "full")
"""Notes that tell two measurements of the same metric apart, and are words of this package."""
MADE = ("unlearned", "retrained")
"""Roles of models that were made for a request; those of the others were named before it."""
LISTS = ("measurements", "signals", "attacks", "retrievals")
BY_MODEL = ("status", "retained", "confusion")
OWN = ("points", "layer_weights", "steering")
"""Parts of a record that name modules and no more; the names of tensors are searched where they are published."""
OLDER = ("base_model", "base_model_revision", "base_model_license")
"""Parts of a record that are older than the request."""
KEYS = frozenset((*OWN, *OLDER, "command", "cost", "data", "date", "evaluated", "finish", "method", "original"))
KEYS |= {"pilot", "processes", "settings", "uses", "versions"}
COUNTS = ("cost", "data", "evaluated", "processes")
"""Parts of a record with numbers of images, steps and processes."""
EC_METHOD = re.compile(r"Erase at the Core \(arXiv 2602\.05375\)(?:, host objective )?")
USES = ("forget", "retain", "forget and retain", "forget +retain", "retain +forget")
MEASURED = frozenset((*METRICS, *ATTACKS, *SPLITS, "downstream"))
EARLIER = re.compile(r"request \d+")
HASH_OR_DATE = re.compile(r"[0-9a-f]{16,}|\d{4}-\d\d-\d\d")
"""What is a hash or a date by its form tells no name: "face" stands in some by chance."""
FLAGS = frozenset(
    """
    base_model config_file dataset_config dataset_name dataset_split eval_steps eval_strategy fail_unless_forgotten
    finish hold_out json logging_steps logging_strategy manifest_detail mixed_precision model_name_or_path
    model_revision multi_gpu num_machines num_processes output_dir per_device_eval_batch_size push_to_hub report_to
    resume_from_checkpoint retrain_from retrain_seeds save_steps save_strategy save_total_limit seed use_cpu
    with_delete with_retrained
    """.split()  # noqa: SIM905 - a list would be forty lines
)
"""Flags whose values a request does not decide, beside those that stand among the settings of a record."""
SETTINGS = frozenset(
    """
    adapters batch_norm bf16 cache_teacher calibrated check_images contrast data_seed detach_retain ec_weight
    forget_epochs forget_target fp16 gradient_accumulation_steps heads heads_epochs heads_learning_rate image_column
    label_column layer_weights learning_rate lr_scheduler_type max_grad_norm max_steps min_steps num_train_epochs
    objective objective_kwargs optim optim_args per_device_forget_batch_size per_device_train_batch_size pilot points
    pooling preset probe_weight repulsion retain_floor retain_rows retain_weight saliency seed strength temperature
    train_heads warmup_steps weight_decay
    """.split()  # noqa: SIM905 - a list would be forty lines
)
"""Settings of a run that go on record."""
WORDS = SETTINGS | {each.name for each in fields(AuditSettings)} | {*SPLITS, "processes", "sample", "held_out"}
WORDS |= {"fingerprint", "forget", "retain", "share", "seed", "steps", "forget_images_seen", "retain_images_seen"}
WORDS |= {"minutes", "peak_memory_mb", "ec_hf", "torch", "transformers", "accelerate", "images"}
"""Keys of the documents that are the package's own."""
CHOICES = frozenset(each.value for each in (*OptimizerNames, *SchedulerType))


def disclosed_manifest(
    manifest: Mapping[str, Any], detail: str = "hashes", named: Named | None = None
) -> dict[str, Any]:
    """What of a forget manifest, and of the earlier ones in its `history`, may be published.

    Only what is known to be harmless passes below "rows"; a key that this function does not know is left out, and so
    is a name of the dataset that tells what the request named. What an earlier call left out stays out, and the
    result says in `detail` what it holds.

    Args:
        manifest: the manifest.
        detail: one of `DETAILS`.
        named: what the request named; None for what the manifest itself tells.

    Raises:
        ValueError: for an unknown detail.
    """
    detail = lower(detail, manifest.get("detail", "rows"))
    hidden = (named or Named()) | named_by(manifest, detail=detail)
    history = {}
    if "history" in manifest:
        history["history"] = [disclosed_manifest(entry, detail, hidden) for entry in manifest["history"]]
    if detail == "rows":
        return {**manifest, **history, "detail": detail}
    kept = {key: _formal(manifest[key], hidden) for key in EVERYWHERE if key in manifest}
    of_dataset = {key: manifest["dataset"][key] for key in OF_DATASET if key in manifest["dataset"]}
    kept["dataset"] = _without_names(of_dataset, hidden) | {"fingerprint": _formal(of_dataset["fingerprint"], hidden)}
    kept["request"] = {"hash": _formal(manifest["request"]["hash"], hidden)}
    kept["parts"] = {name: _part(manifest["parts"][name], detail) for name in ("forget", "retain")}
    if (whole := whole_class_count(manifest)) is not None:
        kept["parts"]["forget"]["whole_classes"] = whole
    return {**kept, **history, "detail": detail}


def disclosed_report(report: AuditReport, detail: str = "hashes", named: Named | None = None) -> AuditReport:
    """What of an audit report may be published; no number is changed.

    Below "rows" it loses the rows of retrieved images, the request in words, and notes that name what the request
    named; unlearned and retrained models whose names tell it get other names. At "hashes" it loses all that names
    classes or draws them, too: class names, label ids of the forgotten classes (their number stays), confusion,
    embedding. Kept classes lose their names alone.

    Args:
        report: the report.
        detail: one of `DETAILS`.
        named: what the request named, as far as other files of the folder know it.

    Raises:
        ValueError: for an unknown detail.
    """
    if _rank(detail) == _rank("rows"):
        return report
    hidden = (named or Named()) | named_by({}, report, detail=detail)
    measured = {row.layer for row in report.measurements}
    report = replace(report, layers=[each for each in report.layers if each in measured or not hidden.hides(each)])
    report = _without_sentences(_without_model_names(report, hidden), hidden)
    report = replace(
        _without_foreign_rows(report, hidden),
        settings=_without_names(report.settings, hidden),
        versions=_versions(report.versions, hidden),
        dataset=_disclosed_dataset(report.dataset, hidden),
        seconds={part: time for part, time in report.seconds.items() if not hidden.hides_value(part)},
        models={name: _disclosed_model(info, hidden) for name, info in report.models.items()},
        embedding={key: report.embedding[key] for key in ("labels", "points") if key in report.embedding},
    )
    request: dict[str, Any] = {key: report.request[key] for key in OF_REQUEST if key in report.request}
    request |= {"hash": _formal(report.request["hash"], hidden)} if "hash" in report.request else {}
    if detail == "classes":
        return replace(report, request=request, retrievals=[])
    classes = request.pop("classes", [])
    request.setdefault("class_count", len(classes))
    dataset = {key: value for key, value in report.dataset.items() if key != "class_names"}
    return replace(
        report,
        request=request,
        dataset=dataset,
        retained=_unnamed(report.retained),
        retrievals=[],
        confusion={},
        embedding={},
    )


def _disclosed_model(info: ModelInfo, hidden: Named) -> ModelInfo:
    """A model's entry; the class of a user's own architecture is left out where its name tells what is hidden.

    A model that is older than the request keeps the name that it had.
    """
    public = re.fullmatch(r"[A-Za-z0-9]+ForImageClassification", info.architecture)
    if not public and hidden.hides_value(info.architecture):
        info = replace(info, architecture=WITHHELD_WORD)
    known = hidden if info.role in MADE else hidden.before
    if info.id and known.hides_value(info.id):
        info = replace(info, id=None, revision=None)
    return replace(info, revision=_formal(info.revision, hidden), weights=_formal(info.weights, hidden))


def _disclosed_dataset(dataset: Mapping[str, Any], hidden: Named) -> dict[str, Any]:
    """Name, numbers of images and class names of the data; nothing else is written there."""
    images = {name: n for name, n in dataset.get("images", {}).items() if not _is_foreign(name, hidden)}
    shown = _without_names({"name": dataset.get("name")}, hidden) | {"images": images}
    return {key: shown.get(key, value) for key, value in dataset.items() if key in ("name", "images", "class_names")}


def _without_foreign_rows(report: AuditReport, hidden: Named) -> AuditReport:
    """The report without rows of metrics, splits, attacks or models that no audit writes and that tell a name."""
    rows = {name: [row for row in getattr(report, name) if not _names(row, report, hidden)] for name in LISTS}
    curves = [replace(curve, settings=_without_names(curve.settings, hidden)) for curve in rows["attacks"]]
    signals = [
        replace(row, note=None) if row.note and _is_foreign(row.note, hidden) else row for row in rows["signals"]
    ]
    changed: dict[str, Any] = rows | {"attacks": curves, "signals": signals}
    return replace(report, **changed)


def _names(row: Any, report: AuditReport, hidden: Named) -> bool:
    texts = [getattr(row, key, None) for key in ("metric", "split", "attack", "unit")]
    strangers = [name for name in (row.model, getattr(row, "reference", None)) if name and name not in report.models]
    return any(text and _is_foreign(text, hidden) for text in [*texts, *strangers])


def _is_foreign(text: str, hidden: Named) -> bool:
    """Whether a text is no word of an audit, and tells a name."""
    return text not in MEASURED and not EARLIER.fullmatch(text) and hidden.hides_value(text)


def _formal(text: Any, hidden: Named) -> Any:
    """A hash, date or number of a version; "withheld" in place of a text that is none and tells a name."""
    formal = not isinstance(text, str) or HASH_OR_DATE.fullmatch(text)
    return text if formal or not hidden.hides_value(text) else WITHHELD_WORD


def _versions(versions: Mapping[str, str], hidden: Named) -> dict[str, str]:
    told = {name for name, text in versions.items() if hidden.hides_value(text)}
    told |= {name for name in versions if name not in WORDS and hidden.hides_value(name)}
    return {name: text for name, text in versions.items() if name not in told}


def _without_sentences(report: AuditReport, hidden: Named) -> AuditReport:
    """The report without sentences that tell what is hidden; one sentence says so."""
    notes = [note for note in report.notes if note == WITHHELD or not hidden.hides_sentence(note)]
    if len(notes) < len(report.notes) and WITHHELD not in notes:
        notes.append(WITHHELD)
    references = [line for line in report.references if not hidden.hides_sentence(line)]
    measurements = [
        replace(row, note=None) if row.note not in (None, *MODES) and hidden.hides_value(row.note) else row
        for row in report.measurements
    ]
    return replace(report, notes=notes, references=references, measurements=measurements)


def _without_model_names(report: AuditReport, hidden: Named) -> AuditReport:
    """The report with other names for models that were made for the request and whose names tell it."""
    names: dict[str, str] = {}
    models = {}
    for name, info in report.models.items():
        if info.role in MADE:
            taken = {*report.models, *names.values()}
            if hidden.hides(name):
                names[name] = next(each for each in _numbered(info.role) if each not in taken)
        models[names.get(name, name)] = info
    if not names:
        return replace(report, models=models)
    whole = replace(report, models=models)
    for each in fields(AuditReport):
        if each.name in LISTS:
            rows = [_renamed(row, names) for row in getattr(report, each.name)]
            setattr(whole, each.name, rows)
        elif each.name in BY_MODEL:
            by_model = {names.get(name, name): value for name, value in getattr(report, each.name).items()}
            setattr(whole, each.name, by_model)
    points = {names.get(name, name): xy for name, xy in report.embedding.get("points", {}).items()}
    whole.embedding = {**report.embedding, "points": points} if points else report.embedding
    return whole


def _numbered(role: str) -> Iterator[str]:
    return (role if number == 1 else f"{role} {number}" for number in count(1))


def _renamed(row: Any, names: Mapping[str, str]) -> Any:
    changed = {"model": names.get(row.model, row.model)}
    if getattr(row, "reference", None) in names:
        changed["reference"] = names[row.reference]
    return replace(row, **changed)


def _unnamed(retained: Mapping[str, Mapping[str, RetainedClass]]) -> dict[str, dict[str, RetainedClass]]:
    """The kept classes without their names, in an order that their names do not decide.

    Which names are missing would tell the forgotten ones.
    """
    first = next(iter(retained.values()), {})
    order = sorted(first, key=lambda name: (first[name].right, first[name].images, sha256(name.encode()).digest()))
    numbers = {name: f"kept class {number}" for number, name in enumerate(order, start=1)}
    return {
        model: {number: classes[name] for name, number in numbers.items() if name in classes}
        for model, classes in retained.items()
    }


def disclosed_record(record: Mapping[str, Any], detail: str = "hashes", named: Named | None = None) -> dict[str, Any]:
    """What of a run record (`ec_config.json`) may be published.

    Below "rows" the command shows the values of known flags alone, at "classes" also the classes. A text
    that tells what the request named is left out, in the command and anywhere else.

    Args:
        record: the record.
        detail: one of `DETAILS`.
        named: what the request named; None for what the record's own command tells.

    Raises:
        ValueError: for an unknown detail.
    """
    if _rank(detail) == _rank("rows"):
        return dict(record)
    hidden = (named or Named()) | named_by({}, record=record, detail=detail)
    words = words_of(record.get("command"))
    command = {"command": _shown_command(words, record, hidden, detail) if words else None}
    shown = {
        key: value if key in OWN else _without_names(value, hidden.before if key in OLDER else hidden)
        for key, value in record.items()
        if key in KEYS or not hidden.hides_value(key)
    }
    return {key: (shown | _own_words(record, hidden) | command)[key] for key in shown}


def _own_words(record: Mapping[str, Any], hidden: Named) -> dict[str, Any]:
    """What of a record is in the package's own words and numbers, which may be a request's too: "core", "delete"."""
    words: dict[str, Any] = {}
    host = EC_METHOD.sub("", str(record.get("method")), count=1)
    if host.partition(" (")[0] in ("", *BUILT_IN):
        words["method"] = record.get("method")
    if record.get("uses") in USES:
        words["uses"] = record["uses"]
    texts = Named(hidden.names)  # a count may be the number of a row by chance
    words |= {key: _without_names(record[key], texts) for key in COUNTS if key in record}
    if pilot := record.get("pilot"):
        counts = _without_names(pilot.get("cost", {}), texts)
        words["pilot"] = {"settings": _own_settings(pilot.get("settings", {}), hidden), "cost": counts}
    settings = record.get("settings", {})
    return words | ({"settings": _own_settings(settings, hidden)} if settings else {})


def _own_settings(settings: Mapping[str, Any], hidden: Named) -> dict[str, Any]:
    """Settings whose numbers stay, so that a gap tells nothing."""
    shown = _without_names(settings, hidden)
    numbers = {key: value for key, value in settings.items() if isinstance(value, (int, float)) and key in shown}
    known = {"objective": settings["objective"]} if settings.get("objective") in BUILT_IN else {}
    return shown | numbers | known


def _without_names(value: Any, hidden: Named) -> Any:
    """A JSON value in which None stands for every text or number that tells what is hidden; such keys are left out.

    A key or choice of the package's own stays: a missing one would tell of a class "seed" or "torch".
    """
    if isinstance(value, Mapping):
        return {
            key: _without_names(entry, hidden)
            for key, entry in value.items()
            if key in WORDS or not hidden.hides_value(str(key))
        }
    if isinstance(value, (list, tuple)):
        return [_without_names(entry, hidden) for entry in value]
    told = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value not in CHOICES
    return None if told and hidden.hides_value(value) else value


def _shown_command(words: Sequence[str], record: Mapping[str, Any], hidden: Named, detail: str) -> str:
    """The command in which capitals stand for what is withheld: the name of the flag, or ARGUMENT without one."""
    known = {*FLAGS, *record.get("settings", {}), *(["forget_classes"] if detail == "classes" else [])}
    start = _program(words)
    shown = [word if not hidden.hides(word) else "PROGRAM" for word in words[:start]]
    flag, masked = "", False
    for word in words[start:]:
        name, equals, value = word.partition("=") if FLAG.match(word) else ("", "", word)
        if name:
            flag, masked = name.lstrip("-").replace("-", "_"), False
            shown.append(name)
        if name and not equals:
            continue
        secret = hidden.hides(value) or (flag not in known if flag else not _is_yaml(value))
        if secret and masked:
            continue
        text = ("CLASSES" if flag == "forget_classes" else flag.upper() or "ARGUMENT") if secret else value
        masked = masked or secret
        # A withheld value is written as a word of its own: how it was joined to its flag tells nothing.
        if equals and not secret:
            shown[-1] = f"{name}={text}"
        else:
            shown.append(text)
    return shlex.join(shown)


def _program(words: Sequence[str]) -> int:
    """The number of words up to the program's name: launcher and script, module, or command and subcommand."""
    for place, word in enumerate(words):
        if word.endswith(".py") and not (place and FLAG.match(word)):
            return place + 1
        if word == "-m":
            return place + 2
    return 2 if words[:1] == ["ec-hf"] else 1


def _is_yaml(word: str) -> bool:
    return word.endswith((".yaml", ".yml"))


def lower(first: str, second: str) -> str:
    """The detail of the two that tells less."""
    return min(first, second, key=_rank)


def _rank(detail: str) -> int:
    if detail not in DETAILS:
        raise ValueError(f"manifest_detail={detail!r}: expected one of {', '.join(DETAILS)}")
    return DETAILS.index(detail)


def _part(part: Mapping[str, Any], detail: str) -> dict[str, Any]:
    per_class = part.get("per_class")
    names = {"per_class": per_class} if detail == "classes" and per_class else {}
    classes = len(per_class) if per_class else part.get("classes")
    return {"rows": part["rows"], **({} if classes is None else {"classes": classes}), **names}
