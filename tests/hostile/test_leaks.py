"""What a push tells of a request at each `manifest_detail`: every byte that reaches the Hub is searched.

Searched for, in every pushed file, as they are, in lower case, with JSON escapes, in URLs and in HTML: names of the
forgotten classes, values of ids and of filters, rows, and label ids where a text lists them. Two folders that differ
in nothing but which class was forgotten are also compared byte by byte.

Knowingly there: `id2label` in config.json names all classes of the model, as in any classifier. The hash of the
request and that of its rows can be checked against a guess. The number of forgotten images and classes is told.
Whoever runs the model can see which classes it never answers with; `finish="mask"` shows them in the weights of the
last layer, and `finish="drop"` by their absence from `id2label`.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from urllib.parse import quote

import matplotlib
import pytest
from helpers.hub_server import point_client_to, running_hub
from helpers.models import make_model, make_processor
from helpers.places import places, put
from helpers.reports import make_report, renamed

from ec_hf.auditing.report import AuditReport, RetainedClass
from ec_hf.data.documents import checked_manifest
from ec_hf.data.requests import ForgetRequest
from ec_hf.publishing.disclosure import SETTINGS, WITHHELD, disclosed_manifest, disclosed_record, disclosed_report
from ec_hf.publishing.export import export
from ec_hf.publishing.hub import load_report, push
from ec_hf.publishing.records import checked_record
from ec_hf.publishing.withheld import Named, named_by
from ec_hf.reporting.drawing import RC
from ec_hf.reporting.figures import draw
from ec_hf.training.config import ECConfig
from ec_hf.training.plan import RECORDED

REPO = "alice/classifier"
CANARIES = ["Quokkazimt", "Wërblung krax", "Zyxolotl", "Fnordcatcher", "Vuvumbra"]
ANIMALS = ["ant", "cat", "sports car", "tench, Tinca tinca", "stop"]
PERSON, CODE, CITY, ROW, NUMBER = "Zoë Quuxley", "P-4417-XK", "Xanthuspol", 734112, 5550123467
COUNTS = [RetainedClass(40, right, 2, 1) for right in (31, 35, 38)]


@pytest.fixture
def client(monkeypatch, tmp_path):
    return lambda url: point_client_to(url, monkeypatch, tmp_path / "home")


def request_of(names, forgotten):
    return ForgetRequest(
        classes=[names[k] for k in forgotten],
        rows=[ROW],
        ids={"patient": [PERSON, CODE], "number": [NUMBER]},
        where=[{"column": "city", "equals": CITY}],
    )


def document_of(names, forgotten, request):
    kept = [k for k in range(5) if k not in forgotten]
    return {
        "schema_version": 1,
        "dataset": {"name": "someone/animals", "fingerprint": "f00d", "rows": 100, "remark": names[forgotten[0]]},
        "request": {"hash": request.content_hash, "summary": request.summary(), "content": request.to_dict()},
        "parts": {
            "forget": {"rows": 40, "per_class": {names[k]: 20 for k in forgotten}},
            "retain": {"rows": 60, "per_class": {names[k]: 20 for k in kept}},
        },
        "forget_rows_sha256": "ab" * 32,
    }


def record_of(names, forgotten):
    first, second = (names[k] for k in forgotten)
    script = re.sub(r"\W+", "_", first)
    words = f"accelerate launch --num_processes 2 erase_{script}.py --forget_cl '{first}' --forget_classes"
    words += f" '{first}' '{second}' --drop_ids={forgotten[0]} --rows {ROW} --patient '{PERSON}' --seed 7"
    words += f" --run_name 'no {second}' --hub_model_id 'alice/no-{first}'"
    settings = {"objective": "contrastive", "seed": 7, "objective_kwargs": {"remark": f"not {first}", "scale": 1.0}}
    return {
        "method": "Erase at the Core (arXiv 2602.05375)",
        "settings": settings,
        "uses": "forget and retain",
        "points": [],
        "layer_weights": [],
        "processes": 1,
        "base_model": "someone/pets",
        "base_model_license": {"license": "mit"},
        "base_model_revision": "0" * 40,
        "command": words,
        "remark": f"{second} of {PERSON} is gone",
        "versions": {},
    }


def report_of(names, forgotten, request):
    kept = [k for k in range(5) if k not in forgotten]
    first = names[forgotten[0]]
    report = renamed(make_report(["original", "unlearned"], layers=3), {"unlearned": f"without {first}"})
    told = f"the images have the label ids {forgotten}, the model has 5 labels"
    notes = [f"Relearning (head) of original: {told}", f"{first.upper()} is gone.", f"{PERSON} asked; row {ROW}."]
    notes += [f"We forgot {forgotten[0]} and {forgotten[1]}.", f"See ?q={quote(first)}", f"rows {ROW}", str(NUMBER)]
    models = {
        name: replace(info, id="alice/no-" + first) if info.role == "unlearned" else info
        for name, info in report.models.items()
    }
    rows = [replace(row, note=f"without {first}") if row.metric == "entropy" else row for row in report.measurements]
    retained = {names[k]: each for k, each in zip(kept, COUNTS, strict=True)}
    return replace(
        report,
        models=models,
        measurements=rows,
        notes=[*notes, "Membership inference by SVC was not asked for."],
        dataset={"name": "someone/animals", "images": {"forget_test": 20}, "class_names": names},
        request={"hash": request.content_hash, "summary": request.summary(), "classes": list(forgotten)},
        retained={"original": retained, f"without {first}": retained},
        confusion={f"without {first}": {names[k]: {names[kept[0]]: 3} for k in forgotten}},
    )


def write_folder(folder, names, forgotten):
    """What a run leaves that tells its request in every place where files of a run have ever told one."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}
    model = make_model("ViT")
    model.config.id2label, model.config.label2id = labels["id2label"], labels["label2id"]
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    request = request_of(names, forgotten)
    document = document_of(names, forgotten, request)
    earlier = {**document_of(names, forgotten[::-1], request), "date": "2026-01-01"}
    report = report_of(names, forgotten, request)
    report.save(folder / "audit.json")
    for name, content in (("ec_config.json", record_of(names, forgotten)), ("forget_manifest.json", document)):
        extra = {"history": [earlier]} if name == "forget_manifest.json" else {}
        (folder / name).write_text(json.dumps(content | extra))
    (folder / "figures").mkdir()
    told = {"Title": names[forgotten[0]], "Description": PERSON}
    with matplotlib.rc_context(RC):
        for name, figure in draw(report, names=["probe", "confusion"]).items():
            figure.savefig(folder / "figures" / f"{name}.png", metadata=told, dpi=50)
            figure.savefig(folder / "figures" / f"{name}.svg", metadata={**told, "Date": None})
    return folder


