"""`Finding`: one thing that an audit says of a model or of itself; the verdict is a list of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ec_hf.auditing.report import Status
from ec_hf.reporting.labels import model_label

__all__ = ["Finding", "Kind", "Topic", "by_model"]

Topic = Literal[
    "summary",
    "output",
    "scores",
    "layers",
    "probe",
    "neighbours",
    "attacks",
    "membership",
    "8 bits",
    "rest",
    "ranking",
    "blind metrics",
    "references",
]
Kind = (
    # of signals: where a retrained model shows how far forgetting should go
    Status
    | Literal[
        # of the output and of what is read from it, without a retrained model: does it still know?
        "known",
        "not named",
        # of the layers, by their similarity and by the probe, without a retrained model
        "kept",
        "partly",
        "moved",
        # no answer
        "unknown",
        # of attacks: is half of the original's accuracy back at some strength that was tried?
        "back",
        "not back",
        # of the rest
        "intact",
        "hidden loss",
        "hurt",
        # of the audit itself
        "ranked",
        "with retrained",
        "without retrained",
    ]
)


@dataclass(frozen=True)
class Finding:
    """What an audit says on one topic.

    Attributes:
        model: name of the model in the report; None for what is about the audit itself.
        topic: what was looked at; "summary" is the headline of a model.
        kind: what came out, for programs.
        text: the same for readers, with the numbers behind it; it begins with a small letter where there is a model.
    """

    model: str | None
    topic: Topic
    kind: Kind
    text: str

    @property
    def sentence(self) -> str:
        """The text as a sentence of its own: its first letter is a capital."""
        return self.text[0].upper() + self.text[1:]

    def __str__(self) -> str:
        """A line for a terminal: the name of the model, where there is one, and the text."""
        return self.text if self.model is None else f"{model_label(self.model)}: {self.text}"


def by_model(findings: Iterable[Finding]) -> dict[str | None, list[Finding]]:
    """The findings on each model, in their order; under None those on the audit itself."""
    found: dict[str | None, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.model, []).append(finding)
    return found
