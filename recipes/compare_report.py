"""What `compare.py` found: Markdown tables and figures from its JSON lines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ec_hf.objectives import get_objective
from ec_hf.reporting.drawing import RC, STYLES, render
from ec_hf.reporting.markdown import table

Lines = Sequence[Mapping[str, Any]]
LOOKS = {  # colours of Okabe and Ito
    "alone": {"color": "#0072B2", "marker": "o"},
    "ec": {"color": "#D55E00", "marker": "^"},
    "calibrated": {"color": "#CC79A7", "marker": "D"},
}
FURTHER = (
    {"color": "#E69F00", "marker": "v"},
    {"color": "#56B4E9", "marker": "s"},
    {"color": "#7F7F7F", "marker": "P"},
)
NAMES = {"alone": "", "ec": " + EC", "calibrated": " + calibrated EC"}
ALLOWED_FALL = 0.01
WORST_SHOWN = 12.0  # points of retain accuracy below the original's, where the trade-off figure ends
Reader = Callable[[Mapping[str, Any]], float | None]


def write_report(folder: Path, logs: Mapping[str, Lines]) -> None:
    """Writes `tables.md` and the figures of the cases that have a finished cell."""
    cases = {name: Found(lines) for name, lines in logs.items() if any(each["kind"] == "cell" for each in lines)}
    if not cases:
        return
    text = "\n\n".join(f"## {name}\n\n{case_text(found)}" for name, found in cases.items())
    (folder / "tables.md").write_text(text + "\n", encoding="utf-8")
    with matplotlib.rc_context(RC):
        drawn = {"tradeoff": tradeoff(cases), "cka_by_layer": cka_by_layer(cases)}
    for name, figure in drawn.items():
        render(figure, folder / f"{name}.png")
        render(figure, folder / f"{name}.svg")


class Found:
    """The lines of one case: its reference models, and the runs of each cell."""

    def __init__(self, lines: Lines) -> None:
        self.case = next(each for each in lines if each["kind"] == "case")
        self.points: list[str] = self.case["points"]
        self.layers: list[str] = self.case["layers"]
        areas = {each["model"]: each["area"] for each in lines if each["kind"] == "relearning"}
        self.references = {
            name: figures | {"relearning": areas.get(name)} for name, figures in self.case["models"].items()
        }
        self.cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for each in lines:
            if each["kind"] == "cell":
                key, model = (each["method"], each["variant"]), f"{each['method']}-{each['variant']}-{each['seed']}"
                cost = each["cost"]
                figures = each["figures"] | {"relearning": areas.get(model), "minutes": cost["minutes"]}
                figures["images"] = cost["forget_images_seen"] + cost["retain_images_seen"]
                self.cells.setdefault(key, []).append(figures | {"label": label_of(each)})

    def title(self, method: str, variant: str) -> str:
        """Name of a cell in the tables."""
        return self.cells[method, variant][0]["label"] + NAMES.get(variant, f" + {variant}")

    def pairs(self) -> dict[str, tuple[list[dict], list[dict]]]:
        """Runs of each host alone and with EC, where both are there."""
        hosts = [method for method, variant in self.cells if variant == "alone" and (method, "ec") in self.cells]
        return {self.title(host, "alone"): (self.cells[host, "alone"], self.cells[host, "ec"]) for host in hosts}


def at(metric: str, split: str, *layers: str) -> Reader:
    """Reads a layer-wise figure of a run, as the mean over layers."""

    def read(run: Mapping[str, Any]) -> float | None:
        values = [run.get(metric, {}).get(split, {}).get(layer) for layer in layers]
        return None if not values or None in values else float(np.mean(values))

    return read


def columns(found: Found) -> dict[str, Reader]:
    """What the summary table shows of a run, by heading; shares in percent."""

    def share(split: str) -> Reader:
        return lambda run: None if run["accuracy"].get(split) is None else 100 * run["accuracy"][split]

    def percent(read: Reader) -> Reader:
        return lambda run: None if (value := read(run)) is None else 100 * value

    middle, last = found.points[1:-1] or found.points[:1], found.points[-1]
    original, retrained = "linear_cka_original", "linear_cka_retrained"
    return {
        "FA": share("forget_train"),
        "RA": share("retain_train"),
        "test FA": share("forget_test"),
        "test RA": share("retain_test"),
        "CKA orig. middle": at(original, "forget_test", *middle),
        "CKA orig. last": at(original, "forget_test", last),
        "CKA retr. middle": at(retrained, "forget_test", *middle),
        "CKA retr. last": at(retrained, "forget_test", last),
        "profile gap": lambda run: gap(found, run),
        "probe": percent(at("linear_probe", "forget_test", last)),
        "k-NN": percent(at("knn", "forget_test", last)),
        "MIA": lambda run: run.get("mia_loss"),
        "relearning": lambda run: run.get("relearning"),
        "minutes": lambda run: run.get("minutes"),
        "images": lambda run: run.get("images"),
    }


def gap(found: Found, run: Mapping[str, Any]) -> float | None:
    """Mean absolute difference of a run's CKA to the original from the retrained model's, over all hidden states."""
    target = found.references.get("retrained", {}).get("linear_cka_original", {}).get("forget_test", {})
    own = run.get("linear_cka_original", {}).get("forget_test", {})
    pairs = [(own.get(layer), target.get(layer)) for layer in found.layers]
    known = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return float(np.mean(known)) if known else None


def case_text(found: Found) -> str:
    """The tables of one case."""
    layers = {"original": "CKA to original", "retrained": "CKA to retrained"}
    parts = [summary(found)]
    if found.pairs():
        parts.append(f"### What EC changes\n\n{effects(found)}")
    parts += [
        f"### {title}, forget test images, by hidden state\n\n{by_layer(found, f'linear_cka_{key}')}"
        for key, title in layers.items()
    ]
    return "\n\n".join(parts)


def summary(found: Found) -> str:
    """One row a cell; mean ± standard deviation over its seeds."""
    heads = columns(found)
    rows = [[name, *(_mean([read(run)]) for read in heads.values())] for name, run in found.references.items()]
    rows += [
        [found.title(*key), *(_mean([read(run) for run in runs]) for read in heads.values())]
        for key, runs in found.cells.items()
    ]
    return table(["model", *heads], rows)


def effects(found: Found) -> str:
    """What adding EC does to each host, means over seeds, and whether it is what it should be."""
    heads = columns(found)
    wanted = {
        "CKA orig. middle": lambda x: x < 0,
        "CKA orig. last": lambda x: x < 0,
        "probe": lambda x: x < 0,
        "test RA": lambda x: x >= -100 * ALLOWED_FALL,
    }
    rows = []
    for host, (alone, with_ec) in found.pairs().items():
        row, good = [host], True
        for name, is_good in wanted.items():
            values = [[heads[name](run) for run in runs] for runs in (alone, with_ec)]
            if any(None in each for each in values):
                row, good = [*row, "—"], False
                continue
            change = float(np.mean(values[1]) - np.mean(values[0]))  # type: ignore[arg-type]
            good &= bool(is_good(change))
            row.append(f"{change:+.{_digits(name)}f}{'' if is_good(change) else ' ✗'}")
        rows.append([*row, "yes" if good else "no"])
    return table(["host", *(f"Δ {name}" for name in wanted), "all as wanted"], rows)


def by_layer(found: Found, metric: str) -> str:
    """A layer-wise figure of every cell on forget test images, mean over seeds."""
    rows = []
    cells = {found.title(*key): runs for key, runs in found.cells.items()}
    for name, runs in {**{name: [run] for name, run in found.references.items()}, **cells}.items():
        if metric in runs[0]:
            rows.append(
                [name, *(_mean([at(metric, "forget_test", layer)(run) for run in runs]) for layer in found.layers)]
            )
    return table(["model", *(layer.removeprefix("hidden_states.") for layer in found.layers)], rows)


def _digits(name: str) -> int:
    return 0 if name == "images" else 2 if name.startswith(("CKA", "profile", "MIA", "relearning", "minutes")) else 1


def _mean(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation (of the sample), with as many digits as the size asks for."""
    if not values or None in values:
        return "—"
    mean = float(np.mean(values))  # type: ignore[arg-type]
    digits = 0 if abs(mean) >= 1000 else 1 if abs(mean) > 1.5 or max(values) > 1.5 else 2  # type: ignore[type-var,operator]
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""  # type: ignore[arg-type]
    return f"{mean:.{digits}f}{spread}"


