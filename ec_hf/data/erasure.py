"""`ErasureData`: what a request, and those before it, make of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from datasets import Dataset

from ec_hf.data.columns import find_label_column
from ec_hf.data.holding_out import SHARE, HeldOut, hold_out
from ec_hf.data.manifests import earlier_requests, manifest
from ec_hf.data.requests import ForgetRequest
from ec_hf.data.sources import has_test_split, train_and_test
from ec_hf.data.splitting import four_splits, split

__all__ = ["ErasureData"]

NO_TEST_SPLIT = (
    "The data has no test split, so a fifth of each class was taken out of its training images as the test set. A "
    "model that was trained on all of them has seen these test images in training."
)


@dataclass(frozen=True)
class ErasureData:
    """The images of an erasure, and how it came to them.

    Attributes:
        train: the training set.
        test: the test set; nothing but an audit looks at it.
        request: what is forgotten.
        splits: forget_train, retain_train, forget_test and retain_test; retained is what no request names, be it this
            one or an earlier one.
        held_out: what of the training set the erasure trains on, and what it is evaluated on meanwhile.
        earlier: requests that the model met before, by name, where they are known.
        history: their manifests.
        notes: in words, what is not known of the earlier ones, and of the test set.
        columns: label_column and id_column.
    """

    train: Dataset
    test: Dataset
    request: ForgetRequest
    splits: dict[str, Dataset]
    held_out: HeldOut
    earlier: dict[str, ForgetRequest]
    history: Sequence[dict[str, Any]]
    notes: list[str]
    columns: dict[str, Any]

    @classmethod
    def of(
        cls,
        images: Mapping[str, Dataset],
        request: ForgetRequest,
        *,
        history: Sequence[dict[str, Any]] = (),
        share: float = SHARE,
        seed: int = 0,
        label_column: str | None = None,
        id_column: str | None = None,
    ) -> ErasureData:
        """Split a dataset by a request; what earlier requests named is not retained either.

        Args:
            images: datasets by split name, as for `train_and_test`.
            request: what is forgotten.
            history: manifests of the requests that the model met before.
            share: of the training images that is held out, as for `hold_out`.
            seed: seed of what is held out of the training images. The test set, where the data has none, is the same
                for every seed: a model that was trained with another one must not have seen it.
            label_column: as for `split`.
            id_column: as for `split`.

        Raises:
            TypeError: as `split`.
            ValueError: as `train_and_test`, `split` and `hold_out`.
        """
        label_column = find_label_column(next(iter(images.values())), label_column)
        train, test = train_and_test(images, label_column=label_column)
        columns: dict[str, Any] = {"label_column": label_column, "id_column": id_column}
        splits = four_splits(train, test, request, **columns)
        earlier, notes = earlier_requests(history, train, **columns)
        if earlier:
            ever = four_splits(train, test, reduce(or_, earlier.values(), request), **columns)
            splits |= {name: part for name, part in ever.items() if name.startswith("retain")}
        if not has_test_split(images, label_column):
            notes.append(NO_TEST_SPLIT)
        decide = hold_out(train, request, earlier=list(earlier.values()), share=share, seed=seed, **columns)
        return cls(train, test, request, splits, decide, earlier, history, notes, columns)

    @property
    def retain_rows(self) -> int | None:
        """Rows of a retain set that is streamed; None where it tells its length."""
        return None

    def release(self) -> None:
        """Take away what was stored for the run alone."""

    def summary(self) -> str:
        """The request, what came before it, the sizes of all parts, and which images decide; a line each."""
        not_retained = [f"Not retained, by {name}: {each.summary()}" for name, each in self.earlier.items()]
        sizes = ", ".join(f"{name} {len(part):,} images" for name, part in self.splits.items())
        return "\n".join([*not_retained, *self.notes, sizes, *self.held_out.sentences()])

    def manifest(self, name: str | None = None) -> dict[str, Any]:
        """The forget manifest; `name` is the dataset's name."""
        parts = {"forget": self.splits["forget_train"], "retain": self.splits["retain_train"]}
        earlier = list(self.earlier.values())
        columns = self.columns
        return manifest(self.train, self.request, parts, name=name, history=self.history, earlier=earlier, **columns)

    def earlier_sets(self) -> dict[str, Dataset]:
        """The forget sets of the earlier requests, by name."""
        return {name: split(self.train, each, **self.columns)["forget"] for name, each in self.earlier.items()}
