import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.reports import DIGITS, FORGOTTEN, SEVERAL, make_report, renamed
from huggingface_hub import ModelCard

from ec_hf.auditing.report import AuditReport, Measurement
from ec_hf.cli import card_command
from ec_hf.cli import main as ec_hf_command
from ec_hf.data.manifests import earlier_manifests
from ec_hf.models.finish import UNREACHABLE
from ec_hf.publishing import card as module
from ec_hf.publishing.card import AT_A_GLANCE, TEMPLATE, card
from ec_hf.publishing.disclosure import disclosed_manifest, disclosed_record, disclosed_report
from ec_hf.publishing.metadata import check_card, eval_results
from ec_hf.reporting.figures import save_figures
from ec_hf.reporting.labels import value_text
from ec_hf.reporting.tables import FEW_SIGNALS
from ec_hf.reporting.verdict import findings

ROOT = Path(__file__).parents[2]
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/README.md"))
NAMES = [DIGITS[k] for k in FORGOTTEN]
MANIFEST = {
    "schema_version": 1,
    "dataset": {"name": "someone/digits", "fingerprint": "ab12cd34ef", "rows": 4000},
    "request": {"hash": "5f3c" * 16, "summary": "Forget the classes 'three', 'five', 'eight'."},
    "parts": {
        "forget": {"rows": 1200, "per_class": dict.fromkeys(NAMES, 400)},
        "retain": {"rows": 2800, "per_class": {name: 400 for name in DIGITS if name not in NAMES}},
    },
    "forget_rows_sha256": "9a" * 32,
}
RECORD = {
    "method": "Erase at the Core (arXiv 2602.05375)",
    "date": "2026-03-01",
    "base_model": "someone/vit-digits",
    "base_model_revision": "0123456789abcdef0123456789abcdef01234567",
    "base_model_license": {"license": "apache-2.0"},
    "command": "accelerate launch recipes/ec_vit.py --forget_classes three five eight --output_dir OUTPUT_DIR",
    "settings": {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}, "learning_rate": 0.002, "seed": 7},
    "points": [{"index": 5, "kind": "tokens", "channels": 96, "height": 7, "width": 7, "prefix": 1}],
    "layer_weights": [0.5],
    "processes": 2,
    "cost": {
        "steps": 172,
        "forget_images_seen": 11008,
        "retain_images_seen": 22016,
        "minutes": 0.43,
        "peak_memory_mb": 1034,
    },
    "versions": {"ec_hf": "0.1.0", "torch": "2.15.0"},
}
CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "id2label": {str(k): name for k, name in enumerate(DIGITS)},
}


def write(folder, config=CONFIG, record=RECORD, manifest=MANIFEST, report=None):
    for name, content in (("config.json", config), ("ec_config.json", record), ("forget_manifest.json", manifest)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    if report is not None:
        report.save(folder / "audit.json")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("finished"), report=make_report())
    save_figures(make_report(), folder / "figures")
    return folder


def header(text):
    return yaml.safe_load(text.split("---\n")[1])


# Metadata


def test_the_metadata_is_what_the_hub_wants(folder):
    text = card(folder, repo_id="someone/forgetful")
    data = header(text)
    wanted = {
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "base_model": "someone/vit-digits",
        "base_model_relation": "finetune",
        "datasets": ["someone/digits"],
        "license": "apache-2.0",
        "tags": ["image-classification", "machine-unlearning", "erase-at-the-core", "ec_hf"],
    }
    assert {key: data[key] for key in wanted} == wanted
    assert "accuracy" in data["metrics"]
    assert "https://arxiv.org/abs/2602.05375" in text
    again = ModelCard(text)
    assert yaml.safe_load(again.data.to_yaml()) == data
    assert str(again).strip() == text.strip()


def test_forget_and_retain_results_stay_apart_in_the_model_index(folder):
    report, (index,) = make_report(), header(card(folder, repo_id="someone/forgetful"))["model-index"]
    assert index["name"] == "forgetful"
    found = {(r["dataset"]["config"], r["dataset"]["split"]): r for r in index["results"]}
    assert set(found) == {(part, split) for part in ("forget", "retain") for split in ("train", "test")}
    for (part, split), result in found.items():
        assert result["dataset"]["type"] == "someone/digits"
        accuracy = next(m["value"] for m in result["metrics"] if m["type"] == "accuracy")
        assert accuracy == report.value("accuracy", model="unlearned", split=f"{part}_{split}")
    parsed = {(r.dataset_config, r.dataset_split, r.metric_name) for r in ModelCard(card(folder)).data.eval_results}
    assert len(parsed) == sum(len(result["metrics"]) for result in index["results"]), "two results have one name"


