"""Long lists of classes to forget: from a file, or drawn at random from those of a dataset."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from ec_hf.data.columns import class_names_of, find_label_column
from ec_hf.data.requests import ForgetRequest

__all__ = ["RandomClasses", "read_class_list"]


@dataclass(frozen=True)
class RandomClasses:
    """A request for so many classes, whichever they are; it becomes a `ForgetRequest` once the dataset is known.

    Args:
        count: number of classes.
        seed: seed of the draw; the same seed and dataset give the same classes.

    Raises:
        ValueError: for a count below 1.
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"forget_random_classes={self.count}: expected the number of classes to draw, 1 or more")

    def among(self, train: Dataset, label_column: str | None = None) -> ForgetRequest:
        """The classes that are drawn, by their label values, since two classes may have one name.

        Args:
            train: the training set; its images are not read.
            label_column: as for `split`.

        Raises:
            ValueError: as `find_label_column`, and where no class would be left to retain.
        """
        values = sorted(class_names_of(train, find_label_column(train, label_column)))
        if self.count >= len(values):
            raise ValueError(
                f"forget_random_classes={self.count}: the data has {len(values)} classes, of which at least one must "
                "be left to retain"
            )
        return ForgetRequest(classes=random.Random(self.seed).sample(values, self.count))


def read_class_list(path: str | Path) -> ForgetRequest:
    """A request for the classes in a text file, a name or label id a line; empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no text, or names no class.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no class list {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no class list: expected text, a class name or label id a line") from error
    if not (classes := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"{path} is no class list: it names no class; expected a class name or label id a line")
    return ForgetRequest(classes=classes)
