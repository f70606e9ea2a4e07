"""`card`: the README.md of a finished model folder, made of the files in it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ec_hf.auditing.report import AuditReport, Measurement, ModelInfo
from ec_hf.data.manifests import whole_class_count
from ec_hf.files import ModelFolder
from ec_hf.models.finish import UNREACHABLE
from ec_hf.models.own_network import MODEL_TYPE
from ec_hf.models.points import SupervisionPoint
from ec_hf.publishing.contents import (
    Contents,
    base_name,
    dataset_name,
    deepest_layer,
    is_finite,
    licence_of,
    read,
    unlearned_name,
)
from ec_hf.publishing.licenses import LICENSES
from ec_hf.publishing.metadata import check_card, metadata
from ec_hf.publishing.weights import require_audited, require_finite
from ec_hf.reporting.figures import CAPTIONS
from ec_hf.reporting.findings import by_model
from ec_hf.reporting.labels import ARROWS, MISSING, interval_text, model_label, split_label, value_text
from ec_hf.reporting.markdown import escaped, table
from ec_hf.reporting.printable import printable
from ec_hf.reporting.reading import forget_split, merged
from ec_hf.reporting.tables import FEW_SIGNALS, as_section, sections, signal_tables
from ec_hf.reporting.verdict import findings

__all__ = ["card"]


TEMPLATE = Path(__file__).with_name("model_card.md")  # model_cards/template.md is a link to it
PAPER = "[Erase at the Core](https://arxiv.org/abs/2602.05375)"
FEW = 10
ROLES = {
    "original": "before unlearning",
    "unlearned": "after unlearning",
    "retrained": "trained without the forgotten images",
    "floor": "random weights",
}

RETRAINED = "as retrained"


class Glance(NamedTuple):
    """A row of the short table at the head of the card.

    Attributes:
        metric: key of the metric.
        split: of the images; "forget" is where the metric has forgotten images.
        deepest: whether it is read at the deepest layer.
        says: what it says, in words.
        aim: what is wished for.
        alone: the same where there is no retrained model.
    """

    metric: str
    split: str
    deepest: bool
    says: str
    aim: str = RETRAINED
    alone: str = "not known"


AT_A_GLANCE = (
    Glance("accuracy", "forget", False, "forgotten images: right answers"),
    Glance("accuracy", "retain_test", False, "kept images: right answers", "as before", "as before"),
    Glance("linear_probe", "forget", True, "forgotten images: right answers of a new classifier on features"),
    Glance("knn", "forget", True, "forgotten images: right answers by the nearest images in the features"),
    Glance(
        "linear_cka", "forget", True, "forgotten images: likeness of features to those before (CKA, 1 is the same)"
    ),
    Glance(
        "mia_loss",
        "forget_train",
        False,
        "attack that tells forgotten training images from unseen ones (AUC, 0.50 is chance)",
        alone="0.50",
    ),
)


def card(
    folder: str | Path,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    manifest_detail: str | None = None,
    token: str | bool | None = None,
) -> str:
    """The model card of a finished model folder: its README.md, with metadata for the Hub.

    Every number comes from config.json, ec_config.json, forget_manifest.json, audit.json and figures/. A part whose
    file is missing says so or is left out. The same files give the same card.

    Args:
        folder: what `ECTrainer.save_model` and an audit wrote.
        repo_id: the Hub id that it will have, for title and examples.
        license: a licence id of the Hub; that of the base model, or of a card that is there already, if left out.
        manifest_detail: what the card tells of the request: "hashes" (and counts), "classes" (their names too) or
            "rows" (the request in words too); default: what the manifest says of itself, else "hashes".
        token: of the Hub, where the base model's card is looked up for its licence.

    Raises:
        FileNotFoundError: for a folder without config.json.
        ValueError: for a file that cannot be read, weights that are NaN or infinite or not those of the audit, an
            unknown licence or detail.
    """
    require_finite(ModelFolder(folder))
    require_audited(ModelFolder(folder))
    if license is not None and license not in LICENSES:
        close = difflib.get_close_matches(license, LICENSES, n=3, cutoff=0.3)
        raise ValueError(f"license={license!r} is no licence id of the Hub; close ones: {', '.join(close) or 'other'}")
    contents = read(folder, manifest_detail)
    licence = {"license": license} if license else licence_of(contents, token)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(context(contents, repo_id, licence))
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    check_card(text)
    return text


def context(contents: Contents, repo_id: str | None, licence: Mapping[str, str]) -> dict[str, Any]:
    """Everything that the template names: facts only, the words are the template's."""
    config, record, manifest = contents.config, contents.record, contents.manifest
    report = printable(contents.report) if contents.report else None
    finish = record.get("finish", "keep")
    record = record if "settings" in record else {}  # a push notes its finish also where no run left a record
    title = repo_id.split("/")[-1] if repo_id else f"{base_name(contents)}, unlearned"
    return {
        "metadata": metadata(contents, title, licence).to_yaml().strip(),
        "title": title,
        "name_or_path": repo_id or "path/to/this/folder",
        "architecture": (config.get("architectures") or ["image classifier"])[0],
        "timm": config.get("model_type") == "timm_wrapper",
        "own": config.get("network") if config.get("model_type") == MODEL_TYPE else None,
        "labels": _outputs(config),
        "base_model": record.get("base_model"),
        "revision": record.get("base_model_revision"),
        "licence": _licence_sentence(licence),
        "detail": contents.detail,
        "manifest": manifest,
        "amount": escaped(_amount(manifest)) if manifest else None,
        "whole": whole_class_count(manifest) if manifest else None,
        "request_rows": _request_rows(contents) if manifest else [],
        "history": _history(manifest, report),
        "finish": finish,
        "unreachable": f"{UNREACHABLE:,.0f}",
        "record": record,
        "method": _method(record) if record else None,
        "cost": _cost(record),
        "points": _points(record),
        "decided": _decided(record, report),
        "evaluated_in_training": any(not side["held_out"] for side in _sides(record).values()),
        "settings": [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in record.get("settings", {}).items()],
        "versions": lambda packages: ", ".join(f"{name} {version}" for name, version in packages.items()),
        "report": report,
        "parameters": None,
        **(_audit_parts(contents, report) if report else {}),
        "table": table,
    }


