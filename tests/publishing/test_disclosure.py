import json
import re
from dataclasses import asdict, fields

import pytest
from helpers.reports import DIGITS, make_report

from ec_hf.auditing.report import RetainedClass, Signal
from ec_hf.data.manifests import manifest, whole_class_count
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.splitting import split
from ec_hf.publishing.disclosure import DETAILS, disclosed_manifest, disclosed_record, disclosed_report
from ec_hf.publishing.withheld import Named


@pytest.fixture
def document(images):
    request = ForgetRequest(classes=["cat"]) | ForgetRequest(rows=[0])
    parts = split(images, request)
    extra = {"content": request.to_dict(), "something_new": ["row 7"]}
    later = manifest(images, request, parts, name="someone/animals") | extra
    return later | {"history": [{**later, "date": "2026-01-01"}]}


def test_hashes_tell_counts_and_no_name(document):
    shown = disclosed_manifest(document, "hashes")
    assert "cat" not in json.dumps(shown)
    assert "row 7" not in json.dumps(shown)
    for entry in (shown, *shown["history"]):
        assert entry["request"] == {"hash": document["request"]["hash"]}
        assert entry["forget_rows_sha256"] == document["forget_rows_sha256"]
        assert entry["parts"]["forget"] == {"rows": 21, "classes": 2, "whole_classes": 1}
        assert entry["parts"]["retain"] == {"rows": 79, "classes": 4}
    assert shown["history"][0]["date"] == "2026-01-01"


def test_classes_tell_names_and_no_row(document):
    shown = disclosed_manifest(document, "classes")
    assert shown["parts"]["forget"]["per_class"] == {"ant": 1, "cat": 20}
    assert "summary" not in shown["request"]
    assert not {"content", "something_new"} & set(shown)


def test_rows_tell_everything(document):
    shown = disclosed_manifest(document, "rows")
    assert {key: shown[key] for key in document if key != "history"} == {
        key: document[key] for key in document if key != "history"
    }


@pytest.mark.parametrize("first", DETAILS)
@pytest.mark.parametrize("second", DETAILS)
def test_what_was_left_out_stays_out(document, first, second):
    less = min(first, second, key=DETAILS.index)
    assert disclosed_manifest(disclosed_manifest(document, first), second) == disclosed_manifest(document, less)
    report = disclosed_report(disclosed_report(make_report(), first), second)
    assert report == disclosed_report(make_report(), less)


def test_whole_classes_are_counted_also_where_they_are_not_named(document):
    assert whole_class_count(document) == whole_class_count(disclosed_manifest(document, "hashes")) == 1


def test_a_report_of_hashes_keeps_every_number_and_loses_every_name():
    report = make_report()
    shown = disclosed_report(report, "hashes")
    assert shown.measurements == report.measurements
    assert shown.request == {"hash": report.request["hash"], "class_count": 3}
    assert not (shown.confusion or shown.embedding or shown.retrievals or "class_names" in shown.dataset)
    assert report.confusion, "the report given is left as it is"


def test_signals_name_no_class():
    shown = disclosed_report(make_report(), "hashes")
    assert shown.signals == make_report().signals
    text = json.dumps([asdict(each) for each in shown.signals])
    assert not [name for name in DIGITS if re.search(rf"\b{name}\b", text)]
    assert {each.note for each in make_report().signals} == {None}
    words = {each.name for each in fields(Signal) if "float" not in str(each.type) and each.type != "int"}
    assert words == {"metric", "model", "split", "layer", "status", "note"}, "a new field with words must be looked at"


def test_a_report_of_classes_loses_rows_alone():
    shown = disclosed_report(make_report(), "classes")
    assert shown.retrievals == []
    assert shown.confusion == make_report().confusion
    assert shown.request["classes"] == [3, 5, 8]


def test_a_pilot_keeps_the_numbers_that_the_run_itself_keeps():
    settings, cost = {"objective": "rewind", "seed": 42}, {"steps": 7, "retain_images_seen": 12345}
    record = {"settings": settings, "cost": cost, "pilot": {"settings": settings, "cost": cost}}
    shown = disclosed_record(record, "hashes", Named(frozenset({"42", "rewind"}), frozenset({"12345"})))
    assert shown["pilot"] == {"settings": shown["settings"], "cost": shown["cost"]} == record["pilot"]


@pytest.mark.parametrize("given", ["--forget_classes cat 'big dog'", "--forget_classes=cat"])
def test_the_command_names_no_class_at_hashes(given):
    record = {"command": f"python run.py {given} --seed 3", "settings": {}}
    assert disclosed_record(record)["command"] == "python run.py --forget_classes CLASSES --seed 3"
    assert disclosed_record(record, "classes") == record


@pytest.mark.parametrize("function", [disclosed_manifest, disclosed_report, disclosed_record])
def test_an_unknown_detail_is_refused(document, function):
    given = make_report() if function is disclosed_report else document
    with pytest.raises(ValueError, match="expected one of hashes, classes, rows"):
        function(given, "names")


@pytest.mark.parametrize("flag", ["--forget_classes", "--forget-classes"])
@pytest.mark.parametrize("joint", [" ", "="])
def test_the_command_names_no_class_however_its_flag_is_written(flag, joint):
    record = {"command": f"accelerate launch recipes/ec_vit.py {flag}{joint}cat dog --seed 1"}
    assert "cat" not in disclosed_record(record)["command"] and "dog" not in disclosed_record(record)["command"]
    assert disclosed_record(record)["command"].endswith("CLASSES --seed 1")


def test_kept_classes_lose_their_names_and_nothing_tells_them_apart_by_these():
    counts = {name: RetainedClass(40, right, 1, 2) for name, right in (("ant", 30), ("bee", 20), ("cow", 38))}
    reports = []
    for names in ({"ant": "ant"}, {"ant": "zebra"}):
        report = make_report()
        renamed = {names.get(name, name): each for name, each in counts.items()}
        report.retained = {"original": renamed, "unlearned": renamed}
        reports.append(disclosed_report(report, "hashes").retained)
        assert disclosed_report(report, "classes").retained == report.retained
    assert reports[0] == reports[1]
    assert list(reports[0]["unlearned"]) == ["kept class 1", "kept class 2", "kept class 3"]
    assert [each.right for each in reports[0]["unlearned"].values()] == [20, 30, 38]
