"""Earlier requests: what a model was made to forget before, and whether it still has."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedModel

from ec_hf.batches import ImageCollator
from ec_hf.data import manifest, split
from ec_hf.loading import find_file
from ec_hf.report import Measurement
from ec_hf.requests import ForgetRequest

__all__ = ["MANIFEST", "checked_again", "earlier_manifests", "earlier_requests", "wholly_forgotten"]

MANIFEST = "forget_manifest.json"


def earlier_manifests(
    name_or_path: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> list[dict[str, Any]]:
    """The manifests of all requests that a model has met, oldest first: the `history` of its next one.

    Args:
        name_or_path: local folder or Hub id of the model that a new request is applied to.
        revision: branch, tag or commit on the Hub.
        token: Hub token, or True for the stored one.

    Returns:
        Flat manifests, each without a history of its own and, where the run is on record, with its `date`; none for a
        model that never unlearned.

    Raises:
        FileNotFoundError: when there is no such model.
        ValueError: when its manifest cannot be read.
    """
    try:
        path = find_file(name_or_path, MANIFEST, revision=revision, token=token)
    except FileNotFoundError as error:
        if not isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
        path = None
        warnings.warn(
            f"without a connection to the Hub it is not known what {str(name_or_path)!r} was made to forget before: "
            "the history starts with this request",
            stacklevel=2,
        )
    if path is None:
        return []
    try:
        last = json.loads(path.read_text(encoding="utf-8"))
        earlier = last.pop("history", [])
        record = find_file(name_or_path, "ec_config.json", revision=revision, token=token)
        date = json.loads(record.read_text(encoding="utf-8")).get("date") if record else None
        return [*earlier, last | ({"date": date} if date else {})]
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no forget manifest: {error}") from error


def wholly_forgotten(document: Mapping[str, Any]) -> list[str]:
    """Names of the classes of which a manifest's request left no row; none where it does not name classes."""
    forget, retain = (document["parts"][part].get("per_class") or {} for part in ("forget", "retain"))
    return [name for name in forget if name not in retain]


def earlier_requests(
    history: Sequence[Mapping[str, Any]],
    dataset: Dataset,
    *,
    label_column: str | None = None,
    id_column: str | None = None,
) -> tuple[dict[str, ForgetRequest], list[str]]:
    """The earlier requests themselves: what they name belongs into no retain set, and an audit looks at it again.

    A request is given only where the rows that it names are proved to be those of the time, by `forget_rows_sha256` of
    its manifest.

    Args:
        history: manifests, as from `earlier_manifests`.
        dataset: the training set, the same one for all requests.
        label_column: as for `split`.
        id_column: as for `split`; the hash is over its values, so it must be the one of that time.

    Returns:
        Requests by name ("request 1", counted from the oldest), and a sentence on each that cannot be had.
    """
    requests, notes = {}, []
    columns: dict[str, Any] = {"label_column": label_column, "id_column": id_column}
    for number, document in enumerate(history, start=1):
        name = f"request {number}"
        why = "what its manifest tells does not name the same rows in this data set"
        try:
            request = _request(document)
            if request is None:
                why = f"its published manifest (detail {document.get('detail')!r}) does not say what it named"
            else:
                parts = split(dataset, request, **columns)
                found = manifest(dataset, request, parts, **columns)
                if found["forget_rows_sha256"] == document["forget_rows_sha256"]:
                    requests[name] = request
                    continue
        except (TypeError, ValueError):  # classes or rows that are not there
            pass
        notes.append(
            f"The earlier {name} ({document['request']['hash'][:12]}) cannot be checked again: {why}. Rows that it "
            "named count as retained and may be learnt again, unless the new request names them too."
        )
    return requests, notes


def checked_again(
    sets: Mapping[str, Dataset],
    models: Mapping[str, PreTrainedModel],
    collator: ImageCollator,
    *,
    label_column: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Measurement]:
    """Accuracy of models on the forget sets of earlier requests, for the measurements of an `AuditReport`.

    Started on several processes, they share the images and all return the same.

    Args:
        sets: by name, as `split` makes them of `earlier_requests`; the measurements have the name as their `split`.
        models: by their names in the report.
        collator: makes ``pixel_values`` and ``labels`` for all of them.
        label_column: as for `split`.
        batch_size: images a batch and process.
        seed: of the bootstrap.
    """
    from ec_hf.collect import collect, evaluating  # not for those who only read manifests
    from ec_hf.measure import mean
    from ec_hf.subjects import Subject, labels_of

    subjects = {name: Subject(model, collator) for name, model in models.items()}
    rows, no_features = [], np.empty(0, dtype=int)
    with evaluating(models.values(), PartialState().device):
        for name, part in sets.items():
            labels = labels_of(part, collator, label_column)
            found = collect(subjects, part, labels, no_features, batch_size=batch_size, name=name)
            rows += [mean("accuracy", each, found.outputs[each]["hit"], seed, split=name) for each in models]
    return rows


def _request(document: Mapping[str, Any]) -> ForgetRequest | None:
    """The request of a manifest: as it was written, else by the names of the classes that it took away."""
    if "content" in document["request"]:
        return ForgetRequest.from_dict(document["request"]["content"])
    classes = wholly_forgotten(document)
    return ForgetRequest(classes=classes) if classes else None
