"""Compare unlearning methods, alone and with EC on top, under one search budget.

    pip install -e .[compare]
    python recipes/compare.py recipes/compare/deep.yaml --output_dir outputs/deep
    python recipes/compare.py recipes/compare/deep.yaml --output_dir outputs/deep --case cifar10   # one case a process
    python recipes/compare.py recipes/compare/deep.yaml --output_dir outputs/deep --report         # table and figures

A matrix file names cases (data, original model, what is forgotten), methods, variants (alone, with EC) and seeds. One
cell is a method in a variant on a case. Its settings are searched with Optuna on training images that were held out of
the unlearning, never on test images and without the retrained model; then it runs once a seed and `ec_hf.audit`
measures the results. What is finished stands in `<case>.jsonl`: a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import transformers
import yaml
from compare_report import write_report
from datasets import Dataset, disable_progress_bars
from torch.utils.data import ConcatDataset
from transformers import PreTrainedModel

from ec_hf import ECConfig, ECTrainer, ForgetRequest, split
from ec_hf.auditing.attacks.relearning import relearn
from ec_hf.auditing.audit import audit
from ec_hf.auditing.report import AuditReport
from ec_hf.data.columns import find_label_column
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.metrics import linear_cka, relearning_area
from ec_hf.models.inputs import ImageCollator, collator_for
from ec_hf.models.loading import load_model
from ec_hf.models.points import describe_hidden_states, hidden_state_kwargs, pool, select_points, take
from ec_hf.objectives import get_objective

QUIET = {"eval_strategy": "no", "eval_on_start": False, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
METRICS = ("accuracy", "linear_cka", "linear_probe", "knn", "mia_loss", "mia_confidence")


@dataclass(frozen=True)
class Case:
    """One model, its data, and what is forgotten.

    Attributes:
        dataset: Hub id, local folder, or mnist5k.
        model: Hub id or folder of the original model.
        forget_classes: names or ids.
        retrained: the same of a model that was trained without them: for the figures only, never for a choice.
    """

    dataset: str
    model: str
    forget_classes: list[str]
    retrained: str | None = None


@dataclass(frozen=True)
class Method:
    """A host objective.

    Attributes:
        objective: its name; that of the method if left out.
        kwargs: fixed settings of it.
        search: one setting of it and the range in which it is searched, {name: [low, high]}, on a log scale.
        variants: those it is run in; all if left out.
    """

    objective: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    search: dict[str, list[float]] = field(default_factory=dict)
    variants: list[str] | None = None


@dataclass(frozen=True)
class Matrix:
    """What a matrix file holds.

    Attributes:
        cases: by name.
        methods: by name.
        variants: `ECConfig` settings by name. The first is the host alone.
        seeds: of the order of the batches.
        trials: tries of the search in each cell, the same number everywhere.
        learning_rate: range of the search, on a log scale; its geometric mean is the first try.
        settings: `ECConfig` settings of every run, `max_steps` among them.
        held_out: forget and retain training images that are kept back for the search.
        retain_drop: how far held-out retain accuracy may fall below the reference: the original's for the host alone,
            the host's own for the other variants.
        fit_rows: training images on which the EC heads are fitted, once a case.
        audit: settings of the audit.
        select: by variant, what is chosen among settings that forget and retain enough: "erased", the lowest mean CKA
            to the original on held-out forget images, or "retained", the highest retain accuracy.
    """

    cases: dict[str, Case]
    methods: dict[str, Method]
    variants: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    trials: int = 4
    learning_rate: list[float] = field(default_factory=lambda: [2e-4, 4e-3])
    held_out: dict[str, int] = field(default_factory=lambda: {"forget": 500, "retain": 2000})
    retain_drop: float = 0.01
    fit_rows: int = 20_000
    audit: dict[str, Any] = field(default_factory=dict)
    select: dict[str, str] = field(default_factory=dict)

    def cells(self) -> Iterator[tuple[str, str]]:
        """Methods and variants, a method's host alone before what is put on top of it."""
        for name, method in self.methods.items():
            yield from ((name, variant) for variant in self.variants if variant in (method.variants or self.variants))


