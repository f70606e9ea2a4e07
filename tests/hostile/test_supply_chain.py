"""What an import does, and what the wheel holds."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "torchvision", "timm", "matplotlib", "sklearn", "huggingface_hub")


def run(code):
    """Standard output of a new interpreter that opens no connection and looks up no name."""
    guard = """
import socket
def refuse(*_, **__):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
    done = subprocess.run([sys.executable, "-c", guard + code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.launch
def test_an_import_loads_no_heavy_library_and_takes_less_than_a_third_of_a_second():
    code = f"""
import sys, time
start = time.process_time()
import ec_hf
from ec_hf import cli
print(time.process_time() - start)
print([name for name in {HEAVY} if name in sys.modules])
"""
    seconds, loaded = run(code).splitlines()
    assert loaded == "[]"
    assert float(seconds) < 0.3


@pytest.mark.launch
@pytest.mark.slow
def test_the_import_of_every_public_name_opens_no_connection():
    run("import ec_hf\nfor name in ec_hf.__all__:\n    getattr(ec_hf, name)")


@pytest.mark.launch
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_answers_without_a_heavy_library(flag):
    code = f"from ec_hf import cli\nimport sys\ncli.main([{flag!r}])\nprint([n for n in {HEAVY} if n in sys.modules])"
    assert run(code).splitlines()[-1] == "[]"


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("setuptools"), reason="needs setuptools")
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("ec_hf", "recipes", "tests", "model_cards", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
    package = [path for path in (ROOT / "ec_hf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(names) == sorted(path.relative_to(ROOT).as_posix() for path in package)
    assert {"ec_hf/py.typed", "ec_hf/publishing/model_card.md", "ec_hf/reporting/templates/report.html.jinja"} <= {
        *names
    }
    assert {Path(name).suffix for name in names} <= {".py", ".md", ".jinja", ".typed"}
