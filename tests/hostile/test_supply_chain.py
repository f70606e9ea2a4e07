"""What an import does, and what the wheel holds."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers.models import NAMES, make_images, make_model, make_processor, save_as_folder
from transformers import AutoModelForImageClassification

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "torchvision", "timm", "matplotlib", "sklearn", "huggingface_hub")
AS_TEXT = {"capture_output": True, "text": True}


NO_NETWORK = """
import socket
connect = socket.socket.connect
def refuse(*_, **__):
    raise AssertionError("a connection was tried")
def refuse_beyond(self, address):
    (connect if self.family == getattr(socket, "AF_UNIX", None) else refuse)(self, address)
socket.socket.connect = refuse_beyond  # processes of this machine may talk to each other
socket.create_connection = socket.getaddrinfo = refuse
"""


def run(code):
    """Standard output of a new interpreter that opens no connection and looks up no name."""
    done = subprocess.run([sys.executable, "-c", NO_NETWORK + code], cwd=ROOT, capture_output=True, text=True)
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


def imported(folder):
    """Top-level modules that the files of a folder import, but for its own and Python's."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {each.name.split(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    return names - {"ec_hf"} - set(sys.stdlib_module_names)


def test_every_library_that_is_imported_is_declared_and_every_one_declared_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["peft"]
    declared = {re.match(r"[\w.-]+", each)[0].lower().replace("_", "-") for each in requirements}
    of_module = importlib.metadata.packages_distributions()
    used = {of_module[name][0].lower().replace("_", "-") for name in imported(ROOT / "ec_hf")}
    assert used - declared == set(), "imported and not declared"
    assert declared - used == {"torchvision"}, "declared and not imported; image processors need torchvision"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what a checkout holds."""
    if not importlib.util.find_spec("setuptools"):
        pytest.skip("needs setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("ec_hf", "recipes", "tests", "model_cards", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.launch
@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = [name for name in opened.namelist() if ".dist-info/" not in name]
    package = [path for path in (ROOT / "ec_hf").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(names) == sorted(path.relative_to(ROOT).as_posix() for path in package)
    assert {"ec_hf/py.typed", "ec_hf/publishing/model_card.md", "ec_hf/reporting/templates/report.html.jinja"} <= {
        *names
    }
    assert {Path(name).suffix for name in names} <= {".py", ".md", ".jinja", ".typed"}


FROM_REQUEST_TO_EXPORT = f"""{NO_NETWORK}
import sys
import ec_hf
from ec_hf import cli

def run(*argv):
    assert cli.main([str(each) for each in argv]) == 0, argv

print(ec_hf.__file__)
data = ("--dataset_name", "pictures", "--forget_classes", "bee", "--use_cpu")
often = ("--max_steps", 4, "--heads_epochs", 1, "--per_device_train_batch_size", 8, "--disable_tqdm", "true")
run("erase", "--model_name_or_path", "mine", *data, *often, "--output_dir", "out")
models = ("--original", "mine", "--unlearned", "out", "--retrained", "other")
run("audit", *models, *data, "--output_dir", "audit", "--embedding", "false")
run("card", "out", "--repo_id", "me/unlearned", "--overwrite")
run("push", "out", "--export_to", "published")
print(sorted({{module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "ec_hf"}}))
"""


@pytest.mark.launch
@pytest.mark.slow
def test_the_wheel_alone_goes_from_a_request_to_a_loadable_folder_and_report(wheel, tmp_path):
    packages, away = tmp_path / "packages", tmp_path / "away"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(packages)]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    save_as_folder(away / "pictures", train=make_images(), test=make_images(50, seed=1))
    for seed, name in enumerate(("mine", "other")):
        make_model("ViT", seed=seed).save_pretrained(away / name)
        make_processor().save_pretrained(away / name)

    def in_the_folder(*command):
        environment = {**os.environ, "PYTHONPATH": str(packages), "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True, timeout=480)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert in_the_folder(packages / "bin" / "ec-hf", "--version").startswith("ec_hf ")
    lines = in_the_folder(sys.executable, "-c", FROM_REQUEST_TO_EXPORT).splitlines()
    assert lines[0] == str(packages / "ec_hf" / "__init__.py")
    assert all(file.startswith(str(packages)) for file in ast.literal_eval(lines[-1]))
    for folder in ("out", "published"):
        assert AutoModelForImageClassification.from_pretrained(away / folder).config.num_labels == len(NAMES)
    for file in ("out/report.html", "out/audit.json", "audit/report.html", "published/README.md"):
        assert (away / file).stat().st_size > 1000


ANSWERS = {
    "all known, none with a hole": ('{"vulns": []}', 0, "all were asked; known holes in 0 of the 24 that were"),
    "a hole": ('{"vulns": [{"id": "CVE-1"}]}', 1, "has CVE-1"),
    "not found": ('{"skip_reason": "not found"}', 2, "COULD NOT BE ASKED: 24 of 24 packages, which is no pass"),
    "no answer": ("", 2, "COULD NOT BE ASKED, none of 24 packages, which is no pass: no route"),
    "half of an answer": ("{", 2, "COULD NOT BE ASKED, none of 24 packages, which is no pass"),
    "packages left out": ("none", 2, "COULD NOT BE ASKED: 24 of 24 packages, which is no pass"),
}


@pytest.mark.launch
@pytest.mark.parametrize("answer", ANSWERS)
def test_advisories_that_could_not_be_asked_for_are_no_pass(tmp_path, answer):
    entry, code, told = ANSWERS[answer]
    (tmp_path / "pip-audit").write_text(f"""#!{sys.executable}
import json, sys
from pathlib import Path

lines = Path(sys.argv[sys.argv.index("-r") + 1]).read_text().split()
known = [dict(zip(("name", "version"), line.split("=="))) for line in lines] if {entry!r} != "none" else []
if not {entry!r}:
    sys.exit("no route")
elif {entry!r} == "{{":
    print({entry!r})
else:
    print(json.dumps({{"dependencies": [each | json.loads({entry!r}) for each in known]}}))
print("No known vulnerabilities found", file=sys.stderr)
""")
    (tmp_path / "pip-audit").chmod(0o755)
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, ROOT / ".ci" / "advisories"], env=os.environ | paths, **AS_TEXT)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert f"lowest allowed: {told}" in done.stdout or told in done.stdout.splitlines()[0]
