"""Classes to forget from a file, or by the luck of a seed."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from ec_hf import ForgetRequest, split
from ec_hf.data.class_lists import RandomClasses, read_class_list


def labelled(values, kind):
    return Dataset.from_dict({"label": values}, features=Features({"label": kind}))


CRANES = labelled(list(range(4)) * 5, ClassLabel(num_classes=4, names=["crane", "Crane", "ant", "bee"]))


def test_a_seed_draws_the_same_classes_and_another_seed_others():
    many = labelled(list(range(50)), Value("int64"))
    drawn = [RandomClasses(10, seed).among(many) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].classes)) == 10


@pytest.mark.parametrize("data", [CRANES, labelled(["b", "a", "c", "a"], Value("string"))])
def test_what_is_drawn_can_be_split_off(data):
    parts = split(data, RandomClasses(2, seed=3).among(data))
    assert len(set(parts["forget"]["label"])) == 2
    assert not {*parts["forget"]["label"]} & {*parts["retain"]["label"]}


@pytest.mark.parametrize(("count", "message"), [(0, "1 or more"), (4, "has 4 classes"), (9, "has 4 classes")])
def test_too_few_or_too_many_classes_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        RandomClasses(count).among(CRANES)


def test_a_list_has_a_name_or_an_id_a_line(tmp_path):
    (tmp_path / "list.txt").write_text("ant\n\n 3 \n")
    request = read_class_list(tmp_path / "list.txt")
    assert request == ForgetRequest(classes=["ant", "3"])
    assert set(split(CRANES, request)["forget"]["label"]) == {2, 3}


def test_what_is_no_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no class list '.*nowhere\.txt'"):
        read_class_list(tmp_path / "nowhere.txt")
    for content in (b"\n \n", b"\xff\xfe\x00"):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.txt is no class list"):
            read_class_list(tmp_path / "bad.txt")
