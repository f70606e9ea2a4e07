"""What of a finished model folder is published: an allow-list, reduced to the detail that the user allows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import get_token
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedModel

from ec_hf.auditing.report import AuditReport
from ec_hf.command import without_paths
from ec_hf.data.documents import checked_manifest
from ec_hf.data.manifests import whole_class_names
from ec_hf.files import (
    AUDIT,
    CARD,
    CONFIG,
    FIGURES,
    HEADS,
    MANIFEST,
    PROCESSOR,
    RECORD,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelFolder,
)
from ec_hf.models.finish import finished
from ec_hf.models.heads import ECHeads
from ec_hf.models.own_network import MODEL_TYPE, OwnConfig
from ec_hf.publishing.card import card
from ec_hf.publishing.disclosure import FIGURES_WITH_CLASSES, disclosed_manifest, disclosed_record, disclosed_report
from ec_hf.publishing.pictures import drawing_without_text, text_of, without_text
from ec_hf.publishing.records import checked_record
from ec_hf.publishing.weights import SHARDS, require_audited, require_finite, tensor_names, texts_of, weight_files
from ec_hf.publishing.withheld import Named, named_by
from ec_hf.reporting.drawing import render
from ec_hf.reporting.figures import draw

__all__ = ["Choices", "export", "export_heads_alone", "files_in", "is_allowed", "named_in"]


ALLOWED_FIGURES = ("cka", "probe", "attacks", *FIGURES_WITH_CLASSES)
"""Not among them is the figure of nearest neighbours, which shows images of the forget set."""
FIGURE_KINDS = (".png", ".svg")
ALLOWED = (
    CONFIG,
    PROCESSOR,
    WEIGHTS,
    WEIGHTS_INDEX,
    SHARDS,
    RECORD,
    MANIFEST,
    AUDIT,
    CARD,
    *(f"{FIGURES}/{name}{kind}" for name in ALLOWED_FIGURES for kind in FIGURE_KINDS),
    f"{HEADS}/{CONFIG}",
    f"{HEADS}/{WEIGHTS}",
)
"""The files that a push may send. From a repository of ours it deletes those of them that it does not send."""

TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
PATH = re.compile(r"""(?<![\w.:/<>)\]-])(?:/(?:[\w.+~-]+/)+|~/|[A-Za-z]:\\)[^\s"'`<>)]*""")
CLASS_LISTS = {"id2label", "label2id", "label_names", "pretrained_cfg"}
"""Keys of a configuration, also of one inside it, that list all classes of the model, forgotten or not."""
CODE_WORDS = {
    "architecture",
    "architectures",
    "dtype",
    "model_type",
    "out_features",
    "stage_names",
    "torch_dtype",
    "transformers_version",
}
"""Keys whose texts are words that a library chose."""
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
EMBEDDED_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")


@dataclass(frozen=True)
class Choices:
    """What of a folder is published, and how; the arguments of `push` of the same names."""

    with_heads: bool | str = False
    manifest_detail: str = "hashes"
    finish: str = "keep"
    license: str | None = None
    readme: str | Path | None = None

    @property
    def heads_in_folder(self) -> bool:
        """Whether the heads are published beside the model."""
        return self.with_heads in (True, "folder")

    @property
    def heads_repo_id(self) -> str | None:
        """The repository that the heads get for themselves."""
        return str(self.with_heads) if self.with_heads and not self.heads_in_folder else None


def export(
    folder: str | Path,
    destination: str | Path,
    *,
    with_heads: bool | str = False,
    manifest_detail: str = "hashes",
    finish: str = "keep",
    license: str | None = None,
    readme: str | Path | None = None,
    repo_id: str | None = None,
    token: str | bool | None = None,
) -> list[str]:
    """Write what `push` would publish into an empty folder, to be looked at or uploaded.

    Args:
        folder: a finished model folder; it is not changed.
        destination: the folder to write to, made if it is missing.
        with_heads: as for `push`; heads with a repository of their own are not written.
        manifest_detail: as for `push`.
        finish: as for `push`.
        license: as for `push`.
        readme: as for `push`.
        repo_id: the repository that the card names in its examples.
        token: Hub token, with which the base model's licence is looked up; None for the stored one.

    Returns:
        Paths of the files, relative to `destination`.

    Raises:
        FileExistsError: the destination is not empty.
        FileNotFoundError: the folder holds no model, or not the heads that are asked for.
        ValueError: a choice does not exist or does not fit the model; a file is a link out of the folder, or names a
            token, a path of this machine, or what `manifest_detail` withholds; or the weights are NaN or infinite, or
            not those of the audit.
    """
    source, exported = ModelFolder(folder), ModelFolder(destination)
    choices = Choices(with_heads, manifest_detail, finish, license, readme)
    source.require_model()
    _refuse_links(source.path)
    require_audited(source)
    hidden = named_in(source, manifest_detail)
    _require_empty(exported.path)
    _export_model(source, exported, choices)
    _export_documents(source, exported, choices, hidden)
    _export_figures(source, exported, choices, hidden)
    if choices.heads_in_folder:
        copy_heads(source, exported.path / HEADS)
    _export_card(source, exported, choices, repo_id, token)
    names = files_in(exported.path)
    for name in names:
        _check(exported.path, name)
        _check_withheld(exported.path, name, hidden, own_card=bool(choices.readme))
    return names


