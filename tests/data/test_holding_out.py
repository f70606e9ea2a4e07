"""Which training images are held out of an erasure."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from ec_hf import ForgetRequest
from ec_hf.data.holding_out import hold_out

NAMES = ["ant", "bee", "cat"]
FEATURES = Features({"row": Value("int64"), "label": ClassLabel(names=NAMES), "who": Value("string")})


def rows_of(*sizes, who=lambda row: str(row)):
    """So many rows of each class; each knows its own number."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    count = range(len(labels))
    return Dataset.from_dict({"row": count, "label": labels, "who": [who(row) for row in count]}, features=FEATURES)


def sets(found):
    parts = {"trained": found.train, "evaluated": found.evaluated}
    return {(what, side): set(part["row"]) for what, by_side in parts.items() for side, part in by_side.items()}


def test_each_image_is_trained_on_or_held_out_and_never_both():
    found = sets(hold_out(rows_of(100, 50, 30), ForgetRequest(classes=["bee"])))
    assert sum(map(len, found.values())) == 180
    assert set().union(*found.values()) == set(range(180))
    assert found["evaluated", "forget"] < set(range(100, 150))
    assert len(found["evaluated", "forget"]) == 5


def test_what_is_held_out_is_stratified_by_class():
    found = hold_out(rows_of(100, 50, 30), ForgetRequest(classes=["bee"]))
    assert Counter(found.evaluated["retain"]["label"]) == {0: 10, 2: 3}


def test_no_side_holds_out_more_than_the_limit():
    found = hold_out(rows_of(1000, 500, 3000), ForgetRequest(classes=["bee"]), most=40)
    assert {side: len(part) for side, part in found.evaluated.items()} == {"forget": 40, "retain": 40}
    assert Counter(found.evaluated["retain"]["label"]) == {0: 10, 2: 30}


def test_another_request_holds_out_the_same_images():
    data = rows_of(100, 100, 100)
    held = []
    for name in NAMES[:2]:
        found = sets(hold_out(data, ForgetRequest(classes=[name]), seed=3))
        held.append(found["evaluated", "forget"] | found["evaluated", "retain"])
    assert held[0] == held[1]
    other = sets(hold_out(data, ForgetRequest(classes=["ant"]), seed=4))
    assert held[0] != other["evaluated", "forget"] | other["evaluated", "retain"]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (3, 1, 40), (1, 5, 1)])
def test_a_class_always_keeps_images_to_train_on(sizes):
    found = hold_out(rows_of(*sizes), ForgetRequest(classes=["bee"]), share=0.5)
    trained = Counter(label for part in found.train.values() for label in part["label"])
    assert set(trained) == {0, 1, 2}
    assert all(len(part) for part in found.evaluated.values())


def test_where_a_side_has_too_few_images_its_training_images_are_evaluated_and_it_is_said():
    found = hold_out(rows_of(20, 1, 20), ForgetRequest(classes=["bee"]))
    assert found.held_out == {"forget": False, "retain": True}
    assert found.evaluated["forget"]["row"] == found.train["forget"]["row"] == [20]
    assert "1 forget image that it trains on" in found.sentences()[0]


def test_rows_that_are_named_are_all_erased():
    request = ForgetRequest(rows=[0, 1, 2]) | ForgetRequest(ids={"who": ["5"]}) | ForgetRequest(rows=[105])
    found = hold_out(rows_of(100, 50, 30), request)
    assert set(found.train["forget"]["row"]) == {0, 1, 2, 5, 105}
    assert set(found.evaluated["forget"]["row"]) == {0, 1, 2, 5, 105}
    assert found.held_out == {"forget": False, "retain": True, "matched": True}
    assert "as often as other unseen images" in " ".join(found.sentences())


