"""`erase` and `ec-hf erase`: from a folder of images and a model to a finished folder."""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers.models import NAMES, make_images, make_model, make_processor, save_as_folder
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import ec_hf
from ec_hf import ECConfig, ForgetRequest, cli, pipeline
from ec_hf.auditing.report import AuditReport
from ec_hf.commands.erase import rewound_to, what_next
from ec_hf.models.inputs import collator_for
from ec_hf.reporting.labels import arrow
from ec_hf.training import retain_floor

FAST = {
    "objective": "contrastive",
    "max_steps": 4,
    "heads_epochs": 1,
    "per_device_train_batch_size": 8,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
QUICK = {"embedding": False, "int8": False}
FINISHED = (
    "model.safetensors config.json preprocessor_config.json ec_heads/model.safetensors ec_config.json "
    "forget_manifest.json audit.json report.html figures/cka.png README.md"
)


def flags(**given):
    values = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return [text for name, value in values.items() for text in (f"--{name}", *map(str, value))]


def model_that_knows(images):
    """A ViT of random weights whose last layer is fitted by ridge regression."""
    model = make_model("ViT").eval()
    asked = collator_for(model, make_processor(), {"train": images})(list(images))
    with torch.no_grad():
        read = model.vit(asked["pixel_values"]).last_hidden_state[:, 0]
        read = torch.cat([read, torch.ones(len(read), 1)], dim=1).double()
        wanted = 10 * torch.nn.functional.one_hot(asked["labels"], len(NAMES)).double()
        fitted = torch.linalg.solve(read.T @ read + torch.eye(read.shape[1]), read.T @ wanted).T.float()
        model.classifier.weight.copy_(fitted[:, :-1])
        model.classifier.bias.copy_(fitted[:, -1])
    return model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of images, a folder a class, and a model that knows them."""
    folder = tmp_path_factory.mktemp("inputs")
    save_as_folder(folder / "data", train=make_images(), test=make_images(50, seed=1))
    model_that_knows(make_images()).save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def commanded(inputs, tmp_path_factory):
    """What `ec-hf erase` leaves in its folder and prints on both streams."""
    out = tmp_path_factory.mktemp("command") / "out"
    given = flags(
        model_name_or_path=inputs / "model",
        dataset_name=inputs / "data",
        forget_classes=["bee", "dog"],
        output_dir=out,
        **FAST,
    )
    with pytest.MonkeyPatch.context() as patch:
        streams = {}
        for name in ("stdout", "stderr"):
            streams[name] = (out.parent / name).open("w+")
            patch.setattr(sys, name, streams[name])
        code = cli.main(["erase", *given, "--json", "--fail_unless_forgotten"])
    return out, code, *((out.parent / name).read_text() for name in streams if not streams[name].close())


@pytest.mark.slow
def test_the_command_leaves_a_finished_folder(commanded, held_out):
    out, *_ = commanded
    assert [name for name in FINISHED.split() if not (out / name).is_file()] == []
    model = AutoModelForImageClassification.from_pretrained(out)
    pixels = AutoImageProcessor.from_pretrained(out)(held_out[0]["image"], return_tensors="pt")
    assert model(**pixels).logits.shape == (1, 5)
    report = ec_hf.load_report(out)
    assert report.manifest["parts"]["forget"] == {"rows": 40, "per_class": {"bee": 20, "dog": 20}}
    assert report.manifest["parts"]["retain"]["rows"] == 60
    assert report.audit.dataset["images"] == {
        "forget_train": 40,
        "retain_train": 60,
        "forget_test": 20,
        "retain_test": 30,
    }


@pytest.mark.slow
def test_json_is_all_that_stands_on_stdout(commanded):
    out, _, stdout, stderr = commanded
    result = json.loads(stdout)
    report = AuditReport.load(out / "audit.json")
    assert result["folder"] == str(out)
    assert result["accuracies"]["EC"]["retain_test"] == report.value("accuracy", model="EC", split="retain_test")
    assert result["headline"] in " ".join((out / "README.md").read_text().split())
    assert result["decided_on"]["forget"] == {"images": 4, "held_out": True}
    assert "Forget the classes" in stderr and "accuracy" in stderr


@pytest.mark.slow
def test_an_exit_code_of_its_own_tells_that_nothing_was_forgotten(commanded):
    _, code, stdout, _ = commanded
    assert json.loads(stdout)["status"] == "known", "four steps forget nothing"
    assert code == 3


@pytest.mark.slow
def test_the_files_say_which_images_decided(commanded):
    out, *_ = commanded
    record = json.loads((out / "ec_config.json").read_text())
    assert record["evaluated"] == {
        "forget": {"images": 4, "held_out": True},
        "retain": {"images": 6, "held_out": True},
        "share": 0.1,
        "seed": 42,
    }
    assert record["data"]["forget"]["images"] == 36 and record["data"]["retain"]["images"] == 54
    notes = AuditReport.load(out / "audit.json").notes
    assert any("decided on 4 forget images and 6 retain images held out" in note for note in notes)
    text = (out / "README.md").read_text()
    assert "| forget training images, held out of the erasure | 4 |" in text
    assert "| test images | 50 | nothing: the audit alone looked at them |" in text


@pytest.mark.slow
def test_python_gives_what_the_command_gives(commanded, inputs, tmp_path):
    out, _, stdout, _ = commanded
    done = ec_hf.erase(
        inputs / "model",
        inputs / "data",
        ForgetRequest(classes=["bee", "dog"]),
        output_dir=tmp_path / "out",
        args=ECConfig(**FAST),
    )
    same = AutoModelForImageClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in done.model.state_dict().items())
    assert done.report.measurements == AuditReport.load(out / "audit.json").measurements
    manifests = [json.loads((folder / "forget_manifest.json").read_text()) for folder in (out, done.folder)]
    assert manifests[0] == manifests[1]
    told, mine = json.loads(stdout), done.to_dict()
    for name in ("status", "headline", "accuracies", "decided_on"):
        assert told[name] == mine[name]
    assert [name for name in FINISHED.split() if not (done.folder / name).is_file()] == []


# Which images a run sees


def numbered(count, first, seed):
    """Images whose first pixel tells their number; the processor leaves it as it is."""

    def mark(row, number):
        pixels = np.array(row["image"])
        pixels[0, 0] = first + number
        return {"image": Image.fromarray(pixels)}

    return make_images(count, seed=seed).map(mark, with_indices=True)


def watched(model):
    """The model, and how often it and its copies see and train on each numbered image."""
    seen, trained = Counter(), Counter()

    def look(model, args, kwargs):
        corners = (kwargs["pixel_values"][:, :, 0, 0] + 1) * 127.5
        is_number = (corners - corners[:, :1].round()).abs().amax(dim=1) < 0.01  # else a trial with a random image
        numbers = corners[is_number, 0].round().int().tolist()
        seen.update(numbers)
        trained.update(numbers if model.training else [])

    model.register_forward_pre_hook(look, with_kwargs=True)
    return model, seen, trained


@pytest.mark.slow
def test_no_test_image_steers_a_run_and_no_image_that_decides_is_trained_on(monkeypatch, tmp_path):
    model, seen, trained = watched(make_model("ViT"))
    audit, before_audit = pipeline.audit, Counter()
    monkeypatch.setattr(pipeline, "audit", lambda *args, **kwargs: before_audit.update(seen) or audit(*args, **kwargs))
    settings = FAST | {"max_steps": 40, "min_steps": 40, "eval_strategy": "steps", "eval_steps": 20, "retain_floor": 1}
    done = ec_hf.erase(
        model,
        DatasetDict(train=numbered(100, 0, seed=0), test=numbered(50, 100, seed=1)),
        ForgetRequest(classes=["bee"]),
        output_dir=tmp_path / "out",
        processor=make_processor(),
        audit_settings=QUICK,
        **settings,
    )
    held = {int(np.array(row["image"])[0, 0, 0]) for part in done.data.held_out.evaluated.values() for row in part}
    assert len(held) == 10
    assert set(before_audit) == set(range(100)), "all training images, and no test image"
    assert set(trained) == set(range(100)) - held
    assert {before_audit[number] for number in held} == {3}, "evaluated thrice; EC heads are not fitted on them"
    assert set(seen) == set(range(150)), "the audit looks at the test images"
    fresh = make_model("ViT").parameters()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), fresh, strict=True)), "the given model stays"


def test_a_preset_beside_settings_that_are_complete_is_refused_since_it_could_fill_in_nothing(tmp_path):
    request, complete = ForgetRequest(classes=["bee"]), ECConfig(use_cpu=True, objective="scrub")
    with pytest.raises(ValueError, match=r"preset='published' fills in what `args` leaves out"):
        ec_hf.erase("model", "data", request, output_dir=tmp_path, args=complete, preset="published")


@pytest.mark.parametrize(("objective", "lead"), [("rewind", 0.75), ("retrain", 0.75), ("delete", 0.0)])
def test_new_weights_are_judged_by_what_the_original_knows_of_images_that_it_never_saw(tmp_path, objective, lead):
    model, images = make_model("ViT"), make_images(20)
    collator = collator_for(model, make_processor(), {"train": images})
    with torch.no_grad():
        named = model(pixel_values=collator(list(images))["pixel_values"]).logits.argmax(-1).numpy()
    others = (named + (np.arange(20) % 4 > 0)) % len(NAMES)  # three of four are wrong
    known, unseen = (
        images.remove_columns("label").add_column("label", labels).cast_column("label", images.features["label"])
        for labels in (named, others)
    )
    held_out = SimpleNamespace(evaluated={"retain": known})
    data = SimpleNamespace(held_out=held_out, splits={"retain_test": unseen}, columns={"label_column": "label"})
    config = ECConfig(output_dir=str(tmp_path), use_cpu=True, objective=objective, points=[])
    assert retain_floor.lead_of_original(config, data, model, make_processor()) == pytest.approx(lead)
    data.splits = {"retain_test": unseen.select([])}
    assert retain_floor.lead_of_original(config, data, model, make_processor()) == 0


def test_the_retain_floor_leaves_room_for_chance_where_few_images_decide():
    assert retain_floor.floor_for(0.01, 6) == pytest.approx(1 / 6), "one image may be lost"
    rng = np.random.default_rng(0)
    for images in (100, 280, 1000):
        floor = retain_floor.floor_for(0.01, images)
        assert 0.01 < floor < 0.05
        changed = rng.choice([-1, 0, 1], p=[0.015, 0.98, 0.005], size=(2000, images)).mean(axis=1)  # falls by 0.01
        assert (changed >= -floor - 1e-9).mean() > 0.93
        changed = rng.choice([-1, 0], p=[0.06, 0.94], size=(2000, images)).mean(axis=1)
        assert (changed < -floor).mean() > 0.8, "a fall of six points is told"
    assert retain_floor.floor_for(0.01, 10**6) == pytest.approx(0.01, abs=3e-4)


# Earlier requests


@pytest.fixture(scope="module")
def second(inputs, tmp_path_factory):
    """Two requests in a row, in Python; the second to a model in memory."""
    folder = tmp_path_factory.mktemp("two")
    common = {"audit_settings": QUICK, **FAST}
    first = ec_hf.erase(
        inputs / "model", inputs / "data", ForgetRequest(classes=["bee"]), output_dir=folder / "1", **common
    )
    model = AutoModelForImageClassification.from_pretrained(first.folder)
    processor = AutoImageProcessor.from_pretrained(first.folder)
    images = ec_hf.data.sources.load_images(inputs / "data")
    request = ForgetRequest(classes=["dog"])
    return ec_hf.erase(model, images, request, output_dir=folder / "2", processor=processor, **common)


@pytest.mark.slow
def test_what_was_forgotten_before_is_not_retained(second):
    labels = {NAMES[label] for part in second.data.held_out.train.values() for label in part["label"]}
    assert labels == {"ant", "cat", "dog", "elk"}
    document = ec_hf.load_report(second.folder).manifest
    assert document["parts"]["retain"] == {"rows": 60, "per_class": {"ant": 20, "cat": 20, "elk": 20}}
    assert [earlier["request"]["content"] for earlier in document["history"]] == [{"classes": ["bee"]}]


@pytest.mark.slow
def test_what_was_forgotten_before_is_asked_again_and_less_of_it_is_better(second):
    assert {row.model for row in second.report.find("accuracy", split="request 1")} == {"original", "EC"}
    assert arrow("accuracy", "request 1") == "↓"
    assert "### Earlier requests" in (second.folder / "README.md").read_text()


# References


@pytest.mark.slow
def test_a_reference_for_an_own_model_is_trained_where_it_is_said_from_what(inputs, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text("max_steps: 1\nlearning_rate: 1.0e-12\n")
    given = flags(
        model_name_or_path=inputs / "model",
        dataset_name=inputs / "data",
        forget_classes="bee",
        output_dir=tmp_path / "out",
        with_retrained="true",
        base_model=inputs / "model",
        retrain_settings=tmp_path / "settings.yaml",
        **FAST | {"max_steps": 1},
    )
    assert cli.main(["erase", *given]) == 0
    report = AuditReport.load(tmp_path / "out" / "audit.json")
    assert [info.role for info in report.models.values()] == ["original", "unlearned", "retrained"]
    similar = report.value("linear_cka", model="retrained", split="forget_test", layer="hidden_states.4")
    assert similar == pytest.approx(1, abs=1e-4), "it starts from the weights of the base model"


@pytest.mark.slow
def test_retrain_makes_references_that_start_from_the_base_model(inputs, tmp_path, capsys):
    given = flags(
        model_name_or_path=inputs / "model",
        base_model=inputs / "model",
        dataset_name=inputs / "data",
        forget_classes=["bee", "dog"],
        output_dir=tmp_path / "retrained",
        seeds=2,
        max_steps=1,
        learning_rate=1e-12,
        use_cpu="true",
    )
    assert cli.main(["retrain", *given]) == 0
    base = AutoModelForImageClassification.from_pretrained(inputs / "model").state_dict()
    heads = []
    for number in (1, 2):
        model = AutoModelForImageClassification.from_pretrained(tmp_path / f"retrained-{number}")
        assert model.config.num_labels == 5, "the classes keep their place in the head"
        weights = model.state_dict()
        heads.append(weights.pop("classifier.weight"))
        body = [name for name in weights if not name.startswith("classifier")]
        assert all(torch.allclose(weights[name], base[name], atol=1e-9) for name in body)
    assert not torch.allclose(heads[0], base["classifier.weight"], atol=1e-3)
    assert not torch.allclose(*heads, atol=1e-3)
    assert cli.main(["retrain", *given]) == 1
    assert "holds a model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("erase", {}, "--model_name_or_path, --dataset_name missing"),
        ("erase", {"model_name_or_path": "m", "dataset_name": "d"}, "Say what to forget"),
        ("erase", {"mod_name": "m"}, "mod_name"),
        (
            "erase",
            {"model_name_or_path": "m", "dataset_name": "d", "forget_classes": "x", "with_retrained": "true"},
            "Give --base_model ID",
        ),
        ("retrain", {"forget_classes": "x"}, "--dataset_name missing"),
        ("retrain", {"dataset_name": "d", "forget_classes": "x"}, "say what to train from"),
        ("retrain", {"dataset_name": "d", "retrain_from": "new"}, "name the model with that architecture"),
        ("retrain", {"dataset_name": "d", "base_model": "b", "retrain_from": "new"}, "give one of the two"),
    ],
)
def test_wrong_usage_ends_with_its_own_exit_code(command, more, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, *flags(**more)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"hold_out": 2}, ValueError, "hold_out=2"),
        ({"manifest_detail": "names"}, ValueError, "manifest_detail='names'"),
        ({"retrained": "/nowhere/model"}, FileNotFoundError, "no folder '/nowhere/model'"),
        ({"lerning_rate": 1}, TypeError, "lerning_rate"),
        ({"dataset": [1, 2]}, TypeError, "expected a name, a datasets.Dataset or"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(more, error, message, inputs, tmp_path):
    given = {"model": inputs / "model", "dataset": inputs / "data", "request": ForgetRequest(classes=["bee"])}
    with pytest.raises(error, match=message):
        ec_hf.erase(**given | {"output_dir": tmp_path / "out", "use_cpu": True} | more)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rows_of_a_dataset_without_a_test_split_are_erased_and_the_notes_say_what_that_means(tmp_path):
    data = make_images()
    assert isinstance(data, Dataset)
    done = ec_hf.erase(
        make_model("ViT"),
        data,
        ForgetRequest(rows=[0, 1, 2, 3]),
        output_dir=tmp_path / "out",
        processor=make_processor(),
        audit_settings=QUICK,
        **FAST,
    )
    assert len(done.data.held_out.train["forget"]) == 4
    assert done.trainer.stopping_rule.target is None, "rows are not driven to chance"
    assert any("eval_matched_accuracy" in entry for entry in done.trainer.state.log_history)
    notes = " ".join(done.report.notes)
    assert "No forget image is held out" in notes
    assert "The data has no test split" in notes
    assert done.report.dataset["images"]["retain_test"] == 20
    assert "| forget training images, trained on | 4 |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_a_cache_of_heads_serves_one_model_and_one_data_set(inputs, tmp_path):
    cache, fast = tmp_path / "heads", {**FAST, "max_steps": 1, "audit_settings": QUICK}
    data = {"train": make_images(), "test": make_images(50, seed=1)}

    def erased(number, classes=("bee",), model=inputs / "model", data=data, **more):
        request, out = ForgetRequest(classes=classes), tmp_path / f"out-{number}"
        return ec_hf.erase(model, data, request, output_dir=out, heads_cache=cache, **{**fast, **more})

    def weights():
        return (cache / "model.safetensors").read_bytes()

    erased(1)
    fitted = weights()
    again = erased(2, classes=("dog",))
    assert weights() == fitted
    assert same_heads(again.trainer.heads, ec_hf.ECHeads.from_pretrained(cache))
    other = {**data, "train": data["train"].select(range(90))}
    for changed, what in (
        ({"model": make_model("ViT", seed=1), "processor": make_processor()}, "another model"),
        ({"data": other}, "another data"),
        ({"heads_epochs": 2}, "another heads_epochs"),
    ):
        with pytest.raises(ValueError, match=f"holds EC heads of {what}: name a new folder"):
            erased(3, **changed)
    (cache / "fitted_on.json").unlink()
    with pytest.raises(ValueError, match="and not what they are fitted on"):
        erased(3)
    assert weights() == fitted


def same_heads(a, b):
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize(
    ("status", "steps", "roles", "words"),
    [
        ("known", 6, [], "the run took 6 steps and layers need 100 or more, so raise --max_steps"),
        ("known", 6, [], "compare with a model that never saw the images"),
        ("under-erased", 300, ["retrained"], "too little was erased: raise --max_steps"),
        ("over-erased", 300, ["retrained"], "lower --ec_weight"),
        ("unclear", 300, [], "--with_retrained --base_model ID"),
        ("unclear", 300, ["retrained"], "as good on the rest as the original"),
        ("blind", 300, ["retrained"], "as good on the rest as the original"),
        ("as retrained", 300, ["retrained"], "ec-hf push out NAME/REPOSITORY"),
    ],
)
def test_the_command_ends_with_what_to_do_next(status, steps, roles, words):
    assert words in what_next(ended(status, steps, roles))


@pytest.mark.parametrize(
    ("status", "words"), [("under-erased", "larger depth or alpha"), ("over-erased", "smaller alpha or depth")]
)
def test_what_to_do_next_after_a_rewind_is_to_rewind_more_or_less(status, words):
    assert words in what_next(ended(status, 200, ["retrained"], renews=True))
    assert words in what_next(ended(status, 200, ["retrained"], follows=True))


def ended(status, steps, roles, renews=False, follows=False, put_back=None):
    models = {role: SimpleNamespace(role=role) for role in ["original", *roles]}
    eraser = SimpleNamespace(objective=SimpleNamespace(renews=renews))
    on_record = {"pilot": {}} if follows else {}
    state = SimpleNamespace(global_step=steps)
    trainer = SimpleNamespace(state=state, put_back=put_back, eraser=eraser, on_record=on_record)
    return SimpleNamespace(status=status, report=SimpleNamespace(models=models), trainer=trainer, folder="out")


def test_what_to_do_next_after_a_run_that_went_back_is_not_to_go_further():
    advice = what_next(ended("known", 36, [], put_back="out/checkpoint-12"))
    assert "out/checkpoint-12 was put back" in advice
    assert "raise --max_steps" not in advice
    assert "--retain_weight" in advice


def test_rewind_goes_back_to_the_base_model_of_the_command_unless_another_is_named(tmp_path):
    def base(name, **settings):
        config = ECConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
        return (rewound_to(name, config).objective_kwargs or {}).get("base")

    assert base("me/base") == "me/base"
    assert base("me/base", objective_kwargs={"base": "me/other"}) == "me/other"
    assert base("me/base", objective="delete") is None
    assert base(None) is None


# Data that is streamed


@pytest.mark.slow
def test_a_streamed_dataset_gives_the_folder_that_one_in_memory_gives(inputs, tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for shard in range(2):
        make_images().select(range(50 * shard, 50 * shard + 50)).to_parquet(str(data / f"train-{shard}.parquet"))
    make_images(50, seed=1).to_parquet(str(data / "test-0.parquet"))
    given = flags(
        model_name_or_path=inputs / "model",
        dataset_name=data,
        forget_classes=["bee", "dog"],
        output_dir=out,
        **{**FAST, "max_steps": -1, "num_train_epochs": 1},
    )
    assert cli.main(["erase", *given, "--streaming", "--eval_strategy", "no"]) == 0
    assert [name for name in FINISHED.split() if not (out / name).is_file()] == []
    assert not list(out.glob("streamed*")), "what was stored for the run is gone"
    report = ec_hf.load_report(out)
    assert {name: part["rows"] for name, part in report.manifest["parts"].items()} == {"forget": 40, "retain": 60}
    assert report.audit.dataset["images"]["forget_train"] == 40
    record = json.loads((out / "ec_config.json").read_text())
    assert record["settings"]["retain_rows"] == record["data"]["retain"]["images"] == 54, "a tenth is held out"
    assert record["cost"]["steps"] == 54 // 8
    assert "The retain set was streamed" in " ".join((out / "README.md").read_text().split())


@pytest.mark.parametrize(
    ("dataset", "given", "kind", "message"),
    [
        (make_images(), {}, TypeError, "streaming: expected the dataset's name or folder, got Dataset"),
        ("data", {"retrained": lambda original, data: None}, ValueError, "streaming: a retrained model is trained on"),
        ("data", {"heads_cache": "cache"}, ValueError, "streaming: heads_cache knows data by its rows"),
        ("mnist5k", {}, ValueError, "streaming: 'mnist5k' is not read into memory anyway"),
    ],
)
def test_what_does_not_go_with_streaming_is_refused(inputs, tmp_path, dataset, given, kind, message):
    dataset = str(inputs / "data") if dataset == "data" else dataset
    request = ForgetRequest(classes=["bee"])
    with pytest.raises(kind, match=message):
        pipeline.erase(
            inputs / "model", dataset, request, output_dir=tmp_path / "out", streaming=True, **FAST, **given
        )
