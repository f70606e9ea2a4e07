from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from ec_hf.data.columns import find_label_column, label_ids
from ec_hf.data.manifests import manifest
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.splitting import shared_rows, split

NAMES = ["cat", "dog", "cow", "7"]
LABELS = [0, 1, 2, 3, 0, 1, 2, 0, None, 0]


def animals(label=None, **columns):
    """Ten rows; `row` is the identity that the tests go by."""
    features = Features({"label": ClassLabel(names=NAMES)} if label is None else {"label": label})
    to_label = {"int64": lambda i: i, "string": lambda i: None if i is None else NAMES[i]}[features["label"].dtype]
    data = Dataset.from_dict({"label": [to_label(i) for i in LABELS]}, features=features)
    for name, values in {"row": list(range(10)), **columns}.items():
        data = data.add_column(name, values)
    return data


def rows(part):
    return list(part["row"])


def forgotten(dataset, request=None, **kwargs):
    parts = split(dataset, request or ForgetRequest(classes=["cat"]), **kwargs)
    assert isinstance(parts, DatasetDict)
    assert sorted(rows(parts["forget"]) + rows(parts["retain"])) == sorted(rows(dataset))
    return rows(parts["forget"])


# --- split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        (None, ["cat"], [0, 4, 7, 9]),
        (None, [1, "cow"], [1, 2, 5, 6]),
        (None, ["7"], [3]),  # a name before it is an id
        (None, ["2"], [2, 6]),  # no such name, so an id
        (Value("int64"), [0], [0, 4, 7, 9]),
        (Value("int64"), ["3", 1], [1, 3, 5]),
        (Value("string"), ["dog", "7"], [1, 3, 5]),
    ],
)
def test_classes_by_name_or_id_for_every_kind_of_label_column(label, classes, expected):
    assert forgotten(animals(label), ForgetRequest(classes=classes)) == expected


@pytest.mark.parametrize("label", [None, Value("int64"), Value("string")])
@pytest.mark.parametrize("allow_empty", [False, True])
def test_unknown_class_is_refused_unless_it_may_merely_be_absent(label, allow_empty):
    request = ForgetRequest(classes=["dgo" if label != Value("int64") else 5])
    if allow_empty and label is not None:
        assert forgotten(animals(label), request, allow_empty=True) == []
        return
    hint = "close matches" if label != Value("int64") else r"such as \['0'"
    with pytest.raises(ValueError, match=rf"unknown class.*holds 4 classes.*{hint}"):
        split(animals(label), request, allow_empty=allow_empty)


@pytest.mark.parametrize("allow_empty", [False, True])
def test_class_of_the_wrong_kind_is_refused(allow_empty):
    with pytest.raises(ValueError, match=r"unknown class 1: 'label' holds 4 classes as string"):
        split(animals(Value("string")), ForgetRequest(classes=[1]), allow_empty=allow_empty)
    with pytest.raises(ValueError, match=r"unknown class 'cat': 'label' holds 4 classes as int64"):
        split(animals(Value("int64")), ForgetRequest(classes=["cat"]), allow_empty=allow_empty)
    with pytest.raises(ValueError, match="unknown class 4"):
        split(animals(), ForgetRequest(classes=[4]), allow_empty=allow_empty)


