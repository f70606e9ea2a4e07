"""Pictures of an `AuditReport`, as matplotlib figures and as PNG and SVG files."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ec_hf.auditing.report import AttackCurve, AuditReport
from ec_hf.reporting.drawing import (
    RC,
    WIDTH,
    draw_attack,
    draw_chance,
    draw_curves,
    draw_floor,
    draw_legend,
    legend_of_models,
    new_axes,
    of_layers,
    render,
    set_ticks,
    short_name,
)
from ec_hf.reporting.labels import attack_words, class_names, model_label, split_label
from ec_hf.reporting.printable import printable
from ec_hf.reporting.reading import MEAN, forget_split, merged, of_role

__all__ = ["CAPTIONS", "draw", "save_figures"]

RETAIN_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#8C6D31", "#7F7F7F", "#332288", "#000000")
RETAIN_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
FORGET_RED = "#C8102E"
QUERY_FRAME: dict[str, Any] = {"edgecolor": FORGET_RED, "linewidth": 1.5, "linestyle": "--"}
SAME_CLASS_FRAME: dict[str, Any] = {"edgecolor": "#0072B2", "linewidth": 3}
OTHER_CLASS_FRAME: dict[str, Any] = {"edgecolor": "#AAAAAA", "linewidth": 0.8}
STAR: dict[str, Any] = {"s": 46, "marker": "*", "color": FORGET_RED, "edgecolors": "white", "linewidths": 0.3}
ATTACK_COLUMNS = 3
MAX_CLASSES, MAX_QUERIES, MAX_NEIGHBOURS = 12, 3, 8
CAPTIONS = {
    "cka": (
        "How alike the features of two models are at each layer: 1 is the same geometry, 0 is unrelated. First "
        "row: to the original. On forget images a model that never saw them (retrained) is the target: a curve above "
        "it kept something, a curve far below it lost more than the data had put there. On retain images, higher is "
        "better. Second row, where there is a retrained model: similarity to that; higher is better. Bands are 95 % "
        "intervals over images; of several retrained models the line is the mean and the band their range."
    ),
    "probe": (
        "How well the forgotten classes can be read from frozen features, by a new linear classifier and by nearest "
        "neighbours. A curve near the original's means that the layers still know the classes. The retrained model is "
        "the target, not chance: features learnt from other classes tell something about these too. "
        "Of several retrained models the line is the mean and the band their range."
    ),
    "embedding": (
        "t-SNE of the deepest features: red stars are images of the forgotten classes, the other marks are the retain "
        "classes nearest to them in the original model. Stars in clusters of their own: the model still tells the "
        "forgotten classes apart. The same images everywhere; distances and sizes of clusters mean nothing."
    ),
    "attacks": (
        "Accuracy on held-out forget images under attacks of growing strength: training on a few forget images, a new "
        "classifier, a learnt prompt, weights that are rounded or pruned. What was only hidden comes back early; the "
        "retrained model shows what can be learnt anew. Bands are 95 % intervals over images; of several retrained "
        "models the line is the mean and the band their range."
    ),
    "confusion": (
        "What the models call test images of the forgotten classes, in percent of the images of a class (row). "
        "Outlined cells are right answers."
    ),
    "retrieval": (
        "The images that each model finds nearest to a forget image, nearest first. Thick frame: the class of the "
        "query. Black dot: an image that the original model finds too."
    ),
}


def draw(
    report: AuditReport, *, images: Sequence[Any] | None = None, names: Sequence[str] = tuple(CAPTIONS)
) -> dict[str, Figure]:
    """Draws what the report has the numbers for; a figure that it has none for is left out.

    Args:
        report: the report.
        images: PIL images, addressed as `Retrieval` does: "forget_test" followed by "retain_test". Only the few that
            are shown are read. Without them there is no retrieval figure.
        names: the figures to draw, of `CAPTIONS`.

    Returns:
        Figures by name, in this order. They belong to no window and hold no pyplot state.

    Raises:
        ValueError: `images` has fewer images than the report's retrievals name.
    """
    report = printable(report)
    painters: dict[str, Callable[[], Figure | None]] = {
        "cka": lambda: _cka(report),
        "probe": lambda: _probe(report),
        "embedding": lambda: _embedding(report),
        "attacks": lambda: _attacks(report),
        "confusion": lambda: _confusion(report),
        "retrieval": lambda: _retrieval(report, images) if images is not None else None,
    }
    with matplotlib.rc_context(RC):
        drawn = {name: painters[name]() for name in names}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save_figures(report: AuditReport, folder: str | Path, *, images: Sequence[Any] | None = None) -> dict[str, Path]:
    """Writes `draw(report)` as NAME.png (1400 pixels wide) and NAME.svg; figures of an earlier call are replaced.

    Returns:
        The PNG files by the name of the figure; the SVG file lies beside each.
    """
    folder = Path(folder)
    figures = draw(report, images=images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        render(figure, folder / f"{name}.png")
        render(figure, folder / f"{name}.svg")
    return {name: folder / f"{name}.png" for name in figures}


def _cka(report: AuditReport) -> Figure | None:
    report = merged(report)
    splits = (forget_split(report, "linear_cka"), "retain_test")
    panels = {
        reference: [of_layers(report.find("linear_cka", split=split, reference=reference)) for split in splits]
        for reference in ("original", *of_role(report, "retrained"))
    }
    panels = {reference: cells for reference, cells in panels.items() if any(cells)}
    if not panels:
        return None
    figure, axes = new_axes(len(panels), 2, height=2.7)
    for line, (reference, cells) in zip(axes, panels.items(), strict=True):
        for axis, cell, split in zip(line, cells, splits, strict=True):
            draw_curves(report, axis, cell)
            draw_floor(report, axis, cell, split)
            axis.set_title(f"{split_label(split)} images")
        line[0].set_ylabel(f"linear CKA to {reference.split(' (')[0]}")
    legend_of_models(report, figure, axes)
    return figure


def _probe(report: AuditReport) -> Figure | None:
    report = merged(report)
    titles = {"linear_probe": "linear probe", "knn": "nearest neighbours"}
    panels = {metric: of_layers(report.find(metric, split=forget_split(report, metric))) for metric in titles}
    panels = {metric: cell for metric, cell in panels.items() if cell}
    if not panels:
        return None
    figure, axes = new_axes(1, len(panels), height=2.9)
    for axis, (metric, cell) in zip(axes[0], panels.items(), strict=True):
        draw_curves(report, axis, cell)
        draw_chance(axis, cell)
        axis.set_title(titles[metric])
    axes[0][0].set_ylabel(f"accuracy on {split_label(forget_split(report, next(iter(panels))))} images")
    legend_of_models(report, figure, axes)
    return figure


def _embedding(report: AuditReport) -> Figure | None:
    points, labels = report.embedding.get("points") or {}, report.embedding.get("labels") or []
    points = {
        name: xy for name, xy in points.items() if len(xy) == len(labels) and xy and name not in _repeats(report)
    }
    if not points:
        return None
    forgotten = [k for k in dict.fromkeys(labels) if k in report.request.get("classes", [])]
    kept = sorted(set(labels) - set(forgotten))
    columns = {1: 1, 2: 2, 4: 2}.get(len(points), 3)
    figure, axes = new_axes(-(-len(points) // columns), columns, height=min(7.2 / (columns + 0.4), 4))
    flat = [axis for row in axes for axis in row]
    for axis in flat[len(points) :]:
        axis.remove()
    names = class_names(report)
    for axis, (name, xy) in zip(flat, points.items(), strict=False):
        for order, k in enumerate(kept):
            here = [point for point, label in zip(xy, labels, strict=True) if label == k]
            axis.scatter(
                *zip(*here, strict=True), alpha=0.75, linewidths=0, label=short_name(names(k)), **_mark(order)
            )
        here = [point for point, label in zip(xy, labels, strict=True) if label in forgotten]
        if here:
            label = f"forgotten: {_few([names(k) for k in forgotten])}"
            axis.scatter(*zip(*here, strict=True), label=label, zorder=3, **STAR)
        axis.set_title(model_label(name))
        axis.set(xticks=[], yticks=[])
        axis.spines[["top", "right"]].set_visible(True)
    handles = dict(zip(*reversed(flat[0].get_legend_handles_labels()), strict=True))
    texts = sorted(handles, key=lambda text: not text.startswith("forgotten"))
    draw_legend(figure, [handles[text] for text in texts], texts, "outside lower center")
    return figure


def _attacks(report: AuditReport) -> Figure | None:
    names = list(dict.fromkeys(curve.attack for curve in report.attacks if curve.x))
    if not names:
        return None
    columns = min(len(names), ATTACK_COLUMNS)
    lines = -(-len(names) // columns)
    figure, axes = new_axes(lines, columns, height=2.9 if columns < ATTACK_COLUMNS else 2.0)
    shown = merged(report)
    flat = [axis for row in axes for axis in row]
    for axis in flat[len(names) :]:
        axis.remove()
    for axis, name in zip(flat, names, strict=False):
        curves = _one_retrained([curve for curve in report.attacks if curve.attack == name], report)
        draw_attack(shown, axis, curves)
        draw_chance(axis, report.find("accuracy", split="forget_test"))
        axis.set(title=attack_words(name).title, ylim=(-0.03, 1.03))
    figure.supylabel("accuracy on held-out forget images", fontsize=9)
    legend_of_models(shown, figure, [flat[: len(names)]])
    return figure


def _one_retrained(curves: Sequence[AttackCurve], report: AuditReport) -> list[AttackCurve]:
    """The curves with one, of means and their range, in place of those of several retrained models."""
    retrained = [curve for curve in curves if curve.model in of_role(report, "retrained")]
    others = [curve for curve in curves if curve not in retrained]
    if len(of_role(report, "retrained")) < 2 or not retrained:
        return list(curves)
    points = list(zip(*(curve.accuracy for curve in retrained), strict=True))
    mean = replace(
        retrained[0],
        model=next(name for name in merged(report).models if name.startswith(MEAN)),
        accuracy=[sum(point) / len(point) for point in points],
        low=[min(point) for point in points],
        high=[max(point) for point in points],
    )
    return [*others, mean]


def _confusion(report: AuditReport) -> Figure | None:
    tables = {name: table for name, table in report.confusion.items() if table and name not in _left_out(report)}
    if not tables:
        return None
    true = list(dict.fromkeys(name for table in tables.values() for name in table))
    rows = true[:MAX_CLASSES]
    columns, complete = _predicted_classes(list(tables.values()), rows)
    figure, axes = new_axes(len(tables), 1, height=0.5 + 0.25 * len(rows), extra=0.7)
    for axis, (name, table) in zip((line[0] for line in axes), tables.items(), strict=True):
        _heat_map(axis, _percentages(table, rows, columns, complete), rows, columns)
        axis.set_title(model_label(name))
    labels = [short_name(column, 14) for column in columns]
    if not complete:
        labels.append("others")
    set_ticks(axes[-1][0], list(range(len(labels))), labels, slanted=max(map(len, labels)) > 70 / len(labels))
    axes[-1][0].set_xlabel("predicted class")
    some = f" (the first {len(rows)} of {len(true)})" if len(rows) < len(true) else ""
    figure.supylabel(f"forgotten class{some}", fontsize=9)
    return figure


def _predicted_classes(
    tables: Sequence[Mapping[str, Mapping[str, int]]], rows: Sequence[str]
) -> tuple[list[str], bool]:
    """The columns, forgotten classes first and then the others that models predict most; whether these are all."""
    totals: Counter[str] = Counter()
    for table in tables:
        for name in rows:
            counts = table.get(name, {})
            totals.update({predicted: n / max(sum(counts.values()), 1) for predicted, n in counts.items()})
    frequent = [name for name, _ in totals.most_common(MAX_CLASSES)]
    own = rows if len(rows) <= MAX_CLASSES // 2 else [name for name in rows if name in frequent]
    columns = [*own, *(name for name in frequent if name not in rows)][:MAX_CLASSES]
    return columns, set(totals) <= set(columns)


def _percentages(
    table: Mapping[str, Mapping[str, int]], rows: Sequence[str], columns: Sequence[str], complete: bool
) -> list[list[float]]:
    """Of the images of each true class, the part of each predicted one; what is in no column comes last."""
    shares = []
    for name in rows:
        counts = table.get(name, {})
        total = max(sum(counts.values()), 1)
        line = [100 * counts.get(column, 0) / total for column in columns]
        others = 100 * sum(counts.values()) / total - sum(line)
        shares.append(line if complete else [*line, others])
    return shares


def _heat_map(axis: Axes, shares: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> None:
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            if share >= 0.5:
                colour = "white" if share > 60 else "black"
                axis.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
            if x < len(columns) and columns[x] == rows[y]:
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.4))
    axis.set_yticks(range(len(rows)), [short_name(name) for name in rows])
    axis.set_xticks(range(len(shares[0])), [])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _retrieval(report: AuditReport, images: Sequence[Any]) -> Figure | None:
    queries = list(dict.fromkeys(each.query for each in report.retrievals))[:MAX_QUERIES]
    trained = [each for each in report.retrievals if each.model not in _left_out(report)]
    retrievals = [each for query in queries for each in trained if each.query == query]
    if not retrievals:
        return None
    count = min(max(len(each.neighbours) for each in retrievals), MAX_NEIGHBOURS)
    largest = max(k for each in retrievals for k in [each.query, *each.neighbours[:count]])
    if largest >= len(images):
        raise ValueError(
            f"images: the report names image {largest}, there are {len(images)}; pass the images of the split "
            "'forget_test' followed by those of 'retain_test', as they were audited"
        )
    by_original = {each.query: each for each in reversed(retrievals) if each.model == "original"}
    names = class_names(report)
    side = WIDTH / (count + 2.2)
    figure, axes = new_axes(len(retrievals), count + 1, height=side + 0.2)
    for line, retrieval in zip(axes, retrievals, strict=True):
        original = by_original.get(retrieval.query)
        known = set(original.neighbours) if original and original is not retrieval else set()
        shown = [retrieval.query, *retrieval.neighbours[:count]]
        labels = [retrieval.query_label, *retrieval.labels[:count]]
        for axis, k, label in zip(line, shown, labels, strict=False):
            _tile(axis, images[k], short_name(names(label), int(14 * side)))
        line[0].set_ylabel(textwrap.fill(model_label(retrieval.model), 12), rotation=0, ha="right", va="center")
        _frame(line[0], QUERY_FRAME)
        for axis, k, label in zip(line[1:], shown[1:], labels[1:], strict=False):
            _frame(axis, SAME_CLASS_FRAME if label == retrieval.query_label else OTHER_CLASS_FRAME)
            if k in known:
                axis.plot(0.88, 0.88, "o", color="black", mec="white", ms=8, transform=axis.transAxes)
        for axis in line[len(shown) :]:
            axis.remove()
    handles = [
        Line2D([], [], color=FORGET_RED, linestyle="--", label="query, a forget image"),
        Line2D([], [], color="#0072B2", linewidth=3, label="same class as the query"),
        Line2D([], [], color="black", marker="o", linestyle="", markersize=8, label="found by the original too"),
    ]
    draw_legend(figure, handles, [str(handle.get_label()) for handle in handles], "outside lower center")
    return figure


def _left_out(report: AuditReport) -> list[str]:
    """Models that were never trained, and repeats of retraining, whose rows would only take room."""
    return [*of_role(report, "floor"), *_repeats(report)]


def _repeats(report: AuditReport) -> list[str]:
    """The retrained models after the first: where each model has a picture of its own, one stands for them all."""
    return of_role(report, "retrained")[1:]


def _mark(order: int) -> dict[str, Any]:
    return {
        "s": 13,
        "color": RETAIN_COLOURS[order % len(RETAIN_COLOURS)],
        "marker": RETAIN_MARKERS[order % len(RETAIN_MARKERS)],
    }


def _frame(axis: Axes, look: Mapping[str, Any]) -> None:
    for spine in axis.spines.values():
        spine.set(**look, visible=True)


def _tile(axis: Axes, image: Any, label: str) -> None:
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((192, 192))
    axis.imshow(thumbnail)
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(label, fontsize=8, labelpad=2)


def _few(names: Sequence[str], limit: int = 3) -> str:
    text = ", ".join(short_name(name, 14) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
