from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from helpers.reports import make_report, renamed
from PIL import Image

from ec_hf import AuditReport
from ec_hf.auditing.report import ModelInfo
from ec_hf.reporting.page import page, write_page

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that elements are closed in order, and keeps what the tests ask about."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.loads += [value for key, value in attrs.items() if key in ("src", "href", "srcset", "data", "action")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "img":
            self.images.append(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\xa0", " ").split())


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.new("L", (8, 8), k % 256) for k in range(1000)]


@pytest.fixture(scope="module")
def html(images) -> str:
    return page(make_report(layers=4), images=images)


def test_page_is_well_formed_and_loads_nothing(html):
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    assert all(load.startswith(("#", "data:")) for load in reader.loads), "anchors and embedded pictures only"
    assert {load[1:] for load in reader.loads if load.startswith("#")} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "script" not in reader.tags and "@import" not in html and "url(" not in html


def test_page_can_be_read_without_seeing_it(html):
    reader = Reader(html)
    assert reader.headings.count("h1") == 1
    levels = [int(heading[1]) for heading in reader.headings]
    assert all(b - a <= 1 for a, b in pairwise(levels)), "no level is left out"
    assert len(reader.images) == 6
    assert all(len(image["alt"]) > 40 for image in reader.images)
    assert '<html lang="en">' in html


def test_page_says_the_verdict_first_and_holds_every_part(html):
    text = Reader(html).text
    parts = [
        "What the model still knows",
        "Not forgotten, though its answers do not show it: on ",
        "Signals, the worst first: delete",
        "someone/vit-digits-unlearned",
        "accuracy, forget test ↓",
        "Figures, and how to read them",
        "Output and summary scores",
        "Kornblith et al. 2019",
        "it cannot prove that nothing is",
        "Membership inference by SVC was not asked for.",
        "bootstrap_resamples",
        "transformers",
    ]
    places = [text.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)
    assert "95.3 % [94.1, 96.5]" in text


def test_names_are_text_not_markup():
    report = AuditReport(
        models={"<b>bold</b>": ModelInfo("ViT", 1, "unlearned")},
        notes=["<script>alert(1)</script>"],
        settings={"a": "<i>"},
    )
    reader = Reader(page(report))
    assert not {"b", "i", "script"} & reader.tags
    assert "<script>alert(1)</script>" in reader.text


def test_a_model_whose_name_begins_like_another_has_findings_of_its_own():
    report = renamed(make_report(layers=4), {"unlearned": "ec", "delete": "ec: once more"})
    text = Reader(page(report)).text
    assert "ec Forgotten, as far as this audit can see" in text
    assert "ec: once more Not forgotten, though its answers do not show it" in text


def test_parts_that_were_not_measured_are_left_out():
    report = make_report(("original", "unlearned"), layers=4)
    bare = replace(report, layers=[], measurements=[row for row in report.measurements if row.layer is None])
    bare = replace(bare, attacks=[], confusion={}, embedding={}, retrievals=[], dataset={}, request={})
    reader = Reader(page(bare))
    assert reader.images == []
    assert "Figures" not in reader.text and "None" not in reader.text
    assert "Nearest images" not in Reader(page(report)).text, "no images were given"
    Reader(page(AuditReport()))


def test_page_is_written_into_a_new_folder_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "new" / "report.html"
    write_page(AuditReport(), path)
    write_page(AuditReport(notes=["A näive note"]), path)
    assert "A näive note" in path.read_text(encoding="utf-8")


@pytest.mark.launch
@pytest.mark.parametrize("width", [420, 1100])
def test_page_opens_in_a_browser(html, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium or google-chrome on PATH: the page is not opened in a browser")
    source, target = tmp_path / "report.html", tmp_path / "report.png"
    source.write_text(html, encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}",
    ]
    command += [f"--screenshot={target}", f"--window-size={width},2500", source.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(target).convert("RGB")).astype(int)
    assert pixels.shape == (2500, width, 3)
    ink = pixels.sum(axis=2) < 3 * 200
    assert ink[:1200].any(axis=1).mean() > 0.2, "lines of text from the top"
    assert not ink[:, -3:].any(), "nothing runs out of the window"