def named_in(folder: ModelFolder, detail: str) -> Named:
    """What the files of a folder name of its requests and may not tell at a detail."""
    manifest = folder.read(MANIFEST)
    report = AuditReport.load(folder.path / AUDIT) if folder.has(AUDIT) else None
    document = checked_manifest(manifest) if manifest else {}
    return named_by(document, report, folder.read(CONFIG), folder.read(RECORD), detail=detail)


def _refuse_links(folder: Path) -> None:
    """Refuse links that lead out of the folder: a push would send what they point to."""
    inside = folder.resolve()
    for path in (*folder.iterdir(), *(folder / FIGURES).glob("*"), *(folder / HEADS).glob("*")):
        name = path.relative_to(folder).as_posix()
        if (is_allowed(name) or name in (FIGURES, HEADS)) and not path.resolve().is_relative_to(inside):
            raise ValueError(
                f"{name} is a link to {str(path.resolve())!r}, outside the folder: put the file itself there"
            )


def _require_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} is not empty: name a new folder")


def _export_model(source: ModelFolder, exported: ModelFolder, choices: Choices) -> None:
    """Configuration, image processor and weights; the configuration loses the name of the base model's folder."""
    _copy(source.path, exported.path, PROCESSOR)
    if choices.finish == "keep":
        _copy(source.path, exported.path, CONFIG, WEIGHTS_INDEX, *weight_files(source))
    else:
        _finished(source, choices).save_pretrained(exported.path)
    config = exported.read(CONFIG)
    if config.pop("_name_or_path", None):
        exported.write(CONFIG, config)
    require_finite(exported)


def _finished(source: ModelFolder, choices: Choices) -> PreTrainedModel:
    how, earlier = choices.finish, source.read(RECORD).get("finish", "keep")
    if earlier != "keep":
        raise ValueError(f"finish={how!r}: this model was finished already ({earlier}); push it with finish='keep'")
    if how == "drop" and choices.with_heads:
        raise ValueError("finish='drop' leaves fewer classes than the EC heads know: publish these without with_heads")
    if source.read(CONFIG).get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"finish={how!r} needs the code of this network, which is its owner's: in Python, save what "
            f"ec_hf.models.finish.finished(model, classes, {how!r}) gives, or push it with finish='keep'"
        )
    model = AutoModelForImageClassification.from_pretrained(source.path)
    return finished(model, _forgotten_labels(source, model.config.id2label), how)


def _forgotten_labels(source: ModelFolder, id2label: dict[int, str]) -> list[int]:
    """The model's ids of the classes that were forgotten as a whole: as the audit knows them, else by their names."""
    if source.has(AUDIT) and (classes := AuditReport.load(source.path / AUDIT).request.get("classes")):
        return classes
    manifest = source.read(MANIFEST)
    names = whole_class_names(manifest) if manifest else []
    ids = {name: label for label, name in id2label.items()}
    if unknown := [name for name in names if name not in ids]:
        raise ValueError(f"finish: the model has no label named {unknown}; audit the model first, which matches them")
    return [ids[name] for name in names]


def _export_documents(source: ModelFolder, exported: ModelFolder, choices: Choices, hidden: Named) -> None:
    """Run record, forget manifest and audit report, reduced to the detail that is allowed."""
    detail, record, manifest = choices.manifest_detail, checked_record(source.read(RECORD)), source.read(MANIFEST)
    if choices.finish != "keep":
        record["finish"] = choices.finish
    if record:
        exported.write(RECORD, without_paths(disclosed_record(record, detail, hidden)))
    if manifest:
        exported.write(MANIFEST, without_paths(disclosed_manifest(manifest, detail, hidden)))
    if source.has(AUDIT):
        report = disclosed_report(AuditReport.load(source.path / AUDIT), detail, hidden)
        exported.write(AUDIT, without_paths(report.to_dict()))


