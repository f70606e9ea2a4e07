"""`write_page`: an `AuditReport` as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ec_hf.auditing.report import AuditReport
from ec_hf.files import write_text
from ec_hf.metrics import METRICS
from ec_hf.reporting.drawing import render
from ec_hf.reporting.figures import CAPTIONS, draw
from ec_hf.reporting.findings import Finding, by_model
from ec_hf.reporting.labels import ARROWS, metric_title, model_label, split_label
from ec_hf.reporting.printable import printable
from ec_hf.reporting.tables import attack_table, layer_tables, main_table, output_table, signal_tables
from ec_hf.reporting.verdict import findings

__all__ = ["page", "write_page"]

TITLES = {
    "cka": "Likeness of the layers",
    "probe": "What the layers still tell",
    "embedding": "A picture of the deepest layer",
    "attacks": "What attacks bring back",
    "confusion": "What forgotten classes are taken for",
    "retrieval": "Nearest images",
}
ALTS = {
    "cka": "Line chart: linear CKA over the layers, a line for each model; numbers in the tables by layer.",
    "probe": "Line chart: probe and k-NN accuracy over the layers; numbers in the tables by layer.",
    "embedding": "Scatter plots of t-SNE coordinates, one for each model; the caption says what to look for.",
    "attacks": "Line charts: accuracy on forget images over the strength of each attack, a line for each model.",
    "confusion": "Heat maps of predicted classes for test images of the forgotten classes, one for each model.",
    "retrieval": "Grid of images: a forget image and its nearest images, one row for each model.",
}
ROLES = {
    "original": "before unlearning",
    "unlearned": "after unlearning",
    "retrained": "trained without the forget set: the target",
    "floor": "never trained: the lower end",
}
LIMITS = [
    "An audit can show that something is left; it cannot prove that nothing is. It guarantees no deletion.",
    "Every number is about these images, these layers and pooled features. Forgotten data may be left where nobody "
    "looked.",
    "CKA can be moved without changing what a model does, and it says nothing of small but readable traces. Read it "
    "together with the probe and the attacks.",
    "Intervals are over images. They do not cover another seed of training or of erasure; of retraining only the "
    "positions of signals do, and only where there are several retrained models.",
    "Membership inference without an ensemble of retrained models is weak: a value at chance is no proof of privacy.",
    "t-SNE is a picture, not a measurement.",
]


def write_page(report: AuditReport, path: str | Path, *, images: Sequence[Any] | None = None) -> None:
    """Writes `page(report)` to a file, which is replaced if it is there; its folder is made where it is missing.

    Args:
        report: the report.
        path: of the page, such as report.html.
        images: PIL images, "forget_test" followed by "retain_test", of which the few that the report's retrievals name
            are shown. They are images of what was to be forgotten: leave them out of a page that others get.

    Raises:
        ValueError: `images` has fewer images than the report's retrievals name.
    """
    write_text(path, page(report, images=images))


def page(report: AuditReport, *, images: Sequence[Any] | None = None) -> str:
    """The page as HTML: verdict, models, tables, figures with how to read them, metrics, limits, settings.

    Args:
        report: the report.
        images: as for `write_page`.
    """
    report = printable(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [
        {"title": TITLES[name], "alt": ALTS[name], "caption": CAPTIONS[name], "source": _data_uri(figure)}
        for name, figure in draw(report, images=images).items()
    ]
    main, *rest = main_table(report), attack_table(report), output_table(report), *layer_tables(report)
    judged = by_model(findings(report))
    used = {each.metric for each in report.measurements}
    return environment.get_template("report.html.jinja").render(
        report=report,
        judged=[(model_label(name), _sentences(found)) for name, found in judged.items() if name is not None],
        general=_sentences(judged[None]),
        models=[(model_label(name), ROLES.get(info.role, info.role), info) for name, info in report.models.items()],
        counts=[(split_label(split), count) for split, count in (report.dataset.get("images") or {}).items()],
        main=main,
        signals=signal_tables(report),
        tables=[table for table in rest if table.rows],
        arrows=ARROWS,
        figures=figures,
        metrics=[(metric_title(key), metric) for key, metric in METRICS.items() if key in used],
        limits=LIMITS,
    )


def _sentences(found: Sequence[Finding]) -> list[str]:
    return [finding.sentence.replace(" %", "\N{NO-BREAK SPACE}%") for finding in found]


def _data_uri(figure: Any) -> str:
    stream = io.BytesIO()
    render(figure, stream, "svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
