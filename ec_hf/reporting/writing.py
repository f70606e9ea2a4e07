"""What a report leaves in a folder: the data, the page and the figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ec_hf.auditing.report import AuditReport
from ec_hf.data.columns import find_image_column
from ec_hf.files import AUDIT, FIGURES, PAGE
from ec_hf.reporting.figures import save_figures
from ec_hf.reporting.page import write_page

__all__ = ["write_audit"]


def write_audit(
    report: AuditReport,
    folder: str | Path,
    *,
    splits: Mapping[str, Dataset] | None = None,
    image_column: str | None = None,
) -> None:
    """Write audit.json, report.html and figures/ of a report into a folder.

    Args:
        report: the report.
        folder: made where it is missing.
        splits: the audited splits if report.html, and nothing else, may show images of them; None if it may not.
        image_column: as for `ec_hf.data.columns.find_image_column`.
    """
    folder, images = Path(folder), None
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / AUDIT)
    save_figures(report, folder / FIGURES)
    if splits:
        test = concatenate_datasets([splits["forget_test"], splits["retain_test"]])
        images = test[find_image_column(test, image_column)]
    write_page(report, folder / PAGE, images=images)