def _audit_parts(contents: Contents, report: AuditReport) -> dict[str, Any]:
    short = merged(report)
    names = _columns(short)
    heads = [{"original": "before", "unlearned": "this model"}.get(info.role, "retrained") for info in names.values()]
    return {
        **_sentences(report),
        "roles": {info.role for info in report.models.values()},
        "parameters": f"{report.models[unlearned_name(report)].parameters:,}",
        "glance_columns": ["", *heads, "aim"],
        "glance": _glance(short, list(names), whole_class_count(contents.manifest) if contents.manifest else None),
        "retrained": sum(info.role == "retrained" for info in report.models.values()),
        "signals": _signals(report),
        "models": [
            (
                model_label(name),
                "this model" if name == unlearned_name(report) else ROLES[info.role],
                f"`{info.architecture}`",
                f"{info.parameters:,}",
                _source(info),
            )
            for name, info in report.models.items()
        ],
        "images": [(split_label(split), f"{count:,}") for split, count in report.dataset.get("images", {}).items()],
        "sections": sections(report),
        "figures": [{"name": name, "caption": CAPTIONS[name]} for name in contents.figures],
        "arrows": ARROWS,
        "kept": [
            _cell(next(report.find("accuracy", model=name, split="retain_test"), None)) for name in list(names)[:2]
        ],
        "audit_minutes": f"{sum(report.seconds.values()) / 60:.1f}",
    }


