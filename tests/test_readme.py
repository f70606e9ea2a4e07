"""The README runs as it stands: its Python, its settings, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.models import make_images, make_model, make_processor
from transformers import AutoModelForImageClassification

from ec_hf import cli, load_report, objectives
from ec_hf.auditing.report import STATUSES
from ec_hf.files import MANIFEST

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = ROOT / "recipes" / "README.md"
COMMANDS = ("erase", "retrain", "audit", "push", "plan", "convert")
PLAIN = ("push", "convert")  # the commands whose help lists all
OF_OTHERS = {"--multi_gpu", "--num_processes", "--help", "--output_dir"}
PAGES = (README, GUIDE, ROOT / "recipes" / "results" / "README.md")


@pytest.mark.slow
def test_the_python_examples_run_and_leave_a_finished_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(first.strip().splitlines()) <= 20
    names = {
        "train_dataset": make_images(),
        "test_dataset": make_images(50, seed=1),
        "model_or_id": make_model("ViT"),
        "processor": make_processor(),
    }
    before = make_model("ViT").classifier.weight
    exec(first, names)
    unlearned = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert not unlearned.classifier.weight.equal(before) and names["model_or_id"].classifier.weight.equal(before)
    published = load_report(tmp_path / "out")
    assert published.manifest["request"]["hash"] == names["request"].content_hash
    assert published.audit is not None and (tmp_path / "out" / MANIFEST).is_file()
    assert (tmp_path / "out" / "README.md").is_file() and (tmp_path / "out" / "report.html").is_file()
    printed = capsys.readouterr().out
    assert names["done"].headline.text in printed and str(published.manifest["parts"]["forget"]["rows"]) in printed
    exec(second, names)
    assert names["request"].ids == {"patient": (17,)}


def test_it_is_a_front_door_of_at_most_150_lines():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    for command in ("pip install -e . && accelerate launch recipes/ec_vit.py", "pip install -e .[test] && pytest"):
        assert f"\n{command}\n" in text


def test_every_objective_is_named():
    assert [name for name in objectives.available() if f"`{name}`" not in README.read_text()] == []


def test_the_guide_tells_every_status_of_a_signal():
    assert [status for status in STATUSES if f"| {status} |" not in GUIDE.read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def commands(page):
    """Every command `ec-hf ...` in a page's shell blocks, with the flags that it has."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["ec-hf"]:
                yield words[1], [word for word in words[2:] if word.startswith("--")]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_of_the_commands_are_flags_of_theirs(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help" if command in PLAIN else "--help-all"])
    assert end.value.code == 0
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    used = [flags for page in PAGES for name, flags in commands(page) if name == command]
    assert used and not {flag for flags in used for flag in flags} - known


@pytest.mark.parametrize("page", [README, GUIDE], ids=["README", "guide"])
def test_flags_that_the_text_advises_are_flags(page, capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            cli.main([command, "--help" if command in PLAIN else "--help-all"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out)) | OF_OTHERS
    text = page.read_text().partition("\n## LoRA")[0]  # which names flags of a recipe
    advised = {flag for code in re.findall(r"`([^`\n]+)`", text) for flag in re.findall(r"--\w+", code)}
    assert advised and advised - known == set()