def test_known_class_without_a_row_is_refused_unless_allowed():
    data = animals().select([0, 1])
    with pytest.raises(ValueError, match=r"1 of the 2 values named for 'label' have no row.*\[2\]"):
        split(data, ForgetRequest(classes=["cat", "cow"]))
    assert forgotten(data, ForgetRequest(classes=["cat", "cow"]), allow_empty=True) == [0]


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ({"column": "age", "in": [3, 5]}, [1, 2]),
        ({"column": "age", "equals": 8}, [3]),
        ({"column": "age", "between": [3, 5]}, [1, 2]),
        ({"column": "weight", "between": [0, 0.5]}, [0, 1]),
        ({"column": "weight", "equals": 2}, [3]),
        ({"column": "site", "in": ["b"]}, [2, 3]),
        ({"column": "site", "between": ["a", "az"]}, [0, 1]),
        ({"column": "blurred", "equals": True}, [1]),
        ({"column": "taken", "between": ["2020-01-02", "2020-01-03"]}, [1, 2]),
    ],
)
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]])
def test_where_filters_match_by_column_type_and_never_a_null(clause, expected, order):
    days = ["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-04", None, "2021-01-01"]
    table = pa.table(
        {
            "row": range(6),
            "age": pa.array([1, 3, 5, 8, None, 9], pa.int8()),
            "weight": pa.array([0.1, 0.5, 1.5, 2.0, None, float("nan")], pa.float32()),
            "site": ["a", "a", "b", "b", None, "c"],
            "blurred": [False, True, False, False, None, False],
            "taken": pa.array(days).cast(pa.date32()),
        }
    )
    assert sorted(forgotten(Dataset(table).select(order), ForgetRequest(where=[clause]))) == expected


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            ForgetRequest(where=[{"column": "age", "equals": "3"}]),
            "column 'age' holds int64, which takes int, but '3'",
        ),
        (ForgetRequest(where=[{"column": "age", "between": [0.5, 3]}]), "takes int, but 0.5 is float"),
        (ForgetRequest(where=[{"column": "age", "equals": True}]), "takes int, but True is bool"),
        (ForgetRequest(where=[{"column": "age", "equals": 2**63}]), "column 'age' holds int64"),
        (ForgetRequest(where=[{"column": "site", "in": ["a", 3]}]), "column 'site' holds string, which takes str"),
        (ForgetRequest(where=[{"column": "tags", "equals": "a"}]), "such a column cannot be matched"),
        (ForgetRequest(ids={"site": [3]}), "column 'site' holds string, which takes str, but 3 is int"),
    ],
)
def test_values_of_another_type_than_the_column_are_refused(request_, message):
    data = Dataset.from_dict({"row": [0, 1], "age": [3, 4], "site": ["a", "b"], "tags": [["a"], []]})
    with pytest.raises(TypeError, match=message):
        split(data, request_)


def test_missing_columns_are_refused_with_the_columns_there_are():
    data = animals()
    for request, kwargs in [
        (ForgetRequest(ids={"nope": [1]}), {}),
        (ForgetRequest(where=[{"column": "nope", "equals": 1}]), {}),
        (ForgetRequest(classes=["cat"]), {"label_column": "nope"}),
        (ForgetRequest(classes=["cat"]), {"id_column": "nope"}),
    ]:
        with pytest.raises(ValueError, match=r"no column 'nope'; its columns are \['label', 'row'\]"):
            split(data, request, **kwargs)


def test_absent_ids_are_refused_unless_allowed():
    request = ForgetRequest(ids={"row": [3, 40, 50]})
    with pytest.raises(ValueError, match=r"2 of the 3 values named for 'row' have no row.*\[40, 50\]"):
        split(animals(), request)
    with pytest.raises(ValueError, match=r"\[3\]"):  # there before the selection, not in it
        split(animals().select([0, 1, 2]), ForgetRequest(ids={"row": [0, 3]}))
    assert forgotten(animals(), request, allow_empty=True) == [3]


@pytest.mark.parametrize("allow_empty", [False, True])
def test_row_outside_the_dataset_is_refused(allow_empty):
    assert forgotten(animals(), ForgetRequest(rows=[0, 9])) == [0, 9]
    with pytest.raises(ValueError, match="row 10 is outside the dataset of 10 rows"):
        split(animals(), ForgetRequest(rows=[0, 10]), allow_empty=allow_empty)


def test_empty_parts_are_refused_unless_allowed():
    nothing, everything = (
        ForgetRequest(where=[{"column": "row", "between": bounds}]) for bounds in ([50, 60], [0, 60])
    )
    with pytest.raises(ValueError, match=r"no row to forget of 10.*lies between 50 and 60"):
        split(animals(), nothing)
    with pytest.raises(ValueError, match="no row is left to retain of 10"):
        split(animals(), everything)
    assert forgotten(animals(), nothing, allow_empty=True) == []
    assert forgotten(animals(), everything, allow_empty=True) == list(range(10))
    assert forgotten(animals().select([]), nothing, allow_empty=True) == []


