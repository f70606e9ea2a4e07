"""Manifests and reports of a repository that nobody vouches for: whatever they hold, the answer is a `ValueError`."""

from __future__ import annotations

import io
import json

import pytest
from helpers.places import places, put
from helpers.reports import make_report
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ec_hf.auditing.report import AuditReport
from ec_hf.data.documents import checked_manifest
from ec_hf.data.manifests import earlier_manifests, whole_class_count
from ec_hf.publishing import hub
from ec_hf.publishing.disclosure import disclosed_manifest, disclosed_report
from ec_hf.publishing.hub import load_report
from ec_hf.reporting.tables import to_markdown, to_rich
from ec_hf.reporting.verdict import findings

REPORT = make_report(["original", "unlearned", "retrained"], layers=2).to_dict()
REPORT["retained"] = {"unlearned": {"one": {"images": 40, "right": 30, "lost": 2, "gained": 1}}}
PART = {"rows": 2, "per_class": {"ant": 2}}
EARLIER = {
    "dataset": {"name": "x/y", "fingerprint": "f", "rows": 4},
    "request": {"hash": "ab", "summary": "Forget.", "content": {"classes": ["ant"], "ids": {"a": [1]}}},
    "parts": {"forget": PART, "retain": {"rows": 2, "per_class": {"bee": 2}}},
    "forget_rows_sha256": "cd",
}
MANIFEST = {**EARLIER, "detail": "rows", "history": [{**EARLIER, "date": "2026-01-01"}]}
MUTANTS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from([10**400, -1, float("nan"), float("inf"), 1e308, 2**63]),
    st.text(max_size=4),
    st.sampled_from([[], {}, [[]], [{}], {"": []}, "original", "accuracy", [None], {"a": None}]),
)


def mutated(document):
    spots = st.sampled_from(sorted(places(document), key=str))
    return st.tuples(spots, MUTANTS, st.sampled_from(["replace", "replace", "delete", "add"])).map(
        lambda change: put(document, *change)
    )


def use(report):
    """All that is made of a report by those who read it."""
    findings(report)
    to_markdown(report)
    Console(file=io.StringIO(), width=80).print(to_rich(report))
    for detail in ("hashes", "classes"):
        disclosed_report(report, detail)


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutated(REPORT))
@example(put(REPORT, ("attacks", 0, "accuracy"), [], "replace"))
@example(put(REPORT, ("signals", 0, "retrained"), [], "replace"))
@example(put(REPORT, ("models", "unlearned", "role"), "king", "replace"))
@example(put(REPORT, ("measurements", 0, "value"), 10**400, "replace"))
@example(put(REPORT, ("retained", "unlearned", "one", "images"), 0, "replace"))
@example(put(REPORT, ("dataset", "class_names"), {"a": None}, "replace"))
@example([])
def test_a_changed_report_is_used_or_refused(document):
    try:
        report = AuditReport.from_dict(document)
    except ValueError:
        return
    use(report)


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutated(MANIFEST))
def test_a_changed_manifest_is_used_or_refused(document):
    try:
        manifest = checked_manifest(document)
    except ValueError:
        return
    whole_class_count(manifest)
    for detail in ("hashes", "classes", "rows"):
        if manifest.get("detail", "rows") in ("hashes", "classes", "rows"):
            disclosed_manifest(manifest, detail)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("audit.json", "[" * 100_000, "is no JSON"),
        ("audit.json", '{"a":' * 100_000, "is no JSON"),
        ("audit.json", "9" * 10_000, "is no JSON|expected an object"),
        ("audit.json", "[]", "expected an object, found list"),
        ("audit.json", '{"schema_version": true}', "schema version True"),
        ("audit.json", '{"schema_version": 2, "models": []}', "models is a list of 0: expected an object"),
        ("audit.json", '{"schema_version": 2, "layers": [3]}', r"layers\[0\] is 3: expected a text"),
        ("audit.json", '{"schema_version": 2, "dataset": {"images": 5}}', "dataset.images is 5: expected an object"),
        ("audit.json", '{"schema_version": 2, "seconds": {"a": NaN}}', "is nan: expected a finite number"),
        ("forget_manifest.json", "\ud800".encode("utf-8", "surrogatepass"), "is no JSON"),
        ("forget_manifest.json", '{"parts": 3}', "lacks dataset, forget_rows_sha256, request"),
        ("forget_manifest.json", '"x"', "expected an object, found str"),
        ("forget_manifest.json", json.dumps(MANIFEST | {"parts": 3}), "parts is 3: expected an object"),
        ("forget_manifest.json", json.dumps(MANIFEST | {"history": [{}]}), "request 1 of its history lacks"),
        ("forget_manifest.json", json.dumps(MANIFEST | {"history": [MANIFEST]}), "has a history of its own"),
    ],
)
def test_a_file_that_is_none_is_refused_in_words(tmp_path, name, text, message):
    (tmp_path / "forget_manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        load_report(tmp_path)
    assert name in str(caught.value) and len(str(caught.value)) < 600
    if name == "forget_manifest.json":
        with pytest.raises(ValueError):
            earlier_manifests(tmp_path)


def test_a_file_of_many_megabytes_is_not_even_read(tmp_path, monkeypatch):
    (tmp_path / "forget_manifest.json").write_text(json.dumps(MANIFEST))
    monkeypatch.setattr(hub, "LARGEST", 100)
    with pytest.raises(ValueError, match="no manifest and no audit has more than 100"):
        load_report(tmp_path)
