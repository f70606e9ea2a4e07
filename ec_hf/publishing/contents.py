"""What the files of a finished model folder tell, reduced to what may be shown: the facts that a card is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ec_hf.auditing.report import AuditReport
from ec_hf.command import public
from ec_hf.data.documents import checked_manifest
from ec_hf.files import AUDIT, CARD, CONFIG, FIGURES, MANIFEST, RECORD, ModelFolder
from ec_hf.publishing.disclosure import FIGURES_WITH_CLASSES, disclosed_manifest, disclosed_record, disclosed_report
from ec_hf.publishing.licenses import base_license
from ec_hf.publishing.records import checked_record
from ec_hf.publishing.withheld import named_by
from ec_hf.reporting.figures import CAPTIONS

__all__ = [
    "Contents",
    "base_name",
    "dataset_name",
    "deepest_layer",
    "is_finite",
    "licence_of",
    "read",
    "unlearned_name",
]


@dataclass(frozen=True)
class Contents:
    """What the files of a folder tell, reduced to what may be shown.

    Attributes:
        config: config.json.
        record: ec_config.json; empty if it is not there.
        manifest: forget_manifest.json; empty if it is not there.
        report: audit.json; None if it is not there.
        figures: names of the figures that are there.
        readme: metadata of a card that is there already.
        detail: what is shown, one of `ec_hf.publishing.disclosure.DETAILS`.
    """

    config: dict[str, Any]
    record: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    report: AuditReport | None = None
    figures: tuple[str, ...] = ()
    readme: dict[str, str] = field(default_factory=dict)
    detail: str = "hashes"


def read(folder: str | Path, detail: str | None = None) -> Contents:
    """The files of a folder, reduced to `detail`."""
    files = ModelFolder(folder)
    files.require_model()
    config, record, manifest = (files.read(name) for name in (CONFIG, RECORD, MANIFEST))
    manifest, record = checked_manifest(manifest) if manifest else {}, checked_record(record)
    detail = detail or manifest.get("detail") or "hashes"
    drawn = [name for name in CAPTIONS if name != "retrieval" and files.has(f"{FIGURES}/{name}.png")]
    shown = [name for name in drawn if detail != "hashes" or name not in FIGURES_WITH_CLASSES]
    report = AuditReport.load(files.path / AUDIT) if files.has(AUDIT) else None
    named = named_by(manifest, report, config, record, detail=detail)
    return Contents(
        config,
        disclosed_record(record, detail, named),
        disclosed_manifest(manifest, detail, named) if manifest else {},
        disclosed_report(report, detail, named) if report else None,
        tuple(shown),
        base_license(files.path) if files.has(CARD) else {},
        detail,
    )


def licence_of(contents: Contents, token: str | bool | None) -> dict[str, str]:
    """That of the base model as the run recorded it, that of a card that is there, or what the Hub says."""
    known = contents.record.get("base_model_license") or contents.readme
    return known or base_license(contents.record.get("base_model"), token)


def unlearned_name(report: AuditReport) -> str:
    """The model that the folder holds: the first unlearned one."""
    name = next((name for name, info in report.models.items() if info.role == "unlearned"), None)
    if name is None:
        raise ValueError("audit.json holds no unlearned model: audit the model of this folder, or take the file away")
    return name


def deepest_layer(report: AuditReport) -> str | None:
    """The layer before the logits: what the classifier reads, where that is known."""
    return report.layers[-1] if report.layers else None


def base_name(contents: Contents) -> str:
    """The last part of the name of the model that was unlearned; its architecture where it has no public name."""
    base = contents.record.get("base_model") or (contents.config.get("architectures") or ["image classifier"])[0]
    return base.split("/")[-1]


def dataset_name(contents: Contents) -> str | None:
    """The dataset's name, where it is no path of this machine."""
    return public((contents.manifest.get("dataset") or {}).get("name"))


def is_finite(value: float | None) -> bool:
    """Whether there is a value, and it is a number."""
    return value is not None and math.isfinite(value)