@pytest.mark.parametrize("wrong", [DatasetDict(train=animals()), animals().to_iterable_dataset(), [{"label": 0}]])
def test_anything_but_one_split_is_refused(wrong):
    with pytest.raises(TypeError, match="pass one split"):
        split(wrong, ForgetRequest(rows=[0]))
    with pytest.raises(TypeError, match="pass one split"):
        find_label_column(wrong)


def test_parts_keep_the_transform():
    parts = split(animals().with_transform(lambda batch: {"seen": batch["row"]}), ForgetRequest(classes=["cow"]))
    assert parts["forget"][:] == {"seen": [2, 6]}
    assert parts["retain"][0] == {"seen": 0}


def test_rows_with_the_id_of_a_forgotten_row_go_too_but_null_is_no_id():
    data = animals(image=["a", "b", "c", "a", None, "e", "b", None, "a", "e"])
    assert forgotten(data, ForgetRequest(rows=[1, 4]), id_column="image") == [1, 4, 6]
    assert forgotten(data, ForgetRequest(classes=["cow"]), id_column="image") == [1, 2, 6]


def test_float_ids_are_refused_because_a_missing_id_would_link_rows():
    with pytest.raises(TypeError, match="id_column 'image' holds double"):
        split(animals(image=[0.5] * 10), ForgetRequest(rows=[0]), id_column="image")


def test_copy_of_a_forgotten_row_in_memory_is_forgotten_without_any_id():
    data = animals()
    twice = concatenate_datasets([data, data]).add_column("new", list(range(20))).shuffle(seed=0)
    assert forgotten(twice, ForgetRequest(rows=[4])) == [rows(twice)[4]] * 2
    assert forgotten(twice, ForgetRequest(ids={"new": [4]})) == [4, 4]
    assert forgotten(data.select([5, 3, 5]), ForgetRequest(rows=[0])) == [5, 5]


STEPS = st.lists(
    st.tuples(st.sampled_from(["select", "range", "shuffle", "twice", "beside"]), st.integers(0, 2**16)), max_size=4
)


