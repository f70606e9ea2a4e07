"""The command line, without starting an audit but once."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys

import pytest
from datasets import DatasetDict
from helpers.models import make_images, make_model, make_processor

from ec_hf import cli
from ec_hf.auditing.report import AuditReport


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    DatasetDict(train=make_images(), test=make_images(50, seed=1)).save_to_disk(folder / "data")
    for seed, name in enumerate(("original", "unlearned", "retrained")):
        make_model("ViT", seed=seed).save_pretrained(folder / name)
        make_processor().save_pretrained(folder / name)
    return folder


def flags(inputs, out, **more):
    given = {"original": inputs / "original", "unlearned": inputs / "unlearned", "dataset_name": inputs / "data"}
    given |= {"forget_classes": "bee", "output_dir": out, "use_cpu": "true", "embedding": "false"} | more
    return [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]


@pytest.mark.launch
def test_help_loads_neither_torch_nor_transformers():
    code = (
        "import sys; from ec_hf.cli import main; main(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "audit" in done.stdout


@pytest.mark.launch
def test_help_of_a_command_does_not_load_torch_s_training_code():
    code = (
        "import sys; from ec_hf.cli import main\n"
        "try: main(['audit', '--help-all'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('transformers.trainer', 'datasets', 'sklearn')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage: ec-hf audit" in done.stdout
    assert "--relearning" in done.stdout
    assert "Turn --int8 off." in done.stdout


def test_an_unknown_command_lists_those_there_are(capsys):
    assert cli.main(["adit"]) == 2
    assert "no command 'adit'" in capsys.readouterr().err


@pytest.mark.slow
def test_audit_writes_report_page_and_figures_and_prints(inputs, tmp_path, capsys):
    assert cli.main(["audit", *flags(inputs, tmp_path, retrained=inputs / "retrained")]) == 0
    report = AuditReport.load(tmp_path / "audit.json")
    assert list(report.models) == ["original", "unlearned", "retrained"]
    assert report.request["classes"] == [1]
    assert all(info.id is None for info in report.models.values()), "no path of this machine is published"
    assert str(inputs) not in json.dumps(report.to_dict())
    assert "<html" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "cka.png").exists()
    printed = capsys.readouterr().out
    assert "unlearned" in printed
    assert "audit.json" in printed
    assert cli.main(["audit", *flags(inputs, tmp_path)]) == 1
    assert "holds audit.json already" in capsys.readouterr().err


@pytest.mark.slow
def test_audit_answers_programs_with_json_alone_and_an_exit_code(inputs, tmp_path, capsys):
    given = flags(inputs, tmp_path, int8="false", unlearned=inputs / "original")
    assert cli.main(["audit", *given, "--json", "--fail_unless_forgotten"]) == 3
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["folder"] == str(tmp_path)
    assert told["models"]["unlearned"]["status"] == "known"
    assert told["models"]["unlearned"]["headline"] in " ".join(captured.err.split())
    assert 0 <= told["models"]["unlearned"]["accuracies"]["forget_test"] <= 1


@pytest.mark.slow
def test_several_retrained_models_follow_one_flag(inputs, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr("ec_hf.auditing.audit.audit", lambda *models, **kwargs: given.update(kwargs) or AuditReport())
    monkeypatch.setattr("ec_hf.reporting.writing.write_audit", lambda *args, **kwargs: None)
    monkeypatch.setattr("ec_hf.reporting.tables.to_rich", lambda report: "")
    monkeypatch.setattr("ec_hf.reporting.verdict.findings", lambda report: [])
    for names in ([], ["retrained"], ["retrained", "unlearned"]):
        paths = [str(inputs / name) for name in names]
        assert cli.main(["audit", *flags(inputs, tmp_path), *(["--retrained", *paths] if paths else [])]) == 0
        assert given["retrained"] == (paths or None)
    assert given["shadows"] is None
    assert cli.main(["audit", *flags(inputs, tmp_path), "--shadows", "A", "in=B"]) == 0
    assert given["shadows"] == ["A", "in=B"]


def test_several_unlearned_models_have_names(inputs):
    named = cli._named([f"ec={inputs}/a=b", "delete=ID"])
    assert named == {"ec": f"{inputs}/a=b", "delete": "ID"}
    with pytest.raises(ValueError, match="NAME=ID"):
        cli._named(["a=x", "y"])


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        ({"original": None}, "--original missing", 2),
        ({"forget_classes": None}, "what was to be forgotten", 2),
        ({"forget_classes": "crocodile"}, "crocodile", 1),
        ({"unlearned": "/nowhere/model"}, "no folder '/nowhere/model'", 1),
        ({"batch_size": 0}, "batch_size must be at least 1", 1),
    ],
)
def test_wrong_input_ends_with_a_message(inputs, tmp_path, capsys, more, message, code):
    assert cli.main(["audit", *flags(inputs, tmp_path / "out", **more)]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--forget_cl", "--forget-cl"])
def test_an_abbreviated_flag_is_refused_as_its_value_could_not_be_hidden(flag):
    with pytest.raises(ValueError, match=flag):
        cli.parse(cli.AuditArguments, argv=[flag, "cat"])


def test_a_misspelt_flag_is_told_the_one_that_was_meant(capsys):
    assert cli.main(["audit", "--forget_class", "cat"]) == 2
    assert "did you mean --forget_classes?" in capsys.readouterr().err
    assert cli.main(["audit", "--nothing-like-it", "cat"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_control_c_ends_with_a_line_and_the_exit_code_of_a_shell(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "audit_command", interrupted)
    assert cli.main(["audit"]) == 130
    assert capsys.readouterr().err.strip() == "ec-hf audit: interrupted"


@pytest.mark.parametrize("kind", ["forget_classes_file", "forget_random_classes"])
def test_an_audit_takes_each_way_to_name_classes_that_an_erasure_takes(inputs, tmp_path, monkeypatch, kind):
    (names := tmp_path / "names.txt").write_text("bee\n")
    asked = {}

    def recorded(original, unlearned, *, request, **rest):
        asked["request"] = request
        return AuditReport({}, {}, {})

    monkeypatch.setattr("ec_hf.auditing.audit.audit", recorded)
    monkeypatch.setattr("ec_hf.cli._write_and_show", lambda *args: None)
    more = {kind: names if kind == "forget_classes_file" else 1, "forget_classes": None}
    assert cli.main(["audit", *flags(inputs, tmp_path / "out", **more)]) == 0
    assert len(asked["request"].classes) == 1


# Help


def test_what_to_forget_is_asked_in_the_same_words_by_each_command(capsys):
    texts = []
    for command in ("erase", "retrain", "audit", "plan"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help-all"])
        text = " ".join(capsys.readouterr().out.split())
        flags = ("--forget_classes_file", "--forget_request")
        texts.append([text.partition(f" {name} {name[2:].upper()} ")[2][:65] for name in flags])
    assert all(each == texts[0] for each in texts) and all(texts[0])


@pytest.mark.parametrize("command", ["erase", "retrain", "plan"])
def test_help_lists_what_most_people_need_and_help_all_the_rest(command, capsys):
    texts = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            cli.main([command, option])
        assert ended.value.code == 0
        texts[option] = capsys.readouterr().out
    short, full = texts.values()
    assert "--forget_classes" in short and "--learning_rate" in short
    assert "--adam_beta1" not in short and "--help-all lists" in short
    assert "--adam_beta1" in full and "--forget_classes" in full
    assert len(short.splitlines()) < 150
    assert short.count("\n  --forget_classes ") == full.count("\n  --forget_classes ") == 1


def test_each_flag_that_help_lists_is_a_field_and_is_listed_once():
    from dataclasses import fields

    from ec_hf.commands import erase, plan, retrain

    for room, types in (
        (plan, (erase.EraseArguments, erase.ECConfig, plan.PlanArguments)),
        (erase, (erase.EraseArguments, erase.ECConfig)),
        (retrain, (retrain.RetrainArguments, retrain.RetrainConfig)),
    ):
        listed = [name for names in room.OFTEN.values() for name in names]
        known = {each.name for kind in types for each in fields(kind)}
        assert [name for name in listed if name not in known or listed.count(name) > 1] == []


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_tells_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert "Exit codes: 0 " in text and ", 1 an error, 2 wrong usage" in text
    if command in ("erase", "audit"):
        assert "usage, 3 all is written" in text and "untouched, under-erased" in text
    assert ("--json" in text) == (command != "completion")


# Completion


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell, as `ec-hf completion` prints it."""
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh", "fish"):
        with (folder / shell).open("w") as file, contextlib.redirect_stdout(file):
            assert cli.main(["completion", shell]) == 0
    return folder


