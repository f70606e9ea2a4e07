"""From measurements to signals, and from signals to the status of a model."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from ec_hf.auditing.compared import Compared
from ec_hf.auditing.report import STATUSES, Signal, overall
from ec_hf.auditing.signals import FAMILY_ALPHA, signals_of
from ec_hf.metrics.training_noise import Noise


def signal(status, layer="hidden_states.1", model="ours"):
    return Signal("knn", model, "forget_test", layer, 0.5, 0.9, [0.5], None, None, None, status, 100)


def measured(metric="knn", layer="hidden_states.1", count=300, noise=None, **values):
    """A measurement of hits that do not depend on each other between models."""
    shares = np.array(list(values.values()))
    return Compared(metric, "forget_test", layer, values, np.diag(shares * (1 - shares)) / count, count, noise=noise)


@pytest.mark.parametrize("seed", range(20))
def test_the_status_of_a_model_is_never_better_than_its_worst_signal(seed):
    draw = random.Random(seed)
    statuses = draw.choices(STATUSES, k=draw.randint(1, 6))
    found = overall(signal(status) for status in statuses)
    assert STATUSES.index(found) <= min(map(STATUSES.index, statuses))


def test_blind_signals_are_no_finding_and_nothing_but_blind_ones_is_blind():
    assert overall([signal("blind"), signal("over-erased")]) == "over-erased"
    assert overall([signal("blind"), signal("as retrained")]) == "as retrained"
    assert overall([signal("blind"), signal("blind", layer=None)]) == "blind"
    assert overall([]) is None


def test_an_output_as_retrained_is_no_all_clear_where_no_layer_tells_anything():
    output = signal("as retrained", layer=None)
    assert overall([output, signal("blind"), signal("blind", "logits")]) == "unclear"
    assert overall([output]) == "unclear"
    assert overall([output, signal("blind"), signal("as retrained", "logits")]) == "unclear"
    assert overall([signal("over-erased", layer=None), signal("blind")]) == "unclear"
    assert overall([output, signal("blind"), signal("as retrained")]) == "as retrained"


def test_more_signals_of_a_model_ask_more_of_each():
    row = measured(original=0.8, ours=0.7, retrained=0.5)
    few, many = (signals_of([row] * count, ["ours"], ["retrained"]) for count in (1, 50))
    assert 0 < FAMILY_ALPHA < 1
    assert many[0].low < few[0].low < few[0].high < many[0].high


def test_the_spread_of_retrained_models_widens_the_interval():
    near, far = (
        measured(original=0.9, ours=0.6, **{f"retrained {k}": 0.5 + step * k for k in (1, 2, 3)})
        for step in (0.001, 0.03)
    )
    names = ["retrained 1", "retrained 2", "retrained 3"]
    close, wide = (signals_of([row] * 3, ["ours"], names)[0] for row in (near, far))
    assert close.high - close.low < wide.high - wide.low
    assert wide.retrained == pytest.approx([0.53, 0.56, 0.59])


def test_noise_of_one_retrained_model_is_that_of_its_kind_or_in_proportion_to_others():
    rows = [
        measured(original=0.9, ours=0.7, retrained=0.5, noise=Noise(0.01, 10)),
        measured("attack_area", None, original=0.9, ours=0.7, retrained=0.5),
    ]
    noisy, quiet = signals_of(rows, ["ours"], ["retrained"]), signals_of(rows[1:], ["ours"], ["retrained"])
    assert noisy[0].high == pytest.approx(noisy[1].high)
    assert quiet[0].high < noisy[1].high


def test_a_model_that_was_not_measured_has_no_signal():
    rows = [measured(original=0.9, retrained=0.5), measured(original=0.9, ours=0.9, retrained=0.5)]
    assert [each.status for each in signals_of(rows, ["ours"], ["retrained"])] == ["untouched"]


def test_layers_that_are_one_are_counted_once():
    def rows(layer, likeness):
        values = {"original": 1.0, "ours": likeness, "retrained": 0.5}
        return [
            replace(measured(original=0.8, ours=0.7, retrained=0.5), layer=layer),
            replace(measured(original=0.8, ours=0.7, retrained=0.5), metric="linear_cka", layer=layer, values=values),
        ]

    once = signals_of(rows("hidden_states.3", 0.75) + rows("penultimate", 0.75), ["ours"], ["retrained"])
    assert {signal.layer for signal in once} == {"penultimate"}
    both = signals_of(rows("hidden_states.3", 0.75) + rows("penultimate", 0.7), ["ours"], ["retrained"])
    assert {signal.layer for signal in both} == {"hidden_states.3", "penultimate"}


def test_losses_that_are_unusually_high_tell_members_as_well_as_low_ones():
    row = measured("mia_loss", layer=None, original=0.65, ours=0.1, retrained=0.5)
    (found,) = signals_of([row], ["ours"], ["retrained"])
    assert found.status == "under-erased" and found.note == "by losses that are unusually high"
