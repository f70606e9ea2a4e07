"""Folders and repositories that are not what they seem: links, weights that are none, files of other people."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers.hub_server import point_client_to, running_hub
from helpers.models import NAMES, make_images, make_model, make_processor
from safetensors.torch import load_file, save_file

from ec_hf import ForgetRequest, cli, split
from ec_hf.auditing.earlier import checked_again
from ec_hf.data.manifests import earlier_manifests, earlier_requests, manifest
from ec_hf.data.splitting import four_splits
from ec_hf.models.inputs import collator_for
from ec_hf.models.loading import load_model
from ec_hf.publishing.card import card
from ec_hf.publishing.export import export
from ec_hf.publishing.hub import PushError, push

REPO = "alice/pets"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_model("ViT").save_pretrained(folder)
    make_processor().save_pretrained(folder)
    images, request = make_images(), ForgetRequest(classes=["bee"])
    document = manifest(images, request, split(images, request))
    (folder / "forget_manifest.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        point_client_to(server.url, monkeypatch, tmp_path / "home")
        yield server


# Links


@pytest.mark.parametrize("name", ["preprocessor_config.json", "README.md", "audit.json", "figures/cka.svg", "figures"])
def test_a_link_out_of_the_folder_is_refused_and_nothing_is_sent(hub, folder, tmp_path, name):
    secret = tmp_path / "secret"
    if name == "figures":
        secret.mkdir()
        (secret / "cka.svg").write_text("mine")
    else:
        secret.write_text("{}")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(PushError, match=f"{name} is a link to '.*secret', outside the folder"):
        push(folder, REPO)
    assert hub.requests == []


def test_a_link_inside_the_folder_is_followed(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert "model.safetensors" in export(folder, tmp_path / "out")


def test_an_index_cannot_name_files_outside_the_folder(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "model-1-of-1.safetensors")
    for index, message in (
        ({"weight_map": {"a": "../model-1-of-1.safetensors"}}, "names '../model"),
        ({}, "no weight_map"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            export(folder, tmp_path / message.split()[0])


# Weights


def broken(folder, what):
    path = folder / "model.safetensors"
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:-1000])
    elif what == "no safetensors":
        path.write_text("weights")
    else:
        tensors = load_file(path)
        tensors["classifier.bias"][2] = float(what)
        save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "classifier.bias in model.safetensors is NaN or infinite: the run that made this model diverged"),
        ("-inf", "classifier.bias in model.safetensors is NaN or infinite"),
        ("cut short", "model.safetensors' cannot be read .*copy or save the model again"),
        ("no safetensors", "model.safetensors' cannot be read"),
    ],
)
def test_weights_that_are_none_get_neither_card_nor_push(hub, folder, what, message):
    broken(folder, what)
    with pytest.raises(ValueError, match=message):
        card(folder)
    with pytest.raises(PushError, match=message):
        push(folder, REPO)
    assert hub.requests == []


# Files of other people


def test_a_repository_of_somebody_else_keeps_all_its_files_unless_told(hub, folder):
    theirs = {"README.md": b"# Mine", "figures/mine.png": b"mine", "model-00001-of-00002.safetensors": b"theirs"}
    theirs |= {"model.safetensors.index.json": b"{}", "ec_heads/notes.txt": b"n"}
    push(folder, REPO)
    repo = hub.repos[REPO]
    hub.commit(repo, "main", {name: hub.store(data) for name, data in theirs.items()}, "by hand")
    before, commits = hub.files(REPO), len(repo.messages)
    lost = r"replace or delete README\.md, model-00001-of-00002\.safetensors, model\.safetensors\.index\.json"
    with pytest.raises(PushError, match=rf"was not made by ec_hf, .*{lost}.*--overwrite"):
        push(folder, REPO)
    assert hub.files(REPO) == before and len(repo.messages) == commits
    assert cli.main(["push", str(folder), REPO, "--overwrite"]) == 0
    after = hub.files(REPO)
    assert after["figures/mine.png"] == b"mine" and after["ec_heads/notes.txt"] == b"n"
    assert b"machine-unlearning" in after["README.md"]
    assert "model.safetensors.index.json" not in after, "these weights would be loaded in place of ours"


def test_files_that_no_push_writes_stay_in_a_repository_of_ours(hub, folder):
    push(folder, REPO)
    repo = hub.repos[REPO]
    theirs = {name: hub.store(b"mine") for name in ("figures/mine.png", "LICENSE", "ec_heads/x")}
    hub.commit(repo, "main", repo.commits[repo.branches["main"]] | theirs, "by hand")
    (folder / "forget_manifest.json").unlink()
    push(folder, REPO)
    assert set(theirs) < set(hub.files(REPO)) and "forget_manifest.json" not in hub.files(REPO)


def test_a_branch_of_somebody_else_is_looked_at_and_not_main(hub, folder):
    push(folder, REPO)
    repo = hub.repos[REPO]
    repo.branches["dev"] = repo.branches["main"]
    hub.commit(repo, "dev", {"README.md": hub.store(b"mine")}, "by hand")
    with pytest.raises(PushError, match=r"replace or delete README\.md"):
        push(folder, REPO, revision="dev")
    push(folder, REPO)


# A class that was dropped


@pytest.mark.parametrize("dropped", ["bee", "elk"])
def test_a_model_without_the_output_of_a_forgotten_class_takes_the_next_request(tmp_path, dropped):
    images, first = make_images(), ForgetRequest(classes=[dropped])
    folder = tmp_path / "model"
    make_model("ViT").save_pretrained(folder)
    make_processor().save_pretrained(folder)
    (folder / "forget_manifest.json").write_text(json.dumps(manifest(images, first, split(images, first))))
    export(folder, tmp_path / "out", manifest_detail="classes", finish="drop")
    model, processor = load_model(tmp_path / "out")
    earlier, notes = earlier_requests(earlier_manifests(tmp_path / "out"), images)
    assert not notes and earlier == {"request 1": first}
    second = ForgetRequest(classes=["cat"])
    parts = four_splits(images, make_images(50, seed=1), second)
    ever = four_splits(images, make_images(50, seed=1), first | second)
    parts |= {name: part for name, part in ever.items() if name.startswith("retain")}
    collator = collator_for(model, processor, parts)
    kept = [name for name in NAMES if name != dropped]
    assert collator.label_ids == {NAMES.index(name): k for k, name in enumerate(kept)}
    assert collator([parts["retain_train"][0]])["labels"].max() < 4
    sets = {"request 1": split(images, first)["forget"]}
    again = checked_again(sets, {"unlearned": model}, collator)
    assert [(row.value, row.note) for row in again] == [(None, "the model has no output for these classes any more")]


# The command line


@pytest.mark.parametrize("command", ["card", "push", "audit"])
@pytest.mark.parametrize("what", ["cut short", "no safetensors", "other size", "deep config", "deep manifest"])
def test_a_damaged_folder_is_one_clear_line_and_no_traceback(hub, folder, tmp_path, capsys, command, what):
    if what == "other size":
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.weight"] = torch.zeros(7, 32)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif what.startswith("deep"):
        name = {"deep config": "config.json", "deep manifest": "forget_manifest.json"}[what]
        (folder / name).write_text('{"a":' * 100_000)
    else:
        broken(folder, what)
    make_images(20).save_to_disk(tmp_path / "data")
    arguments = {
        "card": [str(folder)],
        "push": [str(folder), REPO, "--finish", "mask"],
        "audit": [
            "--original",
            str(folder),
            "--unlearned",
            str(folder),
            "--dataset_name",
            str(tmp_path / "data"),
            "--forget_classes",
            "bee",
            "--use_cpu",
            "--output_dir",
            str(tmp_path / "audit"),
        ],
    }[command]
    unseen = (command, what) in {("card", "other size"), ("audit", "deep manifest")}
    status = cli.main([command, *arguments])
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if not unseen:
        assert status == 1 and f"ec-hf {command}: " in shown
        assert "model" in shown and not shown.split(": ")[1].endswith("Error")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\t- x", "[" * 50_000, "&a [*a, *a", "- 1"])
def test_a_settings_file_that_is_none_is_named(tmp_path, capsys, text):
    (tmp_path / "settings.yaml").write_text(text)
    assert cli.main(["audit", str(tmp_path / "settings.yaml")]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert "settings.yaml" in shown[0] and len(shown) == 2


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    flags = ["--original", "a/b", "--unlearned", "a/c", "--dataset_name", "a/d", "--forget_classes", "x"]
    assert cli.main(["audit", *flags, "--output_dir", str(tmp_path / "out")]) == 1
    assert "is a file: name a folder" in capsys.readouterr().err
