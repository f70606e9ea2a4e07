import json
import subprocess
import sys

import pytest

from ec_hf.command import command, is_local, public, without_paths

SCRIPT = "import json; from ec_hf.command import command; print(json.dumps(command()))"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a recipe, a settings file and a model in it, as the current one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "run.py").write_text(SCRIPT)
    (tmp_path / "settings.yaml").write_text("seed: 1")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_arguments_stay_as_they_are():
    argv = ["recipes/run.py", "--forget_classes", "cat", "big dog", "--objective_kwargs", '{"retain_weight": 1.0}']
    expected = "python recipes/run.py --forget_classes cat 'big dog' --objective_kwargs '{\"retain_weight\": 1.0}'"
    assert command(argv, []) == expected


def test_local_paths_and_tokens_become_the_names_of_their_flags(here):
    argv = [str(here / "recipes/run.py"), "settings.yaml", "--model_name_or_path", "model", f"--output_dir={here}/new"]
    argv += ["--hub_token", "secret", "--other", "hf_abcdef", "--objective_kwargs", f'{{"mask": "{here}/mask"}}']
    argv += ["--dataset_name", "someone/data", "-x", "../up"]
    assert command(argv, []) == (
        "python recipes/run.py SETTINGS.yaml --model_name_or_path MODEL_NAME_OR_PATH --output_dir=OUTPUT_DIR "
        "--hub_token HUB_TOKEN --other OTHER --objective_kwargs OBJECTIVE_KWARGS --dataset_name someone/data -x X"
    )


def test_a_launcher_stands_before_the_program_with_its_flags(here):
    launcher = ["accelerate", "launch", "--config_file", str(here / "settings.yaml"), "--num_processes", "2"]
    expected = "accelerate launch --config_file SETTINGS.yaml --num_processes 2 recipes/run.py --seed 3"
    assert command(["recipes/run.py", "--seed", "3"], launcher) == expected


@pytest.mark.launch
def test_the_launcher_is_found_among_the_parent_processes(here):
    launcher = here / "torchrun"  # anything that starts the program and stays its parent
    launcher.write_text("import subprocess, sys; subprocess.run([sys.executable, *sys.argv[3:]], check=True)")
    line = [sys.executable, str(launcher), "--nproc_per_node", "1", "recipes/run.py", "--seed", "3"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "torchrun --nproc_per_node 1 recipes/run.py --seed 3"


def test_a_program_outside_the_current_folder_is_named_without_its_place(here, monkeypatch):
    monkeypatch.chdir(here / "model")
    assert command([str(here / "recipes/run.py")], []) == "python run.py"


def test_a_console_script_is_named_as_it_is_called(here):
    (here / "ec-hf").write_text("")
    assert command([str(here / "ec-hf"), "audit", "--seed", "1"], []) == "ec-hf audit --seed 1"


@pytest.mark.launch
def test_a_module_is_run_as_one(here):
    (here / "tool.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-m", "tool", "--seed", "1"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == "python -m tool --seed 1"


@pytest.mark.parametrize("argv", [[], [""], ["-c"], ["/lib/ipykernel_launcher.py", "-f", "kernel.json"]])
def test_without_a_program_there_is_no_command(argv):
    assert command(argv, []) is None


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["/data/x", "./x", "../x", "~/x", ".", "file:///x", "C:\\x", "model"])
def test_paths_are_told_from_hub_ids(name):
    assert is_local(name)
    assert public(name) is None
    assert public("google/vit-base") == "google/vit-base"
    assert public(None) is None


@pytest.mark.parametrize("text", ["a/" * 5000, "a\0b", ""])
def test_a_text_that_can_be_no_path_is_no_local_path(text):
    assert not is_local(text)


@pytest.mark.usefixtures("here")
def test_settings_lose_paths_and_nothing_else():
    settings = {"pooling": "mean", "heads": "model", "kwargs": {"mask": "/x/y", "id": "a/b"}, "points": [1, "./z"]}
    expected = {"pooling": "mean", "heads": "model", "kwargs": {"mask": None, "id": "a/b"}, "points": [1, None]}
    assert without_paths(settings) == expected
