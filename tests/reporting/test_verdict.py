from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.reports import MODELS, SEVERAL, make_report, make_signal, with_signals
from hypothesis import given
from hypothesis import strategies as st

from ec_hf import AuditReport
from ec_hf.auditing.report import STATUSES, Measurement, ModelInfo, RetainedClass, Signal
from ec_hf.reporting.findings import Finding, by_model
from ec_hf.reporting.verdict import findings, headline

ALONE = ("original", "unlearned", "random_init")
ALL_CLEAR = re.compile(r"(?<!not )(?<!may be )forgotten")


def report_of(models=("original", "unlearned", "retrained", "random_init"), **kwargs) -> AuditReport:
    return make_report(models, **kwargs)


def alone(**kwargs) -> AuditReport:
    return make_report(ALONE, **kwargs)


def change(report: AuditReport, metric: str, function, model: str = "unlearned", **wanted) -> AuditReport:
    """The report with other values of one metric of one model: `function(value, depth)`, depth from 0 to 1."""
    layers = [*report.layers, "logits"]
    chosen = list(report.find(metric, model=model, **wanted))
    rows = []
    for row in report.measurements:
        if row in chosen:
            depth = layers.index(row.layer) / (len(layers) - 1) if row.layer else 1.0
            value = function(row.value, depth)
            half = (row.high - row.low) / 2 if row.high is not None else None
            ends = {} if half is None else {"low": value - half, "high": value + half}
            row = replace(row, value=value, **ends)
        rows.append(row)
    return with_signals(replace(report, measurements=rows))


def without(report: AuditReport, *metrics: str) -> AuditReport:
    return with_signals(
        replace(report, measurements=[row for row in report.measurements if row.metric not in metrics])
    )


def verdict(report: AuditReport) -> list[str]:
    """What a terminal shows."""
    return [str(finding) for finding in findings(report)]


def found(report: AuditReport, topic: str, model: str = "unlearned") -> Finding | None:
    """The finding on a topic, where there is one."""
    return next((each for each in findings(report) if each.topic == topic and each.model in (model, None)), None)


def text_of(report: AuditReport) -> str:
    return "\n".join(verdict(report))


def as_model(report: AuditReport, other: str) -> AuditReport:
    """The unlearned model is another one of the report."""
    rows = []
    for row in report.measurements:
        if row.model == "unlearned":
            where = {"split": row.split, "layer": row.layer, "reference": row.reference, "note": row.note}
            same = next(report.find(row.metric, model=other, **where), None)
            itself = replace(row, value=1.0, low=1.0, high=1.0) if row.reference == other else None
            row = replace(same, model="unlearned") if same else itself or row
        rows.append(row)
    curves = [replace(c, model="unlearned") for c in report.attacks if c.model == other]
    curves += [c for c in report.attacks if c.model != "unlearned"]
    return with_signals(replace(report, measurements=rows, attacks=curves))


def superficial(report: AuditReport) -> AuditReport:
    """Its output has forgotten, its layers have not."""
    report = change(report, "linear_cka", lambda v, d: 0.99 - 0.1 * d, reference="original")
    return change(report, "linear_probe", lambda v, d: min(0.45 + 0.55 * d, 0.95), split="forget_test")


def judged(*rows: tuple, retrained: int = 1) -> AuditReport:
    """A report of signals alone: metric, layer, original, this model, each retrained, half the width."""
    info = ModelInfo("ViT", 1, "unlearned")
    names = [f"retrained {k + 1}" for k in range(retrained)] if retrained > 1 else ["retrained"]
    models = {"original": replace(info, role="original"), "unlearned": info}
    models |= {name: replace(info, role="retrained") for name in names}
    signals = []
    for metric, layer, original, mine, targets, half in rows:
        split = "forget_train" if metric.startswith("mia") else "forget_test"
        row = Measurement(
            metric, "unlearned", mine, split=split, layer=layer, low=mine - half, high=mine + half, count=1000
        )
        signals.append(make_signal(row, original, targets if isinstance(targets, list) else [targets]))
    worst = min((each.status for each in signals), key=STATUSES.index)
    return AuditReport(models=models, layers=["hidden_states.4"], signals=signals, status={"unlearned": worst})


