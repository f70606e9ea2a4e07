from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Value, concatenate_datasets
from helpers.launching import launch
from helpers.models import LABELS, make_images, make_model, make_processor

from ec_hf import ForgetRequest
from ec_hf.auditing.attacks import relearning
from ec_hf.auditing.audit import audit
from ec_hf.auditing.report import AuditReport
from ec_hf.auditing.similarity import layer_pairs
from ec_hf.auditing.subjects import model_class_names
from ec_hf.metrics import infonce, linear_cka
from ec_hf.models.points import hidden_state_kwargs

REQUEST = ForgetRequest(classes=["bee", "dog"])
ROWS = ForgetRequest(rows=list(range(30)))
FAST = {"embedding": False, "int8": False, "seed": 3}


def run(original="ViT", unlearned="ViT", retrained=None, *, train=40, test=25, **kwargs) -> AuditReport:
    """An audit of tiny models, named by family or given, on tiny data, given or by its size."""
    models = [
        make_model(model, seed=i) if isinstance(model, str) else model
        for i, model in enumerate((original, unlearned, retrained))
    ]
    data = {"train": make_images(train) if isinstance(train, int) else train}
    data["test"] = make_images(test, seed=1) if isinstance(test, int) else test
    kwargs = {"request": REQUEST, "processor": make_processor(), **data, **FAST} | kwargs
    report = audit(models[0], models[1], retrained=models[2], **kwargs)
    json.dumps(report.to_dict(), allow_nan=False)
    assert AuditReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    return report


@pytest.fixture(scope="module")
def whole():
    """Models, data and the report of an audit with a retrained model."""
    models = {name: make_model("ViT", seed=i) for i, name in enumerate(("original", "unlearned", "retrained"))}
    train, test = make_images(), make_images(50, seed=1)
    report = run(*models.values(), train=train, test=test, embedding=True, int8=True)
    return SimpleNamespace(models=models, train=train, test=test, report=report)


def direct(model, images):
    """Logits, and mean-pooled hidden states with what the classifier reads behind them, all images at once."""
    batch = make_processor()(list(images["image"]), return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, **hidden_state_kwargs(model))
        read = model.vit.layernorm(output.hidden_states[-1])[:, 0]
    return output.logits, [*(state.mean(dim=1) for state in output.hidden_states), read]


def test_output_figures_are_those_of_the_whole_split(whole):
    images = whole.test.filter(lambda row: row["label"] in (1, 3))
    labels = torch.tensor(images["label"])
    for name, model in whole.models.items():
        logits, _ = direct(model, images)
        probabilities = logits.softmax(-1)
        expected = {
            "accuracy": (logits.argmax(-1) == labels).double().mean(),
            "confidence": probabilities.amax(-1).mean(),
            "entropy": -(probabilities * probabilities.log()).sum(-1).mean(),
            "accuracy_masked": torch.tensor(0.0),
        }
        for metric, value in expected.items():
            found = next(whole.report.find(metric, model=name, split="forget_test"))
            assert found.value == pytest.approx(value.item(), abs=1e-5)
            assert found.low - 1e-9 <= found.value <= found.high + 1e-9
            assert found.count == len(images)
    target = direct(whole.models["retrained"], images)[0].softmax(-1)
    ours = direct(whole.models["unlearned"], images)[0].softmax(-1)
    wanted = {"split": "forget_test", "model": "unlearned", "reference": "retrained"}
    assert whole.report.value("activation_distance", **wanted) == pytest.approx(
        (ours - target).norm(dim=-1).mean().item(), abs=1e-5
    )
    assert whole.report.value("agreement", **wanted) == pytest.approx(
        (ours.argmax(-1) == target.argmax(-1)).double().mean().item()
    )
    assert 0 <= whole.report.value("js_divergence", **wanted) <= math.log(2)


def test_masked_accuracy_on_retain_chooses_among_the_other_classes(whole):
    images = whole.test.filter(lambda row: row["label"] not in (1, 3))
    logits, _ = direct(whole.models["original"], images)
    logits[:, [1, 3]] = -torch.inf
    found = next(whole.report.find("accuracy_masked", model="original", split="retain_test"))
    assert found.value == pytest.approx((logits.argmax(-1) == torch.tensor(images["label"])).double().mean().item())
    assert found.chance == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_similarity_is_that_of_all_images_of_the_split_at_every_layer(whole, batch_size):
    images = whole.train.filter(lambda row: row["label"] in (1, 3))
    report = run(*whole.models.values(), train=whole.train, batch_size=batch_size, train_sample=5)
    states = {name: direct(model, images)[1] for name, model in whole.models.items()}
    for model, reference in (("unlearned", "original"), ("unlearned", "retrained"), ("original", "retrained")):
        profile = report.profile("linear_cka", model=model, reference=reference, split="forget_train")
        assert list(profile) == [*report.layers, "logits"]
        for layer, ours, theirs in zip(report.layers, states[model], states[reference], strict=True):
            assert profile[layer] == pytest.approx(linear_cka(ours, theirs), abs=1e-4)
    assert not list(report.find("linear_cka", model="original", reference="original"))
    assert report.value("linear_cka", model="original", reference="retrained", layer="logits") == report.value(
        "linear_cka", model="retrained", reference="original", layer="logits"
    )


