"""Publish a finished model folder on the Hub, and read back what was published with one.

A push sends the files of an allow-list, reduced to the detail that the user allows, in one commit: weights and card
change together or not at all. If a push fails, the folder stays as it is and the error names the command that pushes
again.
"""

from __future__ import annotations

import errno
import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from transformers import AutoModelForImageClassification, PreTrainedModel

from ec_hf._version import __version__
from ec_hf.auditing.report import AuditReport
from ec_hf.command import without_paths
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
    find_file,
    first_line,
    read_json,
)
from ec_hf.models.finish import finished
from ec_hf.models.heads import ECHeads
from ec_hf.publishing.card import card
from ec_hf.publishing.disclosure import FIGURES_WITH_CLASSES, disclosed_manifest, disclosed_record, disclosed_report

__all__ = ["Published", "PushError", "explained", "export", "load_report", "push", "push_later"]

ALLOWED = (
    CONFIG,
    PROCESSOR,
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*-of-*.safetensors",
    RECORD,
    MANIFEST,
    AUDIT,
    CARD,
    f"{FIGURES}/*",
    f"{HEADS}/*",
)
"""The files that a push may send. It deletes those in the repository that it does not send."""
ALLOWED_FIGURES = ("cka", "probe", "relearning", *FIGURES_WITH_CLASSES)
"""Not among them is the figure of nearest neighbours, which shows images of the forget set."""

TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
PATH = re.compile(r"""(?<![\w.:/<>)\]-])(?:/(?:[\w.+~-]+/)+|~/|[A-Za-z]:\\)[^\s"'`<>)]*""")
EMBEDDED_IMAGE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")

logger = logging.getLogger(__name__)


class PushError(OSError):
    """A push that did not succeed; the message says why and how to push again."""


class Published(NamedTuple):
    """What `load_report` gives: the forget manifest, and the audit report if there is one."""

    manifest: dict[str, Any]
    audit: AuditReport | None


@dataclass(frozen=True)
class _Target:
    """Where a push goes; the arguments of `push` of the same names."""

    repo_id: str
    private: bool | None
    token: str | bool | None
    revision: str | None


@dataclass(frozen=True)
class _Choices:
    """What of a folder is published, and how; the arguments of `push` of the same names."""

    with_heads: bool | str = False
    manifest_detail: str = "hashes"
    finish: str = "keep"
    license: str | None = None
    readme: str | Path | None = None

    @property
    def heads_in_folder(self) -> bool:
        return self.with_heads in (True, "folder")

    @property
    def heads_repo_id(self) -> str | None:
        """The repository that the heads get for themselves."""
        return str(self.with_heads) if self.with_heads and not self.heads_in_folder else None


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Unlearned model",
    with_heads: bool | str = False,
    manifest_detail: str = "hashes",
    finish: str = "keep",
    license: str | None = None,
    readme: str | Path | None = None,
) -> str:
    """Publish a finished model folder. Files of an earlier push that are not in this one are deleted.

    What an earlier commit showed stays in the history of the repository: to take it back, delete the repository.

    Args:
        folder: what `ECTrainer.save_model` or a recipe wrote; it is not changed.
        repo_id: repository on the Hub, made if it is missing.
        private: whether a new repository is private.
        token: Hub token; None for the stored one.
        revision: branch to push to, made if it is missing; None for main.
        commit_message: title of the commit.
        with_heads: True or "folder" publishes the EC heads beside the model, a repository id in a repository of their
            own. The heads were fitted on all images, those of the forget set included.
        manifest_detail: what the files tell of the request: "hashes" (and counts), "classes" or "rows", see
            `ec_hf.publishing.disclosure`. A hash hides no more than the names it was made of: whoever guesses them can
            check the guess.
        finish: what becomes of the logits of the forgotten classes: "keep", "mask" or "drop", see
            `ec_hf.models.finish`. The audit stays that of the model before it.
        license: a licence id of the Hub; None for that of the base model.
        readme: file with your own card, published as it is instead of the generated one.

    Returns:
        Address of the repository.

    Raises:
        PushError: the push failed; the message names the command that tries again.
    """
    target = _Target(repo_id, private, token, revision)
    choices = _Choices(with_heads, manifest_detail, finish, license, readme)
    with explained(repo_id, _retry(folder, target, choices)), TemporaryDirectory() as staged:
        _stage(folder, Path(staged), target, choices)
        return _upload_staged(Path(staged), target, choices, commit_message)


