"""How much of what was forgotten the published files tell: hashes and counts, class names too, or everything."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any

from ec_hf.auditing.report import AuditReport, RetainedClass
from ec_hf.data.manifests import whole_class_count

__all__ = ["DETAILS", "FIGURES_WITH_CLASSES", "disclosed_manifest", "disclosed_record", "disclosed_report"]

DETAILS = ("hashes", "classes", "rows")
"""From least to most: hashes and counts; the names of the classes too; the request in words, with its rows, too."""
FIGURES_WITH_CLASSES = ("confusion", "embedding")
"""Figures (`ec_hf.reporting.figures`) that name the forgotten classes: not for a reader who may see hashes only."""
EVERYWHERE = ("schema_version", "dataset", "date", "forget_rows_sha256")


def disclosed_manifest(manifest: Mapping[str, Any], detail: str = "hashes") -> dict[str, Any]:
    """What of a forget manifest, and of the earlier ones in its `history`, may be published.

    Only what is known to be harmless passes below "rows"; a key that this function does not know is left out. What
    an earlier call left out stays out, and the result says in `detail` what it holds.

    Raises:
        ValueError: for an unknown detail.
    """
    detail = lower(detail, manifest.get("detail", "rows"))
    history = {}
    if "history" in manifest:
        history["history"] = [disclosed_manifest(entry, detail) for entry in manifest["history"]]
    if detail == "rows":
        return {**manifest, **history, "detail": detail}
    kept = {key: manifest[key] for key in EVERYWHERE if key in manifest}
    kept["request"] = {"hash": manifest["request"]["hash"]}
    kept["parts"] = {name: _part(part, detail) for name, part in manifest["parts"].items()}
    if (whole := whole_class_count(manifest)) is not None:
        kept["parts"]["forget"]["whole_classes"] = whole
    return {**kept, **history, "detail": detail}


def disclosed_report(report: AuditReport, detail: str = "hashes") -> AuditReport:
    """What of an audit report may be published; no number is changed.

    Below "rows" it loses the rows of retrieved images and the request in words, at "hashes" also all that names
    classes or draws them: class names, label ids of the forgotten classes (their number stays), confusion, embedding.
    Kept classes lose their names alone.

    Raises:
        ValueError: for an unknown detail.
    """
    if _rank(detail) == _rank("rows"):
        return report
    request = {key: value for key, value in report.request.items() if key != "summary"}
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


def disclosed_record(record: Mapping[str, Any], detail: str = "hashes") -> dict[str, Any]:
    """What of a run record (`ec_config.json`) may be published: at "hashes" its command names no class.

    Raises:
        ValueError: for an unknown detail.
    """
    if _rank(detail) > 0 or not record.get("command"):
        return dict(record)
    words: list[str] = []
    hidden = False
    for word in shlex.split(record["command"]):
        if word.startswith("-"):
            flag = word.split("=")[0]
            hidden = flag.strip("-").replace("-", "_") == "forget_classes"  # the parser knows it with dashes too
            words += [flag, "CLASSES"] if hidden else [word]
        elif not hidden:
            words.append(word)
    return {**record, "command": shlex.join(words)}


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
