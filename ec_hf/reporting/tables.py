"""Tables of an `AuditReport`: as rows of text, and from these Markdown for cards and rich for terminals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ec_hf.auditing.report import SPLITS, AuditReport, Measurement
from ec_hf.metrics import METRICS

if TYPE_CHECKING:
    from rich.console import Group

__all__ = [
    "Row",
    "Table",
    "arrow",
    "class_names",
    "forget_split",
    "layer_label",
    "layer_tables",
    "main_table",
    "metric_title",
    "model_label",
    "output_table",
    "split_label",
    "tables",
    "to_markdown",
    "to_rich",
    "value_text",
]

MISSING = "—"
PERCENT = frozenset({
    "accuracy", "accuracy_masked", "accuracy_int8", "confidence", "linear_probe", "knn", "knn_downstream", "agreement",
    "mia_svc_efficacy", "mia_svc_member",
})  # fmt: skip
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
SHORT = {
    "accuracy": "accuracy",
    "accuracy_masked": "accuracy, forgotten logits masked",
    "accuracy_int8": "accuracy after 8-bit quantisation",
    "entropy": "entropy",
    "linear_cka": "CKA",
    "linear_cka_uuef": "CKA as in UUEF",
    "cka_floor": "CKA of unrelated features",
    "split_half_cka": "CKA of two halves of the channels",
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "knn_downstream": "k-NN, other data set",
    "mia_loss": "membership by loss (AUC)",
    "mia_confidence": "membership by confidence (AUC)",
    "mia_svc_efficacy": "MIA-efficacy (SVC)",
    "mia_svc_member": "judged as member (SVC)",
    "idi": "IDI",
    "infonce": "InfoNCE",
    "probe_advantage": "probe advantage",
    "relearning_area": "relearning area",
    "js_divergence": "Jensen-Shannon divergence",
    "activation_distance": "activation distance",
    "agreement": "equal predictions",
    "h_mean": "H-mean",
}
CONTROLS = ("cka_floor", "split_half_cka")  # what other numbers are read by: no direction is better
ARROWS = "↓ lower is better, ↑ higher is better, ≈ nearer the retrained model is better; in brackets 95 % intervals."
Key = tuple[str, str | None, str | None, str | None]
"""What the cells of a row share: metric, split, reference, layer."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: what it shows.
        values: one text for each model, "—" where there is no number.
        intervals: one text for each model, "" where there is no interval.
        chance: what a model without any knowledge would get; "—" where that is not known.
    """

    label: str
    values: list[str]
    intervals: list[str]
    chance: str = MISSING


@dataclass(frozen=True)
class Table:
    """Models as columns.

    Attributes:
        title: what it shows.
        models: the heads of the columns.
        rows: its lines.
        notes: what was said about single numbers.
        metric: key of the metric, where all rows are of one.
        split: of the numbers, where all rows are of one.
    """

    title: str
    models: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    metric: str | None = None
    split: str | None = None


def tables(report: AuditReport) -> list[Table]:
    """All tables that hold a number: the main one, figures of the output, one for each layer-wise metric."""
    return [table for table in (main_table(report), output_table(report), *layer_tables(report)) if table.rows]


def main_table(report: AuditReport) -> Table:
    """The few figures to read first; of the layers, the one half-way and the deepest."""
    depth = {"middle": report.layers[len(report.layers) // 2], "deepest": report.layers[-1]} if report.layers else {}
    keys: list[Key] = []
    for metric, split, reference, place in MAIN:
        if place is not None and place not in depth:
            continue
        where = forget_split(report, metric) if split == "forget" else split
        keys.append((metric, where, reference, depth[place] if place else None))
    return _table(report, "In short", dict.fromkeys(keys))


def output_table(report: AuditReport) -> Table:
    """All figures that belong to no layer."""
    rows = [each for each in report.measurements if each.layer is None]
    return _table(report, "Output and summary scores", _sorted(_key(each) for each in rows))


def layer_tables(report: AuditReport) -> list[Table]:
    """One table for each layer-wise metric, split and reference; a row is a layer."""
    found = _sorted((*_key(each)[:3], None) for each in report.measurements if each.layer is not None)
    result = []
    for metric, split, reference, _ in found:
        keys: list[Key] = [(metric, split, reference, layer) for layer in [*report.layers, "logits"]]
        table = _table(report, _label((metric, split, reference, None)), keys, label=lambda key: str(key[3]))
        chances = {row.chance for row in table.rows} - {MISSING}
        title = f"{table.title} (chance {chances.pop()})" if len(chances) == 1 else table.title
        result.append(Table(title, table.models, table.rows, table.notes, metric, split))
    return result


def to_markdown(report: AuditReport) -> str:
    """The tables as GitHub Markdown: models as columns, direction as an arrow, 95 % intervals in brackets.

    Headings are of the third level; a report without a number gives an empty text.
    """
    parts: list[str] = []
    for table in tables(report):
        chance = _has_chance(table)
        heads = ["", *map(_escaped, table.models), *(["chance"] if chance else [])]
        lines = [_line(heads), _line(["---"] * len(heads))]
        for row in table.rows:
            cells = [f"{v} {i}".strip() for v, i in zip(row.values, row.intervals, strict=True)]
            lines.append(_line([_escaped(row.label), *cells, *([row.chance] if chance else [])]))
        notes = [f"\n{_escaped(note)}" for note in [*([] if parts else [ARROWS]), *table.notes]]
        parts.append("\n".join([f"### {_escaped(table.title)}", "", *lines, *notes]))
    return "\n\n".join(parts) + "\n" * bool(parts)


def to_rich(report: AuditReport, *, full: bool = False) -> Group:
    """The tables for a terminal, to be printed with `rich`; intervals are shown where the terminal is wide enough.

    Args:
        report: the report.
        full: all tables; by default the main one and those of the layers on the forget set, for the metrics in it.
    """
    from rich.console import Group
    from rich.text import Text

    chosen = tables(report)
    if not full:
        shown = {metric for metric, _, _, place in MAIN if place}
        chosen = chosen[:1] + [t for t in chosen[1:] if t.metric in shown and (t.split or "").startswith("forget")]
    drawn: list[Any] = [] if chosen else [Text("The report holds no measurement.")]
    for table in chosen:
        drawn += [_Grid(table), *(Text(note, style="dim") for note in table.notes), Text("")]
    return Group(*drawn)


@dataclass(frozen=True)
class _Grid:
    """A table that leaves its intervals out where they do not fit."""

    table: Table

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        wide = self._drawn(intervals=True)
        fits = console.measure(wide, options=options.update(width=1000)).maximum <= options.max_width
        yield wide if fits else self._drawn(intervals=False)

    def _drawn(self, intervals: bool) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        table, chance = self.table, _has_chance(self.table)
        grid = RichTable(title=Text(table.title), title_justify="left", box=None, pad_edge=False, header_style="bold")
        grid.add_column("", overflow="fold")
        columns = [
            *zip(*(row.values for row in table.rows), strict=True),
            *([[r.chance for r in table.rows]] * chance),
        ]
        for name, values in zip([*table.models, "chance"], columns, strict=False):
            grid.add_column(Text(name), justify="right", min_width=max(map(len, values)))
        for row in table.rows:
            pairs = zip(row.values, row.intervals, strict=True)
            cells = [Text.assemble(v, (f" {i}" if intervals and i else "", "dim")) for v, i in pairs]
            grid.add_row(Text(row.label), *cells, *([Text(row.chance)] if chance else []))
        return grid


def arrow(metric: str, split: str | None = None, reference: str | None = None) -> str:
    """The better direction: "↓" lower, "↑" higher, "≈" nearer the retrained model, "" for an unknown metric."""
    if metric not in METRICS or metric in CONTROLS:
        return ""
    return {"lower": "↓", "higher": "↑"}.get(METRICS[metric].better(split, reference), "≈")


def metric_title(metric: str) -> str:
    """The short name of a metric for readers; `METRICS` holds the long one."""
    return SHORT.get(metric) or (METRICS[metric].title if metric in METRICS else metric.replace("_", " "))


def value_text(metric: str, value: float | None) -> str:
    """A value as tables show it: shares in percent with one decimal, others with two, "—" for none."""
    if value is None:
        return MISSING
    text = f"{100 * value:.1f} %" if metric in PERCENT else f"{value:.2f}"
    return text.removeprefix("-") if not float(text.split()[0]) else text  # no minus before a zero


def class_names(report: AuditReport) -> Callable[[int], str]:
    """From label id to class name; a name that the report does not hold is the id."""
    names = report.dataset.get("class_names") or []
    return lambda k: str(names[k]) if 0 <= k < len(names) else str(k)


def forget_split(report: AuditReport, metric: str) -> str:
    """Where to read a metric on forgotten data: its test images, or training images where only rows were forgotten."""
    return "forget_test" if report.value(metric, split="forget_test") is not None else "forget_train"


def layer_label(layer: str) -> str:
    """The short name of a layer: "hidden_states.3" is "3"."""
    return layer.removeprefix("hidden_states.")


def model_label(name: str) -> str:
    """The name of a model as readers see it."""
    return {"random_init": "random weights"}.get(name, name)


def split_label(split: str) -> str:
    """The name of a split as readers see it: "forget_test" is "forget test"."""
    return split.replace("_", " ")


def _table(report: AuditReport, title: str, keys: Iterable[Key], label: Callable[[Key], str] | None = None) -> Table:
    models = list(report.models)
    found: dict[Key, dict[str, list[Measurement]]] = {}
    for each in report.measurements:
        found.setdefault(_key(each), {}).setdefault(each.model, []).append(each)
    rows, notes = [], []
    for key in keys:
        cells = found.get(key, {})
        for variant in range(max(map(len, cells.values()), default=0)):  # several of one kind differ by their notes
            line = [cells[name][variant] if variant < len(cells.get(name, [])) else None for name in models]
            several = any(len(each) > 1 for each in cells.values())
            told = next((each.note for each in line if each and each.note), None)
            text = (label or _label)(key) + (f", {told}" if several and told else "")
            rows.append(_row(text, line))
            if not several:
                notes += [f"{text}, {model_label(each.model)}: {each.note}" for each in line if each and each.note]
    return Table(title, [model_label(name) for name in models], rows, list(dict.fromkeys(notes)))


def _row(label: str, line: Sequence[Measurement | None]) -> Row:
    values = [value_text(each.metric, each.value) if each else MISSING for each in line]
    intervals = [_interval(each) if each else "" for each in line]
    chances = {value_text(each.metric, each.chance) for each in line if each and each.chance is not None}
    return Row(label, values, intervals, chances.pop() if len(chances) == 1 else MISSING)


def _interval(each: Measurement) -> str:
    if each.low is None or each.high is None or each.value is None:
        return ""
    low, high = (value_text(each.metric, end).removesuffix(" %") for end in (each.low, each.high))
    return f"[{low}, {high}]"


def _key(each: Measurement) -> Key:
    return each.metric, each.split, each.reference, each.layer


def _label(key: Key) -> str:
    metric, split, reference, layer = key
    to = f" to {model_label(reference)}" if reference else ""
    places = [split_label(split) if split else "", layer or ""]
    text = ", ".join([metric_title(metric) + to, *(place for place in places if place)])
    return f"{text} {arrow(metric, split, reference)}".strip()


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


def _has_chance(table: Table) -> bool:
    """Layer-wise tables have their chance level in the title."""
    return table.metric is None and any(row.chance != MISSING for row in table.rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
