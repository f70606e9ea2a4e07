"""Push and load through a Hub on this computer, over HTTP, with `HfApi` as it is."""

from __future__ import annotations

import errno
import io
import json
import os
import pickletools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import DatasetDict
from helpers.heads import make_heads
from helpers.hub_server import OTHER_TOKEN, TOKEN, point_client_to, running_hub
from helpers.models import NAMES, make_images, make_model, make_processor
from helpers.reports import make_report
from helpers.trainers import make_trainer
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from ec_hf import ECHeads, ForgetRequest, cli, split
from ec_hf.auditing.earlier import checked_again
from ec_hf.auditing.report import AuditReport
from ec_hf.data.manifests import earlier_manifests, earlier_requests, manifest
from ec_hf.models.inputs import ImageCollator
from ec_hf.publishing.export import export
from ec_hf.publishing.hub import PushError, explained, load_report, push, push_later
from ec_hf.reporting.tables import to_markdown
from ec_hf.reporting.verdict import findings

REPO = "alice/pets"
REQUEST = ForgetRequest(classes=["bee", "dog"])
FILES = {
    ".gitattributes",
    "README.md",
    "audit.json",
    "config.json",
    "ec_config.json",
    "figures/cka.png",
    "figures/cka.svg",
    "forget_manifest.json",
    "model.safetensors",
    "preprocessor_config.json",
}
NAMED = {"figures/confusion.png", "figures/embedding.png"}
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
RECIPE = Path(__file__).parents[2] / "recipes" / "ec_vit.py"
HEADS = {"ec_heads/config.json", "ec_heads/model.safetensors"}


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Point the client of this process at a server, logged in as alice, with an empty cache of its own."""

    def connect(url, xet=False):
        point_client_to(url, monkeypatch, tmp_path / "home", xet)

    return connect


@pytest.fixture
def hub(client):
    with running_hub() as server:
        client(server.url)
        yield server


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def forgotten_image():
    return png(split(make_images(), REQUEST)["forget"][0]["image"])


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory, forgotten_image):
    """What a recipe leaves, and beside it what must stay here: pickles, a token, local paths, forget images."""
    folder = tmp_path_factory.mktemp("finished")
    model = make_model("ViT")
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"_name_or_path": str(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    make_processor().save_pretrained(folder)
    make_heads(model).save_pretrained(folder / "ec_heads")
    images = make_images()
    record = {"method": "Erase at the Core (arXiv 2602.05375)", "base_model": "someone/pets"}
    record |= {"points": [], "layer_weights": [], "processes": 1, "uses": "forget and retain", "versions": {}}
    record |= {"base_model_license": {"license": "apache-2.0"}}
    record |= {
        "base_model_revision": "0" * 40,
        "settings": {"objective": "contrastive", "seed": 0, "heads": str(folder)},
    }
    record |= {"command": "accelerate launch recipes/ec_vit.py --forget_classes bee dog --seed 1"}
    document = manifest(images, REQUEST, split(images, REQUEST), name=str(folder / "data"))
    report = replace(
        make_report(["original", "unlearned"], layers=5),
        dataset={"name": str(folder / "data"), "images": {"forget_test": 20}, "class_names": NAMES},
        request={"hash": REQUEST.content_hash, "summary": REQUEST.summary(), "classes": [1, 3]},
        confusion={"unlearned": {"bee": {"ant": 3}, "dog": {"ant": 1}}},
    )
    report.save(folder / "audit.json")
    for name, content in (("ec_config.json", record), ("forget_manifest.json", document)):
        (folder / name).write_text(json.dumps(content))
    (folder / "figures").mkdir()
    for name in ("cka.png", "cka.svg", "confusion.png", "embedding.png"):
        (folder / "figures" / name).write_bytes(f"<svg>{name}</svg>".encode())
    (folder / "figures" / "retrieval.png").write_bytes(forgotten_image)
    (folder / "figures" / "mine.png").write_bytes(forgotten_image)
    torch.save({"exp_avg": torch.ones(2)}, folder / "optimizer.pt")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (folder / "checkpoint-2").mkdir()
    model.save_pretrained(folder / "checkpoint-2")
    return folder


def words(text):
    return set(re.findall(r"\w+", text))


def texts(files):
    return {name: data.decode() for name, data in files.items() if not name.endswith((".safetensors", ".png"))}


# What leaves this machine


@pytest.mark.parametrize("lfs", [True, False], ids=["LFS", "regular uploads with Xet enabled"])
def test_a_push_sends_the_list_and_nothing_that_must_stay(client, finished_folder, forgotten_image, lfs):
    before = {path: path.stat().st_mtime_ns for path in finished_folder.rglob("*")}
    with running_hub(lfs) as server:
        client(server.url, xet=not lfs)
        url = push(finished_folder, REPO)
        files = server.files(REPO)
        assert url == f"{server.url}/{REPO}"
        assert bool(server.large) == lfs
    assert set(files) == FILES
    for name, data in files.items():
        assert forgotten_image not in data, name
        assert TOKEN.encode() not in data and str(finished_folder).encode() not in data, name
        assert data[:2] != b"PK" and not is_pickle(data), name
    assert files["model.safetensors"] == (finished_folder / "model.safetensors").read_bytes()
    assert "_name_or_path" not in json.loads(files["config.json"])
    assert {path: path.stat().st_mtime_ns for path in finished_folder.rglob("*")} == before


def is_pickle(data):
    try:
        return [op.name for op, _, _ in pickletools.genops(data)][-1] == "STOP"
    except (ValueError, IndexError, UnicodeDecodeError):
        return False


def test_no_class_is_named_unless_the_user_allows_it(finished_folder, tmp_path):
    names = {}
    for detail in ("hashes", "classes", "rows"):
        names[detail] = set(export(finished_folder, tmp_path / detail, manifest_detail=detail))
        for name in ("README.md", "audit.json", "ec_config.json", "forget_manifest.json"):
            text = (tmp_path / detail / name).read_text()
            assert bool({"bee", "dog"} & words(text)) == (detail != "hashes"), (detail, name)
            assert str(finished_folder) not in text
    assert names["classes"] == names["rows"] == names["hashes"] | NAMED
    manifests = {d: json.loads((tmp_path / d / "forget_manifest.json").read_text()) for d in names}
    assert manifests["hashes"]["parts"]["forget"]["rows"] == 40
    assert manifests["classes"]["parts"]["forget"]["per_class"] == {"bee": 20, "dog": 20}
    assert [m["request"].get("content") for m in manifests.values()] == [None, None, REQUEST.to_dict()]


def test_the_card_can_be_read_by_the_hub(hub, finished_folder):
    push(finished_folder, REPO)
    card = ModelCard.load(REPO)
    assert card.data.library_name == "transformers" and card.data.base_model == "someone/pets"
    assert card.data.license == "apache-2.0"
    push(finished_folder, REPO, license="mit")
    assert ModelCard(hub.files(REPO)["README.md"].decode()).data.license == "mit"


def test_a_card_of_ones_own_replaces_the_generated_one(finished_folder, tmp_path):
    own = tmp_path / "card.md"
    own.write_text("---\nlicense: mit\n---\nMine.\n")
    export(finished_folder, tmp_path / "out", readme=own)
    assert (tmp_path / "out" / "README.md").read_text() == own.read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"export HF_TOKEN={TOKEN}", "Hub token"),
        ("data of `/home/me/pets`", "a path of this machine, '/home/me/pets'"),
    ],
)
def test_a_token_or_path_in_a_text_stops_the_push_before_anything_is_sent(
    hub, finished_folder, tmp_path, text, problem
):
    own = tmp_path / "card.md"
    own.write_text(f"---\nlicense: mit\n---\n{text}\n")
    with pytest.raises(PushError, match=f"README.md .*{problem}"):
        push(finished_folder, REPO, readme=own)
    assert hub.requests == []


def test_web_addresses_and_slashes_are_no_local_paths(finished_folder, tmp_path):
    own = tmp_path / "card.md"
    own.write_text("See https://arxiv.org/abs/2602.05375 (before/after), `ec_hf/hub.py`, </a> and //x/y.\n")
    assert "README.md" in export(finished_folder, tmp_path / "out", readme=own)


def test_weights_in_several_files_are_sent_with_their_index(tmp_path):
    make_model("ViT").save_pretrained(tmp_path / "model", max_shard_size="50kB")
    names = export(tmp_path / "model", tmp_path / "out")
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) > 1 and "model.safetensors.index.json" in names
    AutoModelForImageClassification.from_pretrained(tmp_path / "out")


def test_weights_in_hundreds_of_files_are_one_commit(client, finished_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(finished_folder / "config.json", folder)
    names = [f"model-{number:05}-of-00300.safetensors" for number in range(1, 301)]
    for name in names:
        save_file({name: torch.zeros(1)}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in names}}))
    with running_hub(lfs=False) as server:
        client(server.url, xet=True)
        push(finished_folder, REPO)
        push(folder, REPO, commit_message="In many files")
        assert server.repos[REPO].messages == ["initial commit", "Unlearned model", "In many files"]
        files = set(server.files(REPO))
    assert files == {".gitattributes", "README.md", "config.json", "model.safetensors.index.json", *names}


def test_a_misspelt_choice_is_a_type_error_before_anything_is_done(hub, finished_folder):
    for publish in (push, push_later):
        with pytest.raises(TypeError, match="manifest_details"):
            publish(finished_folder, REPO, manifest_details="rows")
    assert hub.requests == []


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(PushError, match=r"no config\.json: name the folder of a finished model"):
        push(tmp_path, REPO)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(PushError, match=r"no model\.safetensors"):
        push(tmp_path, REPO)


# Loading


@pytest.mark.slow
@pytest.mark.launch
def test_what_was_pushed_loads_where_the_package_cannot_be_imported(hub, finished_folder, tmp_path):
    push(finished_folder, REPO, private=True)
    code = f"""
