"""Questions that make no sense, told before the answer is read: equal models, equal splits, nothing to see."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import binom
from transformers import PreTrainedModel

from ec_hf.auditing.collected import BySplit
from ec_hf.auditing.question import Question
from ec_hf.auditing.report import ModelInfo
from ec_hf.data.fingerprint import fingerprint, image_hashes

__all__ = [
    "check_models",
    "doubtful_references",
    "features_without_sense",
    "models_without_sense",
    "named_by_retrained",
    "same_weights",
    "splits_without_sense",
]

LEAST_IMAGES = 8
"""With fewer, no family of signals can tell any two models apart: seven hits in a row are not rare enough."""
MOST = 10_000
COPY = 0.5
"""Share of its distance to the original within which a retrained model is taken for a copy of an unlearned one."""
SHARED = 0.01
"""Share of the smaller split that may stand in another one; data sets of photos hold a few copies."""
NO_BETTER, BETTER = 0.05, 0.001
"""Probabilities of so many right answers by guessing: above the first it is no better, below the second it is."""


def check_models(models: Mapping[str, tuple[PreTrainedModel, ModelInfo]]) -> list[str]:
    """Notes on models that have the same weights.

    Args:
        models: each model, and who it is, by name.

    Raises:
        ValueError: for a retrained model with the weights of the original or of another retrained one, as every
            comparison with it would then be false.
    """
    notes = []
    for (first, (a, of_first)), (second, (b, of_second)) in combinations(models.items(), 2):
        roles = {of_first.role, of_second.role}
        if "floor" in roles or not same_weights(a, b):
            continue
        if roles in ({"original", "retrained"}, {"retrained"}):
            why = "it saw the forget set" if "original" in roles else "their spread would be 0"
            raise ValueError(
                f"{first} and {second} have the same weights, so {why}: is it the right model? Give one that was "
                "trained anew without the forget set, or none"
            )
        meaning = {
            "original": "nothing was erased, or the wrong model was named",
            "retrained": "the audit then shows what a perfect erasure looks like",
        }
        reason = next((text for role, text in meaning.items() if role in roles), "they cannot differ")
        notes.append(f"{first} and {second} have the same weights: {reason}.")
    return notes


def doubtful_references(models: Mapping[str, tuple[PreTrainedModel, str]]) -> dict[str, str]:
    """Unlearned models that a retrained one was made from, or is a copy of, each with a note; it is then no reference.

    Of a retrained model R, the original O and the unlearned model U: two trainings that share no more than their start
    are about as far from each other as each is from what was made of the other, so R is about as far from U as from O.
    R is taken for a copy of U if it is less than half as far, and for a step on the way from O to U if O and U lie on
    opposite sides of it.

    Args:
        models: each model, and its role, by name; "original" is one of them.
    """
    by_role: dict[str, list[str]] = {}
    for name, (_, role) in models.items():
        by_role.setdefault(role, []).append(name)
    found = {}
    for unlearned in by_role.get("unlearned", []):
        for retrained in by_role.get("retrained", []):
            three = (models[name][0] for name in ("original", unlearned, retrained))
            if _made_from(*three):
                found[unlearned] = (
                    f"{retrained} is nearer to {unlearned} in its weights than a model that was trained on its own: "
                    "it looks like a copy of it, or a step on its way, and likeness to it is no sign of erasure."
                )
    return found


def _made_from(original: PreTrainedModel, unlearned: PreTrainedModel, retrained: PreTrainedModel) -> bool:
    """Whether a retrained model seems to come from an unlearned one; see `doubtful_references`."""
    o, u, r = (dict(model.named_parameters()) for model in (original, unlearned, retrained))
    to_unlearned = to_original = inner = 0.0
    for name in r:
        if name in o and name in u and o[name].shape == u[name].shape == r[name].shape:
            mine, theirs = (r[name].detach().cpu().double() - other[name].detach().cpu().double() for other in (u, o))
            to_unlearned += mine.square().sum().item()
            to_original += theirs.square().sum().item()
            inner += (mine * theirs).sum().item()
    return to_original > 0 and (to_unlearned < COPY**2 * to_original or inner < 0)


def splits_without_sense(
    splits: Mapping[str, Dataset], image_column: str | None = None, most: int | None = None
) -> list[str]:
    """Notes on splits that hold the same images, all or some of them, and on splits of very few.

    Args:
        splits: the images by name of the split.
        image_column: as for `ec_hf.models.inputs.collator_for`.
        most: how many images of a split are compared with those of another; 10,000 if left out.
    """
    prints = {name: fingerprint(part) for name, part in splits.items() if len(part)}
    hashes = {name: image_hashes(splits[name], image_column, most=most or MOST) for name in prints}
    notes = []
    for first, second in combinations(prints, 2):
        shared = len(hashes[first] & hashes[second])
        if prints[first] != prints[second] and shared > SHARED * min(len(hashes[first]), len(hashes[second])):
            notes.append(
                f"{_counted(shared)} of {first} {'stands' if shared == 1 else 'stand'} in {second} too, as far as "
                "their files show: figures that compare the two say less than they seem to."
            )
        if prints[first] == prints[second]:
            notes.append(
                f"{first} and {second} hold the same images, as far as a sample of them shows: figures that compare "
                "the two, such as membership, and those that need held-out images say nothing."
            )
    for name in prints:
        if (count := len(splits[name])) < LEAST_IMAGES:
            what = "knows of them" if name.startswith("forget") else "has kept"
            notes.append(f"The split {name} has {_counted(count)}: too few to tell what a model {what}.")
    return notes


def models_without_sense(collected: BySplit, question: Question) -> list[str]:
    """Notes on an original that knows nothing of what is to be forgotten, and on retrained models that do.

    Binomial tests of their answers against guessing, on images of forgotten classes; of forgotten rows, whose classes
    the retrained models know too, the original's alone. And a note where a single class is kept, which any model names
    that always gives the same answer.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    split, seen = _forget_split(question), named_by_retrained(collected, question)
    chance, count = 1 / max(len(question.class_names), 1), len(question.labels[split])
    notes = []
    for model in ["original", *(question.retrained if question.whole_classes else [])] if count else []:
        hits = int(np.nansum(collected[split].outputs[model]["hit"]))
        better = float(binom.sf(hits - 1, count, chance))
        told = f"{model} names {100 * hits / count:.1f} % of the {split} images right (guessing: {100 * chance:.1f} %)"
        if model == "original" and count >= LEAST_IMAGES and better > NO_BETTER:
            notes.append(f"{told}, which is no better than guessing: there is nothing to forget that it names.")
        if model in seen:
            notes.append(f"{told}, though a retrained model never saw these classes: is it the right model?")
    kept = np.unique(np.concatenate([question.labels[name] for name in ("retain_train", "retain_test")]))
    if len(kept) == 1:
        notes.append(
            f"All retained images are of one class, {question.class_names[kept[0]]}: a model that names it always "
            "keeps everything, so what is said of the rest means little."
        )
    return notes


