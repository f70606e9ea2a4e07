from __future__ import annotations

import json
import math

import pytest
from helpers.reports import make_report

from ec_hf.auditing.report import SCHEMA_VERSION, AttackCurve, AuditReport, Measurement

SIGNAL = {
    "metric": "accuracy",
    "model": "ours",
    "split": "forget_test",
    "layer": None,
    "value": 0.4,
    "original": 0.9,
    "retrained": [0.3],
    "position": 0.8,
    "low": 0.7,
    "high": 0.9,
    "status": "under-erased",
    "count": 9,
    "note": None,
}


def test_a_report_comes_back_from_its_file_as_it_was(tmp_path):
    report = make_report()
    report.save(tmp_path / "audit.json")
    assert AuditReport.load(tmp_path / "audit.json") == report


def test_fields_that_are_empty_are_left_out_of_the_file_but_never_the_value():
    report = AuditReport(measurements=[Measurement("idi", "unlearned", None, note="too few images")])
    assert report.to_dict()["measurements"] == [
        {"metric": "idi", "model": "unlearned", "value": None, "note": "too few images"}
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_json_is_refused_and_leaves_the_file_there_was(tmp_path, value):
    path = tmp_path / "audit.json"
    make_report().save(path)
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        AuditReport(measurements=[Measurement("accuracy", "unlearned", value)]).save(path)
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "audit.json"),
        ({"schema_version": SCHEMA_VERSION + 1}, "schema version"),
        ({}, "schema version None"),
        ({"schema_version": SCHEMA_VERSION, "colour": 1}, "unknown keys.*colour"),
        ({"schema_version": SCHEMA_VERSION, "measurements": [{"metric": "accuracy"}]}, "no audit report"),
    ],
)
def test_another_file_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "audit.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        AuditReport.load(path)
    assert str(path) in str(caught.value)


def test_measurements_are_found_by_any_of_their_fields():
    report = make_report()
    wanted = {"model": "unlearned", "split": "forget_test", "reference": "original"}
    rows = list(report.find("linear_cka", **wanted))
    assert [row.layer for row in rows] == [*report.layers, "logits"]
    assert report.profile("linear_cka", **wanted) == {row.layer: row.value for row in rows}
    assert report.value("linear_cka", layer=report.layers[-1], **wanted) == rows[-2].value
    assert report.value("linear_cka", model="nobody") is None


def test_a_profile_goes_from_shallow_to_deep_whatever_the_order_of_the_rows():
    rows = [Measurement("knn", "a", k / 4, layer=layer) for k, layer in enumerate(("logits", "second", "first"))]
    report = AuditReport(layers=["first", "second"], measurements=rows)
    assert list(report.profile("knn", model="a")) == ["first", "second", "logits"]


def test_relearning_of_an_older_report_is_read_as_an_attack():
    curve = {"model": "ours", "mode": "head", "steps": [0, 5], "accuracy": [0.0, 0.5], "settings": {"seed": 1}}
    row = {"metric": "relearning_area", "model": "ours", "value": 0.4, "note": "head"}
    signal = {**SIGNAL, "metric": "relearning_area", "note": "head"}
    for version in (1, 2):
        old = {"schema_version": version, "relearning": [curve], "measurements": [row], "signals": [signal]}
        report = AuditReport.from_dict(old)
        assert report.schema_version == SCHEMA_VERSION
        assert report.attacks == [
            AttackCurve("relearn_head", "ours", "steps", x=[0, 5], accuracy=[0.0, 0.5], settings={"seed": 1})
        ]
        assert report.value("attack_area", model="ours", note="relearn_head") == 0.4
        assert [(each.metric, each.note) for each in report.signals] == [("attack_area", "relearn_head")]
        assert AuditReport.from_dict(report.to_dict()) == report


def test_an_older_report_whose_relearning_lacks_something_is_refused():
    with pytest.raises(ValueError, match="numbers lack 'mode'"):
        AuditReport.from_dict({"schema_version": 2, "relearning": [{"model": "ours"}]})
