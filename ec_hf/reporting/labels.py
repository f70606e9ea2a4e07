"""How metrics, models, layers, splits and numbers are written for readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import NamedTuple

from ec_hf.auditing.report import AuditReport, Measurement
from ec_hf.metrics import METRICS

__all__ = [
    "ARROWS",
    "MISSING",
    "SHORT",
    "STATUS_WORDS",
    "arrow",
    "attack_words",
    "class_names",
    "interval_text",
    "layer_labels",
    "metric_title",
    "model_label",
    "note_label",
    "percent",
    "position_text",
    "split_label",
    "value_text",
]

MISSING = "—"
PERCENT = frozenset({
    "accuracy", "accuracy_masked", "accuracy_int8", "confidence", "linear_probe", "knn", "knn_downstream", "agreement",
    "mia_svc_efficacy", "mia_svc_member", "mia_lira_tpr", "mia_population_tpr", "accuracy_matched",
    "residual_knowledge", "attack_area",
})  # fmt: skip
SHORT = {
    "accuracy": "accuracy",
    "accuracy_masked": "accuracy, forgotten logits masked",
    "accuracy_matched": "accuracy on unseen images of their classes",
    "residual_knowledge": "named after a small change",
    "accuracy_int8": "accuracy after 8-bit quantisation",
    "entropy": "entropy",
    "linear_cka": "CKA",
    "linear_cka_uuef": "CKA as in UUEF",
    "cka_floor": "CKA of unrelated features",
    "split_half_cka": "CKA of two halves of the channels",
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "knn_downstream": "k-NN, other data set",
    "mia_loss": "membership by loss (AUC)",
    "mia_confidence": "membership by confidence (AUC)",
    "mia_lira": "membership by shadow models (LiRA, AUC)",
    "mia_lira_tpr": "members found at 1 % false alarms (LiRA)",
    "mia_population": "membership by class thresholds (AUC)",
    "mia_population_tpr": "members found at 1 % false alarms (class thresholds)",
    "mia_svc_efficacy": "MIA-efficacy (SVC)",
    "mia_svc_member": "judged as member (SVC)",
    "idi": "IDI",
    "infonce": "InfoNCE",
    "probe_advantage": "probe advantage",
    "attack_area": "under attack",
    "js_divergence": "Jensen-Shannon divergence",
    "activation_distance": "activation distance",
    "agreement": "equal predictions",
    "h_mean": "H-mean",
}


class AttackWords(NamedTuple):
    """How an attack is told.

    Attributes:
        title: a few words.
        by: what makes it stronger.
        way: how it comes about, as the beginning of a sentence on a model.
    """

    title: str
    by: str
    way: str


_FEW, _MORE = "fine-tuned on a few forget images", "fine-tuned on more and more forget images"
_HEAD, _FULL, _LORA = "only its classifier is", "all of its weights are", "only small adapters beside its weights are"
ATTACKS = {
    "relearn_head": AttackWords("classifier fine-tuned", "steps", f"when {_HEAD} {_FEW}"),
    "relearn_full": AttackWords("all weights fine-tuned", "steps", f"when {_FULL} {_FEW}"),
    "relearn_lora": AttackWords("adapters fine-tuned", "steps", f"when {_LORA} {_FEW}"),
    "relearn_head_images": AttackWords("classifier fine-tuned", "images", f"when {_HEAD} {_MORE}"),
    "relearn_full_images": AttackWords("all weights fine-tuned", "images", f"when {_FULL} {_MORE}"),
    "relearn_lora_images": AttackWords("adapters fine-tuned", "images", f"when {_LORA} {_MORE}"),
    "new_head": AttackWords("new classifier", "images", "when its classifier is replaced by a new one"),
    "prompt": AttackWords("prompt learnt", "images", "when it is given a learnt prompt with each image"),
    "quantization": AttackWords("weights rounded", "bits", "when its weights are rounded to fewer and fewer bits"),
    "pruning": AttackWords("weights pruned", "sparsity", "when more and more of its small weights are set to 0"),
}
CONTROLS = ("cka_floor", "split_half_cka")  # what other numbers are read by: no direction is better
ARROWS = "↓ lower is better, ↑ higher is better, ≈ nearer the retrained model is better; in brackets 95 % intervals."
STATUS_WORDS = (
    "Position: 0 is where the original is, 1 where the retrained model is. Untouched: as the original. Under-erased: "
    "more is left than in a retrained model. Unclear: these images are too few. Over-erased: less is left than "
    "in a retrained model. Blind: on these images the signal does not tell the original from a retrained model. In "
    "brackets 95 % intervals; of several retrained models, their range."
)


def arrow(metric: str, split: str | None = None, reference: str | None = None, *, rows: bool = False) -> str:
    """The better direction: "↓" lower, "↑" higher, "≈" nearer the retrained model, "" for an unknown metric.

    Of forgotten rows of kept classes nothing should be low: they are to be as unseen images of their classes.
    """
    if metric not in METRICS or metric in CONTROLS:
        return ""
    if rows and split in ("forget_train", "forget_test") and reference in (None, "original"):
        return "≈"
    return {"lower": "↓", "higher": "↑"}.get(METRICS[metric].better(split, reference), "≈")


def metric_title(metric: str) -> str:
    """The short name of a metric for readers; `METRICS` holds the long one."""
    return SHORT.get(metric) or (METRICS[metric].title if metric in METRICS else metric.replace("_", " "))


def attack_words(name: str) -> AttackWords:
    """How an attack is told; one that is not known goes by its name."""
    return ATTACKS.get(name) or AttackWords(name.replace("_", " "), "strength", f"under the attack {name}")


def note_label(metric: str, note: str | None) -> str | None:
    """What tells a number from others of the same metric: of attacks, which one it was."""
    if metric != "attack_area" or note is None:
        return note
    words = attack_words(note)
    return f"{words.title}, by {words.by}"


def value_text(metric: str, value: float | None) -> str:
    """A value as tables show it: shares in percent with one decimal, others with two, "—" for none."""
    if value is None:
        return MISSING
    text = f"{100 * value:.1f} %" if metric in PERCENT else f"{value:.2f}"
    return text.removeprefix("-") if not float(text.split()[0]) else text  # no minus before a zero


def position_text(value: float | None) -> str:
    """A position between original and retrained: 0 is as the original, 1 as retrained; "—" where it says nothing."""
    return MISSING if value is None else value_text("position", value)


def percent(value: float) -> str:
    """A share of images in percent."""
    return value_text("accuracy", value)


def class_names(report: AuditReport) -> Callable[[int], str]:
    """From label id to class name; a name that the report does not hold is the id."""
    names = report.dataset.get("class_names") or []
    return lambda k: str(names[k]) if 0 <= k < len(names) else str(k)


def layer_labels(layers: Sequence[str]) -> list[str]:
    """Short names of layers: "hidden_states.3" is "3", and modules lose what all of their names begin with."""
    modules = [layer.split(".") for layer in layers if "." in layer and not layer.startswith("hidden_states.")]
    columns = zip(*(parts[:-1] for parts in modules), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    start = "".join(f"{part}." for part in shared) if len(modules) > 1 else ""
    return [layer.removeprefix("hidden_states.").removeprefix(start) for layer in layers]


def model_label(name: str) -> str:
    """The name of a model as readers see it."""
    return {"random_init": "random weights"}.get(name, name)


def split_label(split: str) -> str:
    """The name of a split as readers see it: "forget_test" is "forget test"."""
    return split.replace("_", " ")


def interval_text(each: Measurement) -> str:
    """The 95 % interval of a number as tables show it, in brackets; "" where there is none."""
    if each.low is None or each.high is None or each.value is None:
        return ""
    low, high = (value_text(each.metric, end).removesuffix(" %") for end in (each.low, each.high))
    return f"[{low}, {high}]"
