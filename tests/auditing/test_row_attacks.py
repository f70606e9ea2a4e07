"""Attacks on the membership of forgotten rows, as signals: models of which it is known what they saw."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from ec_hf.auditing.collected import Collected, Shadows
from ec_hf.auditing.compared import attacks_on_rows
from ec_hf.auditing.measures.membership import matched_rows
from ec_hf.auditing.signals import signals_of
from ec_hf.metrics import logit_confidence

FORGOTTEN, KEPT, UNSEEN = 150, 400, 400
LEARNT = 2.0  # how much surer a model is of what it was trained on, in logits


def losses_of(confidence):
    return np.logaddexp(0, -confidence)


def question(labels, retrained):
    return SimpleNamespace(
        whole_classes=[],
        labels=labels,
        seed=0,
        retrained=retrained,
        trained=["original", "copy", "another", *retrained],
    )


def attacked(seed, trainings, shadows):
    """The signals of a copy of the original and of one more retrained model, of simulated trainings."""
    draw = np.random.default_rng(seed)
    sizes = {"forget_train": FORGOTTEN, "retain_train": KEPT, "forget_test": 0, "retain_test": UNSEEN}
    labels = {split: draw.integers(0, 4, size) for split, size in sizes.items()}
    easy = {split: 3 * draw.normal(size=size) + labels[split] for split, size in sizes.items()}

    def trained(*seen):
        """How sure a model is of each image, by split; all images of one training move together a little."""
        shift = 0.3 * draw.normal()
        return {
            split: own + shift + draw.normal(size=len(own)) + LEARNT * (split in seen) for split, own in easy.items()
        }

    retrained = [f"retrained {k}" for k in range(trainings)] if trainings > 1 else ["retrained"]
    asked = question(labels, retrained)
    models = {"original": trained("retain_train", "forget_train")}
    models["copy"] = models["original"]
    models |= {name: trained("retain_train") for name in ("another", *retrained)}
    collected = {
        split: Collected(
            labels[split],
            np.arange(0),
            {name: {"loss": losses_of(own[split])} for name, own in models.items()},
            {},
            {},
        )
        for split in sizes
    }
    inside, outside = matched_rows(asked)

    def shown(some):
        rows = [np.concatenate([own["forget_train"][inside], own["retain_test"][outside]]) for own in some]
        return np.stack(rows, axis=1) if rows else np.empty((2 * len(inside), 0))

    out = shown([trained("retain_train") for _ in range(shadows[0])])
    into = shown([trained("retain_train", "forget_train") for _ in range(shadows[1])])
    seen = Shadows(out, into[: len(inside)]) if any(shadows) else None
    return signals_of(list(attacks_on_rows(collected, asked, seen)), ["copy", "another"], retrained)


@pytest.mark.parametrize(("trainings", "shadows"), [(3, (4, 2)), (3, (0, 0)), (1, (4, 0))])
def test_a_retrained_model_is_hardly_ever_accused_and_a_copy_of_the_original_never_acquitted(trainings, shadows):
    found = {"copy": Counter(), "another": Counter()}
    for seed in range(40):
        signals = attacked(seed, trainings, shadows)
        assert {"mia_lira", "mia_lira_tpr", "mia_population", "mia_population_tpr"} == {s.metric for s in signals}
        for model, counts in found.items():
            own = {signal.status for signal in signals if signal.model == model}
            counts[
                "accused" if own & {"untouched", "under-erased"} else "unclear" if "unclear" in own else "fine"
            ] += 1
            if model == "copy":
                assert not own & {"as retrained", "over-erased"}
    assert found["another"]["accused"] <= 2  # of 40: 5 %
    assert found["copy"]["accused"] >= 38


def test_shadow_models_tell_the_original_from_retrained_models_better_than_class_thresholds():
    effects: dict[str, list[float]] = {}
    for seed in range(10):
        for signal in attacked(seed, 3, (6, 2)):
            effects.setdefault(signal.metric, []).append(signal.effect)
    assert np.median(effects["mia_lira"]) > 1.5 * np.median(effects["mia_population"]) > 0


def test_the_simulated_losses_are_those_of_the_confidence():
    confidence = np.array([-3.0, 0.0, 5.0])
    assert logit_confidence(losses_of(confidence)) == pytest.approx(confidence)
