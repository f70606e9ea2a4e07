"""What no linter checks: functions that can be read in one look, and test files that stand alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("ec_hf", "recipes", "tests")
MOST_LINES = 60
LONGER: dict[str, str] = {}  # "folder/file.py:function": the reason why it is one function

Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_a_screen_without_a_reason():
    functions = (
        (path, node) for path, tree in trees(*FOLDERS) for node in ast.walk(tree) if isinstance(node, Function)
    )
    longer = {f"{path}:{each.name}" for path, each in functions if body_lines(each) > MOST_LINES}
    assert longer == set(LONGER)


def test_lines_are_counted_without_the_docstring():
    (function,) = ast.parse('def f():\n    """Doc\n\n    string."""\n    x = 1\n    return (\n        x\n    )\n').body
    assert body_lines(function) == 4


def test_no_test_file_imports_another():
    imported = [
        (path, name)
        for path, tree in trees("tests")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    ]
    assert [each for each in imported if each[1].split(".")[-1].startswith("test_")] == []
