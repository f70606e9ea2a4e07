from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ec_hf.data import requests as requests_module
from ec_hf.data.requests import ForgetRequest

NUMBERS = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.booleans() | NUMBERS | st.text(max_size=5)
COLUMNS = st.text(min_size=1, max_size=4)
BOUNDS = st.tuples(NUMBERS, NUMBERS) | st.tuples(st.text(max_size=3), st.text(max_size=3))
CLAUSES = (
    st.fixed_dictionaries({"column": COLUMNS, "in": st.lists(SCALARS, min_size=1, max_size=4)})
    | st.fixed_dictionaries({"column": COLUMNS, "equals": SCALARS})
    | st.fixed_dictionaries({"column": COLUMNS, "between": BOUNDS.map(sorted)})
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "classes": st.lists(st.integers() | st.text(max_size=4), min_size=1, max_size=5),
        "rows": st.lists(st.integers(0, 10**6), min_size=1, max_size=5),
        "ids": st.dictionaries(
            COLUMNS, st.lists(st.integers() | st.text(max_size=4), min_size=1), min_size=1, max_size=3
        ),
        "where": st.lists(CLAUSES, min_size=1, max_size=3),
    },
).filter(bool)


def doubled_and_turned(value):
    """The same entries in another order and twice over, wherever order and duplicates have no meaning."""
    if isinstance(value, dict):
        turned = {key: doubled_and_turned(entry) for key, entry in reversed(value.items())}
        return {**turned, "between": value["between"]} if "between" in value else turned
    return [doubled_and_turned(entry) for entry in reversed([*value, *value])] if isinstance(value, list) else value


@given(PARTS)
def test_hash_and_equality_ignore_order_and_duplicates(parts):
    first, second = ForgetRequest(**parts), ForgetRequest(**doubled_and_turned(parts))
    assert first == second
    assert hash(first) == hash(second)
    assert first.content_hash == second.content_hash
    assert first.to_dict() == second.to_dict()


@given(PARTS)
def test_json_round_trip_keeps_the_request(parts):
    request = ForgetRequest(**parts)
    again = ForgetRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert again.to_dict() == request.to_dict()
    assert pickle.loads(pickle.dumps(request)) == request


