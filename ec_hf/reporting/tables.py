"""Tables of an `AuditReport`: as rows of text, and from these Markdown for cards and rich for terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console, ConsoleOptions, Group
from rich.table import Table as RichTable
from rich.text import Text

from ec_hf.auditing.report import SPLITS, AuditReport, Measurement, Signal
from ec_hf.metrics import METRICS
from ec_hf.reporting import markdown
from ec_hf.reporting.labels import (
    ARROWS,
    MISSING,
    STATUS_WORDS,
    arrow,
    interval_text,
    metric_title,
    model_label,
    note_label,
    position_text,
    split_label,
    value_text,
)
from ec_hf.reporting.printable import printable
from ec_hf.reporting.reading import MEAN, forget_split, layer_order, merged, of_role, signals_of, whole_classes
from ec_hf.reporting.signals import counts_text

__all__ = [
    "Row",
    "Table",
    "as_section",
    "attack_table",
    "layer_tables",
    "main_table",
    "output_table",
    "sections",
    "signal_tables",
    "tables",
    "to_markdown",
    "to_rich",
]

# What the first table holds, as far as it was measured: metric, split ("forget": see `forget_split`), reference, and
# for layers whether the one half-way or the deepest hidden state.
MAIN = [
    ("accuracy", "forget", None, None),
    ("accuracy", "retain_test", None, None),
    ("linear_cka", "forget", "original", "middle"),
    ("linear_cka", "forget", "original", "deepest"),
    ("linear_cka", "retain_test", "original", "deepest"),
    ("linear_cka", "forget", "retrained", "deepest"),
    ("linear_probe", "forget", None, "deepest"),
    ("knn", "forget", None, "deepest"),
    ("mia_loss", "forget_train", None, None),
    ("idi", None, "retrained", None),
    ("accuracy_int8", "forget", None, None),
]
ATTACK_WORDS = (
    "Area under the curve of each attack: the share of held-out forget images that are named right, averaged over the "
    "strengths of the attack. The last columns are the areas between two curves, in points: a model above the "
    "retrained one gives back more than retraining leaves."
)
FEW_SIGNALS = 5
"""So many of the worst signals are shown where there is little room."""
MANY_RETRAINED = 2
"""More retrained models than these share a column: their mean, with their range in brackets."""
Key = tuple[str, str | None, str | None, str | None]
"""What the cells of a row share: metric, split, reference, layer."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: what it shows.
        values: one text for each column, "—" where there is no number.
        intervals: one text for each column, "" where there is no interval.
        chance: what a model without any knowledge would get; "—" where that is not known.
    """

    label: str
    values: list[str]
    intervals: list[str]
    chance: str = MISSING


@dataclass(frozen=True)
class Table:
    """Numbers under heads: mostly models as columns.

    Attributes:
        title: what it shows.
        heads: of the columns.
        rows: its lines.
        notes: what was said about single numbers.
        metric: key of the metric, where all rows are of one.
        split: of the numbers, where all rows are of one.
    """

    title: str
    heads: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    metric: str | None = None
    split: str | None = None

    @property
    def has_chance(self) -> bool:
        """Layer-wise tables have their chance level in the title."""
        return self.metric is None and any(row.chance != MISSING for row in self.rows)


def tables(report: AuditReport) -> list[Table]:
    """All tables that hold a number: the main one, signals, attacks, the output, one for each layer-wise metric."""
    chosen = (
        main_table(report),
        *signal_tables(report),
        attack_table(report),
        output_table(report),
        *layer_tables(report),
    )
    return [table for table in chosen if table.rows]


def _readable(report: AuditReport) -> AuditReport:
    """The report without a column for each of many retrained models."""
    return merged(report) if len(of_role(report, "retrained")) > MANY_RETRAINED else report


def signal_tables(report: AuditReport, few: int | None = None) -> list[Table]:
    """A table of signals for each unlearned model that has some: where they put it, the worst first.

    Args:
        report: the report.
        few: so many of the worst signals only; all by default.
    """
    names = [name for name in of_role(report, "unlearned") if signals_of(report, name)]
    return [_signal_table(report, name, few) for name in names]


def _signal_table(report: AuditReport, name: str, few: int | None) -> Table:
    signals = signals_of(report, name)
    shown = signals[:few]
    names = of_role(report, "unlearned")
    title = "Signals, the worst first" + (f": {model_label(name)}" if len(names) > 1 else "")
    heads = ["original", "this model", "retrained", "position", "status"]
    rest = f"; {len(signals) - len(shown)} of them are not shown here" if len(shown) < len(signals) else ""
    counts = f"{len(signals)} signals: {counts_text(signals)}{rest}."
    rows = [_signal_row(each) for each in shown]
    notes = [counts, STATUS_WORDS] if name == names[0] else [counts]  # the words are told once
    return Table(title, heads, rows, notes, metric="position")


def _signal_row(signal: Signal) -> Row:
    places = [signal.layer, note_label(signal.metric, signal.note)]
    label = ", ".join([metric_title(signal.metric), split_label(signal.split), *filter(None, places)])
    mean = sum(signal.retrained) / len(signal.retrained)
    values = [value_text(signal.metric, value) for value in (signal.original, signal.value, mean)]
    spread = Measurement(signal.metric, "", mean, low=min(signal.retrained), high=max(signal.retrained))
    interval = Measurement("position", "", signal.position, low=signal.low, high=signal.high)
    ends = ["", "", interval_text(spread) if len(signal.retrained) > 1 else "", interval_text(interval), ""]
    return Row(label, [*values, position_text(signal.position), signal.status], ends)


def main_table(report: AuditReport) -> Table:
    """The few figures to read first; of the layers, the one half-way and the deepest."""
    report = _readable(report)
    depth = {"middle": report.layers[len(report.layers) // 2], "deepest": report.layers[-1]} if report.layers else {}
    keys: list[Key] = []
    for metric, split, reference, place in MAIN:
        if place is not None and place not in depth:
            continue
        where = forget_split(report, metric) if split == "forget" else split
        layer = depth[place] if place else None
        references = [reference]
        if reference == "retrained" and next(report.find(metric, reference=reference), None) is None:
            references = list(of_role(report, "retrained"))
        keys += [(metric, where, each, layer) for each in references]
    return _table(report, "In short", dict.fromkeys(keys))


def output_table(report: AuditReport) -> Table:
    """All figures that belong to no layer."""
    report = _readable(report)
    rows = [each for each in report.measurements if each.layer is None and each.metric != "attack_area"]
    return _table(report, "Output and summary scores", _sorted(_key(each) for each in rows))


def attack_table(report: AuditReport) -> Table:
    """What each attack brings back: the area under its curve by model, and the areas between the curves."""
    report = _readable(report)
    areas: dict[str, dict[str, Measurement]] = {}
    for each in report.find("attack_area"):
        areas.setdefault(each.note or "", {})[each.model] = each
    retrained = of_role(report, "retrained")
    compared = ["original", *of_role(report, "unlearned")] if retrained else []
    rows = []
    for attack, by_model in areas.items():
        row = _row(note_label("attack_area", attack) or "", [by_model.get(name) for name in report.models])
        gaps = [_gap(by_model, name, retrained) for name in compared]
        rows.append(replace(row, values=[*row.values, *gaps], intervals=[*row.intervals, *[""] * len(gaps)]))
    heads = [*map(model_label, report.models), *(f"{model_label(name)} - retrained" for name in compared)]
    return Table(
        "Recovery attacks: forget accuracy on average over their strengths",
        heads,
        rows,
        [ATTACK_WORDS] if rows else [],
    )


def _gap(by_model: Mapping[str, Measurement], name: str, retrained: Sequence[str]) -> str:
    """The area between the curve of a model and the mean curve of retrained ones, in points."""
    values = [by_model[each].value if each in by_model else None for each in (name, *retrained)]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return MISSING
    return f"{100 * (known[0] - sum(known[1:]) / len(retrained)):+.1f}"


def layer_tables(report: AuditReport) -> list[Table]:
    """One table for each layer-wise metric, split and reference; a row is a layer."""
    report = _readable(report)
    kinds = _sorted((*_key(each)[:3], None) for each in report.measurements if each.layer is not None)
    return [_layer_table(report, kind) for kind in kinds]


def sections(report: AuditReport) -> list[tuple[str, str]]:
    """Title and text of each table as GitHub Markdown: models as columns, 95 % intervals in brackets, then its notes.

    Below the first table stands also what the arrows mean.
    """
    chosen = tables(report)
    with_legend = [replace(first, notes=[ARROWS, *first.notes]) for first in chosen[:1]]
    return [as_section(table) for table in [*with_legend, *chosen[1:]]]


def as_section(table: Table) -> tuple[str, str]:
    """Title and text of a table as GitHub Markdown."""
    notes = [markdown.escaped(note) for note in table.notes]
    return markdown.escaped(table.title), "\n\n".join([_markdown_table(table), *notes])


def to_markdown(report: AuditReport) -> str:
    """The tables as GitHub Markdown, each under a heading of the third level; see `sections`.

    A report without a number gives an empty text.
    """
    return "\n".join(f"### {title}\n\n{text}\n" for title, text in sections(report))


def to_rich(report: AuditReport, *, full: bool = False) -> Group:
    """The tables for a terminal, to be printed with `rich`; intervals are shown where the terminal is wide enough.

    Args:
        report: the report.
        full: all tables; by default the main one, the worst signals, attacks, and those of the layers on forget test
            images (of rows, on the images themselves), for the metrics in the main one.
    """
    chosen = tables(report := printable(report))
    if not full:
        shown = {metric for metric, _, _, place in MAIN if place}
        layered = [t for t in chosen[1:] if t.metric in shown]
        layered = _of_split(layered, "forget_test") or _of_split(layered, "forget_train")  # the latter of rows
        attacks = [table for table in [attack_table(report)] if table.rows]
        chosen = [*chosen[:1], *signal_tables(report, FEW_SIGNALS), *attacks, *layered]
    drawn: list[Any] = [] if chosen else [Text("The report holds no measurement.")]
    for table in chosen:
        drawn += [_Grid(table), *(Text(note, style="dim") for note in table.notes), Text("")]
    return Group(*drawn)


def _of_split(chosen: list[Table], split: str) -> list[Table]:
    return [table for table in chosen if table.split == split]


@dataclass(frozen=True)
class _Grid:
    """A table that leaves its intervals out where they do not fit."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RichTable]:
        wide = self._drawn(intervals=True)
        fits = console.measure(wide, options=options.update(width=1000)).maximum <= options.max_width
        yield wide if fits else self._drawn(intervals=False)

    def _drawn(self, intervals: bool) -> RichTable:
        table, rows = self.table, self.table.rows
        grid = RichTable(title=Text(table.title), title_justify="left", box=None, pad_edge=False, header_style="bold")
        grid.add_column("", overflow="fold")
        for name, values in zip(table.heads, zip(*(row.values for row in rows), strict=True), strict=True):
            grid.add_column(Text(name), justify="right", min_width=max(map(len, values)))
        if table.has_chance:
            grid.add_column(Text("chance"), justify="right", min_width=max(len(row.chance) for row in rows))
        for row in rows:
            pairs = zip(row.values, row.intervals, strict=True)
            cells = [Text.assemble(v, (f" {i}" if intervals and i else "", "dim")) for v, i in pairs]
            grid.add_row(Text(row.label), *cells, *([Text(row.chance)] if table.has_chance else []))
        return grid