def test_uuef_mode_averages_biased_values_over_batches(whole, monkeypatch):
    monkeypatch.setattr("ec_hf.auditing.similarity.UUEF_BATCH", 16)
    report = run(*whole.models.values(), train=whole.train, cka_mode="uuef", batch_size=7)
    images = whole.train.filter(lambda row: row["label"] in (1, 3))  # 40 = 16 + 16 + 8
    ours, theirs = (direct(whole.models[name], images)[1][2] for name in ("unlearned", "retrained"))
    expected = np.mean([linear_cka(ours[i : i + 16], theirs[i : i + 16], debiased=False) for i in (0, 16, 32)])
    found = report.profile("linear_cka_uuef", model="unlearned", reference="retrained", split="forget_train")
    assert found["hidden_states.2"] == pytest.approx(expected, abs=1e-5)
    assert report.value("linear_cka", model="unlearned", reference="retrained", split="forget_train") is not None


def test_every_model_sees_every_image_once(whole):
    seen = dict.fromkeys(whole.models, 0)

    def count(name):
        def hook(module, args, kwargs):
            seen[name] += len(kwargs["pixel_values"])

        return hook

    hooks = [model.register_forward_pre_hook(count(name), with_kwargs=True) for name, model in whole.models.items()]
    prepared = []

    class Processor(transformers.ViTImageProcessor):
        def __call__(self, images, **kwargs):
            prepared.extend(images)
            return super().__call__(images, **kwargs)

    processor = Processor(**{k: v for k, v in make_processor().to_dict().items() if k != "image_processor_type"})
    run(*whole.models.values(), train=40, test=25, processor=processor)
    for hook in hooks:
        hook.remove()
    trials = 4  # one image, a blank one for the hidden states, and two for the classifier
    assert seen == dict.fromkeys(seen, 65 + trials)
    assert len(prepared) == 65 + len(whole.models), "the models share the pixels"


def test_what_is_kept_of_features_does_not_grow_with_the_data(monkeypatch):
    kept = {}
    from ec_hf.auditing import run as auditing

    def remember(*args, name, **kwargs):
        found = collect(*args, name=name, **kwargs)
        kept[name] = {layer: values.shape for layer, values in found.features["original"].items()}
        return found

    collect = auditing.collect
    monkeypatch.setattr(auditing, "collect", remember)
    monkeypatch.setattr("ec_hf.auditing.question.FORGET_SAMPLE", 12)
    run(train=100, test=50, train_sample=25, test_sample=25)
    assert kept["forget_train"]["hidden_states.4"] == (12, 32)
    assert kept["retain_train"]["logits"] == (15, 5)


def test_without_a_retrained_model_random_weights_are_the_floor_and_the_report_says_so():
    report = run()
    assert report.models["random_init"].role == "floor"
    assert report.value("linear_probe", model="random_init", layer="hidden_states.4", split="forget_test") is not None
    assert report.value("probe_advantage", model="unlearned", reference="random_init") is not None
    text = " ".join(report.references)
    assert "no retrained model" in text
    assert "random_init" in text
    assert "never forgotten" in text
    assert not list(report.find("js_divergence"))
    assert not list(report.find("tug_of_war"))
    assert report.value("h_mean", model="unlearned") is not None


def test_the_random_weights_are_not_those_that_a_model_of_the_same_seed_began_with():
    report = run(make_model("ViT", seed=0), seed=0)
    assert report.value("linear_cka", model="random_init", split="retain_test", layer="logits") < 0.999


def test_probes_and_neighbours_cover_forgotten_and_kept_classes_at_every_layer(whole):
    for metric in ("linear_probe", "knn"):
        for split, count in (("forget_test", 20), ("retain_test", 30)):
            rows = list(whole.report.find(metric, model="unlearned", split=split))
            assert [row.layer for row in rows] == [*whole.report.layers, "logits"]
            assert all(row.count == count and row.chance == pytest.approx(0.2) for row in rows)
            # Colours tell the classes apart, whatever the weights.
            assert rows[0].value > 0.9


def test_membership_is_asked_within_classes(whole):
    found = next(whole.report.find("mia_loss", model="original"))
    assert (found.split, found.chance, found.count) == ("forget_train", 0.5, 20), (
        "as many members as there are non-members"
    )
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(0.5, abs=0.35), "no model has seen either image"


def test_summaries_int8_confusion_retrievals_and_embedding(whole):
    report = whole.report
    for metric in ("h_mean", "aus", "tug_of_war", "avg_gap"):
        assert report.value(metric, model="unlearned") is not None
    exact, rounded = (
        next(report.find(name, model="unlearned", split="forget_test")) for name in ("accuracy", "accuracy_int8")
    )
    assert abs(exact.value - rounded.value) <= 0.3
    assert sum(report.confusion["unlearned"]["bee"].values()) == 10
    assert len(report.embedding["points"]["retrained"]) == len(report.embedding["labels"])
    assert {each.query_label for each in report.retrievals} == {1, 3}
    test = concatenate_datasets(
        [whole.test.filter(lambda row, k=k: (row["label"] in (1, 3)) == k) for k in (True, False)]
    )
    for each in report.retrievals:
        assert each.query not in each.neighbours
        assert [test[row]["label"] for row in each.neighbours] == each.labels
        assert test[each.query]["label"] == each.query_label


