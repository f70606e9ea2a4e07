"""recipes/compare.py on tiny data: a whole matrix, a resume after a kill, matrices that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from datasets import DatasetDict
from helpers.models import make_images, make_model, make_processor

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def compare():
    import sys

    sys.path.insert(0, str(RECIPES))
    try:
        import compare
    finally:
        sys.path.remove(str(RECIPES))
    return compare


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """A matrix of two methods, two variants and two seeds."""
    folder = tmp_path_factory.mktemp("inputs")
    DatasetDict(train=make_images(100), test=make_images(50, seed=1)).save_to_disk(folder / "data")
    make_model("ViT").save_pretrained(folder / "model")
    make_processor().save_pretrained(folder / "model")
    make_model("ViT", seed=1).save_pretrained(folder / "retrained")
    make_processor().save_pretrained(folder / "retrained")
    case = {"dataset": str(folder / "data"), "model": str(folder / "model"), "retrained": str(folder / "retrained")}
    return {
        "cases": {"tiny": case | {"forget_classes": ["bee", "dog"]}},
        "trials": 2,
        "seeds": [0, 1],
        "settings": {"max_steps": 2, "per_device_train_batch_size": 8, "heads_epochs": 1},
        "held_out": {"forget": 10, "retain": 15},
        "fit_rows": 40,
        "audit": {"train_sample": 50, "test_sample": 50},
        "variants": {"alone": {"points": "none"}, "ec": {"points": "auto"}},
        "methods": {"delete": {"search": {"retain_weight": [0.3, 3.0]}}, "finetune": {}},
    }


def written(folder: Path, matrix: dict) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    return str(path)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "tiny.jsonl").read_text().splitlines()]


def runs(lines: list[dict]) -> list[tuple]:
    return [(each["method"], each["variant"], each["seed"]) for each in lines if each["kind"] == "cell"]


@pytest.fixture(scope="module")
def finished(compare, matrix, tmp_path_factory):
    """The output folder of a whole run, and what it printed of erasures."""
    out = tmp_path_factory.mktemp("whole")
    compare.main([written(out, matrix), "--output_dir", str(out)])
    return out


@pytest.mark.slow
def test_a_matrix_gives_a_line_for_each_run_and_the_report(finished):
    lines = lines_of(finished)
    pairs = [("delete", "alone"), ("delete", "ec"), ("finetune", "alone"), ("finetune", "ec")]
    assert runs(lines) == [(*pair, seed) for pair in pairs for seed in (0, 1)]
    tries = [(each["method"], each["variant"]) for each in lines if each["kind"] == "trial"]
    assert tries == [pair for pair in pairs for _ in range(2)], "the same budget for every cell"
    cell = next(each for each in lines if each["kind"] == "cell")
    assert set(cell["figures"]["accuracy"]) == {"forget_train", "retain_train", "forget_test", "retain_test"}
    for metric in ("linear_cka_original", "linear_cka_retrained", "linear_probe", "knn"):
        assert len(cell["figures"][metric]["forget_test"]) >= 5, "a value for each hidden state"
    assert cell["cost"]["forget_images_seen"] == 16 and cell["cost"]["steps"] == 2
    assert len([each for each in lines if each["kind"] == "relearning"]) == 10, "all runs and both references"

    text = (finished / "tables.md").read_text()
    assert "| delete+R + EC |" in text and "| finetune |" in text and " ± " in text
    for name in ("tradeoff", "cka_by_layer"):
        assert (finished / f"{name}.png").stat().st_size > 10_000 and (finished / f"{name}.svg").exists()


@pytest.mark.slow
def test_each_cell_takes_the_best_of_its_own_tries(finished):
    lines = lines_of(finished)
    for cell in (each for each in lines if each["kind"] == "cell"):
        own = [
            each
            for each in lines
            if each["kind"] == "trial" and all(each[key] == cell[key] for key in ("method", "variant"))
        ]
        best = min(own, key=lambda each: each["held_out"]["score"])
        assert cell["params"] == best["params"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(compare, matrix, finished, tmp_path, monkeypatch):
    erased, bench = [], compare.Bench
    original = bench.erase

    def erase(self, method, variant, params, seed):
        if len(erased) == 4:
            raise KeyboardInterrupt
        erased.append((method.objective, variant))
        return original(self, method, variant, params, seed)

    monkeypatch.setattr(bench, "erase", erase)
    path = written(tmp_path, matrix)
    with pytest.raises(KeyboardInterrupt):
        compare.main([path, "--output_dir", str(tmp_path)])
    log = tmp_path / "tiny.jsonl"
    assert len(runs(lines_of(tmp_path))) == 2, "one cell was finished"
    with log.open("a") as file:
        file.write('{"kind": "trial", "meth')  # what a kill leaves of a line

    erased.clear()
    monkeypatch.setattr(bench, "erase", lambda self, *args: erased.append(args) or original(self, *args))
    compare.main([path, "--output_dir", str(tmp_path)])
    assert len(erased) == 3 * (2 + 1) - 1, "no finished try or cell is run again"

    def shown(folder):
        return [
            {key: each[key] for key in ("method", "variant", "seed", "params", "figures")}
            for each in lines_of(folder)
            if each["kind"] == "cell"
        ]

    assert shown(tmp_path) == shown(finished)

    erased.clear()
    compare.main([path, "--output_dir", str(tmp_path)])
    assert erased == []


@pytest.mark.slow
def test_seeds_and_methods_that_are_added_later_are_run_alone(compare, matrix, finished, monkeypatch):
    before, erased = (finished / "tiny.jsonl").stat().st_size, []
    original = compare.Bench.erase
    monkeypatch.setattr(compare.Bench, "erase", lambda self, *args: erased.append(args) or original(self, *args))
    more = matrix | {"methods": matrix["methods"] | {"esc": {"variants": ["alone"], "search": {"share": [0.05, 0.1]}}}}
    compare.main([written(finished, more), "--output_dir", str(finished), "--case", "tiny"])
    assert {args[0].objective for args in erased} == {"esc"}
    assert (finished / "tiny.jsonl").stat().st_size > before


BAD = [
    ({"sedes": [0]}, r"unknown keys \['sedes'\]"),
    ({"methods": {"deleet": {}}}, "did you mean 'delete'"),
    ({"methods": {"delete": {"search": {"retain_wieght": [0.1, 1.0]}}}}, "retain_wieght"),
    ({"methods": {"delete": {"search": {"retain_weight": [1.0, 0.1]}}}}, "expected a range"),
    ({"methods": {"delete": {"variants": ["both"]}}}, r"unknown variants \['both'\]"),
    ({"methods": {}}, "methods is empty"),
    ({"variants": {"alone": {"pionts": "none"}}}, "pionts"),
    ({"settings": {"per_device_train_batch_size": 8}}, "max_steps"),
    ({"trials": 0}, "trials of 1 or more"),
    ({"select": {"ec": "best"}}, "neither 'erased' nor 'retained'"),
    ({"cases": {"tiny": {"dataset": "mnist5k"}}}, "cases.tiny"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_matrix_is_refused_before_anything_is_loaded(compare, matrix, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        compare.read_matrix(written(tmp_path, matrix | change))


def test_a_case_that_the_matrix_does_not_have_is_refused(compare, matrix, tmp_path):
    with pytest.raises(ValueError, match=r"--case other: .* has \['tiny'\]"):
        compare.main([written(tmp_path, matrix), "--output_dir", str(tmp_path), "--case", "other"])


def test_a_broken_line_in_the_middle_of_a_log_is_named(compare, tmp_path):
    (tmp_path / "tiny.jsonl").write_text('{"kind": "trial"\n{"kind": "case"}\n')
    with pytest.raises(ValueError, match="line 1 is no JSON"):
        compare.read_lines(tmp_path / "tiny.jsonl")


def test_the_matrices_of_the_repository_are_valid(compare):
    for path in (RECIPES / "compare").glob("*.yaml"):
        compare.read_matrix(path)
