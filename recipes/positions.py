"""How near to retraining does each method come? Erases with several methods, audits all against retrained models.

    python recipes/positions.py recipes/positions/fashion.yaml --output_dir DIR

A file names an original model, retrained ones, the data, the classes (or a request) to forget, what all methods share,
and the methods as fields of `ECConfig`; without these, `positions/methods.yaml` has them. With "seeds" every method
runs once for each, and its row has the means and ranges. The table has, for each run, the positions of all signals
that tell the original from the retrained models: 0 is as the original, 1 as retrained. Every model and the audit stay
in DIR; a run whose model is there is not made again. A method with "adapters", settings of `peft.LoraConfig`, erases
through new adapters (`pip install ec_hf[peft]`), and what is audited is the merged model. `recipes/side_by_side.py`
puts several cases together.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from transformers.trainer_utils import set_seed

from ec_hf import AuditReport, ECConfig, ECTrainer, ForgetRequest, audit
from ec_hf.auditing.report import Signal
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.files import ModelFolder
from ec_hf.models.loading import load_model
from ec_hf.training.piloting import erased

QUIET: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1000,
}
METHODS = Path(__file__).parent / "positions" / "methods.yaml"
"""The methods of a case that names none."""
NEAR = 0.3
"""A position from 0.7 to 1.3 counts as there."""
SEED = ", seed "
OUTPUT = ("accuracy", "accuracy_masked")
"""Every method brings these to 1, so they tell nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of a case")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--methods", type=Path, help="YAML file of methods in place of the case's own")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds in place of the case's own")
    options = parser.parse_args()
    case = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    if options.methods or "methods" not in case:
        case["methods"] = yaml.safe_load((options.methods or METHODS).read_text(encoding="utf-8"))
    if options.seeds:
        case["seeds"] = options.seeds
    report, costs = run(case, options.output_dir)
    report.save(options.output_dir / "audit.json")
    print(table(report, costs))
    print("", *values(report, [*costs]), sep="\n")


def run(case: Mapping[str, Any], folder: Path) -> tuple[AuditReport, dict[str, Mapping[str, float]]]:
    """Erase with every method of a case, and audit what came out.

    Args:
        case: "original", "retrained", "dataset_name", "forget_classes" (or "request", a file), "methods"; and
            "common" and "audit", settings of all methods and of the audit, and "seeds".
        folder: for the models.

    Returns:
        The audit, and run -> its cost.
    """
    images = load_images(case["dataset_name"])
    request = ForgetRequest.load(case["request"]) if "request" in case else ForgetRequest(case["forget_classes"])
    splits = four_splits(*train_and_test(images, seed=0), request)
    original, processor = load_model(case["original"])
    costs: dict[str, Mapping[str, float]] = {}
    for name, settings in runs_of(case).items():
        costs[name] = erase(original, processor, splits, folder / name, settings)
    report = audit(
        original,
        {name: str(folder / name) for name in costs},
        retrained=case["retrained"],
        splits=splits,
        request=request,
        processor=processor,
        **case.get("audit", {}),
    )
    return report, costs