def _export_figures(source: ModelFolder, exported: ModelFolder, choices: Choices, hidden: Named) -> None:
    """The figures of the list, without texts beside the picture; drawn anew where models have got other names."""
    withheld = FIGURES_WITH_CLASSES if choices.manifest_detail == "hashes" else ()
    shown = [
        path
        for path in sorted((source.path / FIGURES).glob("*"))
        if path.stem in ALLOWED_FIGURES and path.stem not in withheld and path.suffix in FIGURE_KINDS
    ]
    drawn = _drawn_anew(source, exported, [path.stem for path in shown])
    for path in shown:
        target = exported.path / FIGURES / path.name
        target.parent.mkdir(exist_ok=True)
        if drawn is None:
            shutil.copyfile(path, target)
        elif path.stem in drawn:
            render(drawn[path.stem], target)
        else:
            continue
        if path.suffix == ".png":
            target.write_bytes(without_text(target.read_bytes(), path.name))
            if hidden.hides_value(target.read_bytes().decode("utf-8", "replace")):
                target.unlink()
            continue
        drawing = drawing_without_text(target.read_text(encoding="utf-8"), path.name)
        target.write_text(drawing, encoding="utf-8", newline="\n")
        if hidden.hides_value(text_of(target)):
            target.unlink()


def _drawn_anew(source: ModelFolder, exported: ModelFolder, names: Sequence[str]) -> dict[str, Any] | None:
    """Figures of the report that is published, where it has other models than the one that they were drawn of."""
    if not names or not source.has(AUDIT):
        return None
    before, after = (AuditReport.load(folder.path / AUDIT) for folder in (source, exported))
    return draw(after, names=list(dict.fromkeys(names))) if list(before.models) != list(after.models) else None


def _export_card(
    source: ModelFolder, exported: ModelFolder, choices: Choices, repo_id: str | None, token: str | bool | None
) -> None:
    """The user's own card, or one made of the exported files."""
    if choices.readme:
        exported.write(CARD, Path(choices.readme).read_text(encoding="utf-8"))
        return
    _copy(source.path, exported.path, CARD)  # `card` keeps the licence of a card that is there
    text = card(
        exported.path, repo_id=repo_id, license=choices.license, manifest_detail=choices.manifest_detail, token=token
    )
    exported.write(CARD, text)


def export_heads_alone(source: ModelFolder, destination: Path, detail: str = "hashes") -> None:
    """The EC heads as a repository of their own, with their card.

    Args:
        source: the model folder.
        destination: the folder to write to.
        detail: what may be told of the request, as for `export`.

    Raises:
        FileNotFoundError: the folder holds no heads.
        ValueError: as `export`.
    """
    copy_heads(source, destination)
    text = ECHeads.from_pretrained(destination).generate_model_card()
    hidden = named_in(source, detail)
    if base := disclosed_record(checked_record(source.read(RECORD)), detail, hidden).get("base_model"):
        text.data["base_model"] = base
    text.save(destination / CARD)
    for name in files_in(destination):
        _check(destination, name)
        _check_withheld(destination, name, hidden, own_card=False)


def copy_heads(source: ModelFolder, destination: Path) -> None:
    """Copy the heads of a model folder, which must be there."""
    if not source.has(f"{HEADS}/{WEIGHTS}"):
        raise FileNotFoundError(f"with_heads: {str(source.path)!r} holds no {HEADS}/ with EC heads")
    _copy(source.path / HEADS, destination, CONFIG, WEIGHTS)


def _copy(source: Path, destination: Path, *names: str) -> None:
    """Copy those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, destination / name)


def files_in(folder: Path) -> list[str]:
    """Names of all files in a folder and below it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def is_allowed(name: str) -> bool:
    """Whether a push may send, and so may delete, a file of this name."""
    return any(fnmatch(name, pattern) for pattern in ALLOWED)


