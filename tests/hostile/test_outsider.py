"""What somebody who did not write the package found by trying: false all-clears, leaks, lost files (outsider.md)."""

from __future__ import annotations

import copy
import json
import shutil
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.heads import make_heads
from helpers.hub_server import point_client_to, running_hub
from helpers.models import FAMILIES, LABELS, NAMES, TIMM, make_images, make_model, make_processor
from helpers.reports import make_report
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ec_hf import ECConfig, ForgetRequest, audit, cli, erase, pipeline, split
from ec_hf.auditing import run as auditing
from ec_hf.commands.erase import NOT_FORGOTTEN, EraseArguments, run
from ec_hf.data.manifests import manifest
from ec_hf.models.loading import contents_hash
from ec_hf.publishing.card import card
from ec_hf.publishing.export import _foreign_texts, export
from ec_hf.publishing.hub import PushError, push
from ec_hf.publishing.withheld import Named
from ec_hf.training.classifier import ClassifierConfig, train_classifier

REQUEST = ForgetRequest(classes=["bee", "dog"])
COLOURS = np.random.default_rng(7).integers(0, 200, (len(NAMES), 3)) + 25.0  # of `make_images`, noise included
PERSON, NUMBER = "Zoe Quuxley", 5550123467


class Namer(PreTrainedModel):
    """Names the classes that it knows by their colours, and no other ever."""

    config_class = PretrainedConfig

    def __init__(self, known):
        super().__init__(PretrainedConfig(**LABELS))
        colours = torch.tensor(COLOURS / 127.5 - 1, dtype=torch.float32)
        self.linear = torch.nn.Linear(3, len(NAMES))
        self.linear.weight.data = 40 * colours
        self.linear.bias.data = -20 * colours.square().sum(1)
        self.linear.bias.data[[k for k, name in enumerate(NAMES) if name not in known]] = -1e4

    def forward(self, pixel_values):
        """The logits, from the mean colour."""
        return ImageClassifierOutput(logits=self.linear(pixel_values.mean(dim=(2, 3))))


def audited(unlearned, retrained, test=None, original=None):
    images = {"train": make_images(40), "test": make_images(100, seed=1) if test is None else test}
    settings = {"embedding": False, "int8": False, "processor": make_processor(), "request": REQUEST, **images}
    return audit(original or Namer(NAMES), unlearned, retrained=retrained, **settings)


@pytest.fixture
def all_clear(monkeypatch):
    """An audit whose signals see nothing: what else keeps it from an all-clear?"""
    monkeypatch.setattr(auditing, "overall", lambda signals: "as retrained")
    monkeypatch.setattr(auditing, "_unjudged", lambda *_: {})


# A false all-clear

FORGOT = [name for name in NAMES if name not in ("bee", "dog")]


def test_an_honest_reference_and_a_model_that_names_no_forgotten_class_are_in_no_doubt(all_clear):
    report = audited(make_model("ViT", seed=1), make_model("ViT", seed=2), original=make_model("ViT"))
    assert report.status == {"unlearned": "as retrained"}


def test_a_forgotten_class_that_is_still_named_among_others_is_no_all_clear(all_clear):
    report = audited({"one": Namer([*FORGOT, "dog"]), "all": Namer(FORGOT)}, make_model("ViT", seed=2))
    assert report.status["one"] == "unclear"
    assert "one: 1 of the 2 forgotten classes are named nearly as often as before" in " ".join(report.notes)
    assert report.status["all"] == "as retrained"


def test_a_forgotten_class_without_a_test_image_is_no_all_clear(all_clear):
    test = make_images(100, seed=1).filter(lambda row: row["label"] != 3)
    report = audited(make_model("ViT", seed=1), make_model("ViT", seed=2), test, make_model("ViT"))
    assert report.status == {"unlearned": "unclear"}
    assert "1 of the 2 forgotten classes have no image in forget_test" in " ".join(report.notes)


