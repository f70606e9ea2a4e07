"""The metrics of the audit, one file a metric, as functions of arrays and as `evaluate` modules (`path`)."""

from __future__ import annotations

from pathlib import Path

from ec_hf.metrics.attack_area import attack_area
from ec_hf.metrics.bootstrap import bootstrap_mean
from ec_hf.metrics.cka_floor import cka_floor, split_half_cka
from ec_hf.metrics.distances import activation_distance, agreement, js_divergence
from ec_hf.metrics.half_sample_cka import half_sample_cka
from ec_hf.metrics.idi import idi, infonce, probe_advantage
from ec_hf.metrics.knn import knn, knn_hits, nearest
from ec_hf.metrics.linear_cka import BatchedCKA, CKAStream, LinearCKA, linear_cka
from ec_hf.metrics.linear_probe import linear_probe, probe_hits
from ec_hf.metrics.lira import lira_scores, logit_confidence
from ec_hf.metrics.membership import (
    class_matched,
    membership_auc,
    membership_svc,
    membership_tpr,
    share_by_class_mix,
)
from ec_hf.metrics.outputs import confidence, entropy, hits, loss, masked_hits, modified_entropy, true_probability
from ec_hf.metrics.population_attack import population_scores
from ec_hf.metrics.separability import Relative, relative_separability, separability
from ec_hf.metrics.summary import aus, avg_gap, h_mean, relearning_area, tug_of_war
from ec_hf.metrics.table import METRICS, Metric

__all__ = [
    "METRICS",
    "BatchedCKA",
    "CKAStream",
    "LinearCKA",
    "Metric",
    "Relative",
    "activation_distance",
    "agreement",
    "attack_area",
    "aus",
    "avg_gap",
    "bootstrap_mean",
    "cka_floor",
    "class_matched",
    "confidence",
    "entropy",
    "h_mean",
    "half_sample_cka",
    "hits",
    "idi",
    "infonce",
    "js_divergence",
    "knn",
    "knn_hits",
    "linear_cka",
    "linear_probe",
    "lira_scores",
    "logit_confidence",
    "loss",
    "masked_hits",
    "membership_auc",
    "membership_svc",
    "membership_tpr",
    "modified_entropy",
    "nearest",
    "path",
    "population_scores",
    "probe_advantage",
    "probe_hits",
    "relative_separability",
    "relearning_area",
    "separability",
    "share_by_class_mix",
    "split_half_cka",
    "true_probability",
    "tug_of_war",
]

_MODULES = Path(__file__).parent / "modules"


def path(name: str) -> str:
    """Where `evaluate.load` finds a metric of this package, without a network.

    Args:
        name: A key of `METRICS` whose metric can be computed from one table of images.

    Raises:
        ValueError: No such module, with those there are.

    Example:
        >>> import evaluate
        >>> metric = evaluate.load(path("linear_cka"))
    """
    script = _MODULES / f"{name}.py"
    if not script.is_file():
        have = ", ".join(sorted(each.stem for each in _MODULES.glob("*.py")))
        raise ValueError(f"no evaluate module {name!r}: there are {have}.")
    return str(script)
