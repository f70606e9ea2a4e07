"""What a request names, and whether a text tells it: texts are withheld for what they hold, wherever they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from ec_hf.auditing.report import AuditReport
from ec_hf.data.manifests import whole_class_names

__all__ = ["FLAG", "LISTED", "Named", "named_by", "words_of"]

SHORT = 4
"""A shorter name hides a text only where it stands as a word of its own: "ant" is not in "want"."""
LONG = 5
"""A number of fewer digits may be a size, a step or a count in any file."""
COUNTED = r"images?|labels|classes|steps?|signals?|models?|retrained|processe?s?|bits|layers?|points?|channels|rows"
FLAG = re.compile(r"--?[A-Za-z]")
LISTED = re.compile(r"\b(?:labels?|class(?:es)?|ids?|rows?|ind(?:ex|exes|ices))\b[\s:=()\[{#]*\d", re.IGNORECASE)
"""Numbers behind such a word are withheld whatever they are: a gap for some numbers alone would tell these."""


@dataclass(frozen=True)
class Named:
    """Names and numbers that must not be told.

    Attributes:
        names: names of classes, and texts among ids and values of columns.
        numbers: label ids, rows, and numbers among ids and values of columns.
        older: those of them that a text from before the request may not tell either: what earlier requests named, and
            whom this one is about. The name of a base model that knows cats tells nothing of a request to forget them.
    """

    names: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    older: frozenset[str] = frozenset()

    def __or__(self, other: Named) -> Named:
        return Named(self.names | other.names, self.numbers | other.numbers, self.older | other.older)

    @cached_property
    def before(self) -> Named:
        """What a text from before the request may not tell."""
        return Named(self.names & self.older, self.numbers & self.older)

    def hides(self, text: str) -> bool:
        """Whether a text tells one of the names, in any case, spelling of its blanks or URL encoding."""
        return bool(self._names) and any(self._names.search(form) for form in (text, unquote(text)))  # type: ignore[union-attr]

    def hides_value(self, value: Any) -> bool:
        """Whether a value tells a name, or a number that is too long to stand there by chance."""
        text = value if isinstance(value, str) else str(value)
        return self.hides(text) or bool(self._long and self._long.search(text))

    def hides_sentence(self, text: str) -> bool:
        """Whether a sentence tells a name, a number, or lists labels, classes, ids or rows by their numbers."""
        told = self.hides(text) or LISTED.search(text)
        return bool(told or (self._numbers and self._numbers.search(text)))

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        patterns = [_pattern(name) for name in sorted(self.names, key=len, reverse=True)]
        return re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    @cached_property
    def _long(self) -> re.Pattern[str] | None:
        """Numbers of so many digits, wherever they stand by themselves."""
        long = [re.escape(number) for number in self.numbers if len(number) >= LONG]
        return re.compile(rf"(?<!\w)(?:{'|'.join(long)})(?!\w)") if long else None

    @cached_property
    def _numbers(self) -> re.Pattern[str] | None:
        """The numbers where they count nothing and are no part of another number, of a name or of a hash."""
        if not self.numbers:
            return None
        numbers = "|".join(map(re.escape, sorted(self.numbers)))
        return re.compile(rf"(?<![\w.,-])(?<!request )(?:{numbers})(?![\w%]|[.,]\d| %| (?:{COUNTED})\b)")


def named_by(
    manifest: Mapping[str, Any],
    report: AuditReport | None = None,
    config: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    *,
    detail: str = "hashes",
) -> Named:
    """What the files of a folder name of its request and of the earlier ones, and may not be told.

    Args:
        manifest: forget_manifest.json; empty if there is none.
        report: the audit, which knows the label ids of forgotten classes.
        config: config.json, which knows the names of label ids.
        record: ec_config.json, whose command has the classes as they were typed.
        detail: what may be told, one of `ec_hf.publishing.disclosure.DETAILS`.
    """
    if detail == "rows":
        return Named()
    documents = [document for document in (manifest, *manifest.get("history", ())) if document]
    found = [_also_before(_rows_and_values(document)) for document in documents]
    if detail == "hashes":
        labels = _label_names(report, config)
        found += [_classes(document, labels) for document in documents]
        found += [_also_before(_classes(document, labels)) for document in documents[1:]]
        found.append(_named(_typed((record or {}).get("command"))))
        if report is not None:
            known = report.request.get("classes", ())
            found.append(_named([labels[str(k)] for k in known if str(k) in labels], known))
            found.append(_named([name for table in report.confusion.values() for name in table]))
    return _union(found)


def _also_before(named: Named) -> Named:
    return Named(named.names, named.numbers, named.names | named.numbers)


def _union(parts: Iterable[Named]) -> Named:
    result = Named()
    for part in parts:
        result |= part
    return result


def _typed(command: str | None) -> list[str]:
    """The words behind the flags of a command that say what to forget."""
    words, forgets, found = words_of(command), False, []
    for word in words:
        if FLAG.match(word):
            flag, _, value = word.lstrip("-").partition("=")
            forgets = flag.startswith("forget")
            found += [value] if forgets and value else []
        elif forgets:
            found.append(word)
    return found


def words_of(command: Any) -> list[str]:
    """The words of a command line; none of what is no command line."""
    try:
        return shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # a quote without its partner
        return command.split()


def _rows_and_values(document: Mapping[str, Any]) -> Named:
    content = document["request"].get("content") or {}
    values = [value for entries in (content.get("ids") or {}).values() for value in entries or ()]
    for clause in content.get("where") or ():
        for key, given in clause.items():
            if key != "column":
                values += given if isinstance(given, (list, tuple)) else [given]
    return _named([*values, *(content.get("rows") or ())])


def _classes(document: Mapping[str, Any], labels: Mapping[str, str]) -> Named:
    """The classes of a request: those it names itself, and those that it takes away as a whole."""
    given = (document["request"].get("content") or {}).get("classes", [])
    names = [*given, *whole_class_names(document), *(labels[str(k)] for k in given if str(k) in labels)]
    ids = [int(label) for label, name in labels.items() if name in names]
    return _named(names, ids)


def _label_names(report: AuditReport | None, config: Mapping[str, Any] | None) -> dict[str, str]:
    names = dict(enumerate(report.dataset.get("class_names") or [])) if report is not None else {}
    model = (config or {}).get("id2label")
    known = names or (model if isinstance(model, Mapping) else {})
    return {str(label): str(name) for label, name in known.items()}


def _named(values: Iterable[Any], numbers: Iterable[int] = ()) -> Named:
    """Texts and numbers apart; a text of digits alone is a number, "tench, Tinca tinca" is a name of two parts."""
    texts, found = set(), {str(number) for number in numbers}
    for value in values:
        if isinstance(value, bool):
            continue  # a consent that is false is no name
        text = str(value).strip()
        if isinstance(value, (int, float)) or text.isdecimal():
            found.add(text)
        else:
            texts |= {part.strip() for part in (text, *text.split(",")) if re.search(r"\w", part)}
    return Named(frozenset(texts), frozenset(found))


def _pattern(name: str) -> str:
    """A name with any signs between its words; a short one stands alone, but for the ending of a plural."""
    words = re.findall(r"[^\W_]+", name)
    if not words:
        return re.escape(name)
    body = r"[\W_]*".join(map(re.escape, words))
    return body if len("".join(words)) >= SHORT else rf"(?<![^\W_]){body}(?:e?s)?(?![^\W_])"