# Figures


def tradeoff(cases: Mapping[str, Found]) -> Figure:
    """Forgetting against retention, of outputs above and middle layers below; arrows from each host to host + EC."""
    figure = Figure(figsize=(5.2 * len(cases), 8.6), layout="constrained")
    grid = figure.subplots(2, len(cases), squeeze=False)
    numbers, looks = {label: i for i, label in enumerate(_hosts(cases), 1)}, _looks(cases)
    for k, (name, found) in enumerate(cases.items()):
        heads = columns(found)
        for axes, x in zip(grid[:, k], ("test FA", "CKA orig. middle"), strict=True):
            _scatter(axes, found, heads[x], heads["test RA"], numbers, looks)
            axes.set_ylabel("retain accuracy, test (%)  → better" if not k else "")
        grid[0][k].set_title(name)
        grid[0][k].set_xscale("symlog", linthresh=1, linscale=0.5)
        grid[0][k].set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
        grid[0][k].set_xlim(-0.3, 110)
        grid[0][k].set_xlabel("forget accuracy, test (%)  ← better")
        grid[1][k].set_xlabel("CKA to original, middle points, forget test")
    handles = _handles(looks, linestyle="")
    handles += [
        Line2D([], [], color=STYLES[v]["color"], marker="*", markersize=11, linestyle="", label=v)
        for v in ("original", "retrained")
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    key = "   ".join(f"{i}\N{NO-BREAK SPACE}{label}" for label, i in numbers.items())
    figure.supxlabel(textwrap.fill(key, 60 * len(cases)), fontsize=8)
    return figure


def _hosts(cases: Mapping[str, Found]) -> list[str]:
    """Labels of the hosts of all cases, each once, in the order of the matrix."""
    return list(dict.fromkeys(runs[0]["label"] for found in cases.values() for runs in found.cells.values()))


def _looks(cases: Mapping[str, Found]) -> dict[str, dict[str, str]]:
    """Colour and marker of each variant that was run."""
    shown = list(dict.fromkeys(variant for found in cases.values() for _, variant in found.cells))
    further = zip((v for v in shown if v not in LOOKS), cycle(FURTHER), strict=False)
    return {v: look for v, look in LOOKS.items() if v in shown} | dict(further)


def _handles(looks: Mapping[str, dict[str, str]], **style: Any) -> list[Line2D]:
    names = {"alone": "host alone"}
    return [
        Line2D([], [], **look, label=names.get(v, f"host{NAMES.get(v, f' + {v}')}"), **style)
        for v, look in looks.items()
    ]


def _scatter(
    axes: Axes,
    found: Found,
    x: Reader,
    y: Reader,
    numbers: Mapping[str, int],
    looks: Mapping[str, dict[str, str]],
) -> None:
    spot = {
        key: (float(np.mean([x(run) for run in runs])), float(np.mean([y(run) for run in runs])))  # type: ignore[arg-type]
        for key, runs in found.cells.items()
    }
    ends = {name: (1.0 if x(run) is None else x(run), y(run)) for name, run in found.references.items()}
    floor = ends["original"][1] - WORST_SHOWN  # type: ignore[operator]
    for name, end in ends.items():
        axes.plot(*end, marker="*", markersize=13, color=STYLES[name]["color"], linestyle="", zorder=2)
    for (method, variant), point in spot.items():
        if point[1] < floor:
            continue
        axes.plot(*point, **looks[variant], markersize=11, linestyle="", zorder=3, alpha=0.85)
        text = str(numbers[found.cells[method, variant][0]["label"]])
        axes.annotate(text, point, ha="center", va="center", fontsize=6, color="white", zorder=5)
        if variant != "alone" and (method, "alone") in spot and spot[method, "alone"][1] >= floor:
            arrow = {"arrowstyle": "->", "color": "#7F7F7F", "linewidth": 0.8, "shrinkA": 5, "shrinkB": 5}
            axes.annotate("", xy=point, xytext=spot[method, "alone"], arrowprops=arrow, zorder=1)
    axes.margins(y=0.1)
    if below := [found.title(*key) for key, point in spot.items() if point[1] < floor]:
        text = textwrap.fill(f"below the frame: {', '.join(below)}", 40)
        axes.text(0.98, 0.02, text, transform=axes.transAxes, fontsize=6.5, color="#555555", ha="right")


def cka_by_layer(cases: Mapping[str, Found]) -> Figure:
    """CKA to the original on forget test images by hidden state: one small panel a host, alone and with EC."""
    panels = [
        (name, host) for name, found in cases.items() for host in dict.fromkeys(method for method, _ in found.cells)
    ]
    across = min(6, max(sum(case == name for case, _ in panels) for name in cases))
    per_case = {name: -(-sum(case == name for case, _ in panels) // across) for name in cases}
    rows = sum(per_case.values())
    width, looks = max(6.5, 1.83 * across), _looks(cases)
    figure = Figure(figsize=(width, 1.75 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False, sharey=True)
    start = 0
    for name, found in cases.items():
        hosts = [host for case, host in panels if case == name]
        for i in range(per_case[name] * across):
            axes = grid[start + i // across][i % across]
            if i >= len(hosts):
                axes.set_axis_off()
                continue
            _curves(axes, found, hosts[i], looks)
            axes.set_title(
                f"{name}: {found.cells[next(k for k in found.cells if k[0] == hosts[i])][0]['label']}", fontsize=8
            )
            axes.set_ylim(-0.05, 1.05)
        start += per_case[name]
    handles = _handles(looks)
    handles.append(Line2D([], [], **STYLES["retrained"], label="retrained"))
    figure.legend(handles=handles, loc="outside lower center", ncols=int(width // 2.5), frameon=False)
    figure.supylabel("CKA to original, forget test", fontsize=9)
    return figure


def _curves(axes: Axes, found: Found, host: str, looks: Mapping[str, dict[str, str]]) -> None:
    places = range(len(found.layers))

    def curve(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        read = [[at("linear_cka_original", "forget_test", layer)(run) for layer in found.layers] for run in runs]
        return np.array(read, dtype=float)

    if "retrained" in found.references:
        axes.plot(places, curve([found.references["retrained"]])[0], **(STYLES["retrained"] | {"marker": None}))
    for (method, variant), runs in found.cells.items():
        if method == host:
            values, look = curve(runs), looks[variant]
            axes.plot(places, values.mean(0), **look, markersize=3)
            axes.fill_between(places, values.min(0), values.max(0), color=look["color"], alpha=0.2, linewidth=0)
    axes.set_xticks([0, len(found.layers) - 1])


def label_of(cell: Mapping[str, Any]) -> str:
    """A method's name, with "+R" where retain data was added to one that was published without."""
    settings = cell.get("settings", cell["params"])
    published = get_objective(cell.get("objective", cell["method"])).uses
    return f"{cell['method']}+R" if published == "forget" and settings.get("retain_weight") else cell["method"]
