from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from ec_hf.reporting.markdown import table

# Signs that end a cell, take the meaning from another sign or begin HTML; Markdown cuts blanks at the ends of cells.
texts = st.text("a|\\<>\n ", max_size=12).map(str.strip)


def read(markdown: str) -> list[list[str]]:
    """The cells of a table as a reader of Markdown sees them."""
    tokens = MarkdownIt().enable("table").parse(markdown)
    assert tokens[0].type == "table_open" and tokens[-1].type == "table_close", "no single table"
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert not any(child.type.startswith("html") for child in token.children)
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def test_a_table_has_a_line_under_its_heads():
    assert table(["", "a"], [["row", "1"]]) == "|  | a |\n| --- | --- |\n| row | 1 |"


@given(st.lists(st.lists(texts, min_size=2, max_size=2), min_size=1, max_size=3))
def test_cells_are_read_as_they_were_written(rows):
    heads = ["one", "two"]
    wanted = [[cell.replace("\n", " ") for cell in row] for row in [heads, *rows]]
    assert read(table(heads, rows)) == wanted
