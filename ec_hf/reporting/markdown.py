"""Markdown tables, with cells that no text from the data can break out of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ec_hf.reporting.printable import printable_text

__all__ = ["escaped", "table"]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as GitHub Markdown; every cell is escaped.

    Args:
        heads: what stands above the columns.
        rows: one text for each column.
    """
    head, *body = [[escaped(cell) for cell in row] for row in (heads, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body))


def escaped(text: str) -> str:
    """The text on one line, without the signs that would end a cell, begin HTML, or make a link or a picture."""
    one_line = printable_text(re.sub(r"[\r\n]", " ", text))
    return one_line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(")