def runs_of(case: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Run -> its settings: a run for each method, or for each seed and method; all methods of a seed come first."""
    common = case.get("common", {})
    if "seeds" not in case:
        return {method: {**common, **own} for method, own in case["methods"].items()}
    return {
        f"{method}{SEED}{seed}": {**common, **own, "seed": seed}
        for seed in case["seeds"]
        for method, own in case["methods"].items()
    }


def method_of(run: str) -> str:
    """The method of a run's name."""
    return run.split(SEED)[0]


def erase(
    original: Any, processor: Any, splits: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]
) -> Mapping[str, float]:
    """Erase from a copy of the original into a folder, unless a model is there; its cost."""
    if ModelFolder(folder).damage() is None:
        return json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    settings = {**QUIET, **settings}
    adapters = settings.pop("adapters", None)
    config = ECConfig(output_dir=str(folder), **settings)

    def trainer_for(config: ECConfig) -> ECTrainer:
        model = copy.deepcopy(original).to(memory_format=torch.channels_last)  # convolutions are faster on a CPU so
        return ECTrainer(
            model if adapters is None else with_adapters(model, adapters, config.seed),
            config,
            forget_dataset=splits["forget_train"],
            retain_dataset=splits["retain_train"],
            processing_class=processor,
        )

    start = time.process_time()
    trainer = erased(config, trainer_for, trainer_for)
    cost = {**trainer.cost, "cpu_seconds": round(time.process_time() - start, 1)}
    if adapters is None:
        trainer.save_model()
    else:
        trainer.save_merged(folder)
    (folder / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    return cost


def with_adapters(model: Any, settings: Mapping[str, Any], seed: int) -> Any:
    """The model with new adapters; the seed is of their first weights."""
    import peft  # an optional extra

    set_seed(seed)
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def table(report: AuditReport, costs: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with a row a method, of the mean of its runs, and one with a column a run."""
    titles = ("method", "status", "mean distance from 1", "0.7 to 1.3", "retain accuracy", "retain images", "CPU s")
    rows = [f"| {' | '.join(titles)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    methods: dict[str, list[str]] = {}
    for run in costs:
        methods.setdefault(method_of(run), []).append(run)
    for method, runs in methods.items():
        near = [found for run in runs if (found := nearness(report, run))]
        cells = [
            method,
            ", ".join(dict.fromkeys(report.status.get(run, "—") for run in runs)),
            spread([each.distance for each in near], "{:.2f}"),
            spread([each.share for each in near], "{:.0%}"),
            spread([retain_accuracy(report, run) for run in runs], "{:.1%}"),
            spread([costs[run]["retain_images_seen"] for run in runs], "{:,.0f}"),
            spread([costs[run]["cpu_seconds"] for run in runs], "{:.0f}"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    rows += [
        f"| {name} | — | — | — | {retain_accuracy(report, name):.1%} | — | — |"
        for name in ("original", *retrained_models(report))
    ]
    return "\n".join([*rows, "", *positions(report, list(costs))])


def spread(values: Sequence[float], style: str) -> str:
    """The mean, and in brackets the range where these differ."""
    if not values:
        return "—"
    shown = [style.format(each) for each in (np.mean(values), min(values), max(values))]
    return shown[0] if shown[1] == shown[2] else f"{shown[0]} ({shown[1]} to {shown[2]})"


def retain_accuracy(report: AuditReport, model: str) -> float:
    """Accuracy on the retain test images, from 0 to 1."""
    return report.value("accuracy", model=model, split="retain_test")


def retrained_models(report: AuditReport) -> list[str]:
    """Names of the retrained models of an audit."""
    return [name for name, info in report.models.items() if info.role == "retrained"]


class Nearness(NamedTuple):
    """How near to retraining the signals of one model are.

    Attributes:
        distance: mean |position - 1| over the signals that have a position.
        share: how many of them are within `NEAR`, from 0 to 1.
    """

    distance: float
    share: float


def nearness(report: AuditReport, model: str) -> Nearness | None:
    """None where no signal has a position."""
    found = [each.position for each in report.signals if each.model == model and each.metric not in OUTPUT]
    distances = np.abs(np.array([position for position in found if position is not None]) - 1)
    if not len(distances):
        return None
    return Nearness(float(distances.mean()), float((distances <= NEAR).mean()))


def positions(report: AuditReport, models: Sequence[str]) -> list[str]:
    """Every signal with a position, a row each."""
    places: dict[tuple[str, str | None, str | None], dict[str, str]] = {}
    for each in report.signals:
        if each.position is not None:
            places.setdefault((each.metric, each.layer, each.note), {})[each.model] = f"{each.position:.2f}"
    rows = [f"| signal | {' | '.join(models)} |", f"| --- |{' ---: |' * len(models)}"]
    for (metric, layer, note), own in places.items():
        name = " ".join(filter(None, (metric, layer, note)))
        rows.append(f"| {name} | {' | '.join(own.get(model, '—') for model in models)} |")
    return rows


def values(report: AuditReport, models: Sequence[str]) -> list[str]:
    """Every signal in its own unit, a row each, also where it has no position; of retrained models the range."""
    found: dict[tuple[str, str, str | None, str | None], dict[str, Signal]] = {}
    for each in report.signals:
        found.setdefault((each.metric, each.split, each.layer, each.note), {})[each.model] = each
    rows = [f"| signal | original | retrained | {' | '.join(models)} |", f"| --- |{' ---: |' * (len(models) + 2)}"]
    for (metric, split, layer, note), own in found.items():
        first = next(iter(own.values()))
        name = " ".join(filter(None, (metric, split, layer, note)))
        retrained = f"{min(first.retrained):.3f} to {max(first.retrained):.3f}" if first.retrained else "—"
        cells = [f"{own[model].value:.3f}" if model in own else "—" for model in models]
        rows.append(f"| {name} | {first.original:.3f} | {retrained} | {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()
