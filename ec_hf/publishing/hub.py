"""Publish a finished model folder on the Hub, and read back what was published with one.

A push sends an allow-list, reduced to the detail that the user allows, in one commit: weights and card change
together or not at all. Whatever fails, the folder stays as it is and the error names the command that pushes again.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoModelForImageClassification

from ec_hf._version import __version__
from ec_hf.auditing.report import AuditReport
from ec_hf.command import without_paths
from ec_hf.data.manifests import MANIFEST, wholly_forgotten
from ec_hf.files import HEADS, find_file
from ec_hf.models.finish import finished
from ec_hf.models.heads import ECHeads
from ec_hf.publishing.disclosure import FIGURES_WITH_CLASSES, disclosed_manifest, disclosed_record, disclosed_report

__all__ = ["Published", "PushError", "explained", "export", "load_report", "push", "push_later"]


RECORD, AUDIT, CARD = "ec_config.json", "audit.json", "README.md"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
OURS = ("config.json", "preprocessor_config.json", *WEIGHTS, RECORD, MANIFEST, AUDIT, CARD, "figures/*", f"{HEADS}/*")
"""What a push may send, and what it deletes in the repository where this push does not send it."""
FIGURES = ("cka", "probe", "relearning", *FIGURES_WITH_CLASSES)
"""Figures that may be published; the one with the nearest images shows images of the forget set."""
TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
PATH = re.compile(r"""(?<![\w.:/<>)\]-])(?:/(?:[\w.+~-]+/)+|~/|[A-Za-z]:\\)[^\s"'`<>)]*""")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s]+")

logger = logging.getLogger(__name__)


class PushError(OSError):
    """A push that did not succeed; the message says why and how to push again."""


class Published(NamedTuple):
    """What `load_report` finds: the forget manifest, and the audit report where there is one."""

    manifest: dict[str, Any]
    audit: AuditReport | None


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Unlearned model",
    **choices: Any,
) -> str:
    """Publish a finished model folder; what is in the repository from an earlier push and not in this one goes.

    What an earlier commit showed stays in the history of the repository: to take it back, delete the repository.

    Args:
        folder: what `ECTrainer.save_model` or a recipe wrote; it is not changed.
        repo_id: repository on the Hub, made if it is not there.
        private: whether a new repository is private.
        token: Hub token, or the stored one.
        revision: branch to push to, made if it is not there; default: main.
        commit_message: title of the commit.
        **choices: what is published, see `export`.

    Returns:
        Address of the repository.

    Raises:
        PushError: for everything that goes wrong, with the command that tries again.
    """
    target: dict[str, Any] = {"private": private, "token": token, "revision": revision}
    with explained(repo_id, folder, target | choices), TemporaryDirectory() as staged:
        if (with_heads := choices.get("with_heads")) not in (None, False, True, "folder"):
            _push_heads(Path(folder), str(with_heads), target)
        export(folder, staged, repo_id=_full_id(repo_id, token), token=token, **choices)
        return _upload(Path(staged), repo_id, commit_message=commit_message, **target)


