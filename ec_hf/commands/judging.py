"""What a command says of an audit to a program: a status, and the exit code that follows from it."""

from __future__ import annotations

from typing import Any

__all__ = ["BAD", "FAIL_HELP", "NOT_FORGOTTEN", "passes", "told"]

NOT_FORGOTTEN = 3
BAD = ("untouched", "under-erased", "known", "unknown", "blind")
"""Statuses that do not pass `--fail_unless_forgotten`, nor does "unclear" beside a retrained model.

Without a retrained model "unclear" is the best there is.
"""
FAIL_HELP = f"End with exit code {NOT_FORGOTTEN} where the audit does not find the request forgotten."
EXIT_CODE = f"""{NOT_FORGOTTEN} all is written and, with --fail_unless_forgotten, the audit's status is one of
{", ".join(BAD)};
beside a retrained model unclear is one of them, without one it is the best there is."""


def passes(status: str, report: Any) -> bool:
    """Whether a status is the best that it could be, or says that too much was erased.

    Args:
        status: of an unlearned model.
        report: the `AuditReport` that it is from.
    """
    judged = any(info.role == "retrained" for info in report.models.values())
    return status not in BAD and not (judged and status == "unclear")


def told(report: Any) -> dict[str, dict[str, Any]]:
    """Status, headline and accuracies of each unlearned model, as JSON values.

    Args:
        report: an `AuditReport`.
    """
    from ec_hf.reporting.verdict import findings

    headlines = {each.model: each for each in findings(report) if each.topic == "summary" and each.model}
    accuracies: dict[str, dict[str, float | None]] = {}
    for each in report.find("accuracy"):
        accuracies.setdefault(each.model, {})[str(each.split)] = each.value
    return {
        name: {"status": each.kind, "headline": each.text, "accuracies": accuracies.get(name, {})}
        for name, each in headlines.items()
    }