def test_several_unlearned_models_have_their_names():
    report = run(unlearned={"ec": make_model("ViT", seed=1), "delete": make_model("ViT", seed=2)})
    assert [name for name, info in report.models.items() if info.role == "unlearned"] == ["ec", "delete"]
    assert report.value("accuracy", model="delete", split="forget_test") is not None


def test_several_retrained_models_have_their_names_and_their_spread_is_measured(whole):
    retrained = [whole.models["retrained"], *(make_model("ViT", seed=seed) for seed in (7, 8))]
    report = run(whole.models["original"], whole.models["unlearned"], retrained, train=whole.train, test=whole.test)
    names = ["retrained 1", "retrained 2", "retrained 3"]
    assert [name for name, info in report.models.items() if info.role == "retrained"] == names
    wanted = {"split": "forget_test", "layer": "hidden_states.2"}
    for model, references in (("unlearned", names), ("retrained 1", names[1:])):
        values = [report.value("linear_cka", model=model, reference=name, **wanted) for name in references]
        assert report.value("linear_cka", model=model, reference="retrained", **wanted) == pytest.approx(
            np.mean(values)
        )
    alone = [
        run(whole.models["original"], whole.models["unlearned"], model, train=whole.train, test=whole.test)
        for model in retrained
    ]
    for metric, fields in (
        ("tug_of_war", {}),
        ("avg_gap", {}),
        ("agreement", {"split": "forget_test"}),
        ("js_divergence", {"split": "retain_train"}),
        ("probe_advantage", {"split": "forget_test", "layer": "hidden_states.2"}),
    ):
        found = next(report.find(metric, model="unlearned", reference="retrained", **fields))
        values = [each.value(metric, model="unlearned", reference="retrained", **fields) for each in alone]
        assert found.value == pytest.approx(np.mean(values)), metric
    assert report.value("agreement", model="retrained 1", reference="retrained", split="forget_test") is not None
    assert all(len(signal.retrained) == 3 for signal in report.signals)
    assert "several retrained" not in " ".join(report.references)


def test_a_single_retrained_model_in_a_list_is_as_one_alone(whole):
    reports = [run(*list(whole.models.values())[:2], given) for given in (whole.models["retrained"], None)]
    reports[1] = run(*list(whole.models.values())[:2], [whole.models["retrained"]])
    for report in reports:
        report.seconds = {}
    assert reports[0] == reports[1]


def test_signals_are_of_every_unlearned_model_and_measurement_but_retain_accuracy(whole):
    found = whole.report.signals
    assert {signal.model for signal in found} == {"unlearned"}
    by_layer = [*whole.report.layers, "logits"]
    for metric in ("linear_probe", "knn", "linear_cka"):
        assert [signal.layer for signal in found if signal.metric == metric] == by_layer
    others = {signal.metric for signal in found if signal.layer is None}
    assert others == {"accuracy", "confidence", "mia_loss", "mia_confidence"}
    assert not any(signal.split.startswith("retain") for signal in found)
    for signal in found:
        fields = {"split": signal.split, "layer": signal.layer}
        if signal.metric == "linear_cka":
            assert signal.original == 1
            fields["reference"] = "original"
        else:
            assert signal.original == pytest.approx(whole.report.value(signal.metric, model="original", **fields))
        assert signal.value == pytest.approx(whole.report.value(signal.metric, model="unlearned", **fields))
        assert signal.retrained == [pytest.approx(whole.report.value(signal.metric, model="retrained", **fields))]


def test_there_are_no_signals_without_a_retrained_model():
    report = run()
    assert report.signals == [] and report.status == {}


def test_rows_have_signals_on_the_forgotten_rows(whole):
    report = run(*whole.models.values(), train=whole.train, request=ForgetRequest(rows=list(range(30))))
    assert {signal.split for signal in report.signals} == {"forget_train"}
    assert {signal.metric for signal in report.signals} >= {
        "accuracy",
        "linear_probe",
        "knn",
        "mia_loss",
        "linear_cka",
    }


