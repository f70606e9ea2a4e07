"""Scores that sum a run up in one number, each with its formula. All accuracies are shares from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ec_hf.metrics.arrays import numbers, share, shares
from ec_hf.metrics.attack_area import attack_area

__all__ = ["aus", "avg_gap", "h_mean", "relearning_area", "tug_of_war"]


def h_mean(retain_accuracy: float, forget_accuracy: float, original_forget_accuracy: float) -> float:
    """Harmonic mean of retain accuracy and forget drop: `2 · RA · drop / (RA + drop)`.

    The drop is `original_forget_accuracy - forget_accuracy`, counted as 0 where the accuracy rose; papers differ in
    how they define it. From 0 to 1, higher is better; what the original did not know cannot be dropped.

    Args:
        retain_accuracy: On test images of the retain classes.
        forget_accuracy: On test images of the forgotten classes.
        original_forget_accuracy: The same of the original model.

    Raises:
        ValueError: An accuracy outside 0..1.
    """
    retain = share(retain_accuracy, "retain_accuracy")
    original = share(original_forget_accuracy, "original_forget_accuracy")
    drop = max(original - share(forget_accuracy, "forget_accuracy"), 0.0)
    return 2 * retain * drop / (retain + drop) if drop > 0 else 0.0


def tug_of_war(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """Nearness to the retrained model: `Π (1 - |unlearned - retrained|)` (Zhao et al. 2024, arXiv 2406.01257).

    From 0 to 1, higher is better; 1 is equal in all.

    Args:
        unlearned: Accuracies, as a rule on forget, retain and test images; ToW-MIA has the MIA-efficacy for the first.
        retrained: The same of the retrained model, in the same order.

    Raises:
        ValueError: Sequences of different lengths, none, or a value outside 0..1.
    """
    return float(np.prod(1 - _gaps(unlearned, retrained)))


def avg_gap(unlearned: Sequence[float], retrained: Sequence[float]) -> float:
    """Mean gap to the retrained model: `mean |unlearned - retrained|` (Fan et al. 2024, SalUn, arXiv 2310.12508).

    From 0 to 1, lower is better. Papers print it in percentage points, over UA, RA, TA and MIA-efficacy.

    Args:
        unlearned: Shares, as a rule accuracies on forget, retain and test images and the MIA-efficacy.
        retrained: The same of the retrained model, in the same order.

    Raises:
        ValueError: Sequences of different lengths, none, or a value outside 0..1.
    """
    return float(_gaps(unlearned, retrained).mean())


def aus(
    original_test_accuracy: float, test_accuracy: float, forget_accuracy: float, *, random_forgetting: bool = False
) -> float:
    """Adaptive unlearning score: `(1 - (A_or - A_t)) / (1 + |A_f|)` (Cotogni et al. 2023, DUCK, arXiv 2312.02052).

    Where images and not classes are forgotten, the ideal is test accuracy and not 0: `... / (1 + |A_f - A_t|)`. Higher
    is better; 1 is all forgotten at no cost, and a test accuracy above the original's gives more.

    Args:
        original_test_accuracy: A_or, of the original model on test images (of the retain classes).
        test_accuracy: A_t, the same of the unlearned model.
        forget_accuracy: A_f, of the unlearned model on forget images.
        random_forgetting: Whether images rather than whole classes are forgotten.

    Raises:
        ValueError: An accuracy outside 0..1.
    """
    test, forget = share(test_accuracy, "test_accuracy"), share(forget_accuracy, "forget_accuracy")
    lost = share(original_test_accuracy, "original_test_accuracy") - test
    return (1 - lost) / (1 + abs(forget - (test if random_forgetting else 0)))


def relearning_area(steps: Sequence[int], accuracy: Sequence[float]) -> float:
    """Area under a relearning curve over `log(1 + step)` by the trapezoid rule, divided by the length of the axis.

    From 0 (nothing comes back) to 1 (all is back before the first step). The logarithm gives the first ten steps the
    weight of the next hundred: what is quick to relearn was never gone. Compare areas of equal steps and settings.

    Args:
        steps: Optimiser steps, ascending from 0, at least two.
        accuracy: Forget accuracy after each of them.

    Raises:
        ValueError: Steps that do not ascend from 0, fewer than two, not as many accuracies, or one outside 0..1.
    """
    x = numbers(list(steps), "steps")
    if len(x) < 2 or x[0] != 0 or not (np.diff(x) > 0).all():
        raise ValueError(f"steps={list(steps)}: expected at least two steps, ascending from 0.")
    if len(x) != len(accuracy):
        raise ValueError(f"there are {len(x)} steps and {len(accuracy)} accuracies: expected one for each step.")
    return attack_area(steps, accuracy, "steps")


def _gaps(unlearned: Sequence[float], retrained: Sequence[float]) -> np.ndarray:
    ours, theirs = shares(list(unlearned), "unlearned"), shares(list(retrained), "retrained")
    if len(ours) != len(theirs):
        raise ValueError(f"unlearned has {len(ours)} values and retrained {len(theirs)}: expected the same measures.")
    return np.abs(ours - theirs)