# With a retrained model: the signals decide


def test_the_original_itself_has_not_forgotten():
    first, *rest = verdict(as_model(report_of(), "original"))
    assert re.match(
        r"unlearned: not forgotten: on all 3\d signals that can tell more is left than retraining leaves", first
    )
    assert "(as much as before), worst: " in first
    assert any(
        "right for 95.8 % of the forget train images; the original 95.8 %, retrained 0.5 %: " in x for x in rest
    )
    assert found(as_model(report_of(), "original"), "summary").kind == "untouched"


def test_a_retrained_model_itself_is_as_retrained():
    summary = found(as_model(report_of(), "retrained"), "summary")
    assert summary.kind == "as retrained"
    assert re.match(r"forgotten, as far as this audit can see: on all 3\d signals that can tell it is", summary.text)


def test_fine_tuning_that_lowers_the_accuracy_alone_is_no_forgetting():
    report = change(as_model(report_of(), "original"), "accuracy", lambda v, d: 0.433, split="forget_test")
    lines = verdict(report)
    assert lines[0].startswith("unlearned: not forgotten: ")
    assert "finds the class of" in text_of(report) and found(report, "probe").kind == "untouched"


def test_superficial_forgetting_is_called_so():
    lines = verdict(superficial(report_of()))
    assert lines[0].startswith("unlearned: not forgotten, though its answers do not show it: on ")
    for topic, kind in (("scores", "untouched"), ("layers", "untouched"), ("output", "as retrained")):
        assert found(superficial(report_of()), topic).kind == kind


def test_one_retrained_model_is_said_to_be_one():
    (summary,) = (each for each in findings(report_of()) if each.topic == "summary")
    assert "it is where one retrained model is, and another retraining was not looked at" in summary.text
    assert summary.text.endswith("; the rest is intact on average.")


def test_several_retrained_models_are_a_spread():
    report = make_report(SEVERAL)
    summary = found(report, "summary")
    assert re.search(r"on all 3\d signals that can tell it is within the spread of 3 retrained models", summary.text)
    assert re.search(r"retrained 5\d\.\d % to 5\d\.\d %: as retrained", found(report, "probe").text)
    assert "The 3 retrained models" in found(report, "references").text


def test_over_erasure_is_called_so_by_name_layer_and_numbers():
    report = change(report_of(), "knn", lambda v, d: 0.33, split="forget_test", layer="hidden_states.9")
    first = verdict(report)[0]
    assert re.match(r"unlearned: forgotten, and more was erased than retraining would: on 1 of the 3\d signals", first)
    assert "33.0 % of the forget test images (k-NN) at hidden_states.9 (original 94.0 %, retrained 55.0 %" in first


def test_what_is_under_erased_and_over_erased_at_once_is_said_to_be_both():
    report = change(superficial(report_of()), "knn", lambda v, d: 0.33, split="forget_test", layer="hidden_states.9")
    first = verdict(report)[0]
    assert first.startswith("unlearned: not forgotten")
    assert re.search(
        r"; on 1 of the 3\d signals that can tell less is left than retraining leaves, the nearest", first
    )


def test_too_few_images_to_tell_is_no_all_clear():
    report = judged(("linear_probe", "hidden_states.4", 0.9, 0.7, 0.5, 0.1), ("knn", "logits", 0.9, 0.5, 0.5, 0.05))
    wide = replace(report.signals[0], low=-0.2, high=1.3, status="unclear")
    summary = found(replace(report, signals=[wide, report.signals[1]], status={"unlearned": "unclear"}), "summary")
    assert summary.kind == "unclear"
    assert summary.text.startswith(
        "may be forgotten: too few images to tell on 1 of the 2 signals that can tell, a new"
    )


def test_signals_that_are_all_blind_tell_nothing():
    summary = found(judged(("knn", "logits", 0.5, 0.5, 0.49, 0.05)), "summary")
    assert summary.kind == "blind"
    assert summary.text.startswith("cannot be told on these images: none of the 1 signals tells")


def test_signals_that_are_blind_are_named_with_their_layers():
    line = found(report_of(), "blind metrics").text
    assert line.startswith("These signals do not tell the original from a retrained model")
    assert "membership by loss (AUC) (forget train)" in line
    assert "linear probe (forget test) at hidden_states.0, hidden_states.1" in line
    assert "accuracy" not in line, "it does tell them apart"


