"""How near to retraining does each method come? Erases with several methods, audits all against retrained models.

    python recipes/positions.py recipes/positions/fashion.yaml --output_dir DIR

A file names an original model, retrained ones, the data, the classes (or a request) to forget, what all methods share,
and the methods as fields of `ECConfig`. The table has, for each method, the positions of all signals that tell the
original from the retrained models: 0 is as the original, 1 as retrained. Every model and the audit stay in DIR; a
method whose model is there is not run again. A method with "adapters", settings of `peft.LoraConfig`, erases through
new adapters (`pip install ec_hf[peft]`), and what is audited is the merged model.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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

QUIET: dict[str, Any] = {
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1000,
}
NEAR = 0.3
"""A position from 0.7 to 1.3 counts as there."""
OUTPUT = ("accuracy", "accuracy_masked")
"""Every method brings these to 1, so they tell nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="YAML file of a case")
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    case = yaml.safe_load(options.file.read_text(encoding="utf-8"))
    report, costs = run(case, options.output_dir)
    report.save(options.output_dir / "audit.json")
    print(table(report, costs))
    print("", *values(report, [*costs]), sep="\n")


def run(case: Mapping[str, Any], folder: Path) -> tuple[AuditReport, dict[str, Mapping[str, float]]]:
    """Erase with every method of a case, and audit what came out.

    Args:
        case: "original", "retrained", "dataset_name", "forget_classes" (or "request", a file), "methods"; and
            "common" and "audit", settings of all methods and of the audit.
        folder: for the models.

    Returns:
        The audit, and method -> cost of its run.
    """
    images = load_images(case["dataset_name"])
    request = ForgetRequest.load(case["request"]) if "request" in case else ForgetRequest(case["forget_classes"])
    splits = four_splits(*train_and_test(images, seed=0), request)
    original, processor = load_model(case["original"])
    costs: dict[str, Mapping[str, float]] = {}
    for name, settings in case["methods"].items():
        costs[name] = erase(original, processor, splits, folder / name, {**case.get("common", {}), **settings})
    report = audit(
        original,
        {name: str(folder / name) for name in case["methods"]},
        retrained=case["retrained"],
        splits=splits,
        request=request,
        processor=processor,
        **case.get("audit", {}),
    )
    return report, costs


def erase(
    original: Any, processor: Any, splits: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]
) -> Mapping[str, float]:
    """Erase from a copy of the original into a folder, unless a model is there; its cost."""
    if ModelFolder(folder).damage() is None:
        return json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    settings = {**QUIET, **settings}
    adapters = settings.pop("adapters", None)
    config = ECConfig(output_dir=str(folder), **settings)
    model = copy.deepcopy(original).to(memory_format=torch.channels_last)  # convolutions are faster on a CPU so
    trainer = ECTrainer(
        model if adapters is None else with_adapters(model, adapters, config.seed),
        config,
        forget_dataset=splits["forget_train"],
        retain_dataset=splits["retain_train"],
        processing_class=processor,
    )
    start = time.process_time()
    trainer.train()
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
    """A Markdown table with a row a method."""
    titles = ("method", "status", "mean distance from 1", "0.7 to 1.3", "retain accuracy", "retain images", "CPU s")
    rows = [f"| {' | '.join(titles)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for name in [*costs, "original", *(each for each, info in report.models.items() if info.role == "retrained")]:
        retain = report.value("accuracy", model=name, split="retain_test")
        distance, share = nearness(report, name)
        cost = costs.get(name, {})
        cells = [
            name,
            report.status.get(name, "—"),
            "—" if distance is None else f"{distance:.2f}",
            "—" if share is None else f"{share:.0%}",
            f"{retain:.1%}" if retain is not None else "—",
            f"{cost['retain_images_seen']:,}" if cost else "—",
            f"{cost['cpu_seconds']:.0f}" if cost else "—",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *positions(report, list(costs))])


def nearness(report: AuditReport, model: str) -> tuple[float | None, float | None]:
    """Mean |position - 1| over the signals that have one, and the share of them within `NEAR`; None without any."""
    found = [each.position for each in report.signals if each.model == model and each.metric not in OUTPUT]
    distances = np.abs(np.array([position for position in found if position is not None]) - 1)
    if not len(distances):
        return None, None
    return float(distances.mean()), float((distances <= NEAR).mean())


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