def _layer_table(report: AuditReport, kind: Key) -> Table:
    metric, split, reference, _ = kind
    keys: list[Key] = [(metric, split, reference, layer) for layer in layer_order(report)]
    table = _table(report, _label(kind, rows=not whole_classes(report)), keys, label=lambda key: str(key[3]))
    chances = {row.chance for row in table.rows} - {MISSING}
    title = f"{table.title} (chance {chances.pop()})" if len(chances) == 1 else table.title
    return replace(table, title=title, metric=metric, split=split)


def _markdown_table(table: Table) -> str:
    heads = ["", *table.heads, *(["chance"] if table.has_chance else [])]
    rows = []
    for row in table.rows:
        cells = [f"{v} {i}".strip() for v, i in zip(row.values, row.intervals, strict=True)]
        rows.append([row.label, *cells, *([row.chance] if table.has_chance else [])])
    return markdown.table(heads, rows)


def _table(report: AuditReport, title: str, keys: Iterable[Key], label: Callable[[Key], str] | None = None) -> Table:
    models = list(report.models)
    by_key: dict[Key, dict[str, list[Measurement]]] = {}
    for each in report.measurements:
        by_key.setdefault(_key(each), {}).setdefault(each.model, []).append(each)
    rows, notes = [], []
    for key in keys:
        cells = by_key.get(key, {})
        depth = max(map(len, cells.values()), default=0)
        for variant in range(depth):  # several of one kind differ by their notes
            line = [cells[name][variant] if variant < len(cells.get(name, [])) else None for name in models]
            noted = [each for each in line if each and each.note]
            text = label(key) if label else _label(key, rows=not whole_classes(report))
            if depth > 1:
                text += f", {noted[0].note}" if noted else ""
            else:
                notes += [f"{text}, {model_label(each.model)}: {each.note}" for each in noted]
            rows.append(_row(text, line))
    notes += [f"{name}: in brackets the range of these models" for name in models if name.startswith(MEAN)]
    return Table(title, [model_label(name) for name in models], rows, list(dict.fromkeys(notes)))


