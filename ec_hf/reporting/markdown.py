"""Markdown tables, with cells that no text from the data can break out of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    """The text on one line, without the signs that would end a cell or begin HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