@pytest.mark.parametrize("share", [1.0, 0.99, 0.7])
def test_a_reference_that_is_made_of_the_unlearned_model_is_no_all_clear(all_clear, share):
    original, unlearned = make_model("ViT"), make_model("ViT", seed=1)
    reference = copy.deepcopy(original)
    for mine, start, end in zip(reference.parameters(), original.parameters(), unlearned.parameters(), strict=True):
        mine.data = start.data + share * (end.data - start.data)
    report = audited(unlearned, reference, original=original)
    assert report.status == {"unlearned": "unclear"}
    assert "retrained is nearer to unlearned in its weights than" in " ".join(report.notes)


def test_a_reference_that_names_the_forgotten_classes_is_no_all_clear(all_clear):
    report = audited(make_model("ViT", seed=1), Namer(NAMES), original=make_model("ViT"))
    assert report.status == {"unlearned": "unclear"}


@pytest.mark.parametrize(("models", "code"), [(["original", "unlearned", "retrained"], NOT_FORGOTTEN), ([], 0)])
def test_unclear_beside_a_retrained_model_does_not_pass(monkeypatch, tmp_path, models, code):
    report = make_report(models or ["original", "unlearned"], layers=2)
    done = SimpleNamespace(status="unclear", report=report, folder=tmp_path, url=None, trainer=SimpleNamespace())
    done.trainer.end = lambda: None
    monkeypatch.setattr(pipeline, "erase", lambda *_, **__: done)
    what = EraseArguments(
        model_name_or_path="a/b", dataset_name="a/c", forget_classes=["bee"], fail_unless_forgotten=True
    )
    assert run(what, ECConfig(output_dir=str(tmp_path / "out"), use_cpu=True)) == code


def test_an_audit_of_other_weights_gets_neither_card_nor_push(folder, tmp_path):
    report = make_report(["original", "unlearned"], layers=2)
    own = contents_hash(load_file(folder / "model.safetensors").values())
    for weights, name in ((own, "own"), ("0" * 16, "other")):
        info = replace(report.models["unlearned"], weights=weights)
        replace(report, models={**report.models, "unlearned": info}).save(folder / "audit.json")
        if name == "own":
            card(folder)
            export(folder, tmp_path / name)
            continue
        for act in (card, lambda source: export(source, tmp_path / "other")):
            with pytest.raises(ValueError, match=r"audit\.json is of other weights than those in"):
                act(folder)


