from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value

from ec_hf.data.columns import find_image_column, find_label_column, label_ids, matched_by_order

# --- finding columns ---------------------------------------------------------------------------------------------


def dataset_with(**features):
    return Dataset.from_dict({name: [] for name in features}, features=Features(features))


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"x": Value("int64"), "kind": ClassLabel(names=["a"])}, "kind"),
        ({"x": Value("int64"), "label": Value("string")}, "label"),
        ({"x": Value("int64"), "labels": Value("int64")}, "labels"),
    ],
)
def test_label_column_is_found(features, expected):
    assert find_label_column(dataset_with(**features)) == expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"pixel_values": Value("int64"), "image": Image()}, "pixel_values"),
        ({"photo": Image(), "image": Value("int64")}, "photo"),
        ({"img": Value("binary"), "x": Value("int64")}, "img"),
    ],
)
def test_image_column_is_found(features, expected):
    assert find_image_column(dataset_with(**features)) == expected


@pytest.mark.parametrize("find", [find_label_column, find_image_column])
def test_unknown_or_undetectable_column_error_lists_the_columns(find):
    data = dataset_with(x=Value("int64"), y=Value("int64"))
    with pytest.raises(ValueError, match=r"no column 'z'; its columns are \['x', 'y'\]"):
        find(data, "z")
    with pytest.raises(ValueError, match=r"none was found.*\['x', 'y'\]"):
        find(data)
    assert find(data, "y") == "y"


def test_ambiguous_columns_are_named_not_guessed():
    fine, coarse = ClassLabel(names=["a"]), ClassLabel(names=["b"])
    with pytest.raises(ValueError, match=r"several.*\['fine', 'coarse'\]"):
        find_label_column(dataset_with(fine=fine, coarse=coarse))
    with pytest.raises(ValueError, match=r"several.*\['label', 'domain'\]"):
        find_label_column(dataset_with(label=Value("int64"), domain=coarse))
    with pytest.raises(ValueError, match=r"several.*\['left', 'right'\]"):
        find_image_column(dataset_with(left=Image(), right=Image()))


# --- label ids ---------------------------------------------------------------------------------------------------


def labelled(names_or_values):
    if isinstance(names_or_values[0], str):
        return dataset_with(label=ClassLabel(names=names_or_values))
    return Dataset.from_dict({"label": names_or_values[0]})


@pytest.mark.parametrize(
    ("labels", "model", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"], None),
        (["cat", "dog"], ["dog", "fox", "cat"], {0: 2, 1: 0}),
        (["Cat", "dog"], ["DOG", "cat"], {0: 1, 1: 0}),
        (["cat", "Cat"], ["Cat", "cat"], {0: 1, 1: 0}),  # exact before folded
        (["cat", "dog"], ["LABEL_0", "LABEL_1", "LABEL_2"], None),
        (["0", "1"], ["zero", "one"], None),  # no name shared, same size
        ([[0, 2, 2]], ["a", "b", "c"], None),
        ([["dog", "cat"]], ["cat", "dog"], {"cat": 0, "dog": 1}),
        ([["Dog"]], ["cat", "dog"], {"Dog": 1}),
    ],
)
def test_label_values_are_mapped_to_the_models_ids(labels, model, expected):
    id2label = dict(enumerate(model))
    assert label_ids(labelled(labels), "label", id2label) == expected
    assert label_ids(labelled(labels), "label", {str(key): name for key, name in id2label.items()}) == expected


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        (["cat", "dgo"], ["cat", "dog"], r"\['dgo'\].*dataset's \['cat', 'dgo'\].*model's \['cat', 'dog'\]"),
        (["cat", "dog"], ["a", "b", "c"], "share no class"),
        (["a", "b", "c"], ["LABEL_0", "LABEL_1"], "beyond the model's 2 labels"),
        (["crane", "cat"], ["crane", "crane", "cat"], r"\['crane'\] \(1\) stand for no single label"),
        (["cat", "Cat"], ["CAT", "dog"], "do not fit"),
        ([[0, 5]], ["a", "b"], "beyond the model's 2 labels"),
        ([["cat"]], ["LABEL_0"], r"\['cat'\].*id2label"),
        ([["cat"]], ["fox"], r"\['cat'\].*id2label"),
        ([[0, -1]], ["a", "b"], "rows without a label"),
        ([[0, None]], ["a", "b"], "rows without a label"),
    ],
)
def test_labels_that_do_not_fit_the_model_are_refused_with_both_sides(labels, model, message):
    with pytest.raises(ValueError, match=message):
        label_ids(labelled(labels), "label", dict(enumerate(model)))


def test_labels_of_another_type_are_refused():
    with pytest.raises(TypeError, match="ClassLabel, integers or text"):
        label_ids(Dataset.from_dict({"label": [0.5]}), "label", {0: "a"})


def test_classes_that_go_together_by_their_order_alone_are_told():
    data = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["cat", "dog"])}))
    assert matched_by_order(data, "label", {0: "LABEL_0", 1: "LABEL_1"}) == {"LABEL_0": "cat", "LABEL_1": "dog"}
    assert matched_by_order(data, "label", {"0": "Katze", "1": "Hund"}) == {"Katze": "cat", "Hund": "dog"}
    assert matched_by_order(data, "label", {0: "cat", 1: "dog"}) == {}
    assert matched_by_order(data, "label", {0: "dog", 1: "cat"}) == {}
    plain = Dataset.from_dict({"label": [0, 1]})
    assert matched_by_order(plain, "label", {0: "LABEL_0", 1: "LABEL_1"}) == {}