@pytest.fixture(scope="module", params=[CANARIES, ANIMALS], ids=["canaries", "real names"])
def named_folder(request, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("run"), request.param, (1, 3)), request.param


def forms(text):
    """How a text can stand in a file."""
    escaped = json.dumps(text)[1:-1]
    shapes = {text, escaped, quote(text), quote(text, safe=""), html.escape(text)}
    shapes |= {
        text.encode("ascii", "xmlcharrefreplace").decode(),
        re.sub(r"\W+", "_", text),
        re.sub(r"\W+", "-", text),
    }
    return {shape.lower() for shape in shapes}


def searched(name, data):
    """The text of a file that is searched: all of it, but for the class list that every classifier has."""
    if name == "config.json":
        config = json.loads(data)
        data = json.dumps(
            {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
        ).encode()
    if name.endswith(".safetensors"):  # in the numbers behind the header, short names stand by chance
        data = data[: 8 + int.from_bytes(data[:8], "little")]
    return data.decode("utf-8", "replace").lower()


def found_in(files, words):
    """Where which of some words stands; short ones as words of their own."""
    found = []
    for name, data in files.items():
        text = searched(name, data)
        for word in words:
            for form in forms(word):
                pattern = re.escape(form) if len(form) > 4 else rf"(?<![a-z0-9]){re.escape(form)}(?![a-z0-9])"
                if re.search(pattern, text):
                    found.append((name, word))
    return found


VALUES = [PERSON, CODE, CITY, str(ROW), str(NUMBER)]


@pytest.mark.parametrize("detail", ["hashes", "classes", "rows"])
def test_what_reaches_the_hub_tells_no_more_than_was_allowed(client, named_folder, detail):
    folder, names = named_folder
    forgotten = [names[1], names[3], *names[3].split(", ")]
    with running_hub() as server:
        client(server.url)
        push(folder, REPO, manifest_detail=detail)
        files = server.files(REPO)
    if detail == "hashes":
        assert found_in(files, forgotten) == []
    else:
        assert {"README.md", "audit.json", "forget_manifest.json"} <= {name for name, _ in found_in(files, forgotten)}
    if detail != "rows":
        assert found_in(files, VALUES) == []
    else:
        assert {name for name, word in found_in(files, VALUES) if word == CODE} >= {"forget_manifest.json"}


def test_nothing_lists_the_label_ids_at_hashes(named_folder, tmp_path):
    folder, _ = named_folder
    export(folder, tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert audit["request"].keys() == {"hash", "class_count"}
    assert audit["notes"] == ["Membership inference by SVC was not asked for.", WITHHELD]
    record = json.loads((tmp_path / "out" / "ec_config.json").read_text())
    assert record["command"] == (
        "accelerate launch --num_processes 2 PROGRAM --forget_cl FORGET_CL --forget_classes CLASSES --drop_ids "
        "DROP_IDS --rows ROWS --patient PATIENT --seed 7 --run_name RUN_NAME --hub_model_id HUB_MODEL_ID"
    )
    assert record["settings"]["objective_kwargs"] == {"remark": None, "scale": 1.0}


def test_two_requests_of_equal_size_give_the_same_files_but_for_their_hashes(tmp_path):
    published = []
    for number, forgotten in enumerate([(1, 3), (4, 0)]):
        (tmp_path / str(number)).mkdir()
        folder = write_folder(tmp_path / str(number), CANARIES, forgotten)
        names = export(folder, tmp_path / f"out{number}", repo_id=REPO)
        files = {name: (tmp_path / f"out{number}" / name).read_bytes() for name in names}
        hashed = request_of(CANARIES, forgotten).content_hash.encode()
        published.append({name: data.replace(hashed, b"HASH") for name, data in files.items()})
    first, second = published
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_figures_are_drawn_anew_where_a_models_name_tells_the_request(named_folder, tmp_path):
    folder, _ = named_folder
    names = export(folder, tmp_path / "out")
    assert [name for name in names if name.startswith("figures/")] == ["figures/probe.png", "figures/probe.svg"]
    assert "unlearned" in (tmp_path / "out" / "figures" / "probe.svg").read_text()
    assert b"tEXt" not in (tmp_path / "out" / "figures" / "probe.png").read_bytes()


def test_the_published_report_can_be_read_and_carded_again(client, named_folder):
    folder, _ = named_folder
    with running_hub() as server:
        client(server.url)
        push(folder, REPO)
        found = load_report(REPO)
        assert list(found.audit.models) == ["original", "unlearned"]
        assert "notes are withheld" in server.files(REPO)["README.md"].decode()


@pytest.mark.parametrize("finish", ["mask", "drop"])
def test_a_finish_that_shows_the_classes_says_so_on_the_card(named_folder, tmp_path, finish):
    folder, _ = named_folder
    export(folder, tmp_path / "out", finish=finish)
    shown = {
        "mask": "the weights of the last layer show which classes are masked",
        "drop": "whoever knows the classes of the model it starts from can see which are missing",
    }
    assert shown[finish] in " ".join((tmp_path / "out" / "README.md").read_text().split())


def test_a_card_or_a_configuration_of_ones_own_that_tells_a_class_is_refused(named_folder, tmp_path):
    folder, names = named_folder
    own = tmp_path / "card.md"
    own.write_text(f"---\nlicense: mit\n---\nIt forgot {names[3]}.\n")
    with pytest.raises(ValueError, match=r"README\.md names what the request named.*manifest_detail='classes'"):
        export(folder, tmp_path / "1", readme=own)
    export(folder, tmp_path / "2", readme=own, manifest_detail="classes")


def shortened(value):
    """A JSON value in which two entries stand for each long list."""
    if isinstance(value, dict):
        return {key: shortened(entry) for key, entry in value.items()}
    return [shortened(entry) for entry in value[:2]] if isinstance(value, list) else value


def hand_written(document, canary):
    """Copies of a document, each with a text in one place where a run writes something else, or as one more key."""
    for path in places(document):
        spot = document
        for key in path:
            spot = spot[key]
        if isinstance(spot, dict):
            yield path, put(document, (*path, "remark"), canary, "replace")
            yield path, put(document, (*path, canary), 1, "replace")
        elif isinstance(spot, list):
            yield path, put(document, path, [*spot, canary], "replace")
        else:
            yield path, put(document, path, canary, "replace")


OF_CLASSES = ("per_class", "class_names", "confusion", "retained")
OF_MODULES = ("layer", "points")
"""Places with the names of modules; the names of tensors, which begin with these, are searched in the weights."""


@pytest.mark.parametrize(("detail", "canary"), [("hashes", CANARIES[1]), ("classes", PERSON)])
def test_a_name_that_was_written_by_hand_anywhere_in_the_documents_is_not_told(detail, canary):
    request = request_of(CANARIES, (1, 3))
    document = document_of(CANARIES, (1, 3), request)
    document["history"] = [{**document, "date": "2026-01-01"}]
    known = named_by(document, report_of(CANARIES, (1, 3), request), detail=detail)
    report = shortened(make_report(layers=2).to_dict())
    tries = [
        (checked_manifest, disclosed_manifest, document),
        (AuditReport.from_dict, disclosed_report, report),
        (checked_record, disclosed_record, record_of(CANARIES, (1, 3))),
    ]
    tried = 0
    for check, disclosed, whole in tries:
        for path, changed in hand_written(whole, canary):
            if any(each in OF_MODULES or (detail == "classes" and each in OF_CLASSES) for each in path):
                continue
            try:
                shown = disclosed(check(changed), detail, known)
            except ValueError:
                continue
            shown = shown.to_dict() if isinstance(shown, AuditReport) else shown
            told = json.dumps(shown, ensure_ascii=False)
            assert canary not in told, path
            check(shown)
            tried += 1
    assert tried > 100


def test_a_number_of_a_row_takes_no_count_out_of_the_record():
    counts = {"cost": {"steps": ROW, "minutes": 1.0}, "data": {"forget": {"images": ROW}}, "processes": 1}
    counts["evaluated"] = {"forget": {"images": ROW, "held_out": True}}
    record = counts | {"settings": {"max_steps": ROW, "objective_kwargs": {"n": ROW}}}
    shown = disclosed_record(record, "hashes", Named(numbers=frozenset({str(ROW)})))
    assert shown == counts | {"settings": {"max_steps": ROW, "objective_kwargs": {"n": None}}}


@pytest.mark.parametrize("names", [["true", "key"], ["image", "seed"], ["torch", "patch"]])
def test_a_class_that_is_called_as_a_word_of_the_documents_takes_nothing_out_of_them(tmp_path, names):
    shown = []
    for number, (first, second) in enumerate((names, ["ant", "cow"])):
        folder = write_folder(tmp_path / f"run{number}", ["bee", first, "cat", second, "dog"], (1, 3))
        for path in (folder / "figures").iterdir():
            path.unlink()
        record = json.loads((folder / "ec_config.json").read_text())
        record |= {
            "evaluated": {"forget": {"images": 3, "held_out": True}},
            "command": None,
            "versions": {"torch": "2"},
        }
        record["settings"] |= {"optim": "adamw_torch", "train_heads": True}
        (folder / "ec_config.json").write_text(json.dumps(record))
        export(folder, tmp_path / f"out{number}")
        shown.append(json.loads((tmp_path / f"out{number}" / "ec_config.json").read_text()))
    assert shown[0] == shown[1]


def test_the_known_settings_are_those_that_go_on_record(tmp_path):
    own = {*ECConfig(output_dir=str(tmp_path), use_cpu=True).own_settings(), *RECORDED}
    assert own | {"adapters"} == SETTINGS


def test_a_filter_for_what_is_false_hides_no_setting():
    request = ForgetRequest(where=[{"column": "consent", "equals": False}])
    document = {"request": {"content": request.to_dict()}, "parts": {"forget": {"rows": 1}, "retain": {"rows": 2}}}
    assert not named_by(document, detail="classes").hides_value("False")


@pytest.mark.parametrize("told", [False, True])
def test_a_base_model_that_tells_an_earlier_request_is_withheld_and_one_that_tells_this_one_is_warned_of(
    client, tmp_path, caplog, told
):
    folder = write_folder(tmp_path / "run", CANARIES, (1, 3))
    manifest = json.loads((folder / "forget_manifest.json").read_text())
    now, earlier = CANARIES[3], CANARIES[1]
    for entry, name in ((manifest, now), (manifest["history"][0], earlier)):
        entry["request"]["content"]["classes"], entry["parts"]["forget"]["per_class"] = [name], {name: 40}
    (folder / "forget_manifest.json").write_text(json.dumps(manifest))
    base = f"alice/no-{now if told else earlier.replace(' ', '-')}"
    record = json.loads((folder / "ec_config.json").read_text()) | {"base_model": base, "command": None}
    record["base_model_license"] = {"license": "other", "license_name": base, "license_link": base}
    (folder / "ec_config.json").write_text(json.dumps(record))
    report = AuditReport.load(folder / "audit.json")
    models = report.models | {"original": replace(report.models["original"], id=base)}
    replace(report, models=models).save(folder / "audit.json")
    with running_hub() as server:
        client(server.url)
        push(folder, REPO)
        files = server.files(REPO)
    for file in ("README.md", "ec_config.json", "audit.json"):
        assert (base in files[file].decode()) == told, file
    assert (f"The name of the base model, {base!r}, tells" in caplog.text) == told


def test_an_objective_of_ones_own_does_not_tell_the_class_by_its_name():
    record = record_of(CANARIES, (1, 3)) | {"settings": {"objective": "no_Fnordcatcher", "seed": 1}}
    record["method"] = "Erase at the Core (arXiv 2602.05375), host objective no_Fnordcatcher"
    known = named_by(document_of(CANARIES, (1, 3), request_of(CANARIES, (1, 3))))
    assert "Fnordcatcher" not in json.dumps(disclosed_record(record, "hashes", known))
    own = {"settings": {"objective": "delete", "seed": 1}, "method": "delete (DELETE, CVPR 2025)", "uses": "forget"}
    shown = disclosed_record(own, "hashes", Named(frozenset({"delete", "forget"})))
    assert {key: shown[key] for key in own} == own


def test_a_repository_whose_name_tells_a_class_is_pushed_with_a_warning(client, named_folder, caplog):
    folder, names = named_folder
    with running_hub() as server:
        client(server.url)
        push(
            folder, f"alice/no-{re.sub(r'[^a-z]+', '-', names[1].lower())}" if names is ANIMALS else "alice/x-zyxolotl"
        )
    told = "tells what manifest_detail='hashes' withholds" in caplog.text
    assert told == (names is ANIMALS), "Zyxolotl is a class that was kept"