def test_several_models_are_told_apart_and_put_in_order():
    text = text_of(make_report())
    assert "delete: not forgotten, though its answers do not show it" in text
    assert "unlearned: forgotten, as far as this audit can see" in text
    assert re.search(r"nearest to retraining: unlearned \(0\.0\d\), then delete \(0\.8\d\)", text)


def test_the_quickdraw_run_is_not_forgotten_and_no_line_says_otherwise():
    report = judged(
        ("accuracy", None, 0.70, 0.0, 0.0, 0.01),
        ("linear_probe", "hidden_states.4", 0.36, 0.37, 0.26, 0.02),
        ("mia_loss", None, 0.58, 0.57, 0.50, 0.02),
    )
    lines = findings(report)
    assert lines[0].kind == "untouched"
    assert lines[0].text.startswith("not forgotten, though its answers do not show it: on 2 of the 3 signals")
    assert (
        "37.0 % of the forget test images at hidden_states.4 (original 36.0 %, retrained 26.0 %, position -0.10"
        in (lines[0].text)
    )
    assert found(report, "membership").kind == "untouched"
    assert "the original 36.0 %, retrained 26.0 %: untouched, position -0.10" in found(report, "probe").text
    assert not any("about as" in line.text or "as retrained" in line.text for line in lines[2:])


def test_a_probe_near_the_originals_is_not_as_well_as_in_the_retrained_model():
    finding = found(judged(("linear_probe", "hidden_states.4", 0.362, 0.358, 0.262, 0.02)), "probe")
    assert finding.kind == "untouched"
    assert "35.8 %" in finding.text


def test_the_efficientnet_run_is_over_erased_and_k_nn_says_so():
    report = judged(
        ("accuracy", None, 0.81, 0.0, 0.0, 0.01),
        ("linear_probe", "hidden_states.4", 0.85, 0.70, 0.70, 0.03),
        ("knn", "hidden_states.4", 0.80, 0.33, 0.55, 0.03),
    )
    first = findings(report)[0]
    assert first.kind == "over-erased"
    assert (
        "33.0 % of the forget test images (k-NN) at hidden_states.4 (original 80.0 %, retrained 55.0 %" in first.text
    )
    assert found(report, "neighbours").kind == "over-erased"


def test_chance_is_not_the_aim_where_a_retrained_model_names_none():
    summary = found(judged(("accuracy", None, 0.388, 0.188, 0.0, 0.08)), "summary")
    assert summary.kind == "under-erased"
    assert summary.text.startswith("not forgotten: on the one signal that can tell")


def test_a_report_of_an_older_version_is_not_judged():
    old = replace(report_of(), signals=[], status={})
    summary = found(old, "summary")
    assert summary.kind == "unknown"
    assert "the position of each signal" in summary.text and "must be audited again" in summary.text
    assert "forgotten" not in summary.text
    assert {each.topic for each in findings(old)} == {"summary", "attacks", "rest", "references"}


def test_a_model_without_a_signal_is_not_judged_by_those_of_others():
    report = make_report(("original", "unlearned", "delete", "retrained"))
    report = replace(report, signals=[each for each in report.signals if each.model == "delete"])
    assert found(report, "summary").text.startswith("not judged: no signal was measured on this model")


def test_what_comes_back_sooner_than_in_retraining_is_no_all_clear():
    report = report_of()
    faster = [
        replace(curve, accuracy=[0.0, *[0.9] * (len(curve.x) - 1)]) if curve.model == "unlearned" else curve
        for curve in report.attacks
    ]
    summary = found(replace(report, attacks=faster), "summary")
    assert summary.kind == "unclear"
    assert summary.text.startswith("may be forgotten: when only its classifier is fine-tuned")


def test_what_eight_bits_bring_back_is_in_the_headline_even_without_a_signal():
    report = change(report_of(), "accuracy_int8", lambda v, d: 0.4, split="forget_test")
    report = replace(report, signals=[each for each in report.signals if each.metric != "accuracy_int8"], status={})
    summary = found(report, "summary")
    assert summary.kind == "under-erased"
    assert summary.text.startswith("not forgotten: stored in 8 bits it remembers: 40.0 %")


