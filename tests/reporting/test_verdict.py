from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.reports import make_report

from ec_hf import AuditReport
from ec_hf.reporting.findings import Finding, by_model
from ec_hf.reporting.verdict import findings, headline


def report_of(models=("original", "unlearned", "retrained", "random_init"), **kwargs) -> AuditReport:
    return make_report(models, **kwargs)


def change(report: AuditReport, metric: str, function, model: str = "unlearned", **wanted) -> AuditReport:
    """The report with other values of one metric of one model: `function(value, depth)`, depth from 0 to 1."""
    layers = [*report.layers, "logits"]
    chosen = list(report.find(metric, model=model, **wanted))
    rows = []
    for row in report.measurements:
        if row in chosen:
            depth = layers.index(row.layer) / (len(layers) - 1) if row.layer else 1.0
            row = replace(row, value=function(row.value, depth), low=None, high=None)
        rows.append(row)
    return replace(report, measurements=rows)


def without(report: AuditReport, *metrics: str) -> AuditReport:
    return replace(report, measurements=[row for row in report.measurements if row.metric not in metrics])


def verdict(report: AuditReport) -> list[str]:
    """What a terminal shows."""
    return [str(finding) for finding in findings(report)]


def found(report: AuditReport, topic: str, model: str = "unlearned") -> Finding | None:
    """The finding on a topic, where there is one."""
    return next((each for each in findings(report) if each.topic == topic and each.model in (model, None)), None)


def text_of(report: AuditReport) -> str:
    return "\n".join(verdict(report))


def as_original(report: AuditReport) -> AuditReport:
    """The unlearned model is the original itself."""
    report = change(report, "accuracy", lambda v, d: 0.953, split="forget_test")
    report = change(report, "linear_cka", lambda v, d: 1.0, reference="original")
    probes = report.profile("linear_probe", model="original", split="forget_test")
    for layer, value in probes.items():
        report = change(report, "linear_probe", lambda v, d, value=value: value, split="forget_test", layer=layer)
    return replace(report, relearning=[])


def superficial(report: AuditReport) -> AuditReport:
    """Its output has forgotten, its layers have not."""
    report = change(report, "linear_cka", lambda v, d: 0.99 - 0.1 * d, reference="original")
    return change(report, "linear_probe", lambda v, d: 0.45 + 0.5 * d, split="forget_test")


def test_the_original_itself_has_not_forgotten():
    first, *rest = verdict(as_original(report_of()))
    assert first == "unlearned: not forgotten at the output and not in the layers; the rest is intact."
    text = "\n".join(rest)
    assert "95.3 % of the forget test images right (chance 10.0 %, the original 95.3 %)" in text
    assert "CKA 1.00 against 0.33" in text
    assert "better than in the retrained model's: 95.7 % at hidden_states.9" in text


def test_fine_tuning_that_lowers_the_accuracy_alone_is_no_forgetting():
    report = change(superficial(report_of()), "accuracy", lambda v, d: 0.433, split="forget_test")
    lines = verdict(report)
    assert lines[0].startswith("unlearned: not forgotten at the output and not in the layers")
    assert "43.3 % of the forget test images right" in lines[1]


def test_superficial_forgetting_is_called_so():
    lines = verdict(superficial(report_of()))
    assert lines[0].startswith(
        "unlearned: forgotten in its answers but not in its scores; not in the layers (superficial forgetting)"
    )
    assert any("its scores (logits) still tell the forgotten classes apart" in line for line in lines)
    assert any("more like the original's than the retrained model's" in line for line in lines)
    assert any("still finds the forgotten classes" in line for line in lines)


def test_erasure_as_far_as_retraining():
    lines = verdict(report_of())
    assert lines[0] == (
        "unlearned: forgotten at the output and in the layers, about as far as a model that never saw the data; the "
        "rest is intact."
    )
    assert "0.0 % of the forget test images right" in lines[1]
    assert any("about as well as in the retrained model's" in line for line in lines)
    assert any("half of the original's accuracy on others is back after 40 steps" in line for line in lines)


def test_over_erasure_is_called_so():
    report = change(
        report_of(), "linear_cka", lambda v, d: max(v - 0.3 * d, 0), split="forget_test", reference="original"
    )
    report = change(report, "linear_probe", lambda v, d: 0.3, split="forget_test")
    lines = verdict(report)
    assert "further than in a model that never saw the data" in lines[0]
    assert any("more was erased than the data had put there" in line for line in lines)
    assert any("less well than in the retrained model's" in line for line in lines)