IN_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p ec-hf | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function" ec-hf "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.launch
@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["er"], {"erase"}),
        (["erase", "--forget_re"], {"--forget_request"}),
        (["erase", "--finish", ""], {"keep", "mask", "drop"}),
        (["erase", "--forget_classes", "cat", "--dataset_n"], {"--dataset_name"}),
        (["audit", "--fail"], {"--fail_unless_forgotten"}),
        (["push", "out", "--manifest_detail", "c"], {"classes"}),
        (["card", "--over"], {"--overwrite"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(scripts, words, expected):
    command = ["bash", "-c", IN_BASH, "bash", str(scripts / "bash"), "ec-hf", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert set(done.stdout.split()) == expected


@pytest.mark.launch
@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_reads_its_script(scripts):
    done = subprocess.run(["zsh", "-n", str(scripts / "zsh")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.launch
@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
@pytest.mark.parametrize(
    ("line", "expected"), [("ec-hf er", {"erase"}), ("ec-hf audit --fai", {"--fail_unless_forgotten"})]
)
def test_fish_completes_commands_and_flags(scripts, line, expected):
    code = f"source {scripts / 'fish'}; complete -C '{line}'"
    done = subprocess.run(["fish", "--no-config", "-c", code], capture_output=True, text=True)
    assert {each.split()[0] for each in done.stdout.splitlines()} == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_knows_each_command_and_one_spelling_of_its_flags(scripts, shell):
    text = (scripts / shell).read_text()
    assert all(command in text for command in cli.COMMANDS)
    assert "forget_request" in text and "forget-request" not in text