def test_forgotten_rows_are_held_against_the_retrained_model_not_against_chance():
    report = report_of()
    report.request["classes"] = []
    report = change(report, "accuracy", lambda v, d: 0.88, model="retrained", split="forget_test")
    report = change(report, "accuracy", lambda v, d: 0.88, split="forget_test")
    assert found(report, "output").kind == "as retrained"
    worse = change(report, "accuracy", lambda v, d: 0.1, split="forget_test")
    assert found(worse, "output").kind == "over-erased"


SIGNAL = st.builds(
    Signal,
    metric=st.sampled_from(
        ["accuracy", "accuracy_int8", "linear_cka", "linear_probe", "knn", "mia_loss", "idi", "new"]
    ),
    model=st.just("unlearned"),
    split=st.sampled_from(["forget_train", "forget_test"]),
    layer=st.sampled_from([None, "hidden_states.0", "penultimate", "logits"]),
    value=st.floats(0, 1),
    original=st.floats(0, 1),
    retrained=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    position=st.floats(-3, 4) | st.none(),
    low=st.floats(-3, 4) | st.none(),
    high=st.floats(-3, 4) | st.none(),
    status=st.sampled_from(STATUSES),
    count=st.integers(0, 10_000),
)
BASES = {models: make_report(models, layers=2) for models in (MODELS, SEVERAL)}


@given(st.sampled_from(list(BASES)), st.lists(SIGNAL, min_size=1, max_size=8), st.sampled_from([None, *STATUSES]))
def test_the_headline_is_never_better_than_the_worst_signal(models, signals, stated):
    report = replace(BASES[models], signals=signals, status={"unlearned": stated} if stated else {})
    summary = found(report, "summary")
    statuses = [each.status for each in signals] + ([stated] if stated else [])
    worst = min(map(STATUSES.index, statuses))
    assert STATUSES.index(summary.kind) <= worst
    if ALL_CLEAR.search(summary.text):
        assert worst >= STATUSES.index("over-erased")
    if "as far as this audit can see" in summary.text:
        assert worst >= STATUSES.index("as retrained")
    if "over-erased" in {each.status for each in signals}:
        assert "less is left than retraining leaves" in summary.text


# Without a retrained model: what has changed, and the reserve


def test_without_a_retrained_model_no_headline_gives_an_all_clear():
    for report in (alone(), superficial(alone()), as_model(alone(), "original"), as_model(alone(), "random_init")):
        summary = found(report, "summary")
        assert not ALL_CLEAR.search(summary.text), summary.text
        assert "without a retrained model it cannot be told how far forgetting should go" in summary.text
        assert summary.kind in ("known", "unclear")


def test_without_a_retrained_model_it_says_what_cannot_be_shown():
    lines = verdict(alone())
    assert lines[0].startswith(
        "unlearned: no longer named at the output; the layers have changed; without a retrained"
    )
    assert any("falls to 0.34 at hidden_states.9, on retain images 0.91" in line for line in lines)
    assert "no retrained model" in lines[-1] and "Nor can it show that too much was erased" in lines[-1]
    assert "Random weights (CKA 0.05" in lines[-1]
    assert "superficial" in verdict(superficial(alone()))[0]
    trivial = change(alone(), "linear_cka", lambda v, d: 0.95, model="random_init", reference="original")
    assert "cannot be told on this data" in verdict(trivial)[0] and "even random weights" in text_of(trivial)
    everywhere = change(alone(), "linear_cka", lambda v, d: 0.3, reference="original")
    assert "no aim at the forget set can be told" in text_of(everywhere)


def test_the_original_alone_has_not_forgotten():
    lines = verdict(as_model(alone(), "original"))
    assert lines[0].startswith(
        "unlearned: not forgotten at the output; its losses still tell which images it was trained on; the layers are "
    )
    assert "95.3 % of the forget test images right (chance 10.0 %, the original 95.3 %)" in lines[1]