def through(data, steps):
    for step, number in steps:
        draw = np.random.default_rng(number)
        size = len(data)
        if step == "select":
            data = data.select(draw.integers(size, size=draw.integers(2, 2 * size)).tolist())
        elif step == "range":
            start = int(draw.integers(size - 1))
            data = data.select(range(start, int(draw.integers(start + 1, size)) + 1))
        elif step == "shuffle":
            data = data.shuffle(seed=number)
        elif step == "twice" and size < 60:
            data = concatenate_datasets([data, data])
        elif step == "beside":
            start = 10 * (max(rows(data)) // 10 + 1)
            others = animals(row=list(range(start, start + 10)), person=list("abcdefghaa"))
            data = concatenate_datasets([others, data])
    return data


@given(
    steps=STEPS,
    classes=st.lists(st.sampled_from(["cat", 1, "cow"]), max_size=2),
    picks=st.lists(st.integers(0, 10**6), max_size=3),
    persons=st.lists(st.sampled_from("abcz"), max_size=2),
    ages=st.none() | st.tuples(st.integers(0, 10), st.integers(0, 10)).map(sorted),
    by_person=st.booleans(),
)
def test_no_forgotten_row_is_ever_in_retain(steps, classes, picks, persons, ages, by_person):
    data = through(animals(person=list("abcdefghaa")), steps)
    if len(data) < 2 or not (classes or picks or persons or ages):
        return
    request = ForgetRequest(
        classes=classes,
        rows=[pick % len(data) for pick in picks],
        ids={"person": persons} if persons else {},
        where=[{"column": "row", "between": ages}] if ages else [],
    )
    id_column = "person" if by_person else None
    parts = split(data, request, id_column=id_column, allow_empty=True)
    forget, retain = rows(parts["forget"]), rows(parts["retain"])

    # By hand: `row` tells which original row it is, whatever was copied, moved or left out since.
    wanted = [{"cat": 0, "cow": 2}.get(entry, entry) for entry in classes]
    hits = [
        example
        for index, example in enumerate(data)
        if example["label"] in wanted
        or index in request.rows
        or example["person"] in persons
        or (ages is not None and ages[0] <= example["row"] <= ages[1])
    ]
    key = "person" if by_person else "row"
    expected = {example[key] for example in hits}
    assert forget == [example["row"] for example in data if example[key] in expected]
    assert not {*forget} & {*retain}
    assert Counter(forget) + Counter(retain) == Counter(rows(data))
    assert shared_rows(parts["forget"], parts["retain"], id_column=id_column) == 0
    assert shared_rows(parts["retain"], parts["forget"]) == 0
    assert shared_rows(data, parts["forget"]) == len(forget)
    assert manifest(data, request, parts, id_column=id_column)["parts"]["forget"]["rows"] == len(forget)


@pytest.fixture
def unreadable():
    """Images that are none, behind a transform and a decoder that both refuse."""
    image = [{"bytes": b"no image", "path": None} for _ in range(6)]
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "id": Value("string")})
    data = Dataset.from_dict({"image": image, "label": [0, 0, 1, 1, 0, 1], "id": list("abcdef")}, features=features)

    def refuse(*_, **__):
        raise AssertionError("an image was read")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "decode_example", refuse)
        with pytest.raises(AssertionError, match="an image was read"):
            data[0]
        yield data.with_transform(refuse)


@pytest.mark.parametrize("shuffled", [False, True])
def test_no_image_is_read_by_split_manifest_overlap_and_labels(unreadable, shuffled):
    data = unreadable.shuffle(seed=1) if shuffled else unreadable
    request = ForgetRequest(["cat"], [0], {"id": ["c"]}, [{"column": "id", "in": ["a"]}])
    parts = split(data, request, id_column="id")
    assert manifest(data, request, parts, id_column="id")["parts"]["forget"]["per_class"]["cat"] == 3
    assert shared_rows(parts["forget"], data) == len(parts["forget"])
    assert shared_rows(parts["forget"], parts["retain"], id_column="id") == 0
    assert label_ids(data, "label", {0: "cat", 1: "dog"}) is None