def test_layers_that_err_on_both_sides_are_uneven_and_few_are_part():
    report = change(
        report_of(), "linear_cka", lambda v, d: 0.97 if d < 0.7 else 0.05, split="forget_test", reference="original"
    )
    assert "unevenly in the layers" in verdict(report)[0]
    report = change(
        report_of(),
        "linear_cka",
        lambda v, d: 0.97 if 0.2 < d < 0.45 else v,
        split="forget_test",
        reference="original",
    )
    assert "in some of the layers only" in verdict(report)[0]


def test_a_broken_rest_is_said_with_its_loss():
    report = change(report_of(), "accuracy", lambda v, d: 0.912, split="retain_test")
    lines = verdict(report)
    assert lines[0].endswith("the rest has suffered.")
    assert any("91.2 % of the retain test images right, the original 98.9 %, a loss of 7.7 points" in x for x in lines)


def test_several_models_are_told_apart_and_put_in_order():
    text = text_of(make_report())
    assert "delete: forgotten in its answers but not in its scores; not in the layers" in text
    assert "unlearned: forgotten at the output and in the layers" in text
    assert "nearest to the retrained model: unlearned (0.04), then delete (0.3" in text


def test_metrics_that_cannot_tell_the_references_apart_are_named_with_their_numbers():
    text = text_of(report_of())
    line = next(
        line for line in text.split("\n") if line.startswith("These do not tell the original from the retrained")
    )
    assert "0.56 and 0.51" in line
    assert "accuracy (" not in line, "it does tell them apart"
    report = change(report_of(), "linear_probe", lambda v, d: 0.45 + 0.5 * d, model="retrained", split="forget_test")
    assert "probe (" in next(line for line in verdict(report) if line.startswith("These do not tell"))


def test_layers_that_retraining_does_not_change_can_tell_nothing():
    report = change(report_of(), "linear_cka", lambda v, d: 0.96, model="retrained", reference="original")
    lines = verdict(report)
    assert "what the layers know cannot be told on this data" in lines[0]
    assert any("CKA at least 0.96" in line for line in lines)


def test_intervals_that_meet_do_not_tell_models_apart():
    report = superficial(report_of())
    wide = [
        replace(row, low=0.0, high=1.0) if row.metric == "linear_cka" and row.model == "unlearned" else row
        for row in report.measurements
    ]
    lines = verdict(replace(report, measurements=wide))
    assert "what the layers know cannot be told from so few images" in lines[0]
    assert any("too few to tell how far its layers have come" in line for line in lines)
    wide = [
        replace(row, low=0.0, high=1.0) if row.metric == "linear_probe" and row.model == "unlearned" else row
        for row in report.measurements
    ]
    assert "on too few images to tell them from those in the retrained model's" in text_of(
        replace(report, measurements=wide)
    )


def test_without_a_retrained_model_it_says_what_cannot_be_shown():
    models = ("original", "unlearned", "random_init")
    lines = verdict(report_of(models))
    assert "only a retrained model can tell" in lines[0]
    assert any("falls to 0.26 at hidden_states.9, on retain images 0.90" in line for line in lines)
    assert "no retrained model" in lines[-1] and "Nor can it show that too much was erased" in lines[-1]
    assert "Random weights (CKA 0.05" in lines[-1]
    assert "superficial" in verdict(superficial(report_of(models)))[0]
    trivial = change(report_of(models), "linear_cka", lambda v, d: 0.95, model="random_init", reference="original")
    assert "cannot be told on this data" in verdict(trivial)[0] and "even random weights" in text_of(trivial)
    everywhere = change(report_of(models), "linear_cka", lambda v, d: 0.3, reference="original")
    assert "not aimed at the forget set" in text_of(everywhere)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["linear_cka"], "what the layers know was not measured"),
        (["accuracy"], "what the output knows was not measured"),
        (["linear_probe"], "as far as a model that never saw the data"),
    ],
)
def test_what_was_not_measured_is_named(missing, said):
    lines = verdict(without(report_of(), *missing))
    assert said in lines[0]
    if "linear_probe" in missing:
        assert not any("linear classifier" in line for line in lines)