def test_scores_that_are_near_random_weights_tell_no_classes_apart():
    def measured(model: str, value: float) -> Measurement:
        where = {"split": "forget_test", "layer": "logits", "chance": 0.2}
        return Measurement("linear_probe", model, value, low=value - 0.09, high=value + 0.09, **where)

    report = replace(alone(), measurements=[], attacks=[])
    values = {"unlearned": 0.238, "original": 0.375, "random_init": 0.212}
    report.measurements.extend(measured(model, value) for model, value in values.items())
    assert found(report, "scores") is None
    assert found(superficial(alone()), "scores").kind == "known"


@pytest.mark.parametrize(("value", "low", "high"), [(0.45, 0.36, 0.52), (0.58, 0.44, 0.71)])
def test_membership_whose_interval_holds_chance_is_no_finding(value, low, high):
    report = without(alone(), "mia_loss")
    row = Measurement("mia_loss", "unlearned", value, split="forget_train", low=low, high=high, count=30)
    report.measurements.append(row)
    assert found(report, "membership") is None
    report.measurements[-1] = replace(row, value=0.7, low=0.6, high=0.8)
    assert found(report, "membership").kind == "known"
    assert "its losses still tell" in found(report, "summary").text


def test_no_similarity_is_said_to_be_that_of_a_second_training():
    text = text_of(superficial(alone()))
    assert "second training" not in text and "a threshold that was chosen, not measured" in text


def test_an_accuracy_at_chance_is_not_called_forgotten():
    report = change(alone(), "accuracy", lambda v, d: 0.1, split="forget_test")
    finding = found(report, "output")
    assert finding.kind == "unclear"
    assert "as often as by guessing, where a model that never saw a class hardly ever names it" in finding.text


def test_intervals_that_meet_do_not_tell_models_apart():
    report = alone()
    wide = [
        replace(row, low=0.0, high=1.0) if row.metric == "linear_probe" and row.model == "unlearned" else row
        for row in report.measurements
    ]
    finding = found(replace(report, measurements=wide), "probe")
    assert finding.kind == "unclear"
    assert "on too few images" in finding.text


def test_what_quantisation_brings_back_is_said():
    report = change(alone(), "accuracy_int8", lambda v, d: 0.4, split="forget_test")
    assert "stored in 8 bits it remembers: 40.0 % of the forget test images right, 0.0 % before" in text_of(report)
    assert found(report, "summary").kind == "known"


def test_forgotten_rows_without_a_retrained_model_are_held_against_unseen_images():
    report = alone()
    report.request["classes"] = []
    report = change(report, "accuracy", lambda v, d: 0.5)
    assert found(report, "output").kind == "unclear"
    worse = change(report, "accuracy", lambda v, d: 0.1, split="forget_train")
    assert "worse on what it forgot than on what it never saw" in found(worse, "output").text


def of_rows(report: AuditReport, **matched: float) -> AuditReport:
    """The report as of a request of rows: model -> accuracy on unseen images of the rows' classes, ± 4 points."""
    known = [
        Measurement("accuracy_matched", name, value, split="retain_test", low=value - 0.04, high=value + 0.04)
        for name, value in matched.items()
    ]
    request = {**report.request, "classes": []}
    return replace(report, request=request, measurements=[*report.measurements, *known])


def test_the_target_of_forgotten_rows_is_what_unseen_images_of_their_classes_get():
    report = change(alone(), "accuracy", lambda v, d: 0.55, split="forget_train")
    report = of_rows(report, unlearned=0.54, original=0.54)
    output = found(report, "output")
    assert output.kind == "unclear"
    assert "its own on images of the same classes that it never saw 54.0 %" in output.text
    assert (
        "the forgotten rows are known no better than unseen images of their classes" in found(report, "summary").text
    )
    assert "no longer named" not in found(report, "summary").text
    known = change(report, "accuracy", lambda v, d: 0.95, split="forget_train", model="unlearned")
    assert found(known, "summary").kind == "known"
    assert "still known better than unseen images of their classes" in found(known, "summary").text
    destroyed = change(report, "accuracy", lambda v, d: 0.2, split="forget_train", model="unlearned")
    assert "known worse than unseen images of their classes" in found(destroyed, "summary").text


def test_test_images_that_match_a_request_of_rows_are_not_what_was_forgotten():
    report = change(alone(), "accuracy", lambda v, d: 0.95, split="forget_train")
    report = change(of_rows(report), "accuracy", lambda v, d: 0.1, split="forget_test")
    assert "95.0 % of the forget train images" in found(report, "output").text