def push_later(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Unlearned model",
    with_heads: bool | str = False,
    manifest_detail: str = "hashes",
    finish: str = "keep",
    license: str | None = None,
    readme: str | Path | None = None,
) -> Future[str]:
    """`push` with the upload in the background; the folder may change or be deleted once this returns.

    A failed upload is logged as a warning, and its error is raised by the future's `result`.

    Raises:
        PushError: the files could not be prepared for the upload.
    """
    target = _Target(repo_id, private, token, revision)
    choices = _Choices(with_heads, manifest_detail, finish, license, readme)
    retry = _retry(folder, target, choices)
    with explained(repo_id, retry), ExitStack() as stack:
        staged = Path(stack.enter_context(TemporaryDirectory()))
        _stage(folder, staged, target, choices)
        deleted_after_upload = stack.pop_all()

    def upload() -> str:
        # Logged here: a callback of the future would run only after `result` has returned to those who wait for it.
        try:
            with explained(repo_id, retry), deleted_after_upload:
                return _upload_staged(staged, target, choices, commit_message)
        except PushError as error:
            logger.warning("%s", error)
            raise

    return HfApi().run_as_future(upload)


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
        ValueError: a choice does not exist or does not fit the model, or a file names a token or a path of this
            machine.
    """
    source, exported = ModelFolder(folder), ModelFolder(destination)
    choices = _Choices(with_heads, manifest_detail, finish, license, readme)
    source.require_model()
    _require_empty(exported.path)
    _export_model(source, exported, choices)
    _export_documents(source, exported, choices)
    _export_figures(source, exported, choices)
    if choices.heads_in_folder:
        _copy_heads(source, exported.path / HEADS)
    _export_card(source, exported, choices, repo_id, token)
    names = _files_in(exported.path)
    for name in names:
        _check(exported.path, name)
    return names


def load_report(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> Published:
    """The forget manifest and the audit report of a published or local unlearned model.

    Args:
        name_or_path: Hub id or local folder.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Raises:
        FileNotFoundError: there is no such model, or it has no manifest.
        ValueError: the report has another schema version.
    """
    manifest, audit = (find_file(name_or_path, name, revision=revision, token=token) for name in (MANIFEST, AUDIT))
    if manifest is None:
        raise FileNotFoundError(f"{str(name_or_path)!r} holds no {MANIFEST}: it was not unlearned with ec_hf")
    return Published(read_json(manifest), None if audit is None else AuditReport.load(audit))


# Errors


@contextmanager
def explained(repo_id: str, retry: str | None = None) -> Iterator[None]:
    """Turn every error of a push into a `PushError` that says what went wrong and how to mend it.

    Args:
        repo_id: the repository.
        retry: where the model is and how to push it again; None if there is no model yet.
    """
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        message = f"The push to {repo_id!r} failed: {_cause(error, repo_id)}"
        raise PushError(f"{message}\n{retry}" if retry else message) from error


def _cause(error: Exception, repo_id: str) -> str:
    """What went wrong, and what to do about it."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # "Error while uploading ..."
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, repo_id)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; make room in {gettempdir()!r}, or set TMPDIR to another folder"
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0].startswith("httpx"):
        return f"no connection to the Hub ({first_line(error)}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    return first_line(error)


