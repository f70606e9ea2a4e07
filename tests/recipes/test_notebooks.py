"""The notebooks run from top to bottom and show figures; they are saved without outputs."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from transformers import AutoModelForImageClassification

from ec_hf import load_report
from ec_hf.auditing.report import AuditReport

NOTEBOOKS = Path(__file__).parents[2] / "recipes" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SMALL = {"IMAGES": 600, "EPOCHS": 8, "STEPS": 40}


def cells(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def run(name):
    """Run the code cells in order, with small settings; what each shows, and all names at the end."""
    names, shown = {}, []
    for cell in cells(name):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), name, "eval"), names))
        if "parameters" in cell["metadata"].get("tags", []):
            names |= {key: value for key, value in SMALL.items() if key in names}
    return names, shown


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")


def test_there_are_the_two_that_the_guide_names():
    assert NAMES == ["audit", "erase"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_saved_without_outputs(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1


@pytest.mark.slow
def test_erase_leaves_a_finished_folder_and_shows_figures(in_a_folder):
    names, shown = run("erase")
    assert sum(isinstance(each, Figure) and bool(each.axes) for each in shown) == 4
    folder = names["done"].folder
    AutoModelForImageClassification.from_pretrained(folder)
    report = load_report(folder).audit
    before, after = (report.value("accuracy", model=each, split="forget_test") for each in ("original", "delete + EC"))
    assert before > 0.5 and after < 0.1


@pytest.mark.slow
def test_audit_is_not_taken_in_by_a_model_that_only_keeps_silent(in_a_folder):
    names, shown = run("audit")
    assert sum(isinstance(each, Figure) and bool(each.axes) for each in shown) == 2
    report = AuditReport.load(Path(names["FOLDER"], "audit", "audit.json"))
    assert report.value("accuracy", model="handed over", split="forget_test") == 0
    assert report.status["handed over"] in ("untouched", "under-erased")