def trained(images, seed, start=None):
    """A tiny model that has learnt some images."""
    model = copy.deepcopy(start) or make_model("ViT", seed=seed)
    pixels = make_processor()(list(images["image"]), return_tensors="pt")["pixel_values"]
    labels, order = torch.tensor(images["label"]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(30):
        rows = torch.randperm(len(labels), generator=order)[:48]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(pixel_values=pixels[rows]).logits, labels[rows]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.slow
def test_of_trained_models_a_copy_is_untouched_and_another_retrained_one_is_as_retrained():
    train, test = make_images(120), make_images(120, seed=1)
    kept = train.filter(lambda row: row["label"] not in (1, 3))
    original, retrained = trained(train, 0), [trained(kept, seed) for seed in (1, 2, 3)]
    given = {"copy": copy.deepcopy(original), "another": trained(kept, 4)}
    for references in (retrained[0], retrained):
        report = run(original, given, references, train=train, test=test)
        assert report.status == {"copy": "untouched", "another": "unclear"}, "colours tell the classes in all layers"
        of_another = {signal.status for signal in report.signals if signal.model == "another"}
        assert of_another == {"as retrained", "blind"}
        assert {signal.status for signal in report.signals if signal.model == "copy"} == {"untouched", "blind"}
        assert any("original and copy have the same weights" in note for note in report.notes)


def test_a_model_that_equals_the_retrained_one_is_noted(whole):
    report = run(whole.models["original"], copy.deepcopy(whole.models["retrained"]), whole.models["retrained"])
    assert "unlearned and retrained have the same weights" in " ".join(report.notes)
    assert {signal.status for signal in report.signals} <= {"as retrained", "blind"}


def test_splits_of_the_same_images_and_of_one_image_are_noted():
    images = make_images(40)
    notes = " ".join(run(train=images, test=images).notes)
    assert "forget_train and forget_test hold the same images" in notes
    assert "retain_train and retain_test hold the same images" in notes
    notes = " ".join(run(test=5, request=ForgetRequest(classes=["bee"])).notes)
    assert "forget_test has 1 image: too few" in notes
    assert not any("same images" in note or "too few" in note for note in run(test=50).notes)


def test_images_that_stand_in_two_splits_are_noted_whatever_their_order():
    images = make_images(40)
    notes = " ".join(run(train=images, test=images.shuffle(seed=3)).notes)
    assert "16 images of forget_train stand in forget_test too" in notes
    assert "24 images of retain_train stand in retain_test too" in notes
    some = concatenate_datasets([make_images(30, seed=1), images.select([1])])
    notes = run(train=images, test=some).notes
    assert [note for note in notes if "1 image of forget_train stands in forget_test too" in note]
    assert not any("too, as far as" in note for note in run(train=images).notes)


def test_an_original_that_knows_nothing_and_a_retrained_model_that_knows_are_noted():
    train, test = make_images(120), make_images(120, seed=1)
    kept = train.filter(lambda row: row["label"] not in (1, 3))
    original, other, third, retrained = *(trained(train, seed) for seed in (0, 1, 3)), trained(kept, 2)
    notes = " ".join(run(original, other, third, train=train, test=test).notes)
    assert "retrained names" in notes and "a retrained model never saw these classes: is it the right" in notes
    assert "no better than guessing" not in notes
    notes = " ".join(run(retrained, other, trained(kept, 4), train=train, test=test).notes)
    assert "original names 0.0 % of the forget_test images right (guessing: 20.0 %), which is no better" in notes
    assert "never saw these classes" not in notes
    rows = run(original, other, third, train=train, test=test, request=ROWS)
    assert "never saw these classes" not in " ".join(rows.notes)


def test_a_single_kept_class_and_few_retained_images_are_noted():
    notes = " ".join(run(test=5, request=ForgetRequest(classes=["ant", "bee", "cat", "dog"])).notes)
    assert "All retained images are of one class, elk" in notes
    assert "retain_test has 1 image: too few to tell what a model has kept" in notes


def test_layers_of_nan_or_of_one_value_are_noted_and_never_an_all_clear(whole):
    silent = copy.deepcopy(whole.models["unlearned"])
    torch.nn.init.zeros_(silent.classifier.weight)
    report = run(whole.models["original"], silent, whole.models["retrained"])
    assert "unlearned: features are the same for all images in logits" in " ".join(report.notes)
    broken = LogitsOnly(transformers.PretrainedConfig(**LABELS), scale=3e38)
    broken.linear.weight.data *= 100
    report = run(whole.models["original"], broken, whole.models["retrained"])
    assert "unlearned: features are NaN or infinite" in " ".join(report.notes)
    assert "unlearned: there is no signal of accuracy, confidence" in " ".join(report.notes)
    assert "as retrained" not in report.status.values()


def test_rows_are_asked_for_among_retained_images_of_all_classes():
    report = run(request=ForgetRequest(rows=[0, 1, 2, 3, 4, 5, 6, 7]))
    assert report.request["classes"] == []
    assert "forget_test has no image" in " ".join(report.notes)
    assert not list(report.find("accuracy_masked"))
    assert not list(report.find(split="forget_test"))
    assert report.value("linear_probe", model="unlearned", split="forget_train", layer="hidden_states.0") > 0.7
    assert report.value("mia_loss", model="unlearned") is not None
    assert report.confusion == {} and report.embedding == {} and report.retrievals == []


def test_a_forgotten_class_that_the_test_set_lacks_is_stated():
    test = make_images(25, seed=1).filter(lambda row: row["label"] != 1)
    report = run(test=test)
    assert "no image of 1 of the " in " ".join(report.notes)
    assert next(report.find("linear_probe", split="forget_test")).count == 5
    report = run(test=test, request=ForgetRequest(classes=["bee"]))
    assert report.value("accuracy", model="unlearned", split="forget_train") is not None
    assert report.value("mia_loss", model="unlearned") is None
    assert "no held-out image" in next(report.find("mia_loss", model="unlearned")).note


def test_classes_of_one_image_are_no_obstacle():
    train = make_images(40).filter(lambda row, i: row["label"] != 1 or i == 1, with_indices=True)
    report = run(train=train, request=ForgetRequest(classes=["bee"]))
    found = next(report.find("linear_cka", model="unlearned", split="forget_train", layer="logits"))
    assert found.value is None
    assert "at least 4 rows" in found.note
    assert report.value("accuracy", split="forget_train", model="original") in (0.0, 1.0)


def test_splits_may_be_given_and_be_empty():
    images = make_images(40)
    report = run(
        train=None, test=None, request=None, splits={"forget_test": images.filter(lambda row: row["label"] == 1)}
    )
    assert report.value("accuracy", model="unlearned", split="forget_test") is not None
    assert report.dataset["images"] == {"forget_train": 0, "retain_train": 0, "forget_test": 8, "retain_test": 0}
    assert sum("has no image" in note for note in report.notes) == 3


@pytest.mark.parametrize("retrained", [1, 2])
def test_forgotten_images_alone_give_signals_of_the_output_and_no_all_clear(retrained):
    models = [make_model("ViT", seed=5 + k) for k in range(retrained)]
    images = {"forget_test": make_images(60).filter(lambda row: row["label"] == 1)}
    report = run(retrained=models, train=None, test=None, request=None, splits=images)
    assert {signal.metric for signal in report.signals} == {"accuracy", "confidence"}
    assert report.status["unlearned"] != "as retrained"
    assert any("no retained image to show" in note for note in report.notes) == (retrained == 1)


class LogitsOnly(transformers.PreTrainedModel):
    config_class = transformers.PretrainedConfig

    def __init__(self, config, scale=1.0):
        super().__init__(config)
        self.linear = torch.nn.Linear(3, config.num_labels)
        self.scale = scale
        self.post_init()

    def forward(self, pixel_values):
        logits = self.linear(pixel_values.mean(dim=(2, 3)) * 4 * self.scale)
        return transformers.modeling_outputs.ImageClassifierOutput(logits=logits)


def test_a_model_without_hidden_states_is_measured_by_what_its_classifier_reads_and_its_output():
    report = run(unlearned=LogitsOnly(transformers.PretrainedConfig(**LABELS)))
    note = (
        "unlearned: LogitsOnly returns no hidden states, so only what its classifier reads and its output are measured"
    )
    assert note in " ".join(report.notes)
    assert report.value("accuracy", model="unlearned", split="forget_test") is not None
    assert list(report.profile("linear_cka", model="unlearned", split="forget_test")) == ["penultimate", "logits"]
    assert len(report.layers) == 6


def test_values_that_overflow_on_some_images_become_none_with_a_note():
    model = LogitsOnly(transformers.PretrainedConfig(**LABELS), scale=3e38)
    model.linear.weight.data *= 100
    report = run(unlearned=model, downstream=make_images(30, seed=2))
    for wanted in ({"metric": "confidence", "split": "forget_test"}, {"metric": "knn_downstream"}):
        found = next(report.find(model="unlearned", **wanted))
        assert found.value is None
        assert "not finite" in found.note
    assert report.value("knn_downstream", model="original") is not None
    assert next(report.find("linear_cka", model="unlearned", layer="logits")).value is None


def test_other_architectures_are_compared_at_the_same_relative_depth():
    shallow = transformers.ViTConfig(**{**make_model("ViT").config.to_dict(), "num_hidden_layers": 2})
    report = run(unlearned=transformers.ViTForImageClassification(shallow))
    assert "different depth" in " ".join(report.notes)
    assert list(report.profile("linear_cka", model="unlearned", split="forget_test")) == [
        "hidden_states.0",
        "hidden_states.1",
        "hidden_states.2",
        "penultimate",
        "logits",
    ]


def test_layers_are_compared_with_those_of_the_same_name_and_hidden_states_by_depth():
    deep = [f"hidden_states.{k}" for k in range(5)]
    own = [*deep, "penultimate", "logits"]
    assert layer_pairs(own, own) == [(k, k) for k in range(7)]
    assert layer_pairs([*deep[:3], "penultimate", "logits"], own) == [(0, 0), (1, 2), (2, 4), (3, 5), (4, 6)]
    assert layer_pairs(own, [*deep, "logits"]) == [*((k, k) for k in range(5)), (6, 5)]
    assert layer_pairs(own, ["penultimate", "logits"]) == [(5, 0), (6, 1)]
    assert layer_pairs(["logits"], own) == [(0, 6)]


def test_a_model_whose_logits_are_no_linear_layers_output_is_measured_by_its_hidden_states():
    model = make_model("ViT", seed=1)
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    report = run(unlearned=model, downstream=make_images(30, seed=2))
    assert "unlearned: no linear layer gives its logits" in " ".join(report.notes)
    assert report.layers[-1] == "penultimate", "the other models have one"
    assert list(report.profile("linear_probe", model="unlearned")) == [*report.layers[:-1], "logits"]
    assert next(report.find("knn_downstream", model="unlearned")).layer == "hidden_states.4"


def test_models_may_have_processors_of_their_own():
    small = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    report = run(unlearned="ResNet", processor={"original": make_processor(), "unlearned": small})
    assert "different image processors" in " ".join(report.notes)
    assert report.value("accuracy", model="unlearned", split="retain_test") is not None


def test_what_is_asked_for_is_measured_too(whole, monkeypatch):
    monkeypatch.setattr("ec_hf.auditing.measures.probes.infonce", partial(infonce, trials=1, steps=20))
    monkeypatch.setattr(relearning, "STEPS", (0, 1, 4))
    downstream = make_images(30, seed=2).rename_column("label", "kind").cast_column("kind", Value("int64"))
    downstream = downstream.map(lambda row: {"kind": row["kind"] + 70}).rename_column("kind", "labels")
    models = {"ec": whole.models["unlearned"]}
    report = run(
        whole.models["original"],
        models,
        whole.models["retrained"],
        train=80,
        test=50,
        attacks="quick",
        svc=True,
        idi=True,
        downstream=downstream,
    )
    names = ["original", "ec", "retrained"]
    quick = ("relearn_head", "relearn_full", "quantization", "pruning")
    assert {(curve.model, curve.attack) for curve in report.attacks} == {
        (name, attack) for name in names for attack in quick
    }
    for attack in quick:
        area = next(report.find("attack_area", model="ec", note=attack))
        assert area.split == "forget_test" and area.low <= area.value <= area.high
        assert report.seconds[attack] >= 0, "attacks stand apart with their own time"
        signal = next(each for each in report.signals if each.note == attack)
        assert signal.metric == "attack_area" and signal.value == pytest.approx(area.value)
    shares = [report.value(key, model="ec", split="forget_train") for key in ("mia_svc_efficacy", "mia_svc_member")]
    assert sum(shares) == pytest.approx(1)
    assert list(report.profile("infonce", model="ec", split="forget_train")) == [*report.layers, "logits"]
    index = next(report.find("idi", model="ec"))
    assert index.reference == "retrained" and (index.value is not None or index.note)
    near = next(report.find("knn_downstream", model="ec"))
    assert (near.split, near.layer, near.count, near.chance) == ("downstream", "penultimate", 6, 0.2)
    assert near.value > 0.5
    assert "MIA-efficacy" in next(report.find("avg_gap", model="ec")).note


def test_downstream_splits_and_logits_may_be_chosen():
    data = {"train": make_images(30, seed=2), "test": make_images(20, seed=3)}
    report = run(downstream=data, downstream_features="logits")
    found = next(report.find("knn_downstream", model="unlearned"))
    assert (found.layer, found.count) == ("logits", 20)


def test_idi_and_attacks_that_cannot_be_are_notes():
    report = run(idi=True, relearning=True, request=ForgetRequest(rows=[1]))
    notes = " ".join(report.notes)
    assert "IDI needs a retrained model" in notes
    assert "Attacks need forgotten training images" in notes


def test_at_most_so_many_images_are_looked_at():
    report = run(train=100, max_images=20)
    assert report.dataset["images"] == {"forget_train": 20, "retain_train": 21, "forget_test": 10, "retain_test": 15}


def test_neighbours_are_named_by_their_rows_in_the_splits_as_they_were_given():
    report = run(test=100, max_images=6)
    images = make_images(100, seed=1)
    given = concatenate_datasets(
        [images.filter(lambda row, k=k: (row["label"] in (1, 3)) == k) for k in (True, False)]
    )
    assert report.retrievals
    for each in report.retrievals:
        assert [given[row]["label"] for row in each.neighbours] == each.labels
        assert given[each.query]["label"] == each.query_label


def test_models_and_random_states_are_left_as_they_were():
    model = make_model("ResNet").train()
    model.resnet.encoder.stages[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run(model, "ResNet")
    assert model.training and not model.resnet.encoder.stages[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_report(whole):
    first, second = (run(whole.models["original"], whole.models["unlearned"]) for _ in range(2))
    first.seconds = second.seconds = {}
    assert first == second


def nan_model():
    model = make_model("ViT", seed=1)
    model.classifier.weight.data[0, 0] = torch.nan
    return model


def relabelled(**config):
    model = make_model("ViT", seed=1)
    model.config.update(config)
    return model


SWAPPED = {"id2label": {0: "bee", 1: "ant", 2: "cat", 3: "dog", 4: "elk"}}


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"unlearned": lambda: relabelled(**SWAPPED)}, ValueError, "calls label 0 'bee', the original 'ant'"),
        ({"unlearned": lambda: relabelled(num_labels=4)}, ValueError, "has 4 labels, the original 5"),
        ({"unlearned": nan_model}, ValueError, "NaN or infinite"),
        ({"unlearned": lambda: torch.nn.Linear(2, 2)}, TypeError, "expected an image classifier of transf"),
        ({"unlearned": dict}, ValueError, "it is empty"),
        ({"unlearned": lambda: {"retrained": make_model("ViT")}}, ValueError, "'retrained' is taken"),
        (
            {
                "unlearned": lambda: {"retrained 2": make_model("ViT")},
                "retrained": lambda: [make_model("ViT", seed=k) for k in (5, 6)],
            },
            ValueError,
            "'retrained 2' is taken",
        ),
        (
            {"retrained": lambda: {"original": make_model("ViT", seed=5), "b": make_model("ViT", seed=6)}},
            ValueError,
            "retrained: the name 'original' is taken",
        ),
        ({"retrained": list}, ValueError, "retrained: it is empty"),
        (
            {"retrained": lambda: make_model("ViT", seed=0)},
            ValueError,
            "original and retrained have the same weights, so it saw the forget set",
        ),
        (
            {"retrained": lambda: [make_model("ViT", seed=5), make_model("ViT", seed=5)]},
            ValueError,
            "retrained 1 and retrained 2 have the same weights, so their spread would be 0",
        ),
        (
            {"processor": lambda: transformers.ViTImageProcessor(size={"height": 48, "width": 48})},
            ValueError,
            "cannot take",
        ),
        ({"shadows": lambda: {"inside": []}}, ValueError, "shadows: 'inside' is no side"),
        ({"shadows": lambda: [3]}, TypeError, "shadows: expected PreTrainedModels or their names, got int"),
        (
            {"shadows": lambda: [make_model("ViT", seed=0)]},
            ValueError,
            r"shadow 1 \(out\) and original have the same weights: a model that is judged cannot be its own shadow",
        ),
        (
            {"shadows": lambda: [make_model("ViT", seed=5), make_model("ViT", seed=5)]},
            ValueError,
            r"shadow 2 \(out\) shows the same as another shadow model",
        ),
        ({"shadows": lambda: [relabelled(num_labels=4)]}, ValueError, "has 4 labels, the original 5"),
        ({"processor": lambda: None}, ValueError, "no image processor"),
        ({"processor": lambda: {"orignal": make_processor()}}, ValueError, "no model 'orignal'"),
        ({"request": lambda: ForgetRequest(classes=["crocodile"])}, ValueError, "crocodile"),
        ({"request": lambda: ForgetRequest(where=[{"column": "label", "equals": 9}])}, ValueError, "matches nothing"),
        ({"request": lambda: None}, ValueError, "request missing"),
        ({"splits": dict}, ValueError, "not both"),
        (
            {"train": lambda: None, "test": lambda: None, "splits": lambda: {"forget": make_images(5)}},
            ValueError,
            "none of",
        ),
        (
            {"train": lambda: None, "test": lambda: None, "splits": lambda: {"retain_test": make_images(5)}},
            ValueError,
            "no image to forget",
        ),
        ({"batch_size": lambda: 0}, ValueError, "batch_size must be at least 1"),
        ({"downstream": lambda: make_images(4)}, ValueError, "at least five rows"),
        ({"pooling": lambda: "max"}, ValueError, "pooling='max'"),
        ({"pooling": lambda: "cls", "original": lambda: make_model("ResNet")}, ValueError, "no CLS token"),
        ({"colour": lambda: 1}, TypeError, "colour"),
    ],
)
def test_wrong_input_is_refused_before_the_pass(monkeypatch, kwargs, error, message):
    monkeypatch.setattr("ec_hf.auditing.run.collect", lambda *args, **kwargs: pytest.fail("the pass has begun"))
    with pytest.raises(error, match=message):
        run(**{name: make() for name, make in kwargs.items()})