def test_a_million_shuffled_rows_take_memory_of_the_order_of_the_column():
    size = 1_000_000
    labels = np.random.default_rng(0).integers(10, size=size)
    data = Dataset(pa.table({"label": labels, "row": np.arange(size)})).shuffle(seed=0)
    order = data._indices.column(0).to_numpy()
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    parts = split(data, ForgetRequest(classes=[3], rows=[5]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * labels.nbytes
    assert pa.total_allocated_bytes() - arrow_before < 2 * labels.nbytes
    is_forgotten = labels[order] == 3
    is_forgotten[5] = True
    assert np.array_equal(parts["forget"].with_format("numpy")["row"][:], order[is_forgotten])
    assert len(parts["retain"]) == size - is_forgotten.sum()
    assert shared_rows(parts["forget"], parts["retain"]) == 0
    assert shared_rows(parts["retain"], data) == len(parts["retain"])


# --- manifest ----------------------------------------------------------------------------------------------------


def test_manifest_counts_each_part_and_can_be_recomputed():
    data = animals(image=["é", "b", "c", "a", "e", "f", "g", 'q"', "i", "é"])
    request = ForgetRequest(classes=["cow"], rows=[9])
    parts = split(data, request)
    record = manifest(data, request, parts, name="me/animals")
    assert json.loads(json.dumps(record)) == record
    assert record == {
        "schema_version": 1,
        "dataset": {"name": "me/animals", "fingerprint": data._fingerprint, "rows": 10},
        "request": {"hash": request.content_hash, "summary": request.summary(), "content": request.to_dict()},
        "parts": {
            "forget": {"rows": 3, "per_class": {"cat": 1, "cow": 2}},
            "retain": {"rows": 7, "per_class": {"cat": 3, "dog": 2, "7": 1, "None": 1}},
        },
        "forget_rows_sha256": hashlib.sha256(b"2\n6\n9\n").hexdigest(),
    }
    parts = split(data, request, id_column="image")
    record = manifest(data, request, parts, id_column="image")
    expected = '"c"\n"g"\n"é"\n"é"\n'.encode()  # row 0 carries the id of row 9
    assert record["forget_rows_sha256"] == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("label", [Value("int64"), Value("string")])
def test_manifest_names_classes_of_plain_label_columns(label):
    data, request = animals(label), ForgetRequest(rows=[0, 1])
    record = manifest(data, request, split(data, request))
    assert record["parts"]["forget"]["per_class"] == (
        {"0": 1, "1": 1} if label.dtype == "int64" else {"cat": 1, "dog": 1}
    )


def test_manifest_hash_sorts_numbers_by_value_and_ignores_the_order_of_rows():
    data, request = animals(image=[100, 20, 3, 4, 5, 6, 7, 8, 9, 10]), ForgetRequest(ids={"image": [100, 20, 3]})
    shuffled = data.shuffle(seed=3)
    records = [manifest(d, request, split(d, request), id_column="image") for d in (data, shuffled)]
    expected = hashlib.sha256(b"3\n20\n100\n").hexdigest()
    assert [record["forget_rows_sha256"] for record in records] == [expected, expected]


def test_manifest_refuses_parts_of_another_request():
    data = animals()
    parts = split(data, ForgetRequest(classes=["cat"]))
    with pytest.raises(ValueError, match="split anew"):
        manifest(data, ForgetRequest(classes=["dog"]), parts)


# --- shared rows -------------------------------------------------------------------------------------------------


def test_shared_rows_finds_the_same_arrow_rows_through_every_view(tmp_path):
    data = animals()
    data.save_to_disk(tmp_path)
    for base in (data, datasets.load_from_disk(tmp_path)):
        halves = base.train_test_split(0.4, seed=0)
        assert shared_rows(halves["train"], halves["test"]) == 0
        assert shared_rows(base, halves["test"]) == 4
        assert shared_rows(halves["test"], base) == 4
        assert shared_rows(base.select(range(5)), base.select(range(3, 9)).shuffle(seed=1)) == 2
        assert shared_rows(base.select([1]), base.select([1, 2, 1])) == 2
        joined = concatenate_datasets([halves["test"], halves["train"].select(range(2))])
        assert shared_rows(joined, base.with_transform(lambda batch: batch)) == 6
        assert shared_rows(halves["test"], joined.remove_columns("label")) == 4
        assert shared_rows(base, base.select([])) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_shared_rows_tells_neighbours_in_one_buffer_apart(dtype):
    labels = np.zeros(4000, dtype)
    data = Dataset(pa.table({"label": pa.chunked_array([labels[i : i + 1000] for i in range(0, 4000, 1000)])}))
    assert shared_rows(data.select(range(1500)), data.select(range(1500, 4000))) == 0
    assert shared_rows(data.select(range(1500)), data.select(range(1400, 4000))) == 100


def test_shared_rows_goes_by_id_where_one_is_given():
    first, second = animals(image=list("abcdefghij")), animals(image=[*"xyzabcxyz", None])
    assert shared_rows(first, second) == 0
    assert shared_rows(first, second, id_column="image") == 3
    assert shared_rows(second, second.select([9]), id_column="image") == 0
    with pytest.raises(TypeError, match="holds string in one dataset and int64 in the other"):
        shared_rows(first, animals(image=list(range(10))), id_column="image")


def test_shared_rows_is_zero_where_identity_cannot_be_known():
    data = animals()
    assert shared_rows(data, data.map(lambda _: {"extra": 1})) == 0
    assert shared_rows([{"label": 0}], data) == 0
