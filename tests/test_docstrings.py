"""What users read in an editor: every public name says what it takes, in which shapes, and how it is called."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import re

import datasets
import pytest
import torch

import ec_hf

MODULES = ("ec_hf", "ec_hf.metrics", "ec_hf.losses", "ec_hf.objectives")
NAMES = [
    (module, name)
    for module in MODULES
    for name in importlib.import_module(module).__all__
    if callable(getattr(importlib.import_module(module), name))
]
SHAPE = re.compile(r"\([a-z0-9]+,( ?[a-z0-9]+,?)*\)|of the same form|\bas `\w+`|`\([^`]*`")


def described(doc: str) -> dict[str, str]:
    """The arguments or attributes that a docstring lists, with what it says of each."""
    listed: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?: {4}.*\n|\n)*)", f"{doc}\n", re.MULTILINE):
        listed |= dict(re.findall(r"^ {4}\*{0,2}(\w+): ?((?:.*\n?)(?: {5,}.*\n?)*)", section, re.MULTILINE))
    return listed


def explained(public) -> dict[str, str]:
    """What is said of each parameter: in the docstring, or of a dataclass in the help text of its fields."""
    said = described(inspect.getdoc(public) or "")
    if dataclasses.is_dataclass(public):
        own = [each for each in dataclasses.fields(public) if "help" in each.metadata]
        said |= {each.name: each.metadata["help"] for each in own}
    return said


def parameters(public) -> list[inspect.Parameter]:
    """Those of its own: what a dataclass inherits from `TrainingArguments` is explained there."""
    bases = [base for base in getattr(public, "__bases__", ()) if dataclasses.is_dataclass(base)]
    inherited = {each.name for base in bases for each in dataclasses.fields(base)}
    return [each for each in inspect.signature(public).parameters.values() if each.name not in inherited]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_docstring_says_what_every_argument_is(module, name):
    public = getattr(importlib.import_module(module), name)
    said = explained(public)
    assert [each.name for each in parameters(public) if not said.get(each.name, "").strip()] == []


@pytest.mark.parametrize(("module", "name"), [each for each in NAMES if each[0] in ("ec_hf.metrics", "ec_hf.losses")])
def test_a_docstring_gives_the_shape_of_every_array(module, name):
    public = getattr(importlib.import_module(module), name)
    said = explained(public)
    arrays = [each.name for each in parameters(public) if str(each.annotation) in ("Array", "Tensor", "np.ndarray")]
    assert {each: said[each] for each in arrays if not SHAPE.search(said[each])} == {}


@pytest.mark.parametrize("name", [name for module, name in NAMES if module == "ec_hf"])
def test_the_docstring_of_a_name_of_the_package_has_an_example(name):
    doc = inspect.getdoc(getattr(ec_hf, name))
    assert re.search(r"^Example:\n {4}>>> ", doc, re.MULTILINE) and name in doc.partition("Example:")[2]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_examples_that_need_nothing_of_the_users_run_as_they_stand(module, name):
    public = getattr(importlib.import_module(module), name)
    names = {**vars(ec_hf), **{each: getattr(ec_hf, each) for each in ec_hf.__all__}, "torch": torch}
    names |= {"Dataset": datasets.Dataset, name: public}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for each in doctest.DocTestFinder(recurse=False).find(public, name, globs=names):
        runner.run(each)
    assert runner.summarize(verbose=False).failed == 0