def _row(label: str, line: Sequence[Measurement | None]) -> Row:
    values = [value_text(each.metric, each.value) if each else MISSING for each in line]
    intervals = [interval_text(each) if each else "" for each in line]
    chances = {value_text(each.metric, each.chance) for each in line if each and each.chance is not None}
    return Row(label, values, intervals, chances.pop() if len(chances) == 1 else MISSING)


def _key(each: Measurement) -> Key:
    return each.metric, each.split, each.reference, each.layer


def _label(key: Key, *, rows: bool = False) -> str:
    metric, split, reference, layer = key
    to = f" to {model_label(reference)}" if reference else ""
    places = [split_label(split) if split else "", layer or ""]
    text = ", ".join([metric_title(metric) + to, *(place for place in places if place)])
    return f"{text} {arrow(metric, split, reference, rows=rows)}".strip()


def _sorted(keys: Iterable[Key]) -> list[Key]:
    """Without repeats, in the order of the table of metrics, then of the splits."""
    order = list(METRICS)
    splits = ["forget_test", "retain_test", *SPLITS]

    def rank(key: Key) -> tuple[int, int, int]:
        metric, split, reference, _ = key
        return (
            order.index(metric) if metric in order else len(order),
            splits.index(split) if split in splits else len(splits),
            reference != "original",
        )

    return sorted(dict.fromkeys(keys), key=rank)
