from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.attacks import images_for, subject_and_images, subject_of
from helpers.models import make_model

from ec_hf.auditing.attacks.new_head import NewHead


def test_a_class_whose_logit_is_hidden_is_found_by_a_new_head():
    model = make_model("ViT")
    with torch.no_grad():
        model.classifier.bias[[1, 3]] = -1e6
    images = images_for(shots=20)
    outcome = NewHead().run(subject_of(model), images)
    assert list(outcome.x) == images.shots == [5, 10, 20]
    assert outcome.hits[-1].mean() > 0.9, "colours tell the classes apart in any network"
    assert np.array_equal(outcome.hits, NewHead().run(subject_of(model), images).hits)


def test_the_old_classifier_makes_no_difference():
    images, model = images_for(), make_model("ResNet")
    before = NewHead().run(subject_of(model), images)
    with torch.no_grad():
        model.classifier[1].weight.normal_()
    assert np.array_equal(before.hits, NewHead().run(subject_of(model), images).hits)


def test_without_features_or_retain_images_there_is_no_new_head():
    subject, images = subject_and_images("ViT")
    with pytest.raises(ValueError, match="no layer whose features"):
        NewHead().run(replace(subject, points=(), classifier=()), images)
    images.retained = images.retained.select([])
    with pytest.raises(ValueError, match="needs retain images"):
        NewHead().run(subject, images)