@pytest.mark.parametrize(("now", "kind"), [(0.2, "hurt"), (0.52, "intact"), (0.55, "intact")])
def test_the_classes_of_forgotten_rows_must_stay(now, kind):
    report = of_rows(report_of(), unlearned=now, original=0.54, retrained=0.53)
    rest = found(report, "rest")
    assert rest.kind == kind
    told = f"of unseen images of the forgotten rows' classes {100 * now:.1f} %, the original 54.0 %, retrained 53.0 %"
    assert told in rest.text
    assert ("the rest has suffered" in found(report, "summary").text) == (kind == "hurt")


def test_what_rows_of_kept_classes_should_come_to_is_said():
    said = "not where it stops naming them"
    assert said in text_of(of_rows(report_of())) and said in text_of(of_rows(alone()))
    assert said not in text_of(report_of())


# Of every report


def test_a_broken_rest_is_said_with_its_loss():
    report = change(report_of(), "accuracy", lambda v, d: 0.912, split="retain_test")
    lines = verdict(report)
    assert lines[0].endswith("the rest has suffered.")
    assert any("91.2 % of the retain test images right, the original 98.9 %, a loss of 7.7 points" in x for x in lines)


def test_an_intact_rest_is_one_on_average_by_a_stated_limit():
    assert "(a loss of up to 2 points counts as none, and single classes can have lost more)" in text_of(report_of())


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["linear_cka"], "what the layers know was not measured"),
        (["accuracy"], "what the output knows was not measured"),
        (["accuracy"], "what the rest has lost was not measured"),
    ],
)
def test_what_was_not_measured_is_named(missing, said):
    assert said in verdict(without(alone(), *missing))[0]


def test_values_that_are_not_defined_count_as_missing():
    report = alone()
    empty = [replace(row, value=None, low=None, high=None) for row in report.measurements]
    assert "was not measured" in verdict(replace(report, measurements=empty))[0]


def test_reports_without_layers_or_models_are_judged_as_far_as_they_go():
    report = alone()
    flat = replace(report, layers=[], measurements=[row for row in report.measurements if row.layer is None])
    assert "no longer named at the output; what the layers know was not measured" in verdict(flat)[0]
    assert verdict(AuditReport()) == ["The report holds no unlearned model, so there is no forgetting to judge."]


@pytest.mark.parametrize(
    ("altered", "topic", "kind"),
    [
        (report_of, "summary", "as retrained"),
        (report_of, "output", "as retrained"),
        (report_of, "layers", "as retrained"),
        (report_of, "neighbours", "as retrained"),
        (report_of, "attacks", "back"),
        (report_of, "rest", "intact"),
        (report_of, "blind metrics", "blind"),
        (report_of, "references", "with retrained"),
        (lambda: as_model(alone(), "original"), "summary", "known"),
        (lambda: as_model(alone(), "original"), "output", "known"),
        (lambda: superficial(alone()), "scores", "known"),
        (lambda: superficial(alone()), "layers", "kept"),
        (lambda: superficial(alone()), "probe", "kept"),
        (lambda: without(alone(), "linear_cka"), "layers", "unknown"),
        (lambda: change(report_of(), "mia_loss", lambda v, d: 0.7), "membership", "blind"),
        (lambda: change(report_of(), "accuracy", lambda v, d: 0.9, split="retain_test"), "rest", "hurt"),
        (alone, "summary", "unclear"),
        (alone, "output", "not named"),
        (alone, "layers", "moved"),
        (alone, "references", "without retrained"),
        (make_report, "ranking", "ranked"),
        (AuditReport, "summary", "unknown"),
    ],
)
def test_programs_read_the_kind_of_a_finding_not_its_sentence(altered, topic, kind):
    finding = found(altered(), topic)
    assert finding is not None and finding.kind == kind


@pytest.mark.parametrize("topic", ["scores", "membership", "8 bits", "ranking"])
def test_a_topic_without_news_has_no_finding(topic):
    assert found(alone(), topic) is None