def _refusal(error: HfHubHTTPError, repo_id: str) -> str:
    """What the status of the Hub's answer means for a push."""
    status = error.response.status_code
    log_in = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
    known = {
        401: f"the Hub knows no such token, or none was given; {log_in}",
        403: f"this token may not write to {repo_id!r}: the name belongs to someone else, or the token only reads. "
        f"Choose a name of your own, or {log_in}",
        404: f"the Hub shows this token no such repository or branch; {log_in}",
        413: "a file is larger than the Hub takes; save the weights in smaller files with "
        "model.save_pretrained(folder, max_shard_size='1GB')",
        429: "the Hub takes no more requests for now; wait a while",
    }
    if status in known:
        return known[status]
    answer = error.server_message or f"status {status}"
    return f"the Hub is in trouble ({answer}); try again later" if status >= 500 else f"the Hub refused it ({answer})"


def _retry(folder: str | Path, target: _Target, choices: _Choices) -> str:
    """Where the model is, and the command that pushes it again, without flags that have their default value."""
    defaults = asdict(_Choices())
    flags = []
    for name, value in {"private": target.private, "revision": target.revision, **asdict(choices)}.items():
        if value and value != defaults.get(name):
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    command = shlex.join(["ec-hf", "push", str(folder), target.repo_id, *flags])
    return f"The model stays in {str(folder)!r}. Push it again with:\n  {command}"


# Upload


def _stage(folder: str | Path, staged: Path, target: _Target, choices: _Choices) -> None:
    """Write what will be uploaded: ``model``, and ``heads`` if they go to a repository of their own."""
    if choices.heads_repo_id:
        _export_heads_alone(ModelFolder(folder), staged / "heads")
    repo_id = _with_owner(target.repo_id, target.token)
    export(folder, staged / "model", repo_id=repo_id, token=target.token, **vars(choices))


def _upload_staged(staged: Path, target: _Target, choices: _Choices, commit_message: str) -> str:
    if choices.heads_repo_id:
        _upload(staged / "heads", replace(target, repo_id=choices.heads_repo_id), "EC heads")
    return _upload(staged / "model", target, commit_message)


def _with_owner(repo_id: str, token: str | bool | None) -> str:
    """The full id of a repository: a name without an owner belongs to the owner of the token."""
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def _upload(folder: Path, target: _Target, commit_message: str) -> str:
    """Make the repository's allowed files equal to those of a folder, in one commit.

    Returns:
        Address of the repository.
    """
    api = HfApi(token=target.token, library_name="ec_hf", library_version=__version__)
    url = api.create_repo(target.repo_id, private=target.private, exist_ok=True)
    if target.private and not api.repo_info(url.repo_id).private:
        raise ValueError("the repository is there already and public; make it private on the Hub, or choose another")
    if target.revision:
        api.create_branch(url.repo_id, branch=target.revision, exist_ok=True)
    names = _files_in(folder)
    old = api.list_repo_files(url.repo_id, revision=target.revision)
    deleted = [name for name in old if _is_allowed(name) and name not in names]
    # Not upload_folder: where hf_xet is installed, it commits in batches, and a commit that the Hub refuses is tried
    # again in parts (huggingface_hub 2.4 made two commits of 301 files).
    api.create_commit(
        url.repo_id,
        [
            *(CommitOperationAdd(name, folder / name) for name in names),
            *(CommitOperationDelete(name, is_folder=False) for name in deleted),
        ],
        commit_message=commit_message,
        revision=target.revision,
    )
    return f"{url}/tree/{target.revision}" if target.revision else str(url)


# Export


def _require_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{str(folder)!r} is not empty: name a new folder")


def _export_model(source: ModelFolder, exported: ModelFolder, choices: _Choices) -> None:
    """Configuration, image processor and weights; the configuration loses the name of the base model's folder."""
    _copy(source.path, exported.path, PROCESSOR)
    if choices.finish == "keep":
        _copy(source.path, exported.path, CONFIG, *source.weights())
    else:
        _finished(source, choices).save_pretrained(exported.path)
    config = exported.read(CONFIG)
    if config.pop("_name_or_path", None):
        exported.write(CONFIG, config)
    _require_finite(exported)