def read_matrix(path: str | Path) -> Matrix:
    """A matrix file, checked before anything is loaded.

    Raises:
        ValueError: for no mapping, unknown keys, objectives or settings, and ranges that are none.
    """
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    matrix = _build(Matrix, data, str(path))
    for name in ("cases", "methods", "variants", "seeds"):
        if not getattr(matrix, name):
            raise ValueError(f"{path}: {name} is empty; name at least one.")
    cases = {name: _build(Case, each, f"{path}: cases.{name}") for name, each in matrix.cases.items()}
    methods = {name: _read_method(name, each, matrix, str(path)) for name, each in matrix.methods.items()}
    if wrong := set(matrix.select.values()) - {"erased", "retained"} or set(matrix.select) - set(matrix.variants):
        raise ValueError(f"{path}: select: {sorted(wrong)[0]!r} is no variant, or neither 'erased' nor 'retained'.")
    if matrix.trials < 1 or "max_steps" not in matrix.settings:
        raise ValueError(
            f"{path}: expected trials of 1 or more and settings.max_steps, the same budget for all cells."
        )
    known = {each.name for each in fields(ECConfig)}
    for name, each in {"settings": matrix.settings, **matrix.variants}.items():
        if unknown := set(each or ()) - known:
            raise ValueError(f"{path}: {name}: {sorted(unknown)} are no settings of ECConfig.")
    variants = {name: each or {} for name, each in matrix.variants.items()}
    return _build(Matrix, data | {"cases": cases, "methods": methods, "variants": variants}, str(path))


def _read_method(name: str, data: Mapping[str, Any] | None, matrix: Matrix, path: str) -> Method:
    where = f"{path}: methods.{name}"
    method = _build(Method, {"objective": name} | (data or {}), where)
    for key, bounds in (method.search | {"learning_rate": matrix.learning_rate}).items():
        if not (isinstance(bounds, list) and len(bounds) == 2 and 0 < float(bounds[0]) < float(bounds[1])):
            raise ValueError(f"{where}: {key}={bounds!r}: expected a range [low, high] with 0 < low < high.")
    if unknown := set(method.variants or ()) - set(matrix.variants):
        raise ValueError(f"{where}: unknown variants {sorted(unknown)}; there are {list(matrix.variants)}.")
    try:
        get_objective(method.objective, **method.kwargs, **{k: _middle(v) for k, v in method.search.items()})
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"{where}: {error}") from error
    return method