def named_by_retrained(collected: BySplit, question: Question) -> list[str]:
    """Retrained models that name images of forgotten classes better than by guessing, and so must have seen some.

    Args:
        collected: what the pass collected.
        question: what is asked.
    """
    split = _forget_split(question)
    chance, count = 1 / max(len(question.class_names), 1), len(question.labels[split])
    if not count or not question.whole_classes:
        return []
    hits = {name: int(np.nansum(collected[split].outputs[name]["hit"])) for name in question.retrained}
    return [name for name, right in hits.items() if binom.sf(right - 1, count, chance) < BETTER]


def _forget_split(question: Question) -> str:
    return "forget_test" if question.whole_classes and len(question.labels["forget_test"]) else "forget_train"


def features_without_sense(collected: BySplit) -> list[str]:
    """Notes on layers whose features are not finite, or the same for all images of all splits.

    Args:
        collected: what the pass collected.
    """
    parts = [found.features for found in collected.values() if len(found.kept)]
    notes = []
    for model in parts[0] if parts else ():
        broken, constant = [], []
        for layer in parts[0][model]:
            values = np.concatenate([part[model][layer] for part in parts])
            if not np.isfinite(values).all():
                broken.append(layer)
            elif len(values) > 1 and (values == values[0]).all():
                constant.append(layer)
        if broken:
            notes.append(
                f"{model}: features are NaN or infinite on some images in {', '.join(broken)}. Nothing is measured "
                "there, which is no sign of erasure."
            )
        if constant:
            notes.append(
                f"{model}: features are the same for all images in {', '.join(constant)}. Nothing can be read there, "
                "not even of retained images."
            )
    return notes


def _counted(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def same_weights(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two models have the same parameters and buffers, by name and to the last bit."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        weight.shape == theirs[name].shape and torch.equal(weight.cpu(), theirs[name].cpu())
        for name, weight in ours.items()
    )