def test_named_rows_are_compared_with_held_out_images_of_their_classes_in_the_same_shares():
    found = hold_out(rows_of(100, 50, 300), ForgetRequest(rows=[0, 1, 2, 100]))
    matched = found.evaluated["matched"]
    assert Counter(matched["label"]) == {0: 10, 1: 3}
    assert set(matched["row"]) <= set(found.evaluated["retain"]["row"])
    assert "no more often than the 13 retain images of the same classes" in " ".join(found.sentences())
    assert found.to_dict()["matched"] == {"images": 13, "held_out": True}


@pytest.mark.parametrize("request_", [ForgetRequest(classes=["bee"]), ForgetRequest(classes=["bee"], rows=[3])])
def test_where_a_class_is_named_nothing_is_matched(request_):
    assert "matched" not in hold_out(rows_of(100, 50, 30), request_).evaluated


def test_where_nothing_is_held_out_rows_are_compared_with_chance():
    found = hold_out(rows_of(100, 50, 30), ForgetRequest(rows=[0]), share=0)
    assert "matched" not in found.evaluated
    assert "no more often than by chance" in " ".join(found.sentences())


def test_rows_that_are_named_beside_a_class_are_erased_and_images_of_the_class_decide():
    request = ForgetRequest(classes=["bee"]) | ForgetRequest(rows=[3, 101, 102])
    for seed in range(20):
        found = hold_out(rows_of(100, 50, 30), request, seed=seed)
        assert {3, 101, 102} <= set(found.train["forget"]["row"])
        assert set(found.evaluated["forget"]["label"]) == {1}


def test_images_of_one_id_are_held_out_together():
    data = rows_of(60, 60, 60, who=lambda row: f"patient {row // 6}")
    found = hold_out(data, ForgetRequest(classes=["bee"]), id_column="who")
    held = {who for part in found.evaluated.values() for who in part["who"]}
    trained = {who for part in found.train.values() for who in part["who"]}
    assert held and not held & trained
    assert len(found.evaluated["retain"]) == 12


def test_images_without_an_id_are_no_copies_of_each_other():
    data = rows_of(60, 60, 60, who=lambda row: None)
    found = hold_out(data, ForgetRequest(classes=["bee"]), id_column="who")
    assert {side: len(part) for side, part in found.evaluated.items()} == {"forget": 6, "retain": 12}


def test_copies_in_memory_are_held_out_together():
    data = rows_of(40, 40, 40)
    found = sets(hold_out(concatenate_datasets([data, data]), ForgetRequest(classes=["bee"])))
    for side in ("forget", "retain"):
        assert not found["evaluated", side] & found["trained", side]


def test_an_id_of_which_a_row_must_be_erased_is_not_held_out():
    data = rows_of(40, 40, 40, who=lambda row: f"{row % 20}")  # each id has rows of every class
    found = hold_out(data, ForgetRequest(classes=["bee"]), id_column="who", share=0.5)
    assert len(found.train["forget"]) == 120 or found.held_out["forget"] is False


def test_what_earlier_requests_named_is_on_neither_side():
    found = sets(
        hold_out(rows_of(40, 40, 40), ForgetRequest(classes=["bee"]), earlier=[ForgetRequest(classes=["ant"])])
    )
    assert set().union(*found.values()) == set(range(40, 120))


def test_nothing_is_held_out_where_the_share_is_0():
    found = sets(hold_out(rows_of(40, 40, 40), ForgetRequest(classes=["bee"]), share=0))
    assert found["trained", "forget"] == found["evaluated", "forget"] == set(range(40, 80))
    assert found["trained", "retain"] == found["evaluated", "retain"] == set(range(40)) | set(range(80, 120))


@pytest.mark.parametrize("share", [-0.1, 0.6, 10])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"expected a share of the training images from 0 to 0\.5"):
        hold_out(rows_of(4, 4, 4), ForgetRequest(classes=["bee"]), share=share)


def test_few_images_that_decide_are_told_with_what_one_of_them_is_worth():
    (_, few) = hold_out(rows_of(100, 50, 30), ForgetRequest(classes=["bee"])).sentences()
    assert few == (
        "Few images decide: one of them is worth 20.0 points of forget accuracy, 7.7 points of retain accuracy."
    )
