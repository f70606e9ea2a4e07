"""Texts without signs that no page, figure or terminal can show, or that would steer a terminal."""

from __future__ import annotations

import re
from typing import Any

from ec_hf.auditing.report import AuditReport

__all__ = ["printable", "printable_text"]

UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
"""Control characters, changes of the writing direction, halves of characters, and what XML has no form for."""


def printable_text(text: str) -> str:
    """The text with a replacement character for each sign that cannot be shown."""
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def printable(report: AuditReport) -> AuditReport:
    """The report with `printable_text` for all its texts; the same report where they are that already."""
    data = report.to_dict()
    return AuditReport.from_dict(_cleaned(data)) if _is_unclean(data) else report


def _is_unclean(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_unclean(part) for entry in value.items() for part in entry)
    if isinstance(value, list):
        return any(map(_is_unclean, value))
    return isinstance(value, str) and UNSHOWN.search(value) is not None


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_cleaned(entry) for entry in value]
    return printable_text(value) if isinstance(value, str) else value