def push_later(folder: str | Path, repo_id: str, **options: Any) -> Future[str]:
    """`push` with the upload in the background; the folder may change or go once this returns.

    A failure is logged as a warning, and raised by the future's `result`.
    """
    staged = TemporaryDirectory()
    upload = {name: options.pop(name, None) for name in ("private", "token", "revision")}
    message = options.pop("commit_message", "Unlearned model")
    with explained(repo_id, folder, upload | options):
        export(folder, staged.name, repo_id=_full_id(repo_id, upload["token"]), token=upload["token"], **options)

    def job() -> str:
        # Logged here and not in a callback, which the future runs only after those who wait for it are woken.
        try:
            with explained(repo_id, folder, upload | options), staged:
                return _upload(Path(staged.name), repo_id, commit_message=message, **upload)
        except PushError as error:
            logger.warning("%s", error)
            raise

    return HfApi().run_as_future(job)


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
    """Write what would be published into an empty folder, to be looked at or uploaded.

    Args:
        folder: a finished model folder; nothing in it is changed.
        destination: where the files go.
        with_heads: True or "folder" publishes the EC heads beside the model, a repository id in one of their own. They
            were fitted on all images, those of the forget set included.
        manifest_detail: what the files tell of the request, see `ec_hf.publishing.disclosure`: "hashes" (and counts),
            "classes" or "rows". A hash hides no more than the names it was made of: whoever guesses them can check
            the guess.
        finish: "keep", "mask" or "drop", see `ec_hf.models.finish`; the audit stays that of the model before it.
        license: a licence id of the Hub; that of the base model if left out.
        readme: a card of your own instead of the generated one; nothing in it is reduced.
        repo_id: the repository that the card names in its examples.
        token: of the Hub, where the base model's licence is looked up.

    Returns:
        Paths of the files, relative to `destination`.

    Raises:
        FileExistsError: when the destination holds something.
        FileNotFoundError: for a folder without a model, or without the heads that are asked for.
        ValueError: for a choice that does not exist or does not fit the model, and for files that name a token or a
            path of this machine.
    """
    from ec_hf.publishing.card import card

    folder, destination = Path(folder), Path(destination)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no config.json: name the folder of a finished model")
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise FileExistsError(f"{str(destination)!r} is not empty: name a new folder")
    record, manifest = _read(folder / RECORD), _read(folder / MANIFEST)
    _copy(folder, destination, "preprocessor_config.json")
    if finish == "keep":
        _copy(folder, destination, "config.json", *_weights(folder))
    else:
        _write_finished(folder, destination, record, finish, with_heads)
        record = {**(record or {}), "finish": finish}
    if record:
        _write(destination / RECORD, without_paths(disclosed_record(record, manifest_detail)))
    if manifest:
        _write(destination / MANIFEST, without_paths(disclosed_manifest(manifest, manifest_detail)))
    if (folder / AUDIT).is_file():
        report = disclosed_report(AuditReport.load(folder / AUDIT), manifest_detail)
        _write(destination / AUDIT, without_paths(report.to_dict()))
    shown = [name for name in FIGURES if manifest_detail != "hashes" or name not in FIGURES_WITH_CLASSES]
    for path in sorted((folder / "figures").glob("*")):
        if path.stem in shown and path.suffix in (".png", ".svg"):
            _copy(folder, destination, f"figures/{path.name}")
    if with_heads in (True, "folder"):
        _copy_heads(folder, destination / HEADS)
    config = _read(destination / "config.json") or {}
    if config.pop("_name_or_path", None):
        _write(destination / "config.json", config)
    _copy(folder, destination, CARD)  # its licence is kept
    text = (
        Path(readme).read_text(encoding="utf-8")
        if readme
        else card(destination, repo_id=repo_id, license=license, manifest_detail=manifest_detail, token=token)
    )
    (destination / CARD).write_text(text, encoding="utf-8")
    names = sorted(path.relative_to(destination).as_posix() for path in destination.rglob("*") if path.is_file())
    for name in names:
        _check(destination, name)
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
        FileNotFoundError: when there is no such model, or it has no manifest.
        ValueError: when the report is of another schema version.
    """
    manifest, audit = (find_file(name_or_path, name, revision=revision, token=token) for name in (MANIFEST, AUDIT))
    if manifest is None:
        raise FileNotFoundError(f"{str(name_or_path)!r} holds no {MANIFEST}: it was not unlearned with ec_hf")
    return Published(_read(manifest) or {}, None if audit is None else AuditReport.load(audit))


@contextmanager
def explained(repo_id: str, folder: str | Path | None = None, options: dict[str, Any] | None = None) -> Iterator[None]:
    """The one place where what goes wrong with a push becomes a `PushError` that says how to mend it.

    Args:
        repo_id: the repository.
        folder: the finished model; None before there is one.
        options: of the push, for the command that repeats it.
    """
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        message = f"The push to {repo_id!r} failed: {_cause(error, repo_id)}"
        if folder is not None:
            message += f"\nThe model stays in {str(folder)!r}. Push it again with:\n  "
            message += _command(folder, repo_id, options or {})
        raise PushError(message) from error


def _cause(error: Exception, repo_id: str) -> str:
    """What went wrong, and what to do about it."""
    while type(error) is RuntimeError and isinstance(error.__cause__, Exception):  # "Error while uploading ..."
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    log_in = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"
    causes = {
        401: f"the Hub knows no such token, or none was given; {log_in}",
        403: f"this token may not write to {repo_id!r}: the name belongs to someone else, or the token only reads. "
        f"Choose a name of your own, or {log_in}",
        404: f"the Hub shows this token no such repository or branch; {log_in}",
        413: "a file is larger than the Hub takes; save the weights in smaller files with "
        "model.save_pretrained(folder, max_shard_size='1GB')",
        429: "the Hub takes no more requests for now; wait a while",
    }
    if status is not None:
        said = getattr(error, "server_message", None) or f"status {status}"
        refused = f"the Hub {'is in trouble' if status >= 500 else 'refused it'} ({said})"
        return causes.get(status, refused + "; try again later" * (status >= 500))
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; make room in {gettempdir()!r}, or set TMPDIR to another folder"
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.split(".")[0].startswith("httpx"):
        return f"no connection to the Hub ({_first_line(error)}); check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    return _first_line(error)


def _command(folder: str | Path, repo_id: str, options: dict[str, Any]) -> str:
    flags = []
    for name, value in options.items():
        if name != "token" and value not in (None, False, "hashes", "keep"):
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(["ec-hf", "push", str(folder), repo_id, *flags])


def _full_id(repo_id: str, token: str | bool | None) -> str:
    """A name without an owner belongs to the owner of the token."""
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def _upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
) -> str:
    """One commit that makes the repository's share of `OURS` equal to the folder."""
    api = HfApi(token=token, library_name="ec_hf", library_version=__version__)
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(url.repo_id).private:
        raise ValueError("the repository is there already and public; make it private on the Hub, or choose another")
    if revision:
        api.create_branch(url.repo_id, branch=revision, exist_ok=True)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    gone = [
        name
        for name in api.list_repo_files(url.repo_id, revision=revision)
        if name not in files and any(fnmatch(name, pattern) for pattern in OURS)
    ]
    api.create_commit(
        url.repo_id,
        [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in gone),
        ],
        commit_message=commit_message,
        revision=revision,
    )
    return f"{url}/tree/{revision}" if revision else str(url)