@pytest.mark.slow
@pytest.mark.launch
def test_two_processes_give_the_numbers_of_one(tmp_path):
    for processes in (1, 2):
        launch(Path(__file__).parent / "audit_paired.py", tmp_path / f"{processes}.json", processes=processes)
    one, two = (AuditReport.load(tmp_path / f"{processes}.json") for processes in (1, 2))
    assert (one.settings["processes"], two.settings["processes"]) == (1, 2)
    assert one.dataset["images"] == two.dataset["images"]
    assert len(one.measurements) == len(two.measurements) > 100
    for ours, theirs in zip(one.measurements, two.measurements, strict=True):
        assert (ours.metric, ours.model, ours.split, ours.layer, ours.count) == (
            theirs.metric,
            theirs.model,
            theirs.split,
            theirs.layer,
            theirs.count,
        )
        assert theirs.value == pytest.approx(ours.value, abs=1e-5), ours
    assert one.confusion == two.confusion
    assert one.retrievals == two.retrievals
    assert len(one.attacks) == 30 and one.attacks == two.attacks


def test_each_kept_class_is_told_beside_the_original(whole):
    retained = whole.report.retained
    assert set(retained) == {"original", "unlearned", "retrained"}
    for name, classes in retained.items():
        assert not set(classes) & {whole.report.dataset["class_names"][k] for k in whole.report.request["classes"]}
        right = sum(counts.right for counts in classes.values()) / sum(counts.images for counts in classes.values())
        assert right == pytest.approx(whole.report.value("accuracy", model=name, split="retain_test"))
        for kept, counts in classes.items():
            assert counts.right - retained["original"][kept].right == counts.gained - counts.lost
    assert AuditReport.from_dict(whole.report.to_dict()).retained == retained


