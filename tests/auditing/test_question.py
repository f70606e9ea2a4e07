from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from ec_hf.auditing.question import checked_splits, drawn_evenly, kept_rows, question_of
from ec_hf.auditing.report import ModelInfo
from ec_hf.auditing.settings import AuditSettings

NAMES = ["ant", "bee", "cat", "dog"]
LABELS = {
    "forget_train": [1] * 40,
    "retain_train": [0, 2, 3] * 40,
    "forget_test": [1] * 10,
    "retain_test": [0, 2, 3] * 10,
}


def ask(labels=LABELS, *, floor="retrained", **settings):
    roles = {"original": "original", "ours": "unlearned", floor: "retrained" if floor == "retrained" else "floor"}
    models = {name: ModelInfo("ViT", 1, role) for name, role in roles.items()}
    splits = {name: Dataset.from_dict({"label": ids}) for name, ids in labels.items()}
    ids = {name: np.array(values, dtype=int) for name, values in labels.items()}
    return question_of(models, splits, ids, NAMES, AuditSettings(**settings))


def test_a_class_is_forgotten_as_a_whole_where_no_split_retains_it():
    assert ask().whole_classes == [1]
    assert ask({**LABELS, "retain_test": [0, 1]}).whole_classes == []
    assert ask({**LABELS, "forget_test": [1, 3]}).whole_classes == [1]


def test_the_retrained_model_is_a_reference_and_random_weights_are_a_floor():
    with_retrained, without = ask(), ask(floor="random_init")
    assert (with_retrained.references, with_retrained.floor) == (["original", "retrained"], ["retrained"])
    assert (without.references, without.floor) == (["original"], ["random_init"])
    assert with_retrained.trained == ["original", "ours", "retrained"]
    assert without.trained == ["original", "ours"]
    assert with_retrained.unlearned == without.unlearned == ["ours"]


def test_a_part_of_the_images_keeps_their_labels_and_their_place_among_those_that_were_given():
    question = ask(max_images=6)
    for name, part in question.splits.items():
        assert part["label"][:] == question.labels[name].tolist()
        assert len(part) == 6
    given = LABELS["forget_test"] + LABELS["retain_test"]
    for name, rows in question.test_rows.items():
        assert [given[row] for row in rows] == question.labels[name].tolist()


def test_forgotten_classes_keep_the_features_of_more_images(monkeypatch):
    monkeypatch.setattr("ec_hf.auditing.question.FORGET_SAMPLE", 30)
    kept = kept_rows(ask(train_sample=24, test_sample=8))
    assert {name: len(rows) for name, rows in kept.items()} == {
        "forget_train": 30,
        "retain_train": 3 * 6,
        "forget_test": 10,  # all there are
        "retain_test": 3 * 5,  # at least five of a class
    }


def test_so_many_rows_are_drawn_of_all_classes_alike_or_all_rows():
    labels = np.repeat([0, 1, 2], [50, 10, 1])
    assert np.bincount(labels[drawn_evenly(12, labels, 0)]).tolist() == [4, 4, 1]
    assert drawn_evenly(None, labels, 0).tolist() == list(range(61))
    assert drawn_evenly(12, labels[:0], 0).tolist() == []


def test_a_split_that_is_no_dataset_is_refused():
    with pytest.raises(TypeError, match=r"forget_test is a list; expected a datasets\.Dataset"):
        checked_splits(None, None, None, {"forget_test": [1, 2]})
