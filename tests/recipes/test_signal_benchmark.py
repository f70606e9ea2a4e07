from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ec_hf.auditing.report import AuditReport, Signal

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "benchmarks"))
import signals as recipe


def signal(metric, effect, layer=None, tells=True, model="ours", note=None):
    position = 1.0 if tells else None
    status = "as retrained" if tells else "blind"
    return Signal(metric, model, "forget_test", layer, 0.5, 0.9, [0.5], position, None, None, status, 9, note, effect)


def report(name, *signals):
    return AuditReport(signals=list(signals), dataset={"name": name})


def test_golden_table_has_the_strongest_signal_first_and_the_median_over_layers(tmp_path, capsys):
    first = report(
        "digits",
        signal("knn", 2.0, "hidden_states.0", tells=False),
        signal("knn", 4.0, "hidden_states.1"),
        signal("knn", 9.0, "penultimate"),
        signal("knn", 11.0, "penultimate", model="theirs"),
        signal("accuracy", 20.0),
    )
    second = report(
        "drawings", signal("knn", 1.0, "hidden_states.0", tells=False), signal("relearning_area", 7.0, note="head")
    )
    for number, each in enumerate((first, second)):
        each.save(tmp_path / f"{number}.json")
    recipe.main([str(tmp_path / "0.json"), str(tmp_path / "1.json")])
    assert capsys.readouterr().out.splitlines()[:5] == [
        "| signal | digits | drawings | median effect | tells in |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| accuracy, forget test | 20.0 (1 of 1) | — | 20.0 | 1 of 1 |",
        "| relearning area, forget test, head | — | 7.0 (1 of 1) | 7.0 | 1 of 1 |",
        "| k-NN, forget test | 4.0 (2 of 3) | 1.0 (0 of 1) | 3.0 | 2 of 4 |",
    ]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (report("digits"), "has no signals: audit again with a retrained model"),
        (report("digits", replace(signal("knn", 1.0), effect=None)), "no effect size: audit again"),
    ],
)
def test_audits_that_say_nothing_of_signals_are_refused_by_name(made, message, tmp_path):
    made.save(tmp_path / "audit.json")
    with pytest.raises(SystemExit, match=rf"audit\.json: .*{message}"):
        recipe.main([str(tmp_path / "audit.json")])