def test_a_model_without_names_of_its_own_has_those_of_the_data():
    model, images = make_model("ViT"), make_images(10)
    own = model_class_names(model)
    assert model_class_names(model, images) == own
    model.config.id2label = {k: f"LABEL_{k}" for k in range(len(own))}
    assert model_class_names(model, images) == images.features["label"].names
    assert model_class_names(model) == ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4"]


def test_classes_of_one_name_are_told_apart():
    model = make_model("ViT")
    model.config.id2label = {**model.config.id2label, 3: model.config.id2label[0]}
    assert model_class_names(model) == ["ant (0)", "bee", "cat", "ant (3)", "elk"]


def test_rows_beside_whole_classes_are_said_not_to_be_judged(whole):
    mixed = ForgetRequest(classes=["ant", "bee"], rows=[2, 7])
    report = run(*whole.models.values(), train=whole.train, request=mixed)
    assert any("the signals judge the whole classes alone" in note for note in report.notes)


def attacks(report, metric):
    return {each.model: each for each in report.find(metric)}


def test_forgotten_rows_are_attacked_by_class_thresholds_without_other_models():
    report = run(request=ROWS)
    found = attacks(report, "mia_population")
    assert set(found) == {"original", "unlearned"}
    assert all(each.low <= each.value <= each.high and each.count == 25 for each in found.values())
    tails = attacks(report, "mia_population_tpr")
    assert tails["original"].note == "of 25 held-out images none may be a false alarm"
    assert not attacks(report, "mia_lira") and not attacks(run(), "mia_population")


