"""Every `evaluate` module gives what its function gives, however the rows come in, without a network."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from ec_hf import metrics
from ec_hf.metrics.module import COLUMNS, MODULES

ROWS = 60
rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(ROWS, 4))
OTHER = rng.normal(size=(ROWS, 4))
LABELS = np.arange(ROWS) % 4
TABLE = {
    "features": rng.normal(size=(ROWS, 6)) + LABELS[:, None],
    "reference_features": rng.normal(size=(ROWS, 5)) + LABELS[:, None],
    "logits": LOGITS,
    "probabilities": torch.from_numpy(LOGITS).softmax(1).numpy(),
    "reference_probabilities": torch.from_numpy(OTHER).softmax(1).numpy(),
    "labels": LABELS,
    "is_train": np.arange(ROWS) % 3 > 0,
    "is_member": np.arange(ROWS) < 30,
    "is_forget": LABELS == 1,
}
TRAIN = TABLE["is_train"]
SPLIT = (TABLE["features"][TRAIN], LABELS[TRAIN], TABLE["features"][~TRAIN], LABELS[~TRAIN])
PAIR = (TABLE["features"], TABLE["reference_features"])
P, Q = TABLE["probabilities"], TABLE["reference_probabilities"]
ROWS_OF = metrics.class_matched(LABELS[:30], LABELS[30:])


def matched(scores, higher=True):
    return metrics.membership_auc(scores[:30][ROWS_OF[0]], scores[30:][ROWS_OF[1]], higher)


OPTIONS = {"forgotten": [1], "classes": [1, 2], "k": 3, "c": 1e-4, "trials": 1, "steps": 20, "batch_size": 20}
EXPECTED = {
    "accuracy": lambda: metrics.hits(LOGITS, LABELS).mean(),
    "accuracy_masked": lambda: metrics.masked_hits(LOGITS, LABELS, [1]).mean(),
    "activation_distance": lambda: metrics.activation_distance(P, Q),
    "agreement": lambda: metrics.agreement(P, Q),
    "cka_floor": lambda: metrics.cka_floor(*PAIR),
    "confidence": lambda: metrics.confidence(LOGITS).mean(),
    "entropy": lambda: metrics.entropy(LOGITS).mean(),
    "infonce": lambda: metrics.infonce(TABLE["features"], TABLE["is_forget"], trials=1, steps=20, batch_size=20),
    "js_divergence": lambda: metrics.js_divergence(P, Q),
    "knn": lambda: metrics.knn(*SPLIT, 3, [1, 2]),
    "linear_cka": lambda: metrics.linear_cka(*PAIR),
    "linear_cka_uuef": lambda: metrics.linear_cka(*PAIR, mode="uuef", batch_size=20),
    "linear_probe": lambda: metrics.linear_probe(*SPLIT, [1, 2], c=1e-4),
    "mia_confidence": lambda: matched(metrics.confidence(LOGITS)),
    "mia_loss": lambda: matched(metrics.loss(LOGITS, LABELS), False),
    "split_half_cka": lambda: metrics.split_half_cka(TABLE["features"]),
}


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory):
    """Modules are copied here, and rows kept here, and not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)  # from a cache of another test, whose folder is on the path as well
        patch.setattr(sys, "path", [each for each in sys.path if not Path(each, "evaluate_modules").is_dir()])
        folder = str(tmp_path_factory.mktemp("evaluate"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder)
        yield


@pytest.fixture(scope="module")
def load():
    loaded = {}

    def load(key):
        if key not in loaded:
            loaded[key] = evaluate.load(metrics.path(key))
        return loaded[key]

    return load


def options(key):
    known = list(inspect.signature(MODULES[key][0]).parameters)[len(MODULES[key][1]) :]
    return {name: value for name, value in OPTIONS.items() if name in known}


def test_every_module_is_a_metric_of_the_table_and_has_its_script():
    assert set(EXPECTED) == set(MODULES) <= set(metrics.METRICS)
    assert {each.stem for each in Path(metrics.path("linear_cka")).parent.glob("*.py")} == set(MODULES)
    with pytest.raises(ValueError, match="no evaluate module 'idi': there are accuracy, "):
        metrics.path("idi")


@pytest.mark.parametrize("key", MODULES)
def test_batches_give_the_value_of_the_function(key, load):
    module = load(key)
    assert module.name == key
    assert metrics.METRICS[key].title in module.description and "Args:" in module.inputs_description
    columns = MODULES[key][1]
    for start, end in ((0, 25), (25, 26), (26, ROWS)):
        kind = torch.tensor if start else np.asarray
        module.add_batch(**{name: kind(TABLE[name][start:end]) for name in columns})
    value = module.compute(**options(key))
    assert value == {key: pytest.approx(EXPECTED[key](), abs=1e-12)}
    assert type(value[key]) is float


def test_rows_one_at_a_time_and_all_at_once_give_the_same(load):
    module = load("js_divergence")
    for p, q in zip(P, Q, strict=True):
        module.add(probabilities=p, reference_probabilities=q.tolist())
    one_by_one = module.compute()
    assert one_by_one == module.compute(probabilities=P, reference_probabilities=Q)
    assert one_by_one == {"js_divergence": pytest.approx(metrics.js_divergence(P, Q), abs=1e-12)}


def test_options_reach_the_function_and_unknown_ones_are_refused(load):
    module = load("linear_cka")
    pair = dict(zip(MODULES["linear_cka"][1], PAIR, strict=True))
    assert module.compute(**pair, debiased=False) == {"linear_cka": pytest.approx(metrics.linear_cka(*PAIR, False))}
    with pytest.raises(
        ValueError, match=r"linear_cka has no options \['unbiased'\]: it has \['batch_size', 'debiased'"
    ):
        load("linear_cka").compute(**pair, unbiased=True)


def test_the_penalty_of_the_probe_is_that_of_the_function_where_it_is_given_and_where_not(load):
    columns = {name: TABLE[name] for name in MODULES["linear_probe"][1]}
    expected = {c: metrics.linear_probe(*SPLIT, c=c) for c in (1e-4, 10.0)}
    assert expected[1e-4] != expected[10.0]
    for c, value in expected.items():
        assert load("linear_probe").compute(**columns, c=c) == {"linear_probe": value}
    assert load("linear_probe").compute(**columns) == {"linear_probe": metrics.linear_probe(*SPLIT)}


def test_errors_of_the_functions_come_through():
    module = evaluate.load(metrics.path("linear_cka"))
    with pytest.raises(ValueError, match="at least 4 rows, got 2"):
        module.compute(features=PAIR[0][:2], reference_features=PAIR[1][:2])


def test_all_modules_combine_over_one_table():
    combined = evaluate.combine([metrics.path(key) for key in MODULES])
    for start in (0, 40):
        combined.add_batch(**{name: TABLE[name][start : start + 40] for name in COLUMNS})
    wanted = {key: pytest.approx(float(value()), abs=1e-12) for key, value in EXPECTED.items()}
    assert combined.compute(**OPTIONS) == wanted
    assert combined.compute(**TABLE, **OPTIONS) == wanted


def test_several_processes_give_the_value_of_all_rows():
    shared = {"num_process": 2, "experiment_id": "two", "timeout": 20}
    modules = [evaluate.load(metrics.path("linear_cka"), process_id=i, **shared) for i in (0, 1)]

    def run(i):
        rows = slice(30 * i, 30 * i + 30)
        modules[i].add_batch(features=PAIR[0][rows], reference_features=PAIR[1][rows])
        return modules[i].compute()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, (0, 1))
    assert first == {"linear_cka": pytest.approx(metrics.linear_cka(*PAIR), abs=1e-12)}
    assert second is None


@pytest.mark.slow
@pytest.mark.launch
def test_modules_load_offline_in_a_fresh_cache(tmp_path):
    code = (
        "metric = evaluate.load(ec_hf.metrics.path('accuracy')); print(metric.compute(logits=[[0., 1.]], labels=[1]))"
    )
    code = f"import evaluate, ec_hf.metrics; {code}"
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("{'accuracy': 1.0}")