def test_an_audit_knows_the_weights_of_the_folder_that_they_are_saved_in(tmp_path):
    model = make_model("ViT", seed=1)
    report = audited(model, None, original=make_model("ViT"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    report.save(tmp_path / "audit.json")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    card(tmp_path)


# A leak


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    model = make_model("ViT")
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    make_heads(model).save_pretrained(folder / "ec_heads")
    request = ForgetRequest(classes=["bee"], where=[{"column": "who", "equals": PERSON}], ids={"n": [NUMBER]})
    images = make_images(10)
    document = manifest(images, REQUEST, split(images, REQUEST))
    document["request"]["content"] = request.to_dict()
    (folder / "forget_manifest.json").write_text(json.dumps(document))
    record = {"settings": {"objective": "contrastive", "seed": 0}, "points": [], "layer_weights": [], "processes": 1}
    record |= {"method": "EC", "uses": "forget and retain", "base_model": None, "versions": {}}
    (folder / "ec_config.json").write_text(json.dumps(record))
    make_report(["original", "unlearned"], layers=2).save(folder / "audit.json")
    (folder / "figures").mkdir()
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "model")
    return tmp_path / "model"


def changed(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def tensors(folder, **metadata):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt", **metadata})


def named_tensor(folder, name):
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


REFUSED = {
    "key of the processor": lambda f: changed(f, "preprocessor_config.json", lambda c: c.update(note=PERSON)),
    "number in the configuration": lambda f: changed(f, "config.json", lambda c: c.update(note=NUMBER)),
    "configuration of the heads": lambda f: changed(f, "ec_heads/config.json", lambda c: c.update(note=PERSON)),
    "key of the architecture": lambda f: changed(f, "config.json", lambda c: c.update(problem_type=PERSON)),
    "name of a tensor": lambda f: named_tensor(f, "vit." + PERSON.replace(" ", "_")),
    "name of a tensor of the heads": lambda f: named_tensor(f / "ec_heads", PERSON.replace(" ", ".")),
    "key beside the weights": lambda f: tensors(f, **{PERSON: "x"}),
    "number beside the weights": lambda f: tensors(f, rows=str(NUMBER)),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("detail", ["hashes", "classes"])
def test_what_names_a_person_or_a_number_of_the_request_is_refused(folder, tmp_path, what, detail):
    REFUSED[what](folder)
    with pytest.raises(ValueError, match="names what the request named"):
        export(folder, tmp_path / "out", manifest_detail=detail, with_heads=True)


@pytest.mark.parametrize("family", [*FAMILIES, *TIMM])
def test_the_configuration_of_every_family_is_published_whatever_class_is_forgotten(family, tmp_path):
    make_model(family).config.save_pretrained(tmp_path)
    texts = _foreign_texts(json.loads((tmp_path / "config.json").read_text()))
    assert not any(map(Named(names=frozenset(NAMES)).hides_value, texts))


@pytest.mark.parametrize(("text", "message"), [("hf_" + "a" * 34, "a Hub token"), ("/home/zoe/x.png", "a path")])
def test_tokens_and_paths_beside_weights_are_refused(folder, tmp_path, text, message):
    tensors(folder, source=text)
    with pytest.raises(ValueError, match=message):
        export(folder, tmp_path / "out")


def test_heads_in_a_repository_of_their_own_are_searched_too(folder, monkeypatch, tmp_path):
    changed(folder, "ec_heads/config.json", lambda content: content.update(note=PERSON))
    with running_hub() as server:
        point_client_to(server.url, monkeypatch, tmp_path / "home")
        with pytest.raises(PushError, match="names what the request named"):
            push(folder, "alice/pets", with_heads="alice/heads")
        assert not server.repos


def test_names_and_numbers_in_values_of_the_documents_are_withheld(folder, tmp_path):
    changed(folder, "forget_manifest.json", lambda c: c["dataset"].update(name=f"alice/{PERSON.replace(' ', '-')}"))
    changed(folder, "ec_config.json", lambda c: c["settings"].update(objective_kwargs={"n": NUMBER, "scale": 2}))

    def tell(content):
        content["settings"]["remark"] = content["versions"]["remark"] = PERSON
        content["dataset"]["name"] = f"alice/{PERSON.replace(' ', '_')}"
        content["attacks"] = [{**each, "settings": {"who": PERSON}} for each in content["attacks"]]
        content["seconds"] = {PERSON: 1.0, "probe": 2.0}
        content["models"] = {name: {**info, "architecture": PERSON} for name, info in content["models"].items()}
        content["measurements"] = [{**row, "note": str(NUMBER)} for row in content["measurements"]]

    changed(folder, "audit.json", tell)
    for detail in ("hashes", "classes"):
        out = tmp_path / detail
        for name in export(folder, out, manifest_detail=detail):
            data = (out / name).read_bytes()
            assert b"Quuxley" not in data and str(NUMBER).encode() not in data, name
        record = json.loads((out / "ec_config.json").read_text())
        assert record["settings"]["objective_kwargs"] == {"n": None, "scale": 2}


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_only_what_is_seen_of_a_figure_is_published(folder, tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    seen = [b"\x89PNG\r\n\x1a\n", header, chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")]
    unseen = [chunk(b"prVt", PERSON.encode()), chunk(b"iCCP", b"dog\0\0" + zlib.compress(b"x")), chunk(b"fdAT", b"x")]
    (folder / "figures" / "cka.png").write_bytes(b"".join([*seen[:2], *unseen, *seen[2:]]))
    drawing = '<svg xmlns="http://www.w3.org/2000/svg">{}<text>0.5</text></svg>'
    hidden = f"<metadata>/home/zoe/x {NUMBER}</metadata><title>{PERSON}</title>"
    (folder / "figures" / "probe.svg").write_text(drawing.format(hidden))
    export(folder, tmp_path / "out", manifest_detail="classes")
    assert (tmp_path / "out" / "figures" / "cka.png").read_bytes() == b"".join(seen)
    assert (tmp_path / "out" / "figures" / "probe.svg").read_text() == drawing.format("")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cka.svg", b'<svg><image href="data:image/png;base64,iVBOR"/></svg>', "holds '<image'"),
        ("cka.svg", b"<svg><script>x</script></svg>", "holds '<script'"),
        ("cka.png", b"\xff\xd8\xff\xe1Exif", "no whole PNG file"),
    ],
)
def test_a_picture_that_no_audit_draws_is_refused(folder, tmp_path, name, data, message):
    (folder / "figures" / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        export(folder, tmp_path / "out")


# A lost model


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "adapter_config.json", "figures/mine.png"])
def test_erase_replaces_no_file_that_it_did_not_write(tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(FileExistsError, match="which would be replaced: name another folder"):
        erase("a/b", "a/c", REQUEST, output_dir=tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "config.json"])
def test_a_cache_of_heads_that_holds_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"model_type": "vit"}')
    with pytest.raises(FileExistsError, match=rf"heads_cache=.* holds {name} and no EC heads"):
        erase("a/b", "a/c", REQUEST, output_dir=tmp_path / "out", heads_cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_cache_of_heads_in_the_output_folder_is_refused_as_the_model_would_replace_them(tmp_path):
    with pytest.raises(ValueError, match="the heads would be replaced, name two folders"):
        erase("a/b", "a/c", REQUEST, output_dir=tmp_path / "out", heads_cache=tmp_path / "out" / ".." / "out")


@pytest.mark.parametrize("inside", [".", "train", "train/outputs/1"])
def test_an_output_folder_in_that_of_the_data_is_refused_as_figures_would_become_images(tmp_path, inside):
    (tmp_path / "data" / "train" / "ant").mkdir(parents=True)
    with pytest.raises(ValueError, match="lies in the data's folder: the figures in it would be read as images"):
        erase("a/b", tmp_path / "data", REQUEST, output_dir=tmp_path / "data" / inside)


def trained_into(folder, **kwargs):
    config = ClassifierConfig(
        output_dir=str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, report_to="none", **kwargs
    )
    return train_classifier(config, make_images(20), make_images(10, seed=1))


def test_training_never_replaces_an_unlearned_model_nor_weights_without_a_configuration(folder, tmp_path):
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"holds an unlearned model, of which its ec_config\.json tells"):
        trained_into(folder, overwrite=True)
    assert contents(folder) == before
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a model"):
        trained_into(tmp_path)


def test_a_save_that_is_cut_short_leaves_the_earlier_model(tmp_path, monkeypatch):
    make_model("ViT").save_pretrained(tmp_path / "out")
    before = contents(tmp_path / "out")

    def cut_short(self, folder, **kwargs):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", cut_short)
    with pytest.raises(KeyboardInterrupt):
        trained_into(tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before


def test_an_audit_replaces_no_figures(tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "cka.png").write_text("mine")
    flags = ["--original", "a/b", "--unlearned", "a/c", "--dataset_name", "a/d", "--forget_classes", "x"]
    assert cli.main(["audit", *flags, "--output_dir", str(tmp_path)]) == 1
    assert "holds figures already" in capsys.readouterr().err


def test_heads_never_take_the_place_of_a_model_nor_a_model_that_of_heads(folder, monkeypatch, tmp_path):
    with running_hub() as server:
        point_client_to(server.url, monkeypatch, tmp_path / "home")
        push(folder, "alice/first", with_heads="alice/heads")
        push(folder, "alice/first", with_heads="alice/heads")
        before = {name: server.files(name) for name in ("alice/first", "alice/heads")}
        with pytest.raises(PushError, match="is the model's own repository"):
            push(folder, "alice/second", with_heads="second")
        with pytest.raises(PushError, match="not for EC heads, and this push would replace or delete"):
            push(folder, "alice/second", with_heads="alice/first")
        with pytest.raises(PushError, match="not for a model, and this push would replace or delete"):
            push(folder, "alice/heads")
        assert {name: server.files(name) for name in before} == before