def test_unseen_images_of_the_classes_of_forgotten_rows_are_their_target(whole):
    ants = [k for k, label in enumerate(whole.train["label"]) if label == 0][:9]
    bees = [k for k, label in enumerate(whole.train["label"]) if label == 1][:3]
    request = ForgetRequest(rows=[*ants, *bees])
    report = run(*whole.models.values(), train=whole.train, test=whole.test, request=request)
    for name, model in whole.models.items():
        found = next(report.find("accuracy_matched", model=name))
        logits, _ = direct(model, whole.test)
        hits, labels = (logits.argmax(-1).numpy() == whole.test["label"]), np.array(whole.test["label"])
        assert found.value == pytest.approx(0.75 * hits[labels == 0].mean() + 0.25 * hits[labels == 1].mean())
        assert found.split == "retain_test" and found.count == 20
    assert "not chance, but what a model gets on images of the same classes" in " ".join(report.references)
    assert not list(whole.report.find("accuracy_matched"))


def test_shadow_models_attack_the_forgotten_rows_and_are_no_models_of_the_report(whole):
    others = [make_model("ViT", seed=seed) for seed in (11, 12, 13)]
    report = run(
        *whole.models.values(), train=whole.train, request=ROWS, shadows={"out": others[:2], "in": others[2:]}
    )
    assert set(report.models) == {"original", "unlearned", "retrained"}
    assert set(attacks(report, "mia_lira")) == set(report.models)
    assert {"mia_lira", "mia_population"} <= {signal.metric for signal in report.signals}
    assert not any(signal.metric.endswith("_tpr") for signal in report.signals)  # too few images for 1 %
    assert "2 trained without the forget set, beside the retrained ones, and 1 trained with it" in " ".join(
        report.references
    )


