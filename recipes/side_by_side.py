"""Which method comes nearest to retraining over several cases? Puts audits of `positions.py` together.

    python recipes/side_by_side.py fashion=DIR/audit.json rows=DIR/audit.json ...

The mean of a case is that of its seeds, so every case counts once. An interval holds 95 % of bootstrap draws of cases.
Only methods that every case has stand here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

import numpy as np
from positions import Nearness, method_of, nearness, retain_accuracy, retrained_models
from scipy.stats import bootstrap

from ec_hf import AuditReport

DRAWS = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="NAME=AUDIT", help="name of a case, and its audit.json")
    named = dict(each.split("=", 1) for each in parser.parse_args().cases)
    print(table({name: AuditReport.load(path) for name, path in named.items()}))


def table(reports: Mapping[str, AuditReport]) -> str:
    """A Markdown table: a row a method, the nearest first; the distance in each case and over all.

    Args:
        reports: case -> audit; at least two.

    Raises:
        ValueError: fewer than two cases, or no method is in all.
    """
    if len(reports) < 2:
        raise ValueError(f"{len(reports)} case: an interval over cases needs two at least")
    found = {name: by_method(report) for name, report in reports.items()}
    methods = [method for method in next(iter(found.values())) if all(method in each for each in found.values())]
    if not methods:
        raise ValueError(f"no method is in all of {', '.join(found)}: {[list(each) for each in found.values()]}")
    lost = {name: by_loss(report) for name, report in reports.items()}
    rows: list[tuple[float, list[str]]] = []
    for method in methods:
        distances = [found[case][method].distance for case in found]
        shares = [found[case][method].share for case in found]
        losses = [lost[case][method] for case in found]
        cells = [interval(distances, "{:.2f}"), interval(shares, "{:.0%}"), interval(losses, "{:+.1f}")]
        rows.append((float(np.mean(distances)), [method, *cells, *(f"{each:.2f}" for each in distances)]))
    titles = ["method", "distance from 1", "0.7 to 1.3", "retain accuracy, points from retrained", *found]
    lines = [
        titles,
        ["---", *["---:"] * (len(titles) - 1)],
        *(cells for _, cells in sorted(rows, key=lambda row: row[0])),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def by_method(report: AuditReport) -> dict[str, Nearness]:
    """Method -> the mean of its runs; without runs that no signal places."""
    runs = {run: found for run in unlearned(report) if (found := nearness(report, run))}
    return {method: Nearness(*np.mean([runs[run] for run in own], axis=0)) for method, own in grouped(runs).items()}


def by_loss(report: AuditReport) -> dict[str, float]:
    """Method -> retain accuracy on test images, in points above the mean of the retrained models."""
    target = np.mean([retain_accuracy(report, name) for name in retrained_models(report)])
    return {
        method: 100 * float(np.mean([retain_accuracy(report, run) for run in own]) - target)
        for method, own in grouped(unlearned(report)).items()
    }


def unlearned(report: AuditReport) -> list[str]:
    """The runs of an audit."""
    return [name for name, info in report.models.items() if info.role == "unlearned"]


def grouped(runs: Iterable[str]) -> dict[str, list[str]]:
    """Method -> its runs."""
    groups: dict[str, list[str]] = {}
    for run in runs:
        groups.setdefault(method_of(run), []).append(run)
    return groups


def interval(values: list[float], style: str) -> str:
    """The mean over cases, and 95 % of bootstrap draws of cases."""
    mean = style.format(np.mean(values))
    if len(set(values)) == 1:
        return mean
    found = bootstrap((values,), np.mean, n_resamples=DRAWS, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{mean} ({style.format(low)} to {style.format(high)})"


if __name__ == "__main__":
    main()