def test_the_headline_comes_before_what_it_is_made_of():
    report = make_report()
    of_models = by_model(findings(report))
    about_the_audit = of_models.pop(None)
    assert list(of_models) == ["unlearned", "delete"]
    for name, on_model in of_models.items():
        assert on_model[0] == headline(report, name, on_model[1:])
    assert {each.topic for each in about_the_audit} <= {"ranking", "blind metrics", "references"}


def test_a_finding_is_a_line_with_the_name_of_its_model_or_a_sentence():
    finding = Finding("mine", "rest", "intact", "the rest is intact.")
    assert str(finding) == "mine: the rest is intact."
    assert finding.sentence == "The rest is intact."
    assert str(replace(finding, model=None, text="All is well.")) == "All is well."


def masked(report, **accuracies):
    """The report with these accuracies on retain test images where no model may answer with the forgotten classes."""
    added = [Measurement("accuracy_masked", model, value, split="retain_test") for model, value in accuracies.items()]
    others = [each for each in report.measurements if each.metric != "accuracy_masked"]
    return replace(report, measurements=[*others, *added])


def test_a_loss_that_answers_no_longer_given_make_up_for_is_told():
    report = masked(alone(), unlearned=0.846, original=0.871)
    rest = found(report, "rest")
    assert rest.kind == "hidden loss"
    assert "it gets 84.6 % and the original 87.1 %, so that 2.5 points were lost on the kept classes" in rest.text
    assert "the rest is intact" not in found(report, "summary").text
    assert found(masked(alone(), unlearned=0.86, original=0.871), "rest").kind == "intact"


def test_what_retraining_loses_as_well_is_no_loss():
    accuracies = {"unlearned": 0.846, "original": 0.871}
    assert found(masked(report_of(), **accuracies, retrained=0.857), "rest").kind == "intact"
    assert found(masked(report_of(), **accuracies, retrained=0.875), "rest").kind == "hidden loss"


def test_a_blind_signal_whose_intervals_do_not_meet_is_named():
    blind = Signal("mia_loss", "unlearned", "forget_train", None, 0.8, 0.77, [0.5], None, None, None, "blind", 50)
    report = without(report_of(), "mia_loss")
    ends = {"original": (0.68, 0.85), "retrained": (0.38, 0.6)}
    rows = [
        Measurement("mia_loss", name, (low + high) / 2, split="forget_train", low=low, high=high)
        for name, (low, high) in ends.items()
    ]
    report = replace(report, signals=[blind], measurements=[*report.measurements, *rows])
    text = found(report, "blind metrics").text
    assert "Looked at alone, these would" in text and "do not meet: membership by loss (AUC) (forget train)." in text
    met = replace(report, measurements=[*report.measurements[:-1], replace(rows[1], high=0.7)])
    assert "Looked at alone" not in found(met, "blind metrics").text


def test_scores_that_tell_the_class_of_a_forgotten_row_say_nothing_of_the_row():
    report = superficial(alone())
    assert "in its answers" in found(report, "summary").text
    of_rows = replace(report, request={"classes": []})
    assert found(of_rows, "scores") is None
    assert "in its answers" not in found(of_rows, "summary").text


def kept(images=40, right=30, lost=0, gained=0):
    return RetainedClass(images, right, lost, gained)


@pytest.mark.parametrize("name", ["unlearned", "delete"])
def test_a_class_that_was_destroyed_is_named_though_the_average_hardly_falls(name):
    report = make_report()
    before = {f"class {k}": kept() for k in range(8)} | {"ship": kept(right=22)}
    after = {**before, "class 1": kept(right=38, gained=8), "ship": kept(right=13, lost=9)}
    report.retained = {"original": before, name: after}
    of_model = [finding for finding in findings(report) if finding.model == name]
    rest = next(finding for finding in of_model if finding.topic == "rest")
    assert rest.kind == "hurt" and "ship 55.0 % before, 32.5 % now" in rest.text and "class 1" not in rest.text
    assert of_model[0].text.endswith("; the rest has suffered.")


def test_classes_that_differ_by_chance_have_not_suffered():
    report = make_report()
    classes = {f"class {k}": kept(right=30, lost=3, gained=3) for k in range(5)} | {"low": kept(right=29, lost=3)}
    report.retained = {"original": {name: kept() for name in classes}, "unlearned": classes}
    rest = next(each for each in findings(report) if each.model == "unlearned" and each.topic == "rest")
    assert rest.kind == "intact" and "no single class has lost more than chance, as far as 40 images" in rest.text


