"""Publish a finished model folder on the Hub, and read back what was published with one.

A push sends the files of an allow-list, reduced to the detail that the user allows, in one commit: weights and card
change together or not at all. If a push fails, the folder stays as it is and the error names the command that pushes
again.
"""

from __future__ import annotations

import errno
import logging
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from yaml import YAMLError

from ec_hf._version import __version__
from ec_hf.auditing.report import AuditReport
from ec_hf.data.documents import checked_manifest
from ec_hf.files import (
    AUDIT,
    CARD,
    MANIFEST,
    RECORD,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelFolder,
    find_file,
    first_line,
    read_json,
)
from ec_hf.publishing.export import Choices, export, export_heads_alone, files_in, is_allowed, named_in
from ec_hf.publishing.weights import SHARDS

__all__ = ["Published", "PushError", "explained", "load_report", "push", "push_later"]


logger = logging.getLogger(__name__)
FEW = 5
LARGEST = 256 * 2**20
"""Bytes of the largest manifest or audit that is read: that of a thousand classes has a hundredth of it."""


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
    overwrite: bool = False


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
    overwrite: bool = False,
) -> str:
    """Publish a finished model folder. Files of an earlier push that are not in this one are deleted.

    A file that no push writes is never touched. In a repository that no push has made, no file is replaced or deleted
    without `overwrite`. What an earlier commit showed stays in the history of the repository: to take it back, delete
    the repository.

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
            `ec_hf.models.finish`. The audit stays that of the model before it. "mask" and "drop" show by their nature
            which classes were forgotten, whatever `manifest_detail` says.
        license: a licence id of the Hub; None for that of the base model.
        readme: file with your own card, published as it is instead of the generated one.
        overwrite: whether files of the same names, and all weights, are replaced in a repository that no push has
            made.

    Returns:
        Address of the repository.

    Raises:
        PushError: the push failed; the message names the command that tries again.

    Example:
        >>> push("out", "USER/NAME", private=True, manifest_detail="classes", finish="drop")  # doctest: +SKIP
    """
    target = _Target(repo_id, private, token, revision, overwrite)
    choices = Choices(with_heads, manifest_detail, finish, license, readme)
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
    overwrite: bool = False,
) -> Future[str]:
    """`push` with the upload in the background; the folder may change or be deleted once this returns.

    A failed upload is logged as a warning, and its error is raised by the future's `result`.

    Raises:
        PushError: the files could not be prepared for the upload.
    """
    target = _Target(repo_id, private, token, revision, overwrite)
    choices = Choices(with_heads, manifest_detail, finish, license, readme)
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
        ValueError: a file is too large, or no manifest or report of a version that this one reads.

    Example:
        >>> published = load_report("USER/NAME")  # doctest: +SKIP
        >>> published.audit.status  # doctest: +SKIP
        {'EC': 'as retrained'}
    """
    manifest, audit = (find_file(name_or_path, name, revision=revision, token=token) for name in (MANIFEST, AUDIT))
    if manifest is None:
        raise FileNotFoundError(f"{str(name_or_path)!r} holds no {MANIFEST}: it was not unlearned with ec_hf")
    for path in filter(None, (manifest, audit)):
        if (size := path.stat().st_size) > LARGEST:
            raise ValueError(f"{path} has {size:,} bytes: no manifest and no audit has more than {LARGEST:,}")
    document = checked_manifest(read_json(manifest), str(manifest))
    return Published(document, None if audit is None else AuditReport.load(audit))


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


def _retry(folder: str | Path, target: _Target, choices: Choices) -> str:
    """Where the model is, and the command that pushes it again, without flags that have their default value."""
    defaults = asdict(Choices())
    flags = []
    for name, value in {**asdict(target), **asdict(choices)}.items():
        if name in ("repo_id", "token"):
            continue
        if value and value != defaults.get(name):
            flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    command = shlex.join(["ec-hf", "push", str(folder), target.repo_id, *flags])
    return f"The model stays in {str(folder)!r}. Push it again with:\n  {command}"


def _stage(folder: str | Path, staged: Path, target: _Target, choices: Choices) -> None:
    """Write what will be uploaded: ``model``, and ``heads`` if they go to a repository of their own."""
    repo_id = _with_owner(target.repo_id, target.token)
    if choices.heads_repo_id:
        if _with_owner(choices.heads_repo_id, target.token) == repo_id:
            raise ValueError(
                f"with_heads={choices.heads_repo_id!r} is the model's own repository, whose files have the same "
                "names: name another one, or publish the heads in ec_heads/ with with_heads=True"
            )
        export_heads_alone(ModelFolder(folder), staged / "heads", choices.manifest_detail)
    export(folder, staged / "model", repo_id=repo_id, token=target.token, **vars(choices))
    hidden = named_in(ModelFolder(folder), choices.manifest_detail)
    base = ModelFolder(staged / "model").read(RECORD).get("base_model")
    for what, name in (("repository", repo_id), ("base model", base)):
        if name and hidden.hides(name):
            logger.warning(
                "The name of the %s, %r, tells what manifest_detail=%r withholds.", what, name, choices.manifest_detail
            )


def _upload_staged(staged: Path, target: _Target, choices: Choices, commit_message: str) -> str:
    if choices.heads_repo_id:
        _upload(staged / "heads", replace(target, repo_id=choices.heads_repo_id), "EC heads", heads=True)
    return _upload(staged / "model", target, commit_message)


def _with_owner(repo_id: str, token: str | bool | None) -> str:
    """The full id of a repository: a name without an owner belongs to the owner of the token."""
    return repo_id if "/" in repo_id else f"{HfApi(token=token).whoami()['name']}/{repo_id}"


def _upload(folder: Path, target: _Target, commit_message: str, *, heads: bool = False) -> str:
    """Make the repository's allowed files equal to those of a folder, of a model or of EC heads, in one commit.

    Returns:
        Address of the repository.
    """
    api = HfApi(token=target.token, library_name="ec_hf", library_version=__version__)
    url = api.create_repo(target.repo_id, private=target.private, exist_ok=True)
    if target.private and not api.repo_info(url.repo_id).private:
        raise ValueError("the repository is there already and public; make it private on the Hub, or choose another")
    if target.revision:
        api.create_branch(url.repo_id, branch=target.revision, exist_ok=True)
    names = files_in(folder)
    old = api.list_repo_files(url.repo_id, revision=target.revision)
    deleted = _deleted(api, url.repo_id, names, old, target, heads=heads)
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


def _deleted(
    api: HfApi, repo_id: str, names: Sequence[str], old: Sequence[str], target: _Target, *, heads: bool = False
) -> list[str]:
    """The files that a push takes away: those of an earlier push, or weights that would be loaded in place of ours.

    Raises:
        ValueError: the repository holds files that no push wrote, and the user did not say to replace them.
    """
    gone = [name for name in old if is_allowed(name) and name not in names]
    if _is_ours(api, repo_id, old, target, heads=heads):
        return gone
    weights = [name for name in gone if name in (WEIGHTS, WEIGHTS_INDEX) or fnmatch(name, SHARDS)]
    if (lost := [*(name for name in old if name in names), *weights]) and not target.overwrite:
        more = f" and {len(lost) - FEW} more" if len(lost) > FEW else ""
        raise ValueError(
            f"the repository was not made by ec_hf, or not for {'EC heads' if heads else 'a model'}, and this push "
            f"would replace or delete {', '.join(lost[:FEW])}"
            f"{more}. Choose another name, or say so with --overwrite (in Python overwrite=True)"
        )
    return weights


def _is_ours(api: HfApi, repo_id: str, old: Sequence[str], target: _Target, *, heads: bool = False) -> bool:
    """Whether an earlier push of the same kind made the repository: its record or manifest says so, or its card."""
    if RECORD in old or MANIFEST in old:
        return not heads
    if CARD not in old:
        return False
    try:
        text = ModelCard.load(api.hf_hub_download(repo_id, CARD, revision=target.revision)).data
    except (ValueError, YAMLError):  # a card that cannot be read is not one of ours
        return False
    told = (text.library_name, *(text.tags or ()))
    return "ec_hf" in told and ("ec-heads" in told) == heads
