"""The page of all objectives says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import ec_hf.objectives
from ec_hf.objectives import get_objective
from ec_hf.objectives.registry import _OBJECTIVES

PAGE = (Path(ec_hf.objectives.__file__).parent / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def value(text: str):
    return ast.literal_eval(text)


def test_every_objective_has_a_section_and_no_section_is_of_another():
    assert sorted(SECTIONS) == sorted(_OBJECTIVES)


@pytest.mark.parametrize("name", sorted(_OBJECTIVES))
def test_a_section_has_formula_defaults_and_published_settings_of_the_code(name):
    section, objective = SECTIONS[name], get_objective(name)
    assert section.startswith("\n    "), "the formula comes first"
    for word in ("- Data: ", "- Source: ", "- When: ", "- Where this differs: "):
        assert word in section
    assert objective.source in section
    told = {setting.strip("`"): (default, published) for setting, default, published, _ in rows(section)}
    parameters = inspect.signature(type(objective)).parameters
    assert list(told) == list(parameters)
    published = type(objective).published.get("objective_kwargs", {})
    for setting, (default, as_published) in told.items():
        assert value(default) == parameters[setting].default, setting
        if as_published == "–":
            assert setting not in published
        else:
            assert value(as_published) == pytest.approx(published[setting], abs=1e-4), setting


def test_the_table_of_schedules_is_that_of_the_code():
    table = PAGE.split("## Published schedules")[1].split("\n## ")[0]
    told = {name.strip("`"): cells for name, *cells in rows(table)}
    assert set(told) == {name for name in _OBJECTIVES if "learning_rate" in get_objective(name).published}
    for name, (optimiser, rate, decay, length, batch) in told.items():
        published = get_objective(name).published
        assert optimiser.split() == [published["optim"], *published.get("optim_args", "").split()]
        assert (float(rate), float(decay)) == (published["learning_rate"], published["weight_decay"])
        number, unit = length.split()
        assert float(number) == published[{"forget": "forget_epochs", "retain": "num_train_epochs"}[unit]]
        assert batch == str(published.get("per_device_train_batch_size", "not given"))