def _sentences(report: AuditReport) -> dict[str, Any]:
    """The verdict in three parts: on this model (its headline apart), on other unlearned ones, on the audit itself."""
    found = by_model(findings(report))
    general, own = found.pop(None), found.pop(unlearned_name(report))
    return {
        "headline": escaped(next(finding.text for finding in own if finding.topic == "summary")),
        "findings": [escaped(finding.sentence) for finding in own if finding.topic != "summary"],
        "others": {
            escaped(name or ""): [escaped(finding.sentence) for finding in each] for name, each in found.items()
        },
        "general": [escaped(line) for line in (*(finding.sentence for finding in general), *report.references)],
        "notes": [escaped(note) for note in report.notes],
    }


def _signals(report: AuditReport) -> str | None:
    """The table of the worst signals of this model; None where it has none."""
    own = replace(report, models={unlearned_name(report): report.models[unlearned_name(report)]})
    return next((as_section(table)[1] for table in signal_tables(own, FEW_SIGNALS)), None)


def _columns(report: AuditReport) -> dict[str, ModelInfo]:
    """The models of the short table: before, this model, and retrained where there is one."""
    wanted = [name for name, info in report.models.items() if info.role == "original"]
    wanted += [unlearned_name(report), *(name for name, info in report.models.items() if info.role == "retrained")]
    return {name: report.models[name] for name in wanted}


def _glance(report: AuditReport, models: Sequence[str], whole: int | None) -> list[list[str]]:
    """A question a row: before, this model, retrained, and what is wished for."""
    rows, aimless = [], len(models) < 3
    for glance in AT_A_GLANCE:
        where: dict[str, Any] = {"split": glance.split}
        if glance.split == "forget":
            where["split"] = forget_split(report, glance.metric)
        if glance.deepest:
            where["layer"] = deepest_layer(report)
        if glance.metric == "linear_cka":
            where["reference"] = "original"
        measured = {name: next(report.find(glance.metric, model=name, **where), None) for name in models}
        if measured[unlearned_name(report)] is not None:
            aim = glance.alone if aimless else glance.aim
            if aimless and glance.metric == "accuracy" and glance.split == "forget":
                aim = "near 0" if whole else "as for unseen images"
            rows.append([glance.says, *map(_cell, measured.values()), aim])
    return rows


def _cell(each: Measurement | None) -> str:
    if each is None or not is_finite(each.value):
        return MISSING
    return f"{value_text(each.metric, each.value)} {interval_text(each)}".strip()


def _outputs(config: Mapping[str, Any]) -> int | None:
    """The number of a model's outputs, which configurations tell in several ways; None where they do not."""
    if "id2label" in config:
        return len(config["id2label"])
    return config.get("num_labels", config.get("num_classes"))


def _amount(manifest: Mapping[str, Any]) -> str:
    """What a request took away, in a few words."""
    forget, whole = manifest["parts"]["forget"], whole_class_count(manifest) or 0
    images, names = f"{forget['rows']:,} training images", list(forget.get("per_class", ()))
    if not whole or whole < len(names):
        return images
    few = [*names[:FEW], *([f"{len(names) - FEW} more"] if len(names) > FEW else [])]
    classes = "1 class" if whole == 1 else f"{whole} classes"
    return f"{classes}{': ' if few else ''}{', '.join(few)} ({images})"


def _request_rows(contents: Contents) -> list[tuple[str, str]]:
    manifest = contents.manifest
    forget, retain, dataset = manifest["parts"]["forget"], manifest["parts"]["retain"], manifest["dataset"]
    rows = [("forgotten", _amount(manifest)), ("kept", f"{retain['rows']:,} training images")]
    if "per_class" in forget:
        rows.append(("forgotten, by class", ", ".join(f"{name}: {n:,}" for name, n in forget["per_class"].items())))
    if summary := manifest["request"].get("summary"):
        rows.append(("request", summary))
    rows.append(("request, sha256", f"`{manifest['request']['hash']}`"))
    rows.append(("forgotten rows, sha256", f"`{manifest['forget_rows_sha256']}`"))
    name = dataset_name(contents)
    rows.append(
        ("dataset", f"{name or 'a local one'}, {dataset['rows']:,} rows, fingerprint `{dataset['fingerprint']}`")
    )
    if date := contents.record.get("date"):
        rows.append(("date", date))
    return rows