def test_the_model_index_holds_floats_and_no_undefined_number(tmp_path):
    report = make_report()
    report.measurements += [Measurement("knn_downstream", "unlearned", None, split="forget_test", note="no images")]
    report.measurements += [Measurement("accuracy_masked", "unlearned", 1, split="retain_train")]
    (index,) = header(card(write(tmp_path, report=report)))["model-index"]
    metrics = [metric for result in index["results"] for metric in result["metrics"]]
    assert all(type(metric["value"]) is float for metric in metrics)
    assert 1.0 in [metric["value"] for metric in metrics if metric["type"] == "accuracy_masked"]
    assert "knn_downstream" not in {metric["type"] for metric in metrics}


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (("license: apache-2.0", "license: Apache 2"), "no licence id"),
        (("library_name: transformers", "library: transformers"), "lacks library_name"),
        (("pipeline_tag: image-classification", "pipeline_tag: image-guessing"), "image-guessing"),
        (("value: 0.0\n", "value: .nan\n"), "finite"),
        (("value: 0.0\n", "value: !!python/object/apply:numpy.core.multiarray.scalar []\n"), "cannot be read"),
        (("tags:", "tags: ["), "cannot be read"),
    ],
)
def test_metadata_that_the_hub_would_refuse_is_refused(folder, edit, match):
    text = card(folder)
    check_card(text)
    assert edit[0] in text
    with pytest.raises(ValueError, match=match):
        check_card(text.replace(*edit, 1))


def test_a_local_path_is_neither_base_model_nor_dataset(tmp_path):
    manifest = {**MANIFEST, "dataset": {**MANIFEST["dataset"], "name": str(tmp_path)}}
    text = card(write(tmp_path, record={**RECORD, "base_model": None}, manifest=manifest, report=make_report()))
    assert not {"base_model", "base_model_relation", "datasets"} & set(header(text))
    assert str(tmp_path) not in text
    assert "is not on the Hub" in text


