"""Small changes of forgotten images, at random and by search."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.models import make_images, make_model, make_processor

from ec_hf import ForgetRequest
from ec_hf.auditing.audit import audit
from ec_hf.auditing.report import AuditReport
from ec_hf.auditing.residual import RADII, named_at_random, named_by_search


def above(threshold):
    """Two classes: 1 where the mean pixel is above a threshold, differentiable."""

    def forward(pixels):
        mean = pixels.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), mean - threshold], dim=1)

    return forward


def gray(*values):
    return torch.stack([torch.full((1, 8, 8), float(value)) for value in values])


def test_golden_search_reaches_as_far_as_the_radius_and_no_further():
    pixels, labels = gray(0.0, 0.0, 0.3), torch.tensor([1, 0, 1])
    assert named_by_search(above(0.1), pixels, labels, 0.11).tolist() == [1, 1, 1]
    assert named_by_search(above(0.1), pixels, labels, 0.09).tolist() == [0, 1, 1]
    assert not pixels.requires_grad and pixels[0].abs().max() == 0


def test_golden_random_changes_name_as_often_as_chance_has_it():
    def first_pixel(pixels):
        return torch.stack([torch.zeros(len(pixels)), pixels[:, 0, 0, 0] - 0.05], dim=1)

    pixels, labels = gray(*[0.0] * 200), torch.ones(200, dtype=torch.int64)
    named = named_at_random(first_pixel, pixels, labels, 0.1, draws=20)
    assert named.mean() == pytest.approx(0.25, abs=0.03)  # uniform in [-0.1, 0.1] is above 0.05 in a quarter of cases
    assert named_at_random(first_pixel, pixels, labels, 0.04).max() == 0
    assert (named_at_random(first_pixel, pixels, labels, 0.1, draws=20) == named).all()


def test_outputs_that_are_not_finite_are_no_answer():
    def broken(pixels):
        return above(0.1)(pixels) + torch.tensor([0.0, math.nan])

    pixels, labels = gray(0.0), torch.tensor([0])
    assert math.isnan(named_at_random(broken, pixels, labels, 0.1)[0])
    assert math.isnan(named_by_search(broken, pixels, labels, 0.1)[0])


@pytest.fixture(scope="module")
def report():
    models = [make_model("ViT", seed=seed) for seed in range(4)]
    return audit(
        models[0],
        models[1],
        retrained=models[2:],
        train=make_images(40),
        test=make_images(25, seed=1),
        request=ForgetRequest(classes=["bee", "dog"]),
        processor=make_processor(),
        embedding=False,
        int8=False,
        residual=True,
    )


def test_an_audit_tells_what_is_named_by_radius_and_model(report):
    found = list(report.find("residual_knowledge"))
    assert len(found) == 2 * len(RADII) * 4
    assert {each.split for each in found} == {"forget_test"} and {each.count for each in found} == {10}
    for model in report.models:
        searched = [
            report.value("residual_knowledge", model=model, note=f"searched changes of up to {r:g}") for r in RADII
        ]
        plain = report.value("accuracy", model=model, split="forget_test")
        assert all(plain <= value <= 1 for value in searched)
    assert AuditReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_each_kind_of_change_is_a_signal(report):
    signals = [signal for signal in report.signals if signal.metric == "residual_knowledge"]
    assert {signal.note for signal in signals} == {"random changes", "searched changes"}
    for signal in signals:
        notes = [f"{signal.note} of up to {radius:g}" for radius in RADII]
        values = [report.value("residual_knowledge", model="original", note=note) for note in notes]
        assert signal.original == pytest.approx(sum(values) / len(values))
    assert "residual" in report.seconds