def _require_finite(folder: ModelFolder) -> None:
    """Refuse weights that are NaN or infinite: a run that diverged has no model to publish."""
    for name in folder.weights():
        if name == WEIGHTS_INDEX:
            continue
        with safe_open(folder.path / name, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - it is no mapping
                if not torch.isfinite(tensors.get_tensor(key)).all():
                    raise ValueError(f"{key} in {name} is NaN or infinite: the run that made this model diverged")


def _finished(source: ModelFolder, choices: _Choices) -> PreTrainedModel:
    how, earlier = choices.finish, source.read(RECORD).get("finish", "keep")
    if earlier != "keep":
        raise ValueError(f"finish={how!r}: this model was finished already ({earlier}); push it with finish='keep'")
    if how == "drop" and choices.with_heads:
        raise ValueError("finish='drop' leaves fewer classes than the EC heads know: publish these without with_heads")
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


def _export_documents(source: ModelFolder, exported: ModelFolder, choices: _Choices) -> None:
    """Run record, forget manifest and audit report, reduced to the detail that is allowed."""
    detail, record, manifest = choices.manifest_detail, source.read(RECORD), source.read(MANIFEST)
    if choices.finish != "keep":
        record["finish"] = choices.finish
    if record:
        exported.write(RECORD, without_paths(disclosed_record(record, detail)))
    if manifest:
        exported.write(MANIFEST, without_paths(disclosed_manifest(manifest, detail)))
    if source.has(AUDIT):
        report = disclosed_report(AuditReport.load(source.path / AUDIT), detail)
        exported.write(AUDIT, without_paths(report.to_dict()))


def _export_figures(source: ModelFolder, exported: ModelFolder, choices: _Choices) -> None:
    hidden = FIGURES_WITH_CLASSES if choices.manifest_detail == "hashes" else ()
    for path in sorted((source.path / FIGURES).glob("*")):
        if path.stem in ALLOWED_FIGURES and path.stem not in hidden and path.suffix in (".png", ".svg"):
            _copy(source.path, exported.path, f"{FIGURES}/{path.name}")


def _export_card(
    source: ModelFolder, exported: ModelFolder, choices: _Choices, repo_id: str | None, token: str | bool | None
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


def _export_heads_alone(source: ModelFolder, destination: Path) -> None:
    """The EC heads as a repository of their own, with their card."""
    _copy_heads(source, destination)
    text = ECHeads.from_pretrained(destination).generate_model_card()
    if base := source.read(RECORD).get("base_model"):
        text.data["base_model"] = base
    text.save(destination / CARD)


def _copy_heads(source: ModelFolder, destination: Path) -> None:
    if not source.has(f"{HEADS}/{WEIGHTS}"):
        raise FileNotFoundError(f"with_heads: {str(source.path)!r} holds no {HEADS}/ with EC heads")
    _copy(source.path / HEADS, destination, CONFIG, WEIGHTS)


def _copy(source: Path, destination: Path, *names: str) -> None:
    """Copy those of the files that are there."""
    for name in names:
        if (source / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, destination / name)


def _files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _is_allowed(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in ALLOWED)


def _check(folder: Path, name: str) -> None:
    """Refuse a file that is not on the list, or a text that names a token or a path of this machine."""
    if not _is_allowed(name):
        raise ValueError(f"{name} is not among the files that are published")
    if name.endswith((".safetensors", ".png")):
        return
    text = EMBEDDED_IMAGE.sub("", (folder / name).read_text(encoding="utf-8"))
    token = get_token()
    if TOKEN.search(text) or (token and token in text):
        raise ValueError(f"{name} holds a Hub token: take it out, and revoke the token if it was seen by others")
    if path := PATH.search(text):
        raise ValueError(f"{name} names a path of this machine, {path[0]!r}: take it out")
