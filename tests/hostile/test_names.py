"""Names that are signs of TeX, HTML, Markdown, rich or a terminal: every reader still gets a page."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from helpers.models import make_model
from helpers.reports import FORGOTTEN, make_report, renamed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from ec_hf.auditing.report import RetainedClass
from ec_hf.publishing.card import card
from ec_hf.reporting.drawing import render
from ec_hf.reporting.figures import draw
from ec_hf.reporting.page import page
from ec_hf.reporting.tables import to_rich
from ec_hf.reporting.verdict import findings

NASTY = [
    r"$\frac{$",
    "$",
    "a $x$ b_{",
    "nul\0bell\a\x1b[31mred",
    "\x9b31m\u2028\u2029\ufffe",
    "[/x]",
    "[bold]b[/bold]",
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "a|b`c`\\|",
    "---\nlicense: mit\n---",
    "![x](https://x.invalid/y.png)",
    "",
    " ",
    "\n",
    "w" * 300,
    "\u202eelif.exe",
    "שלום עולם",
    "猫 😀",
    "{{ 7 * 7 }}{% raw %}",
    "\ud800",
    "__class__",
    "=cmd()",
]
SIGNS = st.text(st.sampled_from("$\\{}_^[]()<>|`*#&;\0\x1b\x7f\x85\u202e\ufffe\n\ta😀é%'\""), max_size=12)


def report_with(name, model="unlearned"):
    """A report in which a forgotten class, a kept one and the unlearned model have a name of somebody's choice."""
    report = renamed(
        make_report(["original", "unlearned"], layers=1), {"unlearned": model} if model != "unlearned" else {}
    )
    names = [*report.dataset["class_names"]]
    old = names[FORGOTTEN[0]]
    names[FORGOTTEN[0]] = name
    confusion = {
        each: {(name if true == old else true): {name: 3, "one": 1} for true in table}
        for each, table in report.confusion.items()
    }
    retained = {each: {f"{name} kept": RetainedClass(40, 10, 25, 1)} for each in ("original", model)}
    dataset = report.dataset | {"class_names": names}
    notes = [f"{name} could not be measured."]
    return replace(report, dataset=dataset, confusion=confusion, retained=retained, notes=notes)


def check_figures(report):
    for figure in draw(report, names=["confusion"]).values():
        stream = io.BytesIO()
        render(figure, stream, "svg")
        ElementTree.fromstring(stream.getvalue())


def live_tags(text):
    """Tags of a page that a browser would act on."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, sorted(key for key, _ in attributes)))
    parser.feed(text)
    return found


@pytest.fixture(scope="module")
def harmless():
    return sorted({tag for tag, _ in live_tags(page(report_with("cat")))})


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:20])
def test_figures_page_terminal_and_sentences_hold_under_a_nasty_name(name, harmless):
    report = report_with(name, model=name)
    check_figures(report)
    shown = live_tags(page(report))
    assert {tag for tag, _ in shown} <= set(harmless)
    assert not [key for _, keys in shown for key in keys if key.startswith("on")]
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=False)
    console.print(to_rich(report))
    console.print(*map(str, findings(report)), sep="\n", markup=False)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", stream.getvalue())


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:20])
def test_the_card_of_a_nasty_name_is_one_document_without_live_html(tmp_path, name):
    make_model("ViT").save_pretrained(tmp_path)
    report = report_with(name, model=name)
    report.save(tmp_path / "audit.json")
    part = {"rows": 2, "per_class": {name: 2}}
    document = {
        "dataset": {"name": "x/y", "fingerprint": "f", "rows": 4},
        "request": {"hash": "ab"},
        "parts": {"forget": part, "retain": {"rows": 2, "per_class": {"one": 2}}},
        "forget_rows_sha256": "cd",
        "detail": "classes",
    }
    (tmp_path / "forget_manifest.json").write_text(json.dumps(document))
    text = card(tmp_path)
    assert len(re.findall(r"^---$", text, re.MULTILINE)) == 2
    tokens = MarkdownIt().enable("table").parse(text.split("---\n", 2)[2])
    inside = [child for token in tokens for child in (token, *(token.children or ()))]
    tags = {tag for token in inside if token.type.startswith("html") for tag, _ in live_tags(token.content)}
    assert tags <= {"details", "summary"}
    assert all(token.attrs["src"].startswith("figures/") for token in inside if token.type == "image")


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SIGNS)
def test_figures_and_terminal_hold_under_any_signs(name):
    report = report_with(name, model=name or "unlearned")
    check_figures(report)
    Console(file=io.StringIO(), width=80).print(to_rich(report))
    findings(report)
