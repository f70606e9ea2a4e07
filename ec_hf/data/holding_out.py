"""Images that are held out of an erasure: a run decides on these, and never on the test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
from datasets import Dataset

from ec_hf.data.columns import find_label_column, read_column
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.sampling import drawn_of_each_class
from ec_hf.data.splitting import forget_mask, id_values

__all__ = ["MOST", "SHARE", "HeldOut", "hold_out"]

SHARE = 0.1
MOST = 1000
"""Images a side, about; so many tell one point of accuracy from another."""
FEW = 50


@dataclass(frozen=True)
class HeldOut:
    """What an erasure trains on, and what it is evaluated on meanwhile; by side, "forget" and "retain".

    Attributes:
        train: the images that it trains on.
        evaluated: the images that decide when it stops and whether it has gone too far. Where rows of classes that
            stay are forgotten there is a third part, "matched": of the held-out retain images some of the forgotten
            rows' classes, in the same shares.
        held_out: whether the images that decide are held out of its training; if not, they are part of it.
        whole_classes: whether the request names classes.
        share: of the training images that was to be held out.
        seed: seed of the random draw.
    """

    train: dict[str, Dataset]
    evaluated: dict[str, Dataset]
    held_out: dict[str, bool]
    whole_classes: bool
    share: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Counts and origin of the images that decide, as JSON values for the run record."""
        sides = {side: {"images": len(part), "held_out": self.held_out[side]} for side, part in self.evaluated.items()}
        return {**sides, "share": self.share, "seed": self.seed}

    def sentences(self) -> list[str]:
        """In words, which images decide what."""
        forget, retain = (_images(len(self.evaluated[side]), side) for side in ("forget", "retain"))
        where = {True: "held out of the erasure's training", False: "that it trains on"}
        of_forget, of_retain = (where[self.held_out[side]] for side in ("forget", "retain"))
        origin = f"{forget} {of_forget} and {retain} {of_retain}"
        if of_forget == of_retain:
            origin = f"{forget} and {retain} {of_forget}"
        lines = [
            f"When to stop and whether to go back is decided on {origin}; the original was trained on all of these. "
            "The test images decide nothing: the audit alone looks at them."
        ]
        if not self.held_out["forget"]:
            lines.append("No forget image is held out: every row that the request names is erased.")
        if not self.whole_classes:
            matched = self.evaluated.get("matched", ())
            known = f"the {_images(len(matched), 'retain')} of the same classes that are held out" if matched else ""
            lines.append(
                "A model that never saw the forgotten rows would name them about as often as other unseen images, and "
                "not as rarely as by chance: the run may stop once they are named no more often than "
                f"{known or 'by chance, for no image of their classes is held out'}; forget_target names another "
                "accuracy."
            )
        sides = ("forget", "retain")
        if few := [side for side in sides if len(self.evaluated[side]) < FEW]:
            worth = ", ".join(f"{100 / len(self.evaluated[side]):.1f} points of {side} accuracy" for side in few)
            lines.append(f"Few images decide: one of them is worth {worth}.")
        return lines


def hold_out(
    train: Dataset,
    request: ForgetRequest,
    *,
    earlier: Sequence[ForgetRequest] = (),
    share: float = SHARE,
    most: int = MOST,
    seed: int = 0,
    label_column: str | None = None,
    id_column: str | None = None,
) -> HeldOut:
    """Take a class-stratified part of the training images out of an erasure, for forget and retain alike.

    Forget images are held out of the classes that the request names. Rows that it names by index, id or column are
    all erased. Copies of a held-out row, in memory or by `id_column`, are held out with it, and a class always keeps
    images to train on. Where a side has nothing to hold out, its training images are evaluated themselves.

    Args:
        train: the training set, in which the request names rows.
        request: what is forgotten.
        earlier: requests that the model met before; what they name is on neither side.
        share: of each class of a side, 0 to 0.5; 0 holds nothing out.
        most: images of a side, about.
        seed: seed of the random draw.
        label_column: as for `split`.
        id_column: as for `split`.

    Raises:
        TypeError: as `split`.
        ValueError: as `split`, and for a share out of range.
    """
    if not 0 <= share <= 0.5 or most < 1:
        raise ValueError(f"hold_out={share}: expected a share of the training images from 0 to 0.5, such as {SHARE}")
    columns: dict[str, Any] = {"label_column": find_label_column(train, label_column), "id_column": id_column}
    forget = forget_mask(train, request, **columns)
    sides = {"forget": forget, "retain": ~forget_mask(train, reduce(or_, earlier, request), **columns)}
    may_go = {"forget": forget & _named_by_class(train, request, **columns), "retain": sides["retain"]}
    held = np.zeros(len(train), dtype=bool)
    if share:
        held = _drawn(train, sides, may_go, share, most, seed, **columns)
    labels = _codes(train, columns["label_column"])
    chosen, is_held = {}, {}
    for side, rows in sides.items():
        is_held[side] = bool((held & rows).any())
        trained = np.flatnonzero(rows & ~held)
        sample = trained[drawn_of_each_class(labels[trained], _quota(labels[trained], 1.0, most, seed), seed)]
        chosen[side] = np.flatnonzero(held & rows) if is_held[side] else sample
    if is_held["retain"] and not request.classes:
        matched = _matched(labels, chosen["retain"], np.flatnonzero(forget), seed)
        chosen, is_held = (
            (chosen | {"matched": matched}, is_held | {"matched": True}) if len(matched) else (chosen, is_held)
        )
    return HeldOut(
        {side: train.select(np.flatnonzero(rows & ~held)) for side, rows in sides.items()},
        {side: train.select(rows) for side, rows in chosen.items()},
        is_held,
        bool(request.classes),
        share,
        seed,
    )


