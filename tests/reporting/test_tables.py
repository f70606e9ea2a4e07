from __future__ import annotations

import io
from dataclasses import replace

import pytest
from helpers.reports import SEVERAL, make_report
from rich.console import Console

from ec_hf import AuditReport
from ec_hf.auditing.report import STATUSES, Measurement, ModelInfo, Signal
from ec_hf.metrics import METRICS
from ec_hf.reporting.labels import SHORT, arrow, value_text
from ec_hf.reporting.tables import (
    attack_table,
    layer_tables,
    main_table,
    output_table,
    signal_tables,
    tables,
    to_markdown,
    to_rich,
)


def cells(markdown: str, label: str) -> list[str]:
    """The cells of the first row with this label."""
    line = next(line for line in markdown.split("\n") if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def shown(report: AuditReport, width: int, **kwargs) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(to_rich(report, **kwargs))
    return console.file.getvalue()


def test_main_table_has_a_column_a_model_directions_intervals_and_chance():
    text = to_markdown(make_report())
    assert text.startswith(
        "### In short\n\n|  | original | unlearned | delete | retrained | random weights | chance |\n"
    )
    assert cells(text, "accuracy, forget test ↓")[:2] == ["95.3 % [94.1, 96.5]", "0.0 % [0.0, 1.2]"]
    assert cells(text, "accuracy, retain test ↑")[-1] == "10.0 %"
    row = cells(text, "CKA to original, forget test, hidden_states.9 ↓")
    assert row[0] == "—", "nothing is compared with itself"
    assert row[2] == "0.88 [0.86, 0.90]"
    assert "≈ nearer the retrained model" in text


def test_every_measurement_is_in_a_table_of_its_own_kind():
    report = make_report()
    chosen, models = [attack_table(report), output_table(report), *layer_tables(report)], len(report.models)
    values = sum(value != "—" for table in chosen for row in table.rows for value in row.values[:models])
    assert values == len(report.measurements)
    assert {row.label for row in layer_tables(report)[0].rows} == {*report.layers, "logits"}
    assert [row.label for row in layer_tables(report)[0].rows] == [*report.layers, "logits"], "shallow to deep"


def test_measurements_that_differ_by_their_note_have_rows_of_their_own():
    labels = [row.label for row in attack_table(make_report()).rows]
    assert "classifier fine-tuned, by steps" in labels and "all weights fine-tuned, by steps" in labels


def test_a_number_that_is_not_defined_is_a_dash_with_its_reason_below():
    report = make_report(("original", "unlearned"))
    note = "fewer than four images"
    rows = [
        replace(row, value=None, low=None, high=None, note=note)
        if row.metric == "linear_cka" and row.layer == "hidden_states.5" and row.split == "forget_test"
        else row
        for row in report.measurements
    ]
    table = next(t for t in layer_tables(replace(report, measurements=rows)) if t.metric == "linear_cka")
    assert table.rows[5].values == ["—", "—"]
    assert table.notes == [f"hidden_states.5, unlearned: {note}"]
    assert note in to_markdown(replace(report, measurements=rows))


def test_markdown_survives_names_with_its_own_signs():
    models = {"a|b": ModelInfo("ViT", 1, "unlearned")}
    report = AuditReport(models=models, measurements=[Measurement("accuracy", "a|b", 0.5, split="retain_test")])
    lines = to_markdown(report).split("\n")
    assert lines[2] == "|  | a\\|b |"
    assert lines[4] == "| accuracy, retain test ↑ | 50.0 % |"


def test_forgotten_rows_are_read_on_the_training_split():
    report = make_report(("original", "unlearned"))
    report = replace(report, measurements=[row for row in report.measurements if row.split != "forget_test"])
    assert "accuracy, forget train ↓" in [row.label for row in main_table(report).rows]


@pytest.mark.parametrize(
    ("metric", "split", "reference", "sign"),
    [
        ("accuracy", "forget_test", None, "↓"),
        ("accuracy", "retain_test", None, "↑"),
        ("linear_cka", "forget_test", "original", "↓"),
        ("linear_cka", "forget_test", "retrained", "↑"),
        ("linear_probe", "forget_test", None, "≈"),
        ("tug_of_war", None, "retrained", "↑"),
        ("cka_floor", "forget_test", None, ""),
        ("unheard of", None, None, ""),
    ],
)
def test_arrows_say_which_way_is_better(metric, split, reference, sign):
    assert arrow(metric, split, reference) == sign


def test_of_forgotten_rows_of_kept_classes_nothing_is_to_be_low():
    assert (
        arrow("accuracy", "forget_train", rows=True)
        == arrow("linear_cka", "forget_train", "original", rows=True)
        == "≈"
    )
    assert arrow("accuracy", "retain_test", rows=True) == "↑"
    assert arrow("linear_cka", "forget_train", "retrained", rows=True) == "↑"
    report = make_report()
    report.request["classes"] = []
    assert "accuracy, forget train ≈" in to_markdown(report) and "accuracy, forget test ↓" in to_markdown(
        make_report()
    )


def test_short_names_are_of_known_metrics_and_all_differ():
    assert set(SHORT) <= set(METRICS)
    names = [SHORT.get(key, METRICS[key].title) for key in METRICS]
    assert len(set(names)) == len(names)


def test_values_are_shares_or_two_decimals_without_a_negative_zero():
    assert value_text("accuracy", 0.0312) == "3.1 %"
    assert value_text("linear_cka", -0.001) == "0.00" and value_text("linear_cka", -0.25) == "-0.25"
    assert value_text("accuracy", None) == "—"


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_shows_every_column_and_intervals_where_there_is_room(width):
    text = shown(make_report(), width)
    assert all(len(line) <= width for line in text.split("\n"))
    header = text.split("\n")[1]
    assert "original" in header and "chance" in header
    assert ("95.3 % [94.1, 96.5]" in text) == (width == 200)
    assert "linear probe, forget test" in text and "retain test (chance" not in text
    assert "k-NN, retain test" in shown(make_report(), width, full=True)


def test_each_unlearned_model_has_a_table_of_its_signals_the_worst_first():
    report = make_report()
    of_first, of_second = signal_tables(report)
    assert [table.title for table in (of_first, of_second)] == [
        "Signals, the worst first: unlearned",
        "Signals, the worst first: delete",
    ]
    assert of_second.heads == ["original", "this model", "retrained", "position", "status"]
    statuses = [row.values[-1] for row in of_second.rows]
    assert statuses == sorted(statuses, key=STATUSES.index) and len(set(statuses)) > 2
    assert len(of_second.rows) == sum(each.model == "delete" for each in report.signals)
    row = next(row for row in of_second.rows if row.label == "k-NN, forget test, hidden_states.9")
    assert row.values[:3] == ["94.0 %", row.values[1], "54.9 %"] and row.values[-1] == "untouched"
    assert row.intervals[3].startswith("[")
    assert "untouched" in of_second.notes[0] and of_second.notes[0].startswith(f"{len(statuses)} signals: ")
    assert signal_tables(make_report(("original", "unlearned", "random_init"))) == []


def test_terminal_shows_the_worst_signals_and_counts_the_others():
    text = shown(make_report(), 120)
    section = text.split("Signals, the worst first: delete")[1].split("Position: 0")[0]
    assert section.count("untouched") == 5 + 1
    assert "are not shown here" in " ".join(section.split())
    assert "are not shown here" not in shown(make_report(), 120, full=True)


def test_many_retrained_models_share_a_column_of_means_and_ranges():
    report = make_report(SEVERAL)
    main = main_table(report)
    assert main.heads == ["original", "unlearned", "delete", "retrained (mean of 3)", "random weights"]
    assert main.notes[-1] == "retrained (mean of 3): in brackets the range of these models"
    where = {"split": "forget_test", "layer": "hidden_states.9"}
    values = [report.value("linear_probe", model=f"retrained {k}", **where) for k in (1, 2, 3)]
    row = next(row for row in main.rows if row.label.startswith("linear probe"))
    assert row.values[3] == value_text("linear_probe", sum(values) / 3)
    assert row.intervals[3] == f"[{100 * min(values):.1f}, {100 * max(values):.1f}]"
    assert any(row.label.startswith("CKA to retrained (mean of 3)") and row.label.endswith("↑") for row in main.rows)
    idi = next(row for row in main.rows if row.label.startswith("IDI"))
    assert idi.intervals[1] == "[0.00, 0.10]", "a number that is one stays as it is"
    labels = [(table.title, row.label) for table in tables(report) for row in table.rows]
    assert len(set(labels)) == len(labels), "a number stands once"
    two = main_table(make_report(("original", "unlearned", "retrained 1", "retrained 2")))
    assert two.heads == ["original", "unlearned", "retrained 1", "retrained 2"]
    assert sum(row.label.startswith("CKA to retrained,") for row in two.rows) == 1
    spread = next(
        row for row in signal_tables(report)[0].rows if row.label == "linear probe, forget test, hidden_states.9"
    )
    assert spread.intervals[2] == f"[{100 * min(values):.1f}, {100 * max(values):.1f}]"


def test_signals_of_one_metric_are_told_apart_by_their_notes():
    report = make_report(("original", "unlearned", "retrained"))
    area = Signal("attack_area", "unlearned", "forget_test", None, 0.5, 0.9, [0.4], 0.8, 0.7, 0.9, "under-erased", 9)
    report.signals[:] = [replace(area, note=mode) for mode in ("relearn_head", "relearn_full")]
    labels = [row.label for row in signal_tables(report)[0].rows]
    assert labels == [
        "under attack, forget test, classifier fine-tuned, by steps",
        "under attack, forget test, all weights fine-tuned, by steps",
    ]


def test_the_penultimate_layer_has_a_row_before_the_logits():
    report = make_report(("original", "unlearned"), layers=2)
    report.measurements += [replace(row, layer="penultimate") for row in report.measurements if row.layer == "logits"]
    assert [row.label for row in layer_tables(report)[0].rows][-2:] == ["penultimate", "logits"]


def test_names_cannot_bring_html_into_a_table():
    name = "<img src=x>"
    report = AuditReport(models={name: ModelInfo("ViT", 1, "unlearned")})
    report.measurements.append(Measurement("accuracy", name, 0.5, split="retain_test", note="a <b>note</b>"))
    assert "<" not in to_markdown(report).replace("&lt;", "")


def test_reports_without_numbers_say_so():
    assert to_markdown(AuditReport()) == ""
    assert "no measurement" in shown(AuditReport(), 80)


def test_the_areas_between_curves_stand_beside_the_areas():
    report = make_report(("original", "unlearned", "retrained"))
    table = attack_table(report)
    assert table.heads == [*report.models, "original - retrained", "unlearned - retrained"]
    for row in table.rows:
        original, unlearned, retrained = (float(value.split()[0]) for value in row.values[:3])
        assert [float(gap) for gap in row.values[3:]] == pytest.approx(
            [original - retrained, unlearned - retrained], abs=0.11
        )
    assert "held-out forget images" in table.notes[0]
    assert attack_table(make_report(("original", "unlearned"))).heads == ["original", "unlearned"]
    assert attack_table(replace(report, measurements=[])).rows == []