def test_values_that_are_not_defined_count_as_missing():
    report = report_of()
    empty = replace(
        report, measurements=[replace(row, value=None, low=None, high=None) for row in report.measurements]
    )
    assert "was not measured" in verdict(empty)[0]


def test_reports_without_layers_or_models_are_judged_as_far_as_they_go():
    report = report_of()
    flat = replace(report, layers=[], measurements=[row for row in report.measurements if row.layer is None])
    assert "forgotten at the output; what the layers know was not measured" in verdict(flat)[0]
    assert verdict(AuditReport()) == ["The report holds no unlearned model, so there is no forgetting to judge."]


def test_forgotten_rows_are_held_against_the_retrained_model_not_against_chance():
    report = report_of()
    report.request["classes"] = []
    report = change(report, "accuracy", lambda v, d: 0.9, split="forget_test")
    report = change(report, "accuracy", lambda v, d: 0.88, model="retrained", split="forget_test")
    lines = verdict(report)
    assert (
        "the output has forgotten: it gets 90.0 % of the forget test images right (the retrained model 88.0 %"
        in lines[1]
    )
    worse = change(report, "accuracy", lambda v, d: 0.1, split="forget_test")
    assert "worse on what it forgot than on what it never saw" in verdict(worse)[1]


def test_what_quantisation_and_membership_inference_bring_back_is_said():
    report = change(report_of(), "accuracy_int8", lambda v, d: 0.4, split="forget_test")
    report = change(report, "mia_loss", lambda v, d: 0.7)
    text = text_of(report)
    assert "stored in 8 bits it remembers: 40.0 % of the forget test images right, 0.0 % before" in text
    assert "area under the curve 0.70" in text


@pytest.mark.parametrize(
    ("altered", "topic", "kind"),
    [
        (report_of, "summary", "forgotten"),
        (report_of, "output", "forgotten"),
        (report_of, "layers", "as retrained"),
        (report_of, "probe", "as retrained"),
        (report_of, "relearning", "back"),
        (report_of, "rest", "intact"),
        (report_of, "blind metrics", "blind"),
        (report_of, "references", "with retrained"),
        (lambda: as_original(report_of()), "summary", "known"),
        (lambda: as_original(report_of()), "output", "known"),
        (lambda: superficial(report_of()), "scores", "known"),
        (lambda: superficial(report_of()), "layers", "kept"),
        (lambda: superficial(report_of()), "probe", "kept"),
        (lambda: without(report_of(), "linear_cka"), "layers", "unknown"),
        (lambda: change(report_of(), "linear_probe", lambda v, d: 0.3, split="forget_test"), "probe", "beyond"),
        (lambda: change(report_of(), "accuracy_int8", lambda v, d: 0.4, split="forget_test"), "8 bits", "known"),
        (lambda: change(report_of(), "mia_loss", lambda v, d: 0.7), "membership", "known"),
        (lambda: change(report_of(), "accuracy", lambda v, d: 0.9, split="retain_test"), "rest", "hurt"),
        (lambda: report_of(("original", "unlearned")), "layers", "moved"),
        (lambda: report_of(("original", "unlearned")), "references", "without retrained"),
        (make_report, "ranking", "ranked"),
        (AuditReport, "summary", "unknown"),
    ],
)
def test_programs_read_the_kind_of_a_finding_not_its_sentence(altered, topic, kind):
    finding = found(altered(), topic)
    assert finding is not None and finding.kind == kind


@pytest.mark.parametrize("topic", ["scores", "membership", "8 bits", "ranking"])
def test_a_topic_without_news_has_no_finding(topic):
    assert found(report_of(), topic) is None


def test_the_headline_comes_before_what_it_is_made_of():
    of_models = by_model(findings(make_report()))
    about_the_audit = of_models.pop(None)
    assert list(of_models) == ["unlearned", "delete"]
    for name, on_model in of_models.items():
        assert on_model[0] == headline(name, on_model[1:])
    assert {each.topic for each in about_the_audit} <= {"ranking", "blind metrics", "references"}


def test_a_finding_is_a_line_with_the_name_of_its_model_or_a_sentence():
    finding = Finding("mine", "rest", "intact", "the rest is intact.")
    assert str(finding) == "mine: the rest is intact."
    assert finding.sentence == "The rest is intact."
    assert str(replace(finding, model=None, text="All is well.")) == "All is well."