def test_among_many_classes_a_loss_by_chance_alone_is_rarely_told():
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(200):
        report = make_report(models=["original", "unlearned"])
        differ = rng.binomial(10, 0.5, 7)  # of ten images on which the models differ, those that are lost
        classes = {f"class {k}": kept(30, 20, int(lost), 10 - int(lost)) for k, lost in enumerate(differ)}
        report.retained = {"unlearned": classes}
        told += any(each.topic == "rest" and each.kind == "hurt" for each in findings(report))
    assert told <= 0.05 * 200


def test_a_class_of_few_images_that_is_gone_has_suffered_and_too_few_are_no_all_clear():
    report = make_report()
    classes = {f"class {k}": kept(images=10, right=10) for k in range(99)}
    report.retained = {"unlearned": {**classes, "ship": kept(images=10, right=0, lost=10)}}
    rest = next(each for each in findings(report) if each.model == "unlearned" and each.topic == "rest")
    assert rest.kind == "hurt" and "ship 100.0 % before, 0.0 % now" in rest.text
    report.retained = {"unlearned": classes}
    of_model = [each for each in findings(report) if each.model == "unlearned"]
    assert of_model[0].text.endswith("; the rest is intact on average.")
    assert "single classes can have lost more" in next(each.text for each in of_model if each.topic == "rest")


# Attacks


def attacked(report: AuditReport, attack: str, accuracy: list[float], model: str = "unlearned") -> AuditReport:
    """The report in which an attack on a model has this curve."""
    curves = [
        replace(curve, accuracy=accuracy) if (curve.model, curve.attack) == (model, attack) else curve
        for curve in report.attacks
    ]
    return replace(report, attacks=curves)


def test_the_headline_is_no_better_than_an_attack_that_succeeded():
    report = report_of()
    signal = Signal(
        "attack_area", "unlearned", "forget_test", None, 0.6, 0.9, [0.1], 0.4, 0.3, 0.5, "under-erased", 300, "pruning"
    )
    report = replace(report, signals=[*report.signals, signal])
    summary, finding = found(report, "summary"), found(report, "attacks")
    assert summary.kind == "under-erased" and summary.text.startswith("not forgotten")
    told = "when more and more of its small weights are set to 0, it gets 60.0 % of the forget test images right"
    assert told in summary.text and told in finding.text
    assert "original 90.0 %, retrained 10.0 %" in summary.text


def test_what_attacks_bring_back_is_told_in_words_of_each_attack():
    report = attacked(report_of(), "quantization", [0.0, 0.0, 0.9, 0.9])
    text = found(report, "attacks").text
    assert (
        "when its weights are rounded to fewer and fewer bits, half of the original's accuracy on others is back "
        in text
    )
    assert "at 5 bits, in the retrained model not even at 4 bits" in text
    assert "these attacks bring it back too: new classifier (images)" in text
    assert "these attacks do not bring it back: weights pruned (sparsity)" in text


def test_attacks_that_bring_nothing_back_are_named():
    report = replace(report_of(), attacks=[each for each in report_of().attacks if each.unit in ("bits", "sparsity")])
    finding = found(report, "attacks")
    assert finding.kind == "not back"
    attacks = "weights rounded (bits), weights pruned (sparsity)"
    what = "half of the original's accuracy on other forget images"
    assert finding.text == f"these attacks do not bring {what} back: {attacks}."


def test_a_model_that_never_forgot_needs_no_attack():
    assert all(each.topic != "attacks" for each in findings(as_model(report_of(), "original")))


def test_a_reference_that_knows_less_of_the_rest_is_no_all_clear():
    good = as_model(report_of(), "retrained")
    assert found(good, "summary").kind == "as retrained"
    assert "the reference is worse" not in text_of(good)
    weak = change(good, "accuracy", lambda value, _: value - 0.3, model="retrained", split="retain_test")
    assert found(weak, "summary").kind == "unclear"
    assert found(weak, "summary").text.startswith("may be forgotten: on the rest the reference is worse")
    assert "train it as the original was trained" in found(weak, "references").text
