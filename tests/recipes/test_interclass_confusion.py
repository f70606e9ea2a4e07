from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import interclass_confusion as recipe


def test_half_of_either_class_gets_the_other_ones_label_and_nothing_else_changes(images):
    mixed, rows = recipe.confused(images, (1, 3), 0.5)
    before, after = np.array(images["label"]), np.array(mixed["label"])
    assert np.flatnonzero(before != after).tolist() == rows
    assert mixed.features == images.features
    for own, other in ((1, 3), (3, 1)):
        changed = [row for row in rows if before[row] == own]
        assert len(changed) == round(0.5 * (before == own).sum()) and set(after[changed]) == {other}
    assert recipe.confused(images, (1, 3), 0.5)[1] == rows


def test_golden_confusion_counts_images_of_the_pair_that_are_taken_for_the_other_one():
    labels, predictions = np.array([1, 1, 3, 3, 3, 0, 2]), np.array([3, 1, 1, 1, 0, 3, 2])
    wrong = recipe.confusion_error(predictions, labels, (1, 3))
    assert wrong.tolist() == [True, False, True, True, False]
    shown = recipe.table({"original": predictions, "retrained": labels}, labels, (1, 3), ["ant", "bee", "cat", "dog"])
    assert "| model | bee taken for dog, or dog for bee | right, of all test images |" in shown
    assert (
        "| original | 60.0 % [23.1, 88.2] | 28.6 % |" in shown
        and "| retrained | 0.0 % [0.0, 43.4] | 100.0 % |" in shown
    )


def test_an_original_confuses_the_pair_and_a_retrained_model_does_not(images, held_out, tmp_path):
    found = recipe.compare(
        images,
        held_out,
        (1, 3),
        tmp_path,
        methods={"fine-tuned": {"objective": "finetune", "points": "none"}},
        training={"architecture": "resnet", "max_steps": 60, "per_device_train_batch_size": 16, "use_cpu": True},
        erasing={"max_steps": 2, "per_device_train_batch_size": 8, "use_cpu": True},
    )
    assert list(found) == ["original", "fine-tuned", "retrained"]
    labels = np.array(held_out["label"])
    errors = {name: recipe.confusion_error(own, labels, (1, 3)).mean() for name, own in found.items()}
    assert errors["original"] > errors["retrained"] + 0.2
    assert errors["retrained"] == pytest.approx(0, abs=0.1)