def _build(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected a mapping, found {type(data).__name__}.")
    known = [each.name for each in fields(kind)]
    if unknown := sorted(set(map(str, data)) - set(known)):
        raise ValueError(f"{where}: unknown keys {unknown}; there are {known}.")
    try:
        return kind(**data)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error


def _middle(bounds: Sequence[float]) -> float:
    return math.sqrt(float(bounds[0]) * float(bounds[1]))


# Data


class Decoded:
    """Dataset transform that looks up pixel values, made once, by the column `row`."""

    def __init__(self, pixels: torch.Tensor, label_column: str) -> None:
        self.pixels, self.label_column = pixels, label_column

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Pixel values and labels of one batch of rows."""
        rows = torch.as_tensor(columns["row"])
        return {"pixel_values": self.pixels[rows], self.label_column: columns[self.label_column]}

    def __deepcopy__(self, memo: Any) -> Decoded:
        return self

    def __getstate__(self) -> dict[str, Any]:  # what a dataset's fingerprint hashes: not the pixels themselves
        return {"label_column": self.label_column, "shape": list(self.pixels.shape), "at": self.pixels.data_ptr()}


def decoded(dataset: Dataset, collator: ImageCollator, label_column: str) -> Dataset:
    """The dataset with its images read and prepared once, so that a step costs what the model costs."""
    batches = [dataset.select(range(i, min(i + 1000, len(dataset)))) for i in range(0, len(dataset), 1000)]
    pixels = torch.cat([collator([batch[i] for i in range(len(batch))])["pixel_values"] for batch in batches])
    rows = dataset.select_columns([label_column]).add_column("row", np.arange(len(dataset)))
    return rows.with_transform(Decoded(pixels, label_column))


class Bench:
    """One case, loaded: models, the parts of its data, and what is held out for the search."""

    def __init__(self, name: str, case: Case, matrix: Matrix, folder: Path) -> None:
        self.name, self.case, self.matrix, self.folder = name, case, matrix, folder
        self.original, processor = load_model(case.model)
        self.retrained = load_model(case.retrained)[0] if case.retrained else None
        images = load_images(case.dataset)
        self.label_column = label = find_label_column(next(iter(images.values())))
        parts = train_and_test(images, label_column=label)
        collator = collator_for(self.original, processor, dict(zip(("train", "test"), parts, strict=True)))
        train, test = (decoded(part, collator, label) for part in parts)
        request = ForgetRequest(classes=case.forget_classes)
        self.splits = four_splits(train, test, request, label_column=label)
        rng = np.random.default_rng(0)
        self.parts, self.held_out = {}, {}
        for half, part in split(train, request, label_column=label).items():
            order = rng.permutation(len(part))
            count = min(matrix.held_out[half], len(part) // 2)
            self.held_out[half], self.parts[half] = (part.select(np.sort(x)) for x in np.split(order, [count]))
        states = describe_hidden_states(self.original, tuple(train[0]["pixel_values"].shape))
        self.layers = [point.name for point in states]
        self.points = select_points(self.original, states, "auto")
        self.accuracy, self.features = self.look(self.original)
        self.best: tuple[float, dict[str, float], ECTrainer] | None = None  # of the cell that is being searched

    @torch.inference_mode()
    def look(self, model: PreTrainedModel) -> tuple[dict[str, float], list[torch.Tensor]]:
        """Accuracy on both held-out parts, and the pooled features of each point on the forget one."""
        model.eval()
        accuracy, features = {}, []
        for half, part in self.held_out.items():
            batch, hits = part[:], 0
            labels = torch.as_tensor(batch[self.label_column])
            for pixels, targets in zip(batch["pixel_values"].split(256), labels.split(256), strict=True):
                output = model(pixel_values=pixels, **hidden_state_kwargs(model))
                hits += int((output.logits.argmax(-1) == targets).sum())
                if half == "forget":
                    features.append([pool(take(output.hidden_states, p), p, "all") for p in self.points])
            accuracy[half] = hits / len(part)
        return accuracy, [torch.cat(each) for each in zip(*features, strict=True)]

    def trainer(self, seed: int, forget: Dataset, retain: Dataset, heads: Path | None, **settings: Any) -> ECTrainer:
        """A trainer on a copy of the original."""
        args = {"use_cpu": not torch.cuda.is_available(), "min_steps": settings["max_steps"], **QUIET, **settings}
        config = ECConfig(output_dir=str(self.folder / "unused"), seed=seed, label_column=self.label_column, **args)
        return ECTrainer(
            copy.deepcopy(self.original),
            config,
            forget_dataset=forget,
            retain_dataset=retain,
            heads=heads,
        )

    def heads(self, **settings: Any) -> Path:
        """EC heads for these settings, fitted once on a sample of all training images."""
        keys = ("points", "pooling", "heads_epochs", "heads_learning_rate")
        chosen = {key: settings[key] for key in keys if key in settings}
        folder = self.folder / f"heads-{self.name}-{'-'.join(f'{k}={v}' for k, v in chosen.items()) or 'default'}"
        if not (folder / "model.safetensors").exists():
            say(self.name, f"fitting EC heads ({chosen or 'default settings'})")
            total = sum(map(len, self.parts.values()))
            rng = np.random.default_rng(0)
            sample = [
                part.select(rng.permutation(len(part))[: round(self.matrix.fit_rows * len(part) / total)])
                for part in self.parts.values()
            ]
            trainer = self.trainer(0, *sample, None, **settings)
            with quiet():
                accuracy = trainer.fit_heads()
            say(self.name, ", ".join(f"{k} {v:.1%}" for k, v in accuracy.items()))
            trainer.heads.save_pretrained(folder)
        return folder

    def erase(self, method: Method, variant: str, params: Mapping[str, float], seed: int) -> ECTrainer:
        """One unlearning run; the trainer holds the model and the cost."""
        settings = {**self.matrix.settings, **self.matrix.variants[variant]}
        settings |= {"objective": method.objective, "objective_kwargs": {**method.kwargs, **_weights(params)}}
        settings |= {"learning_rate": params["learning_rate"]}
        heads = None if settings.get("points") in ("none", []) else self.heads(**settings)
        trainer = self.trainer(seed, self.parts["forget"], self.parts["retain"], heads, **settings)
        with quiet():
            trainer.train()
        return trainer


# Search and runs


def judge(bench: Bench, model: PreTrainedModel, floor: float, aim: str) -> dict[str, float]:
    """What the search sees of one try, all of it on held-out training images; `score` is what it minimises.

    A forget accuracy above chance and a retain accuracy below the floor cost ten times their size, so that a setting
    that keeps both wins; among those the aim decides.
    """
    accuracy, features = bench.look(model)
    try:
        cka = float(np.mean([linear_cka(a, b) for a, b in zip(features, bench.features, strict=True)]))
    except ValueError:  # features that are not finite or all alike
        cka = 1.0
    chance = 1 / model.config.num_labels
    missed = max(0.0, accuracy["forget"] - chance) + max(0.0, floor - accuracy["retain"])
    aimed = cka if aim == "erased" else -accuracy["retain"]
    return {"score": 10 * missed + aimed, "forget": accuracy["forget"], "retain": accuracy["retain"], "cka": cka}


def search(bench: Bench, name: str, variant: str, lines: list[dict[str, Any]], log: Log) -> dict[str, float]:
    """The best settings of a cell; tries that stand in the log already are not run again."""
    matrix, method = bench.matrix, bench.matrix.methods[name]
    aim = matrix.select.get(variant, "erased")
    floor = _reference(bench, name, variant, lines) - matrix.retain_drop
    ranges = {"learning_rate": matrix.learning_rate} | method.search
    space: dict[str, Any] = {
        k: optuna.distributions.FloatDistribution(*map(float, v), log=True) for k, v in ranges.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2))
    done = [
        each for each in lines if (each["kind"], each.get("method"), each.get("variant")) == ("trial", name, variant)
    ]
    for each in done:
        study.add_trial(
            optuna.trial.create_trial(params=each["params"], distributions=space, value=each["held_out"]["score"])
        )
    bench.best = None
    if not done:
        study.enqueue_trial({key: _middle(bounds) for key, bounds in ranges.items()})
    for number in range(len(done), matrix.trials):
        trial = study.ask(space)
        trainer = bench.erase(method, variant, trial.params, matrix.seeds[0])
        found = judge(bench, trainer.model, floor, aim)
        study.tell(trial, found["score"])
        if bench.best is None or found["score"] < bench.best[0]:
            bench.best = found["score"], trial.params, trainer
        log.write(kind="trial", method=name, variant=variant, number=number, params=trial.params, held_out=found)
        say(
            bench.name,
            f"{name} {variant} try {number + 1}/{matrix.trials}: {_short(trial.params)} -> held-out forget "
            f"{found['forget']:.1%}, retain {found['retain']:.1%}, CKA {found['cka']:.2f}; "
            f"{trainer.cost['minutes']} min",
        )
    return study.best_params


def _reference(bench: Bench, name: str, variant: str, lines: list[dict[str, Any]]) -> float:
    """Held-out retain accuracy from which the fall is counted."""
    if variant == next(iter(bench.matrix.variants)):
        return bench.accuracy["retain"]
    host = [
        each for each in lines if each["kind"] == "trial" and each["method"] == name and each["variant"] != variant
    ]
    host = [each for each in host if each["variant"] == next(iter(bench.matrix.variants))]
    best = min(host, key=lambda each: each["held_out"]["score"], default=None)
    return best["held_out"]["retain"] if best else bench.accuracy["retain"]


def run_cell(bench: Bench, name: str, variant: str, lines: list[dict[str, Any]], log: Log) -> None:
    """Search, run once a seed, audit all seeds in one pass, and write a line for each."""
    start, matrix, method = time.perf_counter(), bench.matrix, bench.matrix.methods[name]
    params = search(bench, name, variant, lines, log)
    models, costs = {}, {}
    for seed in matrix.seeds:
        folder = bench.folder / "models" / f"{bench.name}-{name}-{variant}-{seed}"
        if (folder / "cost.json").exists():
            models[seed] = load_saved(folder)
            costs[seed] = json.loads((folder / "cost.json").read_text())
            continue
        if seed == matrix.seeds[0] and bench.best and bench.best[1] == params:
            trainer = bench.best[2]  # the try itself: the same seed gives the same model again
        else:
            trainer = bench.erase(method, variant, params, seed)
        models[seed], costs[seed] = trainer.model, trainer.cost
        with quiet():
            trainer.model.save_pretrained(folder)
        (folder / "cost.json").write_text(json.dumps(trainer.cost) + "\n")
    report = measured(bench, {f"seed {seed}": model for seed, model in models.items()})
    for seed in matrix.seeds:
        log.write(
            kind="cell",
            method=name,
            variant=variant,
            seed=seed,
            objective=method.objective,
            settings={**method.kwargs, **_weights(params)},
            params=params,
            cost=costs[seed],
            figures=figures_of(report, f"seed {seed}"),
        )
    shown = [figures_of(report, f"seed {seed}")["accuracy"] for seed in matrix.seeds]
    say(
        bench.name,
        f"{name} {variant} done in {(time.perf_counter() - start) / 60:.1f} min: test forget "
        f"{np.mean([each['forget_test'] for each in shown]):.1%}, retain "
        f"{np.mean([each['retain_test'] for each in shown]):.1%}",
    )


def measured(bench: Bench, models: dict[str, PreTrainedModel]) -> AuditReport:
    """The audit of these models."""
    with quiet():
        return audit(
            bench.original,
            models,
            retrained=bench.retrained,
            splits=bench.splits,
            label_column=bench.label_column,
            **{"embedding": False, "int8": False, **bench.matrix.audit},
        )


def figures_of(report: AuditReport, model: str) -> dict[str, Any]:
    """The figures of one model: accuracy by split; metric -> reference or split -> layer -> value."""
    found: dict[str, Any] = {}
    for each in report.find(model=model):
        value = None if each.value is None else round(each.value, 4)
        if each.metric not in METRICS or (each.layer and each.split not in ("forget_test", "retain_test")):
            continue
        if each.metric == "accuracy":
            found.setdefault("accuracy", {})[each.split] = value
        elif each.layer:
            key = f"{each.metric}_{each.reference}" if each.reference else each.metric
            found.setdefault(key, {}).setdefault(each.split, {})[each.layer] = value
        else:
            found[each.metric] = value
    return found


def run_case(name: str, matrix: Matrix, folder: Path) -> None:
    """All cells of a case that the log does not hold yet."""
    log = Log(folder / f"{name}.jsonl")
    todo = [cell for cell in matrix.cells() if not log.finished(*cell, matrix.seeds)]
    say(name, f"{len(list(matrix.cells())) - len(todo)} cells finished, {len(todo)} to go")
    bench = Bench(name, matrix.cases[name], matrix, folder)
    if not any(each["kind"] == "case" for each in log.lines):
        report = measured(bench, {"again": copy.deepcopy(bench.original)})
        references = {role: figures_of(report, role) for role in ("original", "retrained") if role in report.models}
        log.write(
            kind="case",
            layers=bench.layers,
            points=[point.name for point in bench.points],
            architecture=type(bench.original).__name__,
            parameters=bench.original.num_parameters(),
            forget_classes=bench.case.forget_classes,
            images={**report.dataset["images"], **{f"held_out_{k}": len(v) for k, v in bench.held_out.items()}},
            held_out=bench.accuracy,
            audit=report.settings,
            versions=report.versions | {"optuna": optuna.__version__},
            models=references,
        )
    for number, cell in enumerate(todo, 1):
        say(name, f"cell {number}/{len(todo)}: {' '.join(cell)}")
        run_cell(bench, *cell, log.lines, log)
    relearn_all(bench, log)


def relearn_all(bench: Bench, log: Log) -> None:
    """How fast each finished model learns the forgotten classes again: its head alone, on 64 + 64 training images."""
    done = {each["model"] for each in log.lines if each["kind"] == "relearning"}
    runs = [f"{each['method']}-{each['variant']}-{each['seed']}" for each in log.lines if each["kind"] == "cell"]
    rng = np.random.default_rng(0)
    parts = [
        part.select(rng.permutation(len(part))[:count])
        for part, count in ((bench.splits["forget_train"], 64), (bench.splits["retain_train"], 64))
    ]
    sample, held_out = ConcatDataset(parts), bench.splits["forget_test"]
    held_out = held_out.select(rng.permutation(len(held_out))[:300])
    collator = collator_for(bench.original, None, {"forget": parts[0], "retain": parts[1]})
    given = {"original": bench.original} | ({"retrained": bench.retrained} if bench.retrained else {})
    for name in [name for name in [*given, *runs] if name not in done]:
        model = given[name] if name in given else load_saved(bench.folder / "models" / f"{bench.name}-{name}")
        curve = relearn(model, sample, held_out, collator, steps=(0, 1, 2, 4, 8, 16, 32))
        area = relearning_area(curve.x, curve.accuracy)
        log.write(kind="relearning", model=name, area=round(area, 4), steps=curve.x, accuracy=curve.accuracy)


class Log:
    """JSON lines, one a try and one a finished run; a line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, read_lines(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def write(self, **line: Any) -> None:
        """Appends a line; it is on disk when this returns."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def finished(self, method: str, variant: str, seeds: Sequence[int]) -> bool:
        """Whether all seeds of a cell are there."""
        cells = [each for each in self.lines if each["kind"] == "cell"]
        there = {each["seed"] for each in cells if (each["method"], each["variant"]) == (method, variant)}
        return there >= set(seeds)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log.

    Raises:
        ValueError: for a line other than the last that is no JSON.
    """
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise ValueError(f"{path}: line {number} is no JSON: mend or remove it.") from error
    return lines


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what a single run prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def load_saved(folder: Path) -> PreTrainedModel:
    with quiet():
        return transformers.AutoModelForImageClassification.from_pretrained(folder)


def say(case: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {case}: {text}", flush=True)


def _weights(params: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in params.items() if key != "learning_rate"}


def _short(params: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.2g}" for key, value in params.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", help="YAML file, see recipes/compare/")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder for logs, heads, models and the report")
    parser.add_argument("--case", action="append", help="only this case; may be given several times")
    parser.add_argument("--threads", type=int, default=1, help="threads of this process")
    parser.add_argument("--report", action="store_true", help="only write the report of what is there")
    args = parser.parse_args(argv)
    matrix = read_matrix(args.matrix)
    if unknown := set(args.case or ()) - set(matrix.cases):
        raise ValueError(f"--case {sorted(unknown)[0]}: {args.matrix} has {list(matrix.cases)}.")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    disable_progress_bars()
    if not args.report:
        for name in args.case or matrix.cases:
            run_case(name, matrix, args.output_dir)
    write_report(args.output_dir, {name: read_lines(args.output_dir / f"{name}.jsonl") for name in matrix.cases})


if __name__ == "__main__":
    main()
