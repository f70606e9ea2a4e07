"""What the rest has lost: retain test images as a whole, and the kept classes one by one."""

from __future__ import annotations

from scipy.stats import binom

from ec_hf.auditing.report import AuditReport, RetainedClass
from ec_hf.reporting.findings import Finding
from ec_hf.reporting.labels import percent
from ec_hf.reporting.reading import above, number, of_role, output

__all__ = ["classes_can_tell", "rest"]

CLASS_ALPHA = 0.05
"""In this share of audits some kept class may be said to have suffered though it differs by chance."""
FEW_CLASSES = 3
RETAIN_LOSS = 0.02
"""Retain accuracy that may be lost before the rest counts as hurt. It is a choice, not measured, and the finding says
so: whoever uses the model must judge the loss."""


def rest(report: AuditReport, name: str) -> Finding | None:
    """Whether accuracy on retain test images has stayed, of all and of each kept class."""
    mine, original = (report.value("accuracy", model=model, split="retain_test") for model in (name, "original"))
    if mine is None or original is None:
        return None
    numbers = f"{percent(mine)} of the retain test images right, the original {percent(original)}"
    numbers += _classes_of_rows(report, name)
    limit = f"{100 * RETAIN_LOSS:.0f} points"
    lost = _lost_classes(report, name)
    if original - mine > RETAIN_LOSS:
        loss = f"a loss of {100 * (original - mine):.1f} points{f'; most of all {lost}' if lost else ''}"
        return Finding(name, "rest", "hurt", f"the rest has suffered: {numbers}, {loss}.")
    if lost:
        return Finding(name, "rest", "hurt", f"single classes have suffered: {lost}; of all, {numbers}.")
    if _rows_hurt(report, name):
        return Finding(name, "rest", "hurt", f"the classes of the forgotten rows have suffered: {numbers}.")
    if hidden := _hidden_loss(report, name):
        return Finding(name, "rest", "hidden loss", f"the rest is named as often as before: {numbers}; {hidden}.")
    stated = f"a loss of up to {limit} counts as none"
    if classes_can_tell(report, name):
        known = f"no single class has lost more than chance, as far as {_fewest(report, name)} images of one can tell"
        return Finding(name, "rest", "intact", f"the rest is intact: {numbers} ({stated}; {known}).")
    stated += ", and single classes can have lost more"
    return Finding(name, "rest", "intact", f"the rest is intact on average: {numbers} ({stated}).")


def _hidden_loss(report: AuditReport, name: str) -> str:
    """A loss that is made up for by answers that can no longer be wrong, in words; "" where there is none.

    Without the forgotten classes among the answers any model names more of the kept images, so that model and
    original are compared with these answers taken from both. What retraining loses as well is no loss.
    """
    models = (name, "original", *of_role(report, "retrained"))
    mine, original, *retrained = (report.value("accuracy_masked", model=each, split="retain_test") for each in models)
    if mine is None or original is None:
        return ""
    if min([original, *(each for each in retrained if each is not None)]) - mine <= RETAIN_LOSS:
        return ""
    return (
        f"but where neither may answer with the forgotten classes, it gets {percent(mine)} and the original "
        f"{percent(original)}, so that {100 * (original - mine):.1f} points were lost on the kept classes"
    )


def _classes_of_rows(report: AuditReport, name: str) -> str:
    """Accuracy on unseen images of the classes of forgotten rows, which must stay; "" for a request of classes."""
    models = {"": name, "the original ": "original"}
    models |= {f"{model} ": model for model in of_role(report, "retrained")}
    known = {whose: output(report, "accuracy_matched", model, "retain_test") for whose, model in models.items()}
    if known[""] is None:
        return ""
    told = ", ".join(f"{whose}{percent(number(each))}" for whose, each in known.items() if each)
    return f"; of unseen images of the forgotten rows' classes {told}"


def _rows_hurt(report: AuditReport, name: str) -> bool:
    """Whether unseen images of the forgotten rows' classes lost more than the limit, and more than chance explains."""
    mine, original = (output(report, "accuracy_matched", each, "retain_test") for each in (name, "original"))
    if mine is None or original is None:
        return False
    return number(original) - number(mine) > RETAIN_LOSS and above(mine, number(original)) < 0


def _lost_classes(report: AuditReport, name: str) -> str:
    """The kept classes that lost images beyond chance, the worst first; "" where none did.

    McNemar's exact test, one-sided: of the images on which model and original differ, is more than half lost? Over all
    kept classes together 5 % are false findings at most (Bonferroni). A class that is wiped out is told without
    that correction, which few images of many classes could never pass.
    """
    classes = report.retained.get(name, {})
    worse = {
        kept: (counts.gained - counts.lost) / counts.images
        for kept, counts in classes.items()
        if counts.lost and _chance_of(counts) < (CLASS_ALPHA if _wiped_out(counts) else CLASS_ALPHA / len(classes))
    }
    told = []
    for kept in sorted(worse, key=lambda each: worse[each])[:FEW_CLASSES]:
        counts = classes[kept]
        before = (counts.right + counts.lost - counts.gained) / counts.images
        told.append(f"{kept} {percent(before)} before, {percent(counts.right / counts.images)} now")
    if len(worse) > FEW_CLASSES:
        told.append(f"and {len(worse) - FEW_CLASSES} more")
    return ", ".join(told)


def _chance_of(counts: RetainedClass) -> float:
    return float(binom.sf(counts.lost - 1, counts.lost + counts.gained, 0.5))


def _wiped_out(counts: RetainedClass) -> bool:
    """Whether the original knew a class, half of its images or more, and the model at most a fifth of those."""
    before = counts.right + counts.lost - counts.gained
    return 2 * before >= counts.images and 5 * counts.right <= before


def classes_can_tell(report: AuditReport, name: str) -> bool:
    """Whether each kept class has so many images that its loss could be told from chance."""
    classes = report.retained.get(name, {})
    return bool(classes) and 0.5 ** _fewest(report, name) < CLASS_ALPHA / len(classes)


def _fewest(report: AuditReport, name: str) -> int:
    return min(counts.images for counts in report.retained[name].values())
