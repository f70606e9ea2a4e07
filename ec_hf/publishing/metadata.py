"""The metadata of a card: the YAML header that the Hub reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ec_hf.auditing.report import SPLITS, AuditReport
from ec_hf.models.own_network import MODEL_TYPE
from ec_hf.publishing.contents import Contents, dataset_name, deepest_layer, is_finite, unlearned_name
from ec_hf.publishing.licenses import LICENSES
from ec_hf.reporting.labels import metric_title, model_label

__all__ = ["TAGS", "check_card", "eval_results", "metadata"]

TAGS = ("image-classification", "machine-unlearning", "erase-at-the-core", "ec_hf")
PIPELINE_TAG = "image-classification"
REQUIRED = ("library_name", "pipeline_tag", "tags")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def check_card(text: str) -> None:
    """What the Hub would check of a card's metadata, as far as it can be checked without the Hub.

    Raises:
        ValueError: when the metadata is not plain YAML, does not survive a round trip, lacks a key, or has a licence
            or a pipeline tag that the Hub does not know, or two results of a model-index share a dataset.
    """
    try:
        data = yaml.safe_load(text.split("---\n")[1])
        again = yaml.safe_load(ModelCard(text).data.to_yaml())
    except (IndexError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"the card's metadata cannot be read: {error}") from error
    if again != data:
        raise ValueError("the card's metadata does not survive a round trip through huggingface_hub.ModelCard")
    if missing := [key for key in REQUIRED if key not in data]:
        raise ValueError(f"the card's metadata lacks {', '.join(missing)}")
    if data["pipeline_tag"] != PIPELINE_TAG:
        raise ValueError(f"pipeline_tag {data['pipeline_tag']!r}: expected {PIPELINE_TAG!r}")
    if data.get("license", "other") not in LICENSES:
        raise ValueError(f"license {data['license']!r} is no licence id of the Hub")
    for result in (result for model in data.get("model-index", []) for result in model["results"]):
        if bad := [metric for metric in result["metrics"] if not _is_number(metric["value"])]:
            raise ValueError(f"model-index: {bad[0]['type']} is {bad[0]['value']!r}; expected a finite float")


def metadata(contents: Contents, title: str, licence: Mapping[str, str]) -> ModelCardData:
    """The YAML header. Keys of which nothing is known are left out; a path on this machine is never one of them."""
    report, base = contents.report, contents.record.get("base_model")
    dataset = dataset_name(contents)
    results = eval_results(report, dataset or "unnamed dataset") if report else []
    return ModelCardData(
        library_name="pytorch" if contents.config.get("model_type") == MODEL_TYPE else "transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=list(TAGS),
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=[dataset] if dataset and HUB_ID.fullmatch(dataset) else None,
        metrics=list(dict.fromkeys(each.metric_type for each in results)) or None,
        model_name=title if results else None,
        eval_results=results or None,
        **dict[str, Any](licence),
    )


def eval_results(report: AuditReport, dataset: str) -> list[EvalResult]:
    """The unlearned model's figures for the model index: those of its output, and of its deepest layer.

    Forget and retain images get dataset configurations of their own: results that share type, configuration and split
    are merged under one name.
    """
    model, deepest = unlearned_name(report), deepest_layer(report)
    results = []
    for each in report.find(model=model):
        if each.split not in SPLITS or each.layer not in (None, deepest) or not is_finite(each.value):
            continue
        part, split = each.split.split("_")
        name = metric_title(each.metric)
        name += f", to {model_label(each.reference)}" if each.reference else ""
        name += ", deepest layer" if each.layer else ""
        name += f", {each.note}" if each.metric == "attack_area" and each.note else ""
        results.append(
            EvalResult(
                task_type=PIPELINE_TAG,
                dataset_type=dataset,
                dataset_name=f"{dataset}, {part} set, {split} images",
                dataset_config=part,
                dataset_split=split,
                metric_type=each.metric,
                metric_name=name,
                metric_value=float(each.value),  # type: ignore[arg-type]
            )
        )
    return results


def _is_number(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)