@pytest.mark.parametrize("given", ["argument", "record", "readme", "nowhere"])
def test_the_licence_is_the_one_given_or_inherited(tmp_path, given):
    record = {**RECORD, "base_model_license": {"license": "mit"} if given == "record" else {}}
    write(tmp_path, record=record)
    if given == "readme":
        (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n")
    text = card(tmp_path, license="cc0-1.0" if given == "argument" else None)
    expected = {"argument": "cc0-1.0", "record": "mit", "readme": "other", "nowhere": None}[given]
    assert header(text).get("license") == expected
    assert ("No licence is named" in text) == (given == "nowhere")
    assert header(text).get("license_name") == ("ours" if given == "readme" else None)


def test_an_unknown_licence_is_refused_with_close_ones(folder):
    with pytest.raises(ValueError, match=r"'apache2'.*apache-2\.0"):
        card(folder, license="apache2")


# What it says


def test_every_reader_finds_the_numbers_of_the_report(folder):
    text, report = card(folder, manifest_detail="classes"), make_report()
    headline, *details = (finding for finding in findings(report) if finding.model == "unlearned")
    assert f"**The audit found: {headline.text}**" in text
    for finding in details:
        assert f"- {finding.sentence}" in text
    for metric, split in (("accuracy", "forget_test"), ("accuracy", "retain_test"), ("mia_loss", "forget_train")):
        for model in ("original", "unlearned", "retrained"):
            assert value_text(metric, report.value(metric, model=model, split=split)) in text
    for layer in report.layers:
        assert text.count(f"| {layer} |") >= 2, "a table of layers is missing"
    for name in ("cka", "probe", "attacks", "confusion"):
        assert f"](figures/{name}.png)" in text
    for sentence in (
        "**3 classes: three, five, eight (1,200 training images)**",
        "172 steps, in which 11,008 forget and 22,016 retain images were seen",
        "0.4 minutes, peak memory 1,034 MB",
        "Seed 7, 2 processes; ec_hf 0.1.0, torch 2.15.0.",
        "| hidden_states.5 | tokens | 96 | 0.5 |",
        "`0123456789abcdef0123456789abcdef01234567`",
        RECORD["command"],
        'pipeline("image-classification", model=',
        "## What is not guaranteed",
    ):
        assert sentence in text


def test_a_model_whose_name_begins_like_another_has_findings_of_its_own(tmp_path):
    report = renamed(make_report(), {"unlearned": "ec", "delete": "ec: once more"})
    text = card(write(tmp_path, report=report))
    before, _, after = text.partition("Beside it, for comparison, *ec: once more*:")
    assert "**The audit found: forgotten, as far as this audit can see" in before
    assert "Once more: " not in text
    assert after.lstrip().startswith("- Not forgotten, though its answers do not show it")


def test_headline_and_the_worst_signals_stand_at_the_top_of_the_measurements(folder):
    text = card(folder)
    headline = next(finding for finding in findings(make_report()) if finding.model == "unlearned")
    top = text.split("## Measurements")[1].split("accuracy, forget test ↓")[0]
    assert f"**{headline.sentence}**" in top
    rows = top[top.index("|") :].partition("\n\n")[0].splitlines()
    assert rows[0] == "|  | original | this model | retrained | position | status |"
    assert len(rows) == 2 + FEW_SIGNALS
    assert "<details><summary>Signals, the worst first: delete</summary>" in text


def test_the_model_index_holds_no_signal(folder):
    bare = replace(make_report(), signals=[], status={})
    assert eval_results(make_report(), "x") == eval_results(bare, "x")


def test_several_retrained_models_share_a_column(tmp_path):
    text = card(write(tmp_path, report=make_report(SEVERAL)))
    assert "| before | this model | retrained | aim |" in text
    assert "(the mean of 3 models, in brackets their range)" in text


def test_every_number_comes_from_the_files(folder, tmp_path):
    report = make_report()
    moved = [
        Measurement(**{**vars(m), "value": 0.123}) if (m.metric, m.model) == ("accuracy", "unlearned") else m
        for m in report.measurements
    ]
    report.measurements = moved
    record = {**RECORD, "cost": {**RECORD["cost"], "steps": 9173}}
    text = card(write(tmp_path, record=record, report=report))
    row = next(line for line in text.splitlines() if line.startswith(f"| {AT_A_GLANCE[0].says}"))
    assert "12.3 %" in row
    assert "9,173 steps" in text
    assert "9,173 steps" not in card(folder)


def test_the_same_files_give_the_same_card(folder):
    assert card(folder) == card(folder)


def test_without_an_audit_the_card_says_so_and_shows_no_figure(tmp_path):
    text = card(write(tmp_path))
    assert "**Nothing was audited.**" in text
    assert "model-index" not in header(text)
    for absent in ("## Measurements", "## How it was checked", "figures/", "The audit found"):
        assert absent not in text


def test_parts_without_a_file_say_so(tmp_path):
    text = card(write(tmp_path, record=None, manifest=None))
    assert "what was forgotten is not on record" in text
    assert "how the model was made is not on record" in text


def test_without_a_retrained_model_none_is_shown(tmp_path):
    report = make_report(models=("original", "unlearned", "random_init"))
    text = card(write(tmp_path, report=report))
    assert "**No retrained model.**" in text
    assert "| before | this model | aim |" in text


def test_figures_that_are_not_there_are_not_shown(tmp_path):
    assert "](figures/" not in card(write(tmp_path, report=make_report()))


@pytest.mark.parametrize(
    ("finish", "says"),
    [
        (None, "They are **kept**"),
        ("keep", "They are **kept**"),
        ("mask", f"**masked**: their rows in the last layer are\nzero and their biases {UNREACHABLE:,.0f}"),
        ("drop", "**dropped**"),
    ],
)
def test_finishing_is_told_apart_from_erasure(tmp_path, finish, says):
    record = RECORD if finish is None else {**RECORD, "finish": finish}
    text = card(write(tmp_path, record=record, report=make_report()))
    assert says in text
    hidden = finish in ("mask", "drop")
    assert ("This hides classes and erases nothing." in text) == hidden
    assert ("No figure on this card comes from it" in text) == hidden


def test_forgotten_rows_have_no_class_outputs_to_speak_of(tmp_path):
    per_class = dict.fromkeys(DIGITS, 40)
    parts = {"forget": {"rows": 400, "per_class": per_class}, "retain": {"rows": 3600, "per_class": per_class}}
    text = card(write(tmp_path, manifest={**MANIFEST, "parts": parts}))
    assert "**400 training images**" in text
    assert "The outputs of the forgotten classes" not in text


def test_earlier_requests_are_listed_with_what_the_audit_found_of_them(tmp_path):
    earlier = {
        **MANIFEST,
        "date": "2025-12-24",
        "request": {"hash": "77" * 32, "summary": "Forget the class 'nine'."},
        "parts": {
            "forget": {"rows": 410, "per_class": {"nine": 410}},
            "retain": {"rows": 3590, "per_class": {"one": 3590}},
        },
    }
    report = make_report()
    report.measurements.append(Measurement("accuracy", "unlearned", 0.031, split="request 1", count=410))
    manifest = {**MANIFEST, "history": [earlier]}
    text = card(write(tmp_path, manifest=manifest, report=report), manifest_detail="classes")
    row = next(line for line in text.splitlines() if "77" * 32 in line)
    for part in ("2025-12-24", "1 class: nine (410 training images)", "3.1 %"):
        assert part in row
    assert "nine" not in next(line for line in card(tmp_path).splitlines() if "77" * 32 in line)


def test_the_date_of_an_earlier_request_is_that_of_its_run(tmp_path):
    assert earlier_manifests(write(tmp_path)) == [{**MANIFEST, "date": RECORD["date"]}]


def test_text_from_the_data_cannot_break_the_tables(tmp_path):
    per_class = {"a|b\nc<img src=x>": 400}
    parts = {"forget": {"rows": 400, "per_class": per_class}, "retain": {"rows": 3600, "per_class": {"z": 3600}}}
    text = card(write(tmp_path, manifest={**MANIFEST, "parts": parts}), manifest_detail="classes")
    assert "<img" not in text
    row = next(line for line in text.splitlines() if line.startswith("| forgotten, by class"))
    assert row.endswith(" 400 |")
    assert row.replace("\\|", "").count("|") == 3


# What it does not say


def test_by_default_no_class_is_named_as_forgotten(folder):
    text = card(folder)
    body = text.split("---\n", 2)[2]
    assert not re.findall(rf"\b({'|'.join(NAMES)}|by class)\b", body)
    assert "**3 classes (1,200 training images)**" in text
    assert "`CLASSES` for the classes that the request named" in text
    for name in ("confusion", "embedding"):
        assert f"figures/{name}.png" not in text
    assert "What the request named is withheld here." in text


def test_the_detail_of_the_manifest_is_the_default(tmp_path):
    write(tmp_path, manifest=disclosed_manifest(MANIFEST, "classes"), report=make_report())
    assert "three" in card(tmp_path)
    assert "three" not in card(tmp_path, manifest_detail="hashes").split("---\n", 2)[2]


@pytest.mark.parametrize("detail", ["hashes", "classes", "rows"])
def test_reduced_files_give_the_same_card_as_the_full_ones(folder, tmp_path, detail):
    reduced = write(
        tmp_path,
        record=disclosed_record(RECORD, detail),
        manifest=disclosed_manifest(MANIFEST, detail),
        report=disclosed_report(AuditReport.load(folder / "audit.json"), detail),
    )
    shutil.copytree(folder / "figures", reduced / "figures")
    assert card(reduced) == card(folder, manifest_detail=detail)


# Folders and files


@pytest.mark.parametrize("name", ["config.json", "ec_config.json", "forget_manifest.json"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(ValueError, match=name):
        card(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        card(tmp_path)


def test_an_audit_of_no_unlearned_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no unlearned model"):
        card(write(tmp_path, report=make_report(models=("original", "retrained"))))


def test_the_command_line_replaces_a_card_only_when_told(folder, capsys):
    assert ec_hf_command(["card", str(folder), "--repo_id", "someone/one"]) == 0
    assert str(folder / "README.md") in capsys.readouterr().out
    first = (folder / "README.md").read_text()
    assert first == card(folder, repo_id="someone/one")
    with pytest.raises(FileExistsError, match="--overwrite"):
        card_command([str(folder), "--repo_id", "someone/other"])
    assert (folder / "README.md").read_text() == first
    card_command([str(folder), "--repo_id", "someone/other", "--overwrite"])
    assert (folder / "README.md").read_text() != first
    (folder / "README.md").unlink()


def test_the_template_in_model_cards_is_the_one_that_the_package_has():
    assert (ROOT / "model_cards" / "template.md").resolve() == TEMPLATE.resolve()
    assert module.__file__ is not None
    assert TEMPLATE.parent == Path(module.__file__).parent


@pytest.mark.launch
def test_the_template_is_in_the_wheel(tmp_path):
    build = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    for name in ("ec_hf", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True)
    assert "ec_hf/publishing/model_card.md" in listed.stdout


# The cards that recipes made


@pytest.mark.parametrize("made", CARDS, ids=lambda path: path.name)
def test_a_published_card_is_what_its_files_give(made):
    for name in ("config.json", "ec_config.json", "forget_manifest.json", "audit.json"):
        assert (made / name).is_file(), f"{made.name}: the card cannot be checked without {name}"
    assert list((made / "figures").glob("*.png"))
    assert card(made) == (made / "README.md").read_text(encoding="utf-8")


def test_every_folder_of_model_cards_holds_a_card():
    folders = [path for path in (ROOT / "model_cards").iterdir() if path.is_dir()]
    assert sorted(folders) == CARDS