def _matched(labels: np.ndarray, rows: np.ndarray, forgotten: np.ndarray, seed: int) -> np.ndarray:
    """Of some rows as many as there are with the classes of the forgotten ones in the same shares.

    A class of which there is no row is left out.
    """
    of_class = {label: rows[labels[rows] == label] for label in np.unique(labels[forgotten])}
    of_class = {label: there for label, there in of_class.items() if len(there)}
    share = {label: (labels[forgotten] == label).sum() for label in of_class}
    size = min((len(there) / share[label] for label, there in of_class.items()), default=0.0)
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(there)[: max(1, int(size * share[label] + 1e-9))] for label, there in of_class.items()
    ]
    return np.sort(np.concatenate(drawn)) if drawn else rows[:0]


def _images(count: int, side: str) -> str:
    return f"{count:,} {side} image{'' if count == 1 else 's'}"


def _named_by_class(train: Dataset, request: ForgetRequest, label_column: str, id_column: str | None) -> np.ndarray:
    """True for rows that go because of their class, and for no other reason."""
    if not request.classes:
        return np.zeros(len(train), dtype=bool)
    by_class = forget_mask(train, ForgetRequest(classes=request.classes), label_column, None)
    rest = replace(request, classes=()) if request.rows or request.ids or request.where else None
    return by_class & ~forget_mask(train, rest, label_column, id_column) if rest else by_class


def _drawn(
    train: Dataset,
    sides: dict[str, np.ndarray],
    may_go: dict[str, np.ndarray],
    share: float,
    most: int,
    seed: int,
    label_column: str,
    id_column: str | None,
) -> np.ndarray:
    """True for the rows that are held out. What is drawn is an id, with all of its rows."""
    labels, units = _codes(train, label_column), _units(train, id_column)
    bound = {side: units[sides[side] & ~rows] for side, rows in may_go.items()}
    free = {side: rows & ~np.isin(units, bound[side]) for side, rows in may_go.items()}
    every = np.flatnonzero(free["forget"] | free["retain"])
    if not len(every):
        return np.zeros(len(train), dtype=bool)
    first = every[np.unique(units[every], return_index=True)[1]]  # one row stands for each id
    counts: dict[int, int] = {}
    for rows in free.values():
        of_side = labels[first[rows[first]]]
        a_unit = max(1.0, rows.sum() / max(1, len(of_side)))
        quota = _quota(of_side, share, max(1, int(most / a_unit)), seed)
        counts |= dict(zip(np.unique(of_side).tolist(), quota.tolist(), strict=True))
    drawn = first[drawn_of_each_class(labels[first], [counts[label] for label in np.unique(labels[first])], seed)]
    if not len(drawn):
        return np.zeros(len(train), dtype=bool)
    copies = forget_mask(train, ForgetRequest(rows=drawn.tolist()), label_column, id_column)
    return copies & (free["forget"] | free["retain"])


def _quota(labels: np.ndarray, share: float, most: int, seed: int) -> np.ndarray:
    """How many of each class there are to be, in proportion; below a share of 1 never all of a class.

    What is left by rounding down goes to the classes that lost most by it; between equals, a random draw decides.
    """
    present = np.unique(labels, return_counts=True)[1]
    if not len(present):
        return present
    total = min(max(1, round(share * present.sum())), most)
    exact = present * (total / present.sum())
    most_of_each = present if share == 1 else present - 1
    counts = np.minimum(np.floor(exact).astype(int), most_of_each)
    room = most_of_each - counts
    lost = np.lexsort((np.random.default_rng(seed).random(len(present)), counts - exact))
    lost = lost[room[lost] > 0]
    counts[lost[: max(0, total - counts.sum())]] += 1
    return counts


def _codes(dataset: Dataset, column: str) -> np.ndarray:
    return read_column(dataset, column).combine_chunks().dictionary_encode("encode").indices.to_numpy()


def _units(dataset: Dataset, id_column: str | None) -> np.ndarray:
    """A number for each id; rows without one have a number of their own."""
    if id_column is None:
        return np.arange(len(dataset))
    codes = id_values(dataset, id_column).combine_chunks().dictionary_encode().indices
    own = len(dataset) + np.arange(len(dataset))
    return np.where(codes.is_null().to_numpy(zero_copy_only=False), own, codes.fill_null(0).to_numpy())
