"""How every figure is drawn: page, colours, lines over the layers, ticks and legends.

The figures themselves are in `ec_hf.reporting.figures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ec_hf.auditing.report import AttackCurve, AuditReport, Measurement
from ec_hf.reporting.labels import layer_labels, model_label
from ec_hf.reporting.reading import LAST, MEAN, layer_order

__all__ = [
    "RC",
    "STYLES",
    "WIDTH",
    "crowded",
    "draw_attack",
    "draw_chance",
    "draw_curves",
    "draw_floor",
    "draw_legend",
    "legend_of_models",
    "new_axes",
    "of_layers",
    "render",
    "set_ticks",
    "short_name",
    "style_of",
]

WIDTH = 7.0  # inches; shown at 700 pixels a point of type is then 1.4 pixels high
# Okabe and Ito's colours, told apart by people with any colour vision; line and marker do it in gray.
STYLES: dict[str, dict[str, Any]] = {
    "original": {"color": "#000000", "linestyle": "-", "marker": "o"},
    "retrained": {"color": "#009E73", "linestyle": "--", "marker": "s", "linewidth": 2.4},
    "floor": {"color": "#7F7F7F", "linestyle": ":", "marker": None},
}
OTHERS: dict[str, tuple] = {  # of different lengths: 140 models before two look the same
    "color": ("#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9"),
    "linestyle": ("-", "-.", (0, (5, 1)), (0, (3, 1, 1, 1))),
    "marker": ("^", "D", "v", "P", "X", "<", ">"),
}
GUIDE: dict[str, Any] = {"color": "#7F7F7F", "linewidth": 1, "linestyle": (0, (6, 3)), "zorder": 1}
RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "lines.markersize": 4.5,
    "lines.linewidth": 1.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar sign in a name begins no formula
    "svg.hashsalt": "ec_hf",  # the same report gives the same file
}
MAX_TICKS = 11
LEGEND_ROW = 0.18  # inches
LEGEND_CHARACTERS = 78  # of a legend's row, capitals among them
PAGE_CHARACTERS = 84  # of tick labels that stand side by side across a page
AXES = {
    "steps": "steps of training",
    "images a class": "images of each class",
    "bits": "bits of a weight",
    "sparsity": "share of weights set to 0",
}


def render(figure: Figure, target: Any, kind: str | None = None) -> None:
    """Writes a figure to a file or a binary stream; the same figure gives the same bytes."""
    kind = kind or Path(target).suffix[1:]
    with matplotlib.rc_context(RC):
        figure.savefig(target, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {})


def new_axes(rows: int, columns: int, height: float, extra: float = 0.4) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` by `columns` panels, each `height` inches high, with `extra` inches for the legend."""
    figure = Figure(figsize=(WIDTH, rows * height + extra), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def of_layers(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The measurements that have a layer and a value."""
    return [each for each in measurements if each.layer is not None and each.value is not None]


def draw_curves(report: AuditReport, axis: Axes, cell: Sequence[Measurement]) -> None:
    """One line for each model over the layers, with its interval as a band."""
    layers = _layers(report, cell)
    for name in report.models:
        rows = {each.layer: each for each in cell if each.model == name}
        line: list[tuple[int, Any]] = [(x, rows[layer]) for x, layer in enumerate(layers) if layer in rows]
        if not line:
            continue
        style = style_of(report, name)
        if len(line) == 1:
            style["marker"] = style["marker"] or "_"  # a single layer makes no line
        every = -(-len(line) // 13)  # markers of many layers would hide the line
        axis.plot([x for x, _ in line], [each.value for _, each in line], label=name, markevery=every, **style)
        band = [(x, each.low, each.high) for x, each in line if each.low is not None and each.high is not None]
        if band:
            xs, lows, highs = zip(*band, strict=True)
            strong = name.startswith(MEAN)  # the band of retraining is what the other lines are read against
            axis.fill_between(xs, lows, highs, color=style["color"], alpha=0.35 if strong else 0.15, linewidth=0)
    step = max(-(-len(layers) // MAX_TICKS), 1)  # of too few images there is no CKA at any layer
    ticks = list(range(0, len(layers), step))
    if layers and layers[-1] == "logits":
        ticks = [k for k in ticks if k <= len(layers) - 1 - step] + [len(layers) - 1]
    short = layer_labels(layers)
    labels = [short[k] for k in ticks]
    set_ticks(axis, ticks, labels, slanted=crowded(axis, labels))
    hidden = all(layer.startswith("hidden_states.") or layer in LAST for layer in layers)
    axis.set_xlabel("hidden state, shallow to deep" if hidden else "layer, shallow to deep")
    axis.set_ylim(min([-0.03, *(each.value - 0.03 for each in cell if each.value is not None)]), 1.03)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def draw_attack(report: AuditReport, axis: Axes, curves: Sequence[AttackCurve]) -> None:
    """One line for each model over the strengths of an attack, evenly spaced, with its interval as a band."""
    longest = max(curves, key=lambda curve: len(curve.x))
    for name in report.models:
        for curve in (curve for curve in curves if curve.model == name):
            style = style_of(report, name)
            points = range(len(curve.x))
            axis.plot(points, curve.accuracy, label=name, **style)
            if len(curve.low) == len(curve.high) == len(curve.x):
                alpha = 0.35 if name.startswith(MEAN) else 0.15
                axis.fill_between(points, curve.low, curve.high, color=style["color"], alpha=alpha, linewidth=0)
    set_ticks(axis, list(range(len(longest.x))), [f"{x:g}" for x in longest.x], slanted=False)
    axis.set_xlabel(AXES.get(longest.unit, longest.unit))
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def _layers(report: AuditReport, cell: Sequence[Measurement]) -> list[str]:
    present = {each.layer for each in cell}
    return [layer for layer in layer_order(report) if layer in present]


def draw_floor(report: AuditReport, axis: Axes, cell: Sequence[Measurement], split: str) -> None:
    """What unrelated features would get, the highest over the models, where that was measured."""
    layers = _layers(report, cell)
    floors = of_layers(report.find("cka_floor", split=split, note=None))
    values = {
        layer: [each.value for each in floors if each.layer == layer and each.value is not None] for layer in layers
    }
    line = [(x, max(values[layer])) for x, layer in enumerate(layers) if values[layer]]
    if line:
        axis.plot([x for x, _ in line], [y for _, y in line], label="unrelated features", **GUIDE)
        axis.set_ylim(bottom=min(axis.get_ylim()[0], *(y - 0.03 for _, y in line)))


def draw_chance(axis: Axes, cell: Iterable[Measurement]) -> None:
    """A guide where guessing would get, where the measurements tell it."""
    chance = next((each.chance for each in cell if each.chance is not None), None)
    if chance is not None:
        axis.axhline(chance, label="chance", **GUIDE)


def legend_of_models(report: AuditReport, figure: Figure, axes: list[list[Axes]]) -> None:
    """One legend for all panels: the models in the order of the report, then the guides."""
    handles: dict[str, Any] = {}
    for axis in (axis for row in axes for axis in row):
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    names = [name for name in [*report.models, "unrelated features", "chance"] if name in handles]
    draw_legend(
        figure, [handles[n] for n in names], [short_name(model_label(n), 28) for n in names], "outside upper center"
    )


def draw_legend(figure: Figure, handles: Sequence[Any], labels: list[str], place: Any) -> None:
    """A legend of as few rows as fit the width."""

    def width(columns: int) -> int:
        rows, longer = divmod(len(labels), columns)  # matplotlib gives a row more to the first columns
        sizes = [rows + 1] * longer + [rows] * (columns - longer)
        starts = [sum(sizes[:k]) for k in range(columns)]
        return sum(max(map(len, labels[k : k + size])) + 7 for k, size in zip(starts, sizes, strict=True))

    columns = next((n for n in range(len(labels), 1, -1) if width(n) <= LEGEND_CHARACTERS), 1)
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * max(rows - 2, 0))  # else it takes the panels' room
    figure.legend(handles, labels, loc=place, ncols=columns, frameon=False, handlelength=2.8, columnspacing=1.2)


def set_ticks(axis: Axes, ticks: list[int], labels: list[str], slanted: bool) -> None:
    """Ticks of the horizontal axis and their labels, slanted where they would run into each other."""
    axis.set_xticks(ticks, labels)
    if slanted:
        axis.tick_params(axis="x", rotation=40)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def crowded(axis: Axes, labels: Sequence[str]) -> bool:
    """Whether two evenly spaced labels that stand beside each other would touch."""
    place = axis.get_subplotspec()
    room = PAGE_CHARACTERS / (place.get_gridspec().ncols if place else 1) / max(len(labels), 1)
    return any((len(a) + len(b)) / 2 + 1 > room for a, b in pairwise(labels))


def style_of(report: AuditReport, name: str) -> dict[str, Any]:
    """Colour, line and marker of a model: the same in every figure of a report."""
    info = report.models.get(name)
    role = info.role if info else "unlearned"
    if role in STYLES:
        return dict(STYLES[role])
    others = [each for each, info in report.models.items() if info.role not in STYLES]
    order = others.index(name) if name in others else 0
    return {key: values[order % len(values)] for key, values in OTHERS.items()}


def short_name(name: str, width: int = 20) -> str:
    """The first of the names that a class goes by, cut to so many characters."""
    name = name.split(",")[0].strip()
    return name if len(name) <= width else name[: width - 1].rstrip() + "…"