import sys
sys.modules["ec_hf"] = None
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
torch.set_num_threads(1)
model, info = AutoModelForImageClassification.from_pretrained({REPO!r}, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
found = pipeline("image-classification", {REPO!r}, top_k=5)(Image.new("RGB", (40, 40), "red"))
assert len(found) == 5, found
torch.save(model.state_dict(), "state.pt")
"""
    env = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "other"), "HF_TOKEN": TOKEN}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    ours = AutoModelForImageClassification.from_pretrained(finished_folder).state_dict()
    assert state.keys() == ours.keys() and all(torch.equal(state[key], ours[key]) for key in ours)


@pytest.mark.usefixtures("hub")
def test_a_timm_model_goes_out_and_comes_back(tmp_path):
    model = make_model("timm ViT")
    model.save_pretrained(tmp_path / "model")
    push(tmp_path / "model", REPO)
    loaded = AutoModelForImageClassification.from_pretrained(REPO).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_manifest_and_audit_come_back(finished_folder, where):
    push(finished_folder, REPO)
    found = load_report(REPO if where == "hub" else finished_folder)
    assert found.manifest["request"]["hash"] == REQUEST.content_hash
    assert found.audit.value("accuracy", model="unlearned", split="forget_test") == 0.0
    assert found.audit.request["class_count" if where == "hub" else "classes"] == (2 if where == "hub" else [1, 3])


@pytest.mark.usefixtures("hub")
def test_a_model_that_was_never_audited_or_never_unlearned(finished_folder, tmp_path):
    shutil.copytree(finished_folder, tmp_path / "model")
    (tmp_path / "model" / "audit.json").unlink()
    push(tmp_path / "model", REPO)
    assert load_report(REPO).audit is None
    (tmp_path / "model" / "forget_manifest.json").unlink()
    push(tmp_path / "model", REPO)
    with pytest.raises(FileNotFoundError, match=r"no forget_manifest\.json: it was not unlearned with ec_hf"):
        load_report(REPO)
    with pytest.raises(FileNotFoundError, match=r"the Hub did not give its forget_manifest\.json .* needs token="):
        load_report("alice/none")


def test_heads_travel_with_the_model_or_alone_and_only_when_asked_for(hub, finished_folder):
    ours = ECHeads.from_pretrained(finished_folder).state_dict()
    push(finished_folder, "alice/without")
    with pytest.raises(FileNotFoundError, match="no EC heads in 'alice/without'"):
        ECHeads.from_pretrained("alice/without")
    push(finished_folder, REPO, with_heads=True)
    assert set(hub.files(REPO)) == FILES | HEADS
    push(finished_folder, "alice/other", with_heads="alice/heads", private=True)
    assert set(hub.files("alice/other")) == FILES
    push_later(finished_folder, "alice/other", with_heads="alice/heads-later", private=False).result()
    for repo in ("alice/heads", "alice/heads-later"):
        assert set(hub.files(repo)) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert hub.repos[repo].private == (repo == "alice/heads")
    for repo in (REPO, "alice/heads", "alice/heads-later"):
        loaded = ECHeads.from_pretrained(repo, token=TOKEN).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in ours.items())


# Repositories


def test_a_second_push_sends_what_changed_and_takes_away_what_is_gone(hub, finished_folder):
    push(finished_folder, REPO, manifest_detail="classes", with_heads=True)
    assert set(hub.files(REPO)) == FILES | NAMED | HEADS
    commits, uploads = list(hub.repos[REPO].messages), sum("PUT" in request for request in hub.requests)
    push(finished_folder, REPO, manifest_detail="classes", with_heads=True)
    assert hub.repos[REPO].messages == commits, "nothing changed, so there is no new commit"
    push(finished_folder, REPO, commit_message="Hashes only")
    assert set(hub.files(REPO)) == FILES
    assert hub.repos[REPO].messages == [*commits, "Hashes only"]
    assert sum("PUT" in request for request in hub.requests) == uploads, "no weight was sent again"


def test_files_of_others_in_the_repository_stay(hub, finished_folder):
    push(finished_folder, REPO)
    repo = hub.repos[REPO]
    files = repo.commits[repo.branches["main"]] | {"LICENSE": hub.store(b"mine"), "ec_heads/x": hub.store(b"old")}
    hub.commit(repo, "main", files, "by hand")
    push(finished_folder, REPO)
    assert set(hub.files(REPO)) == FILES | {"LICENSE", "ec_heads/x"}


def test_a_name_without_an_owner_belongs_to_the_owner_of_the_token(hub, finished_folder):
    assert push(finished_folder, "pets") == f"{hub.url}/alice/pets"
    assert "alice/pets" in hub.files(REPO)["README.md"].decode()


def test_nothing_is_exported_over_other_files(finished_folder):
    with pytest.raises(FileExistsError, match="not empty"):
        export(finished_folder, finished_folder)


@pytest.mark.parametrize("token", [OTHER_TOKEN, "hf_" + "x" * 30, False], ids=["another's", "unknown", "none"])
@pytest.mark.usefixtures("hub")
def test_a_private_repository_opens_with_the_right_token_only(finished_folder, token):
    push(finished_folder, REPO, private=True)
    with pytest.raises(FileNotFoundError, match="private or gated"):
        load_report(REPO, token=token)
    with pytest.raises(OSError):
        AutoModelForImageClassification.from_pretrained(REPO, token=token)
    assert load_report(REPO, token=TOKEN).manifest


def test_what_should_be_private_is_not_pushed_to_a_public_repository(hub, finished_folder):
    push(finished_folder, REPO, readme=None)
    commits = list(hub.repos[REPO].messages)
    with pytest.raises(PushError, match="there already and public"):
        push(finished_folder, REPO, private=True, manifest_detail="rows")
    assert hub.repos[REPO].messages == commits


@pytest.mark.usefixtures("hub")
def test_a_branch_is_made_and_main_stays_as_it_was(finished_folder, tmp_path):
    push(finished_folder, REPO)
    make_model("ViT", seed=1).save_pretrained(tmp_path)
    assert push(tmp_path, REPO, revision="second").endswith(f"{REPO}/tree/second")
    for revision, folder in (("main", finished_folder), ("second", tmp_path)):
        loaded = AutoModelForImageClassification.from_pretrained(REPO, revision=revision).state_dict()
        ours = AutoModelForImageClassification.from_pretrained(folder).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in ours.items())


# What goes wrong


@pytest.mark.parametrize(
    ("request_", "fault", "message"),
    [
        ("PUT /lfs/", 413, "larger than the Hub takes; .*max_shard_size"),
        ("POST .*/commit/", 500, "the Hub is in trouble .*; try again later"),
        ("POST .*/commit/", 429, "wait a while"),
        ("POST .*/commit/", 418, r"the Hub refused it \(refused with 418\)"),
        ("POST .*/commit/", "drop", "no connection to the Hub"),
    ],
)
def test_a_failed_push_names_cause_and_command_and_succeeds_when_repeated(
    hub, finished_folder, request_, fault, message
):
    hub.fail(request_, fault)
    with pytest.raises(PushError, match=message) as caught:
        push(finished_folder, REPO, private=True, manifest_detail="classes", token=TOKEN)
    command = f"ec-hf push {finished_folder} {REPO} --private --manifest_detail classes"
    assert str(caught.value).endswith(f"The model stays in '{finished_folder}'. Push it again with:\n  {command}")
    assert set(hub.files(REPO)) == {".gitattributes"}, "half a model is never published"
    push(finished_folder, REPO, private=True)
    assert set(hub.files(REPO)) == FILES


def test_what_was_uploaded_before_the_break_is_not_sent_again(hub, finished_folder):
    hub.fail("POST .*/commit/", "drop")
    with pytest.raises(PushError):
        push(finished_folder, REPO)
    push(finished_folder, REPO)
    assert len([request for request in hub.requests if request.startswith("PUT")]) == len(hub.large)


def test_a_connection_lost_in_the_middle_of_the_weights_is_taken_up_again(hub, finished_folder):
    hub.fail("PUT /lfs/", "drop")
    push(finished_folder, REPO)
    assert hub.files(REPO)["model.safetensors"] == (finished_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (None, REPO, "none was given; log in with `hf auth login`"),
        ("hf_" + "x" * 30, REPO, "the Hub knows no such token"),
        (OTHER_TOKEN, REPO, "may not write to 'alice/pets': the name belongs to someone else"),
        (TOKEN, "alice/no such name", "alice/no such name"),
    ],
)
def test_a_push_without_the_right_to_it_says_what_is_missing(hub, finished_folder, monkeypatch, token, repo, message):
    push(finished_folder, REPO)
    monkeypatch.delenv("HF_TOKEN")
    commits = list(hub.repos[REPO].messages)
    with pytest.raises(PushError, match=message):
        push(finished_folder, repo, token=token)
    assert hub.repos[REPO].messages == commits


def test_no_network_is_told_from_other_failures(client, finished_folder, monkeypatch):
    client("http://127.0.0.1:9")
    with pytest.raises(PushError, match=r"no connection to the Hub .*; check the network"):
        push(finished_folder, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match=r"no connection to the Hub .*offline mode"):
        push(finished_folder, REPO)


@pytest.mark.usefixtures("hub")
def test_a_full_disk_is_told_from_other_failures(finished_folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PushError, match=r"the disk is full; make room in .* or set TMPDIR"):
        push(finished_folder, REPO)


def test_a_failure_before_there_is_a_model_names_no_command():
    with pytest.raises(PushError) as caught, explained(REPO):
        raise ConnectionError("refused")
    assert "ec-hf push" not in str(caught.value)


def test_a_push_in_the_background_outlives_its_folder_and_warns_when_it_fails(hub, tmp_path, caplog):
    make_model("ViT").save_pretrained(tmp_path / "model")
    hub.fail("POST .*/commit/", 500)
    for works in (False, True):
        future = push_later(tmp_path / "model", REPO, commit_message="later")
        if works:
            shutil.rmtree(tmp_path / "model")
            assert future.result().endswith(REPO)
        else:
            assert isinstance(future.exception(), PushError)
    assert hub.repos[REPO].messages[-1] == "later"
    assert caplog.text.count("The push to 'alice/pets' failed") == 1


# On the command line


def test_the_command_pushes_and_the_command_that_a_failure_names_pushes_again(hub, finished_folder, capsys):
    hub.fail("POST .*/commit/", 500)
    flags = ["--private", "--manifest_detail", "classes", "--revision", "dev", "--with_heads"]
    assert cli.main(["push", str(finished_folder), REPO, *flags]) == 1
    named = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  ec-hf push"))
    assert set(shlex.split(named)) >= set(flags)
    assert cli.main(shlex.split(named)[1:]) == 0
    assert f"Published at {hub.url}/{REPO}/tree/dev" in capsys.readouterr().out
    assert set(hub.files(REPO, "dev")) == FILES | NAMED | HEADS
    assert hub.repos[REPO].private and set(hub.files(REPO)) == {".gitattributes"}


def test_the_command_shows_what_would_be_published_and_sends_nothing(hub, finished_folder, tmp_path, capsys):
    assert cli.main(["push", str(finished_folder), "--export_to", str(tmp_path / "out"), "--finish", "drop"]) == 0
    assert "\n  model.safetensors\n" in capsys.readouterr().out
    assert hub.requests == []
    assert cli.main(["push", str(finished_folder)]) == 2
    assert "say where to push to" in capsys.readouterr().err


# From the recipe


def run_recipe(server, folder, dataset, *flags):
    chosen = {"dataset_name": str(dataset), "output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 1}
    chosen |= {"heads_epochs": 1, "per_device_train_batch_size": 8, "save_strategy": "no", "eval_strategy": "no"}
    chosen |= {"push_to_hub": True, "hub_model_id": "alice/second", "hub_private_repo": True}
    (folder / "settings.yaml").write_text(yaml.safe_dump(chosen))
    env = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    env |= {"HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, RECIPE, folder / "settings.yaml", *flags]
    return subprocess.run([str(word) for word in command], env=env, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.launch
def test_a_hub_id_goes_in_a_hub_id_comes_out_and_earlier_requests_stay_on_record(hub, finished_folder, tmp_path):
    push(finished_folder, REPO, manifest_detail="classes", with_heads=True)
    DatasetDict(train=make_images(), test=make_images(50, seed=1)).save_to_disk(tmp_path / "data")
    flags = ["--model_name_or_path", REPO, "--heads", REPO, "--forget_classes", "cat", "--finish", "mask"]
    flags += ["--objective", "contrastive"]
    flags += ["--manifest_detail", "classes", "--with_heads", "folder"]
    hub.fail("POST .*/alice/second/commit/", 500)
    done = run_recipe(hub, tmp_path, tmp_path / "data", *flags)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    named = shlex.split(done.stderr.strip().splitlines()[-1])
    assert named[:2] == ["ec-hf", "push"]
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.num_labels == 5
    assert cli.main(named[1:]) == 0

    files = hub.files("alice/second")
    assert {*FILES, *HEADS} - set(files) == set() and hub.repos["alice/second"].private
    assert not any(name.startswith(("report", "checkpoint")) or "retrieval" in name for name in files)
    found = load_report("alice/second")
    assert [document["request"]["hash"] for document in found.manifest["history"]] == [REQUEST.content_hash]
    measured_again = {row.model for row in found.audit.find("accuracy", split="request 1")}
    assert measured_again == {"original", "EC"}, "class names in the published manifest are enough to check again"
    assert found.audit.models["original"].id == REPO
    assert found.audit.dataset["images"]["retain_train"] == 40, "bee and dog would be learnt again"
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == REPO and "request 1" in card.text
    for name, text in texts(files).items():
        assert str(tmp_path) not in text and TOKEN not in text, name
    model = AutoModelForImageClassification.from_pretrained("alice/second")
    assert model.classifier.bias[2] == -1e4


# In training


def test_every_save_is_pushed_and_the_last_push_holds_the_result(hub, tmp_path):
    saving = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make_trainer(tmp_path / "out", **saving, hub_always_push=True, hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub(with_heads=True, commit_message="Done")
    repo = hub.repos[REPO]
    messages = ["initial commit", "Training in progress, step 1", "Training in progress, step 2", "Done"]
    assert repo.messages == messages and repo.private
    assert {name for commit in repo.commits.values() for name in commit} == HEADS | {
        ".gitattributes",
        "README.md",
        "config.json",
        "ec_config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    loaded = AutoModelForImageClassification.from_pretrained(REPO).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in trainer.model.state_dict().items())


def test_a_push_that_fails_stops_no_training(hub, tmp_path, caplog):
    saving = {"push_to_hub": True, "hub_model_id": REPO, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = make_trainer(tmp_path / "out", **saving, hub_always_push=True)
    hub.fail("POST .*/commit/", 500, times=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert caplog.text.count("ec-hf push") == 2
    trainer.push_to_hub()
    assert hub.repos[REPO].messages[-1] == "End of training"


def test_a_trainer_replaces_what_no_push_made_only_where_it_is_told_to(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", hub_model_id=REPO, max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    theirs = {"README.md": b"# Mine", "model.safetensors": b"theirs"}
    hub.commit(hub.repos[REPO], "main", {name: hub.store(data) for name, data in theirs.items()}, "by hand")
    with pytest.raises(PushError, match="was not made by ec_hf"):
        trainer.push_to_hub()
    assert trainer.push_to_hub(overwrite=True).endswith(REPO)


@pytest.mark.usefixtures("hub")
def test_missing_rights_are_known_before_training(tmp_path):
    with pytest.raises(PushError, match="the name belongs to someone else"):
        make_trainer(tmp_path / "out", push_to_hub=True, hub_model_id="bob/pets")
    with pytest.raises(ValueError, match="'checkpoint' would publish optimizer states"):
        make_trainer(tmp_path / "out", push_to_hub=True, hub_model_id=REPO, hub_strategy="checkpoint")


def test_the_trainer_writes_the_card_that_is_pushed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.save_model()
    trainer.create_model_card()
    assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"


# Finishing


@pytest.mark.parametrize("audited", [True, False])
@pytest.mark.parametrize("how", ["mask", "drop"])
def test_a_push_can_mask_or_drop_the_forgotten_classes(hub, finished_folder, tmp_path, how, audited):
    folder = tmp_path / "model"
    shutil.copytree(finished_folder, folder)
    if not audited:
        (folder / "audit.json").unlink()
    push(folder, REPO, finish=how)
    model = AutoModelForImageClassification.from_pretrained(REPO)
    if how == "drop":
        assert model.config.id2label == {0: "ant", 1: "cat", 2: "elk"}
    else:
        assert model.classifier.bias[[1, 3]].tolist() == [-1e4, -1e4]
    assert json.loads(hub.files(REPO)["ec_config.json"])["finish"] == how
    assert how in hub.files(REPO)["README.md"].decode()
    assert (folder / "model.safetensors").read_bytes() == (finished_folder / "model.safetensors").read_bytes()


def test_finishing_that_makes_no_sense_is_refused(finished_folder, tmp_path):
    with pytest.raises(ValueError, match="without with_heads"):
        export(finished_folder, tmp_path / "1", finish="drop", with_heads=True)
    export(finished_folder, tmp_path / "masked", finish="mask", manifest_detail="rows")
    with pytest.raises(ValueError, match=r"finished already \(mask\)"):
        export(tmp_path / "masked", tmp_path / "2", finish="drop")
    rows = tmp_path / "rows"
    shutil.copytree(finished_folder, rows)
    (rows / "audit.json").unlink()
    images, request = make_images(), ForgetRequest(rows=[1, 2, 3])
    document = manifest(images, request, split(images, request))
    (rows / "forget_manifest.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no class is known to be forgotten as a whole"):
        export(rows, tmp_path / "3", finish="mask")


# Earlier requests


def test_the_next_manifest_lists_all_earlier_requests(hub, finished_folder, tmp_path):
    assert earlier_manifests(finished_folder) == [json.loads((finished_folder / "forget_manifest.json").read_text())]
    folder = tmp_path / "second"
    shutil.copytree(finished_folder, folder)
    images, second = make_images(), ForgetRequest(rows=[0, 5])
    history = earlier_manifests(finished_folder)
    document = manifest(images, second, split(images, second), history=history)
    (folder / "forget_manifest.json").write_text(json.dumps(document))
    push(folder, REPO)
    found = earlier_manifests(REPO)
    assert [document["request"]["hash"] for document in found] == [REQUEST.content_hash, second.content_hash]
    assert all("history" not in document and document["detail"] == "hashes" for document in found)
    assert REQUEST.content_hash[:12] in hub.files(REPO)["README.md"].decode()
    make_model("ViT").save_pretrained(tmp_path / "plain")
    assert earlier_manifests(tmp_path / "plain") == []


@pytest.mark.slow
def test_without_a_connection_the_history_starts_anew_with_a_warning(client):
    client("http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="not known what 'alice/pets' was made to forget before"):
        assert earlier_manifests(REPO) == []


@pytest.mark.parametrize("detail", ["hashes", "classes", "rows"])
@pytest.mark.parametrize("request_", [REQUEST, ForgetRequest(rows=[0, 5])], ids=["classes", "rows"])
def test_earlier_requests_are_known_again_where_the_detail_allows_it(finished_folder, tmp_path, detail, request_):
    shutil.copytree(finished_folder, tmp_path / "model")
    images = make_images()
    parts = split(images, request_)
    (tmp_path / "model" / "forget_manifest.json").write_text(json.dumps(manifest(images, request_, parts)))
    export(tmp_path / "model", tmp_path / "out", manifest_detail=detail)
    found, notes = earlier_requests(earlier_manifests(tmp_path / "out"), images)
    if detail == "rows" or (detail == "classes" and request_ is REQUEST):
        assert not notes and found == {"request 1": request_}
    else:
        assert not found
        assert notes[0].startswith(f"The earlier request 1 ({request_.content_hash[:12]}) cannot be checked again")
        assert "may be learnt again" in notes[0]


def test_an_audit_shows_what_a_model_still_knows_of_earlier_requests(finished_folder, tmp_path):
    images, model = make_images(), make_model("ViT")
    found, _ = earlier_requests(earlier_manifests(finished_folder), images)
    sets = {name: split(images, request)["forget"] for name, request in found.items()}
    collator = ImageCollator(make_processor())
    rows = checked_again(sets, {"unlearned": model}, collator, batch_size=16)
    batch = collator(list(sets["request 1"]))
    with torch.no_grad():
        right = model.eval()(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
    assert [(row.metric, row.model, row.split, row.count) for row in rows] == [
        ("accuracy", "unlearned", "request 1", 40)
    ]
    assert rows[0].value == pytest.approx(right.float().mean().item()) and rows[0].low <= rows[0].value <= rows[0].high
    shutil.copytree(finished_folder, tmp_path / "model")
    second = ForgetRequest(rows=[0, 5])
    document = manifest(images, second, split(images, second), history=earlier_manifests(finished_folder))
    (tmp_path / "model" / "forget_manifest.json").write_text(json.dumps(document))
    report = AuditReport.load(finished_folder / "audit.json")
    report.measurements += rows
    report.save(tmp_path / "model" / "audit.json")
    export(tmp_path / "model", tmp_path / "out")
    again = next(line for line in (tmp_path / "out" / "README.md").read_text().splitlines() if "| request 1 |" in line)
    assert f"{100 * rows[0].value:.1f} %" in again and "classified right" in again
    findings(report), to_markdown(report)  # whoever shows a report takes it with such rows


def test_a_request_whose_rows_cannot_be_proved_the_same_is_not_given(finished_folder):
    other = make_images(60)
    found, notes = earlier_requests(earlier_manifests(finished_folder), other)
    assert not found and "does not name the same rows in this data set" in notes[0]