def _check(folder: Path, name: str) -> None:
    """Refuse a file that is not on the list, or a text that names a token or a path of this machine."""
    if not is_allowed(name):
        raise ValueError(f"{name} is not among the files that are published")
    if name.endswith(".png"):
        return
    if name.endswith(".safetensors"):
        text = "\n".join(texts_of(folder / name))
    else:
        text = EMBEDDED_IMAGE.sub("", (folder / name).read_text(encoding="utf-8"))
    token = get_token()
    if TOKEN.search(text) or (token and token in text):
        raise ValueError(f"{name} holds a Hub token: take it out, and revoke the token if it was seen by others")
    if path := PATH.search(text):
        raise ValueError(f"{name} names a path of this machine, {path[0]!r}: take it out")


def _check_withheld(folder: Path, name: str, hidden: Named, own_card: bool) -> None:
    """Refuse a file that is not made here and tells what is withheld."""
    texts: list[str] = []
    if name == CARD and own_card:
        texts = [(folder / name).read_text(encoding="utf-8")]
    elif name == CONFIG:
        config = ModelFolder(folder).read(CONFIG)
        texts = _foreign_texts(config) if "model_type" in config else _values(config)  # else that of heads alone
    elif name in (PROCESSOR, f"{HEADS}/{CONFIG}"):
        classes = set(dir(transformers))  # "ViTImageProcessor" is no word of whoever forgot "image"
        texts = [text for text in _values(ModelFolder(folder).read(name)) if text not in classes]
    elif name.endswith(".safetensors"):
        texts = texts_of(folder / name)
        if strange := _foreign_tensors(folder, name, hidden):
            raise ValueError(
                f"{name} has a tensor {strange[0]!r}, which names what the request named and which this "
                "manifest_detail withholds: give it another name, or publish with manifest_detail='classes' or 'rows'"
            )
    if any(map(hidden.hides_value, texts)):
        raise ValueError(
            f"{name} names what the request named, which this manifest_detail withholds: take it out, or publish with "
            "manifest_detail='classes' or 'rows'"
        )


def _values(content: Any) -> list[str]:
    """All texts and numbers in a JSON value, without its keys: "height" is no word of whoever forgot "eight"."""
    if isinstance(content, Mapping):
        return _values(list(content.values()))
    if isinstance(content, list):
        return [text for entry in content for text in _values(entry)]
    return [] if content is None or isinstance(content, bool) else [str(content)]


def _foreign_texts(config: Mapping[str, Any]) -> list[str]:
    """What a configuration holds beside its architecture's own keys and the model's list of classes, as texts.

    Of the architecture's own keys these are texts that are no default.
    """
    kind = config.get("model_type")
    known = CONFIG_MAPPING[kind]().to_dict() if isinstance(kind, str) and kind in CONFIG_MAPPING else {}
    known = OwnConfig().to_dict() if kind == MODEL_TYPE else known
    texts = []
    for key, value in config.items():
        if key in CLASS_LISTS | CODE_WORDS or (key == "problem_type" and value in PROBLEM_TYPES):
            continue
        if key not in known:
            texts.append(json.dumps({key: value}, ensure_ascii=False))
        elif value != known[key]:
            texts += _own_texts(value)
    return texts


def _own_texts(value: Any) -> list[str]:
    """The texts in a value of a configuration, without its class lists; a number may be the size of a layer."""
    if isinstance(value, Mapping):
        return [
            text for key, each in value.items() if key not in CLASS_LISTS | CODE_WORDS for text in _own_texts(each)
        ]
    if isinstance(value, list):
        return [text for each in value for text in _own_texts(each)]
    return [value] if isinstance(value, str) else []


def _foreign_tensors(folder: Path, name: str, hidden: Named) -> list[str]:
    """Tensors with a withheld name as a word that is not the architecture's; "weight" has no word "eight"."""
    words = [r"[\W_]*".join(map(re.escape, re.findall(r"[^\W_]+", each))) for each in hidden.names]
    told = re.compile(rf"(?<![^\W_])(?:{'|'.join(filter(None, words)) or '(?!)'})(?![^\W_])", re.IGNORECASE)
    keys = [key for key in tensor_names(folder / name) if told.search(key)]
    if not keys:
        return []
    inside = Path(name).parent
    config = ModelFolder(folder / inside).read(CONFIG)
    if config.get("model_type") == MODEL_TYPE:
        return keys  # all names are the user's own
    if "model_type" in config:  # what is saved may have other names than what is loaded
        _, loading = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        return sorted(filter(told.search, loading["unexpected_keys"]))
    wanted = ("points", "last", "num_labels", "pooling", "last_pooling")
    with torch.device("meta"):
        own = ECHeads(**{key: config[key] for key in wanted}).state_dict()
    return [key for key in keys if key not in own]