def test_shadow_models_may_be_named_with_in_before_those_that_saw_the_rows(whole, tmp_path):
    for name, seed in (("a", 11), ("b", 12), ("c", 13)):
        make_model("ViT", seed=seed).save_pretrained(tmp_path / name)
        make_processor().save_pretrained(tmp_path / name)
    names = [str(tmp_path / "a"), str(tmp_path / "b"), f"in={tmp_path / 'c'}"]
    by_name = run(*whole.models.values(), train=whole.train, request=ROWS, shadows=names)
    others = [make_model("ViT", seed=seed) for seed in (11, 12, 13)]
    sides = {"out": others[:2], "in": others[2]}
    given = run(*whole.models.values(), train=whole.train, request=ROWS, shadows=sides)
    values = [[each.value for each in report.find("mia_lira")] for report in (by_name, given)]
    assert values[0] == pytest.approx(values[1])


def test_a_retrained_model_is_no_shadow_of_its_own(whole):
    other = make_model("ViT", seed=11)
    report = run(*whole.models.values(), train=whole.train, request=ROWS, shadows=[other])
    assert set(attacks(report, "mia_lira")) == {"original", "unlearned"}
    assert "LiRA needs 2 models that were trained without the forget set" in " ".join(report.notes)
    assert "mia_lira" not in {signal.metric for signal in report.signals}
    several = [whole.models["retrained"], other, make_model("ViT", seed=12)]
    report = run(whole.models["original"], whole.models["unlearned"], several, train=whole.train, request=ROWS)
    assert "mia_lira" in {signal.metric for signal in report.signals}  # three retrained models are enough


def test_shadow_models_tell_a_model_that_learnt_the_rows_by_heart():
    train, test = make_images(60), make_images(100, seed=1)
    noisy = np.random.default_rng(0).permutation(5)[np.array(train["label"][:30])]  # labels that no image shows
    train = train.map(lambda row, i: {"label": int(noisy[i]) if i < 30 else row["label"]}, with_indices=True)
    kept = train.select(range(30, 60))
    original, retrained = trained(train, 0), [trained(kept, seed) for seed in (1, 2, 3)]
    shadows = {"out": [trained(kept, 4), trained(kept, 5)], "in": [trained(train, seed) for seed in (6, 7)]}
    report = run(original, retrained[0], retrained[1:], train=train, test=test, request=ROWS, shadows=shadows)
    found = attacks(report, "mia_lira")
    assert found["original"].value > found["unlearned"].value + 0.1