def _push_heads(folder: Path, repo_id: str, target: dict[str, Any]) -> None:
    with TemporaryDirectory() as staged:
        _copy_heads(folder, Path(staged))
        text = ECHeads.from_pretrained(staged).generate_model_card()
        if base := (_read(folder / RECORD) or {}).get("base_model"):
            text.data["base_model"] = base
        text.save(Path(staged, CARD))
        _upload(Path(staged), repo_id, commit_message="EC heads", **target)


def _copy_heads(folder: Path, destination: Path) -> None:
    if not (folder / HEADS / "model.safetensors").is_file():
        raise FileNotFoundError(f"with_heads: {str(folder)!r} holds no {HEADS}/ with EC heads")
    _copy(folder / HEADS, destination, "config.json", "model.safetensors")


def _write_finished(
    folder: Path, destination: Path, record: dict[str, Any] | None, how: str, with_heads: bool | str
) -> None:
    if (before := (record or {}).get("finish", "keep")) != "keep":
        raise ValueError(f"finish={how!r}: this model was finished already ({before}); push it with finish='keep'")
    if how == "drop" and with_heads:
        raise ValueError("finish='drop' leaves fewer classes than the EC heads know: publish these without with_heads")
    model = AutoModelForImageClassification.from_pretrained(folder)
    finished(model, _forgotten_labels(folder, model.config.id2label), how).save_pretrained(destination)


def _forgotten_labels(folder: Path, id2label: dict[int, str]) -> list[int]:
    """The model's ids of the classes that were forgotten as a whole: as the audit knows them, else by their names."""
    if (folder / AUDIT).is_file() and (known := AuditReport.load(folder / AUDIT).request.get("classes")):
        return known
    names = wholly_forgotten(_read(folder / MANIFEST) or {"parts": {"forget": {}, "retain": {}}})
    ids = {name: label for label, name in id2label.items()}
    if unknown := [name for name in names if name not in ids]:
        raise ValueError(f"finish: the model has no label named {unknown}; audit the model first, which matches them")
    return [ids[name] for name in names]


def _weights(folder: Path) -> list[str]:
    """The safetensors files that `from_pretrained` would load."""
    if (folder / WEIGHTS[0]).is_file():
        return [WEIGHTS[0]]
    index = _read(folder / WEIGHTS[1])
    if index is None:
        raise FileNotFoundError(f"{str(folder)!r} holds no model.safetensors: save the model with save_pretrained")
    return [WEIGHTS[1], *sorted(set(index["weight_map"].values()))]


def _copy(folder: Path, destination: Path, *names: str) -> None:
    for name in names:
        if (folder / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, destination / name)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _check(folder: Path, name: str) -> None:
    """Refuse a file that is not on the list, or a text that names a token or a path of this machine."""
    if not any(fnmatch(name, pattern) for pattern in OURS):
        raise ValueError(f"{name} is not among the files that are published")
    if name.endswith((".safetensors", ".png")):
        return
    text = EMBEDDED.sub("", (folder / name).read_text(encoding="utf-8"))
    token = get_token()
    if TOKEN.search(text) or (token and token in text):
        raise ValueError(f"{name} holds a Hub token: take it out, and revoke the token if it was seen by others")
    if found := PATH.search(text):
        raise ValueError(f"{name} names a path of this machine, {found[0]!r}: take it out")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