def _history(manifest: Mapping[str, Any], report: AuditReport | None) -> list[tuple[str, ...]]:
    return [
        (
            f"request {number}",
            earlier.get("date", MISSING),
            _amount(earlier),
            f"`{earlier['request']['hash']}`",
            _checked_again(report, number),
        )
        for number, earlier in enumerate(manifest.get("history", ()), start=1)
    ]


def _checked_again(report: AuditReport | None, number: int) -> str:
    """What the audit found of an earlier request, counted from 1."""
    if report is None:
        return "no"
    again = next(report.find("accuracy", model=unlearned_name(report), split=f"request {number}"), None)
    if again is None:
        return "no"
    return f"no: {again.note}" if again.value is None else f"{_cell(again)} classified right"


def _method(record: Mapping[str, Any]) -> str:
    objective = record["settings"]["objective"]
    if "pilot" in record:
        return f"the objective `{objective}`: it answers on the forgotten images as a pilot does, which was rewound"
    if not record["points"]:
        return f"the objective `{objective}` at its output, without {PAPER}"
    return PAPER if objective == "contrastive" else f"{PAPER} on top of the objective `{objective}`"


def _cost(record: Mapping[str, Any]) -> str | None:
    if not (cost := record.get("cost")):
        return None
    retained = record.get("data", {}).get("retain", {}).get("images")
    passes = f", {cost['retain_images_seen'] / retained:.3g} passes over the retain set" if retained else ""
    return (
        f"{cost['steps']:,} steps, in which {cost['forget_images_seen']:,} forget and {cost['retain_images_seen']:,} "
        f"retain images were seen (repeats counted{passes}), {cost['minutes']:.1f} minutes, peak memory "
        f"{cost['peak_memory_mb']:,} MB."
    )


def _points(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    pairs = zip(record.get("points", ()), record.get("layer_weights", ()), strict=True)
    return [
        (SupervisionPoint(**point).name, point["kind"], f"{point['channels']}", f"{weight:g}")
        for point, weight in pairs
    ]


def _sides(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The images that decided, by side; empty where the record does not tell."""
    evaluated = record.get("evaluated", {})
    return {side: evaluated[side] for side in ("forget", "retain") if side in evaluated}


def _decided(record: Mapping[str, Any], report: AuditReport | None) -> list[tuple[str, ...]]:
    """Which images decided what, a line each; nothing where the record does not tell."""
    what = {"forget": "whether to stop", "retain": "whether to stop, and whether to go back to an earlier checkpoint"}
    where = {True: "training images, held out of the erasure", False: "training images, trained on"}
    lines: list[tuple[str, ...]] = [
        (f"{side} {where[each['held_out']]}", f"{each['images']:,}", what[side])
        for side, each in _sides(record).items()
    ]
    images = report.dataset.get("images", {}) if report else {}
    tested = sum(count for split, count in images.items() if split.endswith("_test"))
    if lines and tested:
        lines.append(("test images", f"{tested:,}", "nothing: the audit alone looked at them"))
    return lines


def _licence_sentence(licence: Mapping[str, str]) -> str:
    if not licence:
        return (
            "No licence is named: that of the model it starts from could not be read. Ask whoever gave you that model."
        )
    return f"Licence: {licence.get('license_name') or licence['license']}."


def _source(info: ModelInfo) -> str:
    if not info.id:
        return MISSING
    return f"`{info.id}`" + (f" `{info.revision[:12]}`" if info.revision else "")
