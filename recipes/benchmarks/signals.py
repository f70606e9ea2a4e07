"""Which signals of an audit tell an original from a retrained model? Effect sizes by signal, of finished audits.

    python recipes/benchmarks/signals.py outputs/mnist/audit.json outputs/quickdraw/audit.json

The effect is the original's value less that of the retrained models, divided by the standard error over images and
trainings: how well a signal tells the two apart, whatever the unlearned model. A signal that does not is blind there.
Of the layers of a signal the table gives the median.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ec_hf.auditing.report import AuditReport, Signal
from ec_hf.reporting.labels import MISSING, metric_title, split_label

Key = tuple[str, str, str | None]


@dataclass(frozen=True)
class Case:
    """One signal at one layer of one audit.

    Attributes:
        effect: median over the unlearned models, which differ in the correction for many signals alone.
        tells: whether it is not blind, of any of them.
    """

    effect: float
    tells: bool


def cases(report: AuditReport) -> dict[Key, list[Case]]:
    """Metric, split and note of each signal -> its cases, one a layer.

    Args:
        report: an audit with one or more retrained models.

    Raises:
        ValueError: a report without signals, or one whose signals have no effect size.
    """
    if not report.signals:
        raise ValueError("the report has no signals: audit again with a retrained model (--retrained ID)")
    if not any(signal.effect is not None for signal in report.signals):
        raise ValueError("its signals have no effect size: audit again with this version of ec_hf")
    places: dict[tuple[Key, str | None], list[Signal]] = {}
    for signal in report.signals:
        if signal.effect is not None:
            places.setdefault((_key(signal), signal.layer), []).append(signal)
    found: dict[Key, list[Case]] = {}
    for (key, _), some in places.items():
        effect = median(signal.effect for signal in some if signal.effect is not None)
        found.setdefault(key, []).append(Case(effect, any(signal.position is not None for signal in some)))
    return found


def table(reports: Sequence[tuple[str, AuditReport]]) -> str:
    """Markdown: a row a signal, the strongest first; a column an audit, and what they come to together.

    Args:
        reports: the audits, each with a name.
    """
    found = [cases(report) for _, report in reports]
    together: dict[Key, list[Case]] = {}
    for key, some in (item for of_one in found for item in of_one.items()):
        together.setdefault(key, []).extend(some)
    head = ["signal", *(name for name, _ in reports), "median effect", "tells in"]
    rows = [
        [_title(key), *(_cell(of_one.get(key, [])) for of_one in found), f"{_median(some):.1f}", _share(some)]
        for key, some in sorted(together.items(), key=lambda item: -_median(item[1]))
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _key(signal: Signal) -> Key:
    note = None if signal.metric.startswith("mia") else signal.note
    return signal.metric, signal.split, note


def _title(key: Key) -> str:
    metric, split, note = key
    return f"{metric_title(metric)}, {split_label(split)}{f', {note}' if note else ''}"


def _median(some: Sequence[Case]) -> float:
    return median(each.effect for each in some)


def _share(some: Sequence[Case]) -> str:
    return f"{sum(each.tells for each in some)} of {len(some)}"


def _cell(some: Sequence[Case]) -> str:
    return f"{_median(some):.1f} ({_share(some)})" if some else MISSING


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the audits whose files are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audits", nargs="+", type=Path, help="audit.json of audits with a retrained model")
    reports = []
    for path in parser.parse_args(argv).audits:
        report = AuditReport.load(path)
        try:
            cases(report)
        except ValueError as error:
            raise SystemExit(f"{path}: {error}") from error
        reports.append((str(report.dataset.get("name") or path.parent.name), report))
    print(table(reports))
    print("\nEffect in standard errors; in brackets at how many layers the signal tells original from retrained.")


if __name__ == "__main__":
    main()
