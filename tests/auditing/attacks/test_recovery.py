from __future__ import annotations

import numpy as np
import pytest
from helpers.attacks import images_for, subject_and_images, subject_of
from helpers.models import make_images, make_model
from torch import nn

from ec_hf.auditing.attacks import base, prompt, relearning
from ec_hf.auditing.attacks.base import Outcome, attack_images
from ec_hf.auditing.attacks.recovery import Attacked
from ec_hf.auditing.attacks.registry import ATTACKS, attacks_of
from ec_hf.auditing.question import question_of
from ec_hf.auditing.settings import AuditSettings
from ec_hf.reporting.labels import ATTACKS as WORDS

EASY = ("ViT", "Swin", "ResNet", "ConvNext", "timm ViT", "timm ResNet")


@pytest.fixture
def small_budget(monkeypatch):
    monkeypatch.setattr(relearning, "STEPS", (0, 1, 2))
    monkeypatch.setattr(prompt, "STEPS", 1)
    monkeypatch.setattr(base, "SHOTS", (2,))


@pytest.mark.parametrize("family", EASY)
def test_every_attack_runs_on_every_family(family, small_budget):
    subject, images = subject_and_images(family)
    for name, attack in ATTACKS.items():
        outcome = attack.run(subject, images)
        assert outcome.hits.shape == (len(outcome.x), len(images.held_out)), name
        assert outcome.unit == attack.unit
        assert 0 <= outcome.areas.mean() <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_equal_models_gives_equal_curves(name, small_budget):
    images = images_for()
    first, second = (ATTACKS[name].run(subject_of(make_model("ViT")), images) for _ in range(2))
    assert np.array_equal(first.hits, second.hits)
    assert np.array_equal(first.areas, second.areas), "the area between them is 0"
    assert first.settings == second.settings


def test_levels_hold_each_other_and_another_is_refused():
    assert attacks_of("none") == {}
    assert set(attacks_of("quick")) == {"relearn_head", "relearn_full", "quantization", "pruning"}
    assert attacks_of("full") == ATTACKS
    with pytest.raises(ValueError, match="expected one of"):
        attacks_of("some")


def test_the_older_flag_asks_for_the_quick_attacks_and_nothing_is_attacked_unasked():
    assert AuditSettings().attacks == "none"
    assert AuditSettings(relearning=True).attacks == "quick"
    assert AuditSettings(relearning=True, attacks="full").attacks == "full"
    with pytest.raises(ValueError, match="attacks='some': expected one of"):
        AuditSettings(attacks="some")


def test_readers_find_words_for_every_attack():
    assert set(WORDS) == set(ATTACKS)


@pytest.mark.parametrize("name", ["relearn_head", "relearn_full", "relearn_lora", "prompt"])
def test_what_learns_by_the_old_classifier_says_so_where_a_class_was_dropped_from_it(name, small_budget):
    subject, images = subject_and_images("ViT")
    subject.model.classifier, subject.model.config.num_labels = nn.Linear(32, 3), 3
    with pytest.raises(ValueError, match="a class whose logit was dropped"):
        ATTACKS[name].run(subject, images)


def test_the_interval_of_an_area_is_over_the_images():
    hits = np.array([[0, 0, 0, 1], [0, 1, 1, 1]], dtype=bool)
    attacked = Attacked("pruning", "ours", "forget_test", Outcome((0.1, 0.5), hits, "sparsity", {}))
    area, curve = attacked.area(0), attacked.curve(0)
    assert attacked.outcome.areas.tolist() == [0, 0.5, 0.5, 1]
    assert area.value == 0.5 and 0 <= area.low < 0.5 < area.high <= 1 and area.note == "pruning"
    assert curve.accuracy == [0.25, 0.75]
    assert all(low < value < high for low, value, high in zip(curve.low, curve.accuracy, curve.high, strict=True))


def question(splits, **settings):
    labels = {name: np.array(part["label"]) for name, part in splits.items()}
    return question_of({}, splits, labels, ["ant", "bee", "cat", "dog", "elk"], AuditSettings(**settings))


def parts(train, test, forgotten):
    """The four splits by a rule for what is forgotten, of rows by number and label."""
    splits = {}
    for name, data in (("train", train), ("test", test)):
        gone = [row for row, label in enumerate(data["label"]) if forgotten(name, row, label)]
        splits[f"forget_{name}"] = data.select(gone)
        splits[f"retain_{name}"] = data.select(sorted(set(range(len(data))) - set(gone)))
    return splits


def test_of_whole_classes_the_test_images_are_asked_about():
    splits = parts(make_images(50), make_images(25, seed=1), lambda _name, _row, label: label in (1, 3))
    images = attack_images(question(splits))
    assert images.split == "forget_test" and len(images.held_out) == 10
    assert len(images.forgotten) == 20 and images.shots == [5, 10]
    few = images.of_each_class(5)
    assert [row["label"] in (1, 3) for row in few] == [True] * 10 + [False] * 12, "4 of each of 3 classes beside 10"


def test_of_rows_at_most_half_of_each_class_is_learnt_from_and_the_others_are_asked_about():
    train = make_images(50).map(lambda _row, number: {"row": number}, with_indices=True)
    splits = parts(train, make_images(10, seed=1), lambda name, row, _label: name == "train" and row < 30)
    images = attack_images(question(splits))
    learnt, asked = (set(part["row"]) for part in (images.forgotten, images.held_out))
    assert images.split == "forget_train"
    assert learnt.isdisjoint(asked) and learnt | asked == set(range(30)) and len(learnt) == 15
    assert set(images.retained["row"]).isdisjoint(range(30))


def test_there_are_no_images_where_nothing_is_left_to_ask_about():
    splits = parts(make_images(50), make_images(10, seed=1), lambda name, row, _label: name == "train" and row < 1)
    assert attack_images(question(splits)) is None