@settings(max_examples=20)
@given(PARTS)
def test_file_round_trip_keeps_the_request(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("request") / "new" / "request.json"
    request = ForgetRequest(**parts)
    request.save(path)
    assert ForgetRequest.load(path) == request


@given(PARTS, PARTS)
def test_union_names_what_either_names(first, second):
    first, second = ForgetRequest(**first), ForgetRequest(**second)
    union = first | second
    assert union == second | first
    assert union | first == union
    assert first | first == first
    assert {*union.classes} == {*first.classes, *second.classes}
    assert {*union.rows} == {*first.rows, *second.rows}
    assert union.ids.keys() == first.ids.keys() | second.ids.keys()
    for column, values in union.ids.items():
        assert {*values} == {*first.ids.get(column, ()), *second.ids.get(column, ())}
    assert all(clause in union.where for clause in (*first.where, *second.where))


def test_hash_is_sha256_of_the_documented_json():
    request = ForgetRequest(
        classes=["dog", 3, "café"],
        rows=[7, 2],
        ids={"patient": [9], "image": ["b", "a"]},
        where=[{"column": "age", "between": [0.5, 9]}],
    )
    text = (
        rb'{"classes":[3,"caf\u00e9","dog"],"ids":{"image":["a","b"],"patient":[9]},"rows":[2,7],'
        rb'"where":[{"between":[0.5,9],"column":"age"}]}'
    )
    assert request.content_hash == hashlib.sha256(text).hexdigest()
    assert request.content_hash == "2819d8b387795535bb2ed1e4949e57c0df007ec7c319277211daf0cd64ef1242"


@pytest.mark.launch
def test_hash_is_the_same_in_another_process_that_has_neither_torch_nor_datasets():
    code = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("requests_alone", sys.argv[1])
module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert not {"torch", "datasets", "numpy"} & {*sys.modules}
print(module.ForgetRequest(classes={"dog", "cat", "3", 3, 11}).content_hash)
"""
    command = [sys.executable, "-c", code, requests_module.__file__]
    hashes = {
        subprocess.run(
            command, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {ForgetRequest(classes=[11, 3, "3", "cat", "dog"]).content_hash}


def test_number_and_text_are_different_entries():
    both = ForgetRequest(classes=[3, "3"])
    assert both.classes == (3, "3")
    assert len({ForgetRequest(classes=[3]), ForgetRequest(classes=["3"]), both}) == 3


def test_true_and_one_are_different_filter_values_but_whole_floats_are_integers():
    where = ForgetRequest(where=[{"column": "c", "in": [1, True, 1.0]}]).where
    assert [type(value) for value in where[0]["in"]] == [bool, int]
    assert ForgetRequest(where=[{"column": "c", "equals": 2.0}]) == ForgetRequest(where=[{"column": "c", "equals": 2}])
    assert ForgetRequest(where=[{"column": "c", "equals": True}]) != ForgetRequest(
        where=[{"column": "c", "equals": 1}]
    )


def test_parts_are_sorted_tuples_whatever_sequence_came_in():
    request = ForgetRequest(classes={"b", "a"}, rows=np.array([5, 1]), ids={"id": range(2)})
    assert (request.classes, request.rows, request.ids) == (("a", "b"), (1, 5), {"id": (0, 1)})
    assert request == ForgetRequest(classes=np.array(["a", "b"]), rows=[1, np.int64(5)], ids={"id": [1, 0]})
    json.dumps(request.to_dict())


def test_without_rows_keeps_what_has_a_meaning_elsewhere():
    assert ForgetRequest(classes=["cat"], rows=[1]).without_rows() == ForgetRequest(classes=["cat"])
    assert ForgetRequest(rows=[1]).without_rows() is None


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({}, ValueError, "empty"),
        ({"classes": [], "ids": {}}, ValueError, "empty"),
        ({"classes": "cat"}, TypeError, r"classes must be a list, got 'cat'; write \['cat'\]"),
        ({"classes": 3}, TypeError, "classes must be a list"),
        ({"classes": [True]}, TypeError, "classes takes int or str, got True"),
        ({"classes": [None]}, TypeError, "classes takes int or str"),
        ({"classes": [["cat"]]}, TypeError, "classes takes int or str"),
        ({"classes": [0.5]}, TypeError, "classes takes int or str"),
        ({"rows": ["1"]}, TypeError, "rows takes int"),
        ({"rows": [-1]}, ValueError, "rows holds -1"),
        ({"rows": {"a": 1}}, TypeError, "rows must be a list"),
        ({"ids": ["image"]}, TypeError, "ids must map a column"),
        ({"ids": {"image": []}}, ValueError, "at least one value"),
        ({"ids": {3: [1]}}, ValueError, "column name"),
        ({"ids": {"image": 3}}, TypeError, r"ids\['image'\] must be a list"),
        ({"ids": {"image": [0.5]}}, TypeError, r"ids\['image'\] takes int or str"),
        ({"where": [["age", 3]]}, TypeError, "a where filter is an object"),
        ({"where": {"column": "age", "equals": 3}}, TypeError, "where must be a list"),
        ({"where": [{"equals": 3}]}, ValueError, "the key 'column'"),
        ({"where": [{"column": "age"}]}, ValueError, "one of"),
        ({"where": [{"column": "age", "above": 3}]}, ValueError, "one of"),
        ({"where": [{"column": "age", "equals": 3, "in": [3]}]}, ValueError, "one of"),
        ({"where": [{"column": "age", "in": []}]}, ValueError, "empty list"),
        ({"where": [{"column": "age", "in": "old"}]}, TypeError, "must be a list"),
        ({"where": [{"column": "age", "equals": None}]}, TypeError, "got None"),
        ({"where": [{"column": "age", "equals": float("nan")}]}, ValueError, "finite"),
        ({"where": [{"column": "age", "between": [3]}]}, ValueError, r"\[low, high\]"),
        ({"where": [{"column": "age", "between": [9, 3]}]}, ValueError, "low <= high"),
        ({"where": [{"column": "age", "between": ["a", 3]}]}, ValueError, "both numbers or both text"),
        ({"where": [{"column": "age", "between": [0, float("inf")]}]}, ValueError, "finite"),
    ],
)
def test_bad_parts_are_refused_at_construction_with_the_part_named(parts, error, message):
    with pytest.raises(error, match=message):
        ForgetRequest(**parts)


def test_from_dict_names_unknown_keys_and_wrong_containers():
    with pytest.raises(ValueError, match=r"\['class'\].*'classes'"):
        ForgetRequest.from_dict({"class": ["cat"]})
    with pytest.raises(TypeError, match="got list"):
        ForgetRequest.from_dict(["cat"])


def test_union_with_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        ForgetRequest(rows=[1]) | {"rows": [2]}


def test_save_keeps_a_file_with_the_same_request_as_it_is(tmp_path):
    path = tmp_path / "request.json"
    path.write_text('{"rows": [2, 1, 1]}')
    ForgetRequest(rows=[1, 2]).save(path)
    assert path.read_text() == '{"rows": [2, 1, 1]}'


@pytest.mark.parametrize("content", ['{"rows": [3]}', "no json", "{}"])
def test_save_never_overwrites_anything_else(tmp_path, content):
    path = tmp_path / "request.json"
    path.write_text(content)
    with pytest.raises(FileExistsError, match="already holds"):
        ForgetRequest(rows=[1, 2]).save(path)
    assert path.read_text() == content


def test_a_failed_save_leaves_no_file(tmp_path):
    path = tmp_path / "request.json"
    with pytest.raises(UnicodeEncodeError):
        ForgetRequest(classes=["\udc80"]).save(path)
    assert not path.exists()


@pytest.mark.parametrize("content", ["no json", "[1]", '{"rows": [-1]}', '{"row": [1]}'])
def test_load_names_the_file_that_holds_no_request(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"broken\.json is no forget request"):
        ForgetRequest.load(path)


def test_summary_is_one_sentence_that_names_classes_and_hides_id_values():
    request = ForgetRequest(
        classes=["cat", 3],
        rows=range(7),
        ids={"patient": ["Ada", "Bob"]},
        where=[{"column": "age", "between": [0, 9]}, {"column": "site", "equals": "x"}, {"column": "k", "in": [1, 2]}],
    )
    assert request.summary() == (
        "Forget the classes 3, 'cat'; the rows 0, 1, 2, 3, 4 and 2 more; every row whose 'patient' is one of 2 named "
        "values; every row whose 'age' lies between 0 and 9; every row whose 'k' is one of 1, 2; every row whose "
        "'site' is 'x'."
    )
    assert ForgetRequest(classes=["cat"], rows=[3]).summary() == "Forget the class 'cat'; the row 3."
