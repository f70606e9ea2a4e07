"""Whether and how strongly EC erases at each point, by how well the forgotten classes still stand apart there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ec_hf.data.sampling import stratified_rows
from ec_hf.metrics.separability import Relative, relative_separability
from ec_hf.models.points import SupervisionPoint, pool, take
from ec_hf.training.eraser import Eraser

__all__ = ["PointLook", "Steering", "expected", "few_of_each_class", "is_due", "steers", "weight_after"]

SETTLED, EVERY = 0.3, 0.1
"""Share of a run before the first look, and from one look to the next. The new layers must be back: a tenth into the
run a point may be far off that training brings there by itself."""
IMAGES, CLASSES = 300, 20
"""Images of each set that are looked at, and classes of each that these are of at most."""
SURE = 2.0
"""Standard errors by which a point must be above its target for EC to set in."""
GAIN = 3.0
"""How much the logarithm of a weight changes in one look, for each unit by which a point is off its target."""
PATIENCE = 2
"""Looks after which EC must have brought a point nearer to what is expected."""
WEAKEST, STRONGEST = 0.25, 3.0
"""Times the weight that the settings give to a point: below the first EC stops there, and the second is the most."""
Look = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Gives batches of a few images of both sets, the same each time: ``pixel_values`` and ``labels``."""


class PointLook(NamedTuple):
    """What a look found at one supervision point.

    Attributes:
        found: relative separability of the model as it is, with its standard error.
        original: that of the original.
        expected: what retraining is expected to leave.
        weight: EC's weight from now on.
    """

    found: Relative
    original: float
    expected: float
    weight: float

    @property
    def position(self) -> float | None:
        """0 as the original, 1 as expected of a retrained model; None where these two cannot be told apart."""
        gap = self.original - self.expected
        return (self.original - self.found.value) / gap if abs(gap) > SURE * self.found.error else None

    def told(self) -> dict[str, float]:
        """The numbers by name, for log and record, as far as they were to be had."""
        lines = {"separability": self.found.value, "error": self.found.error, "expected": self.expected}
        lines |= {"original": self.original, "ec_weight": self.weight}
        lines |= {} if self.position is None else {"position": self.position}
        return {name: round(value, 5) for name, value in lines.items() if math.isfinite(value)}


class Steering:
    """Lets EC set in at a supervision point where it is needed, and chooses its weight there as the run goes on.

    What is looked at is `ec_hf.metrics.relative_separability`: how well a layer tells the forgotten classes, by how
    well it tells those that stay. Above the cut of a rewind the layers are new and never see a forget image, so the
    first of them shows what retraining leaves there. What it has lost against the original grows with depth, from
    nothing at the input, and that line is what is expected of the points below (`expected`).

    A point begins without EC, as training on the retain set alone brings most layers there. Once a look finds it above
    what is expected, by more than chance, EC sets in with the weight of the settings; it then gets stronger as long as
    the point is above, weaker when it is below, and ends (`weight_after`). A point that EC does not bring nearer is
    left alone from then on. While no point has EC, no step looks at forget images.

    A run that is resumed takes what was found from its log (`resume`), and measures the original anew.

    Args:
        eraser: the eraser, whose model is still the original; EC is taken off its points below the cut.
        look: the images.

    Attributes:
        points: the points that are steered.
        cut: the first hidden state above them.
        original: relative separability of the original by point; empty until `see_original`.
        seen: of each look at a point, by how much it was above what is expected, and the standard error of that.

    Raises:
        ValueError: there is nothing to steer (`steers`).
    """

    def __init__(self, eraser: Eraser, look: Look) -> None:
        cut = cut_of(eraser)
        if cut is None or not steers(eraser):
            raise ValueError(f"objective {eraser.objective.name!r}: there is nothing to steer here, see `steers`")
        self.eraser, self.look, self.cut = eraser, look, cut
        self.points = tuple(point for point in eraser.points if point.index < self.cut.index)
        self.given = dict(zip((point.name for point in eraser.points), eraser.weights.points, strict=True))
        self.original: dict[str, Relative] = {}
        self.seen: dict[str, list[Relative]] = {point.name: [] for point in self.points}
        self.weigh(dict.fromkeys((point.name for point in self.points), 0.0))

    def see_original(self) -> None:
        """Measure the original, before the objective edits it."""
        self.original = self.measured()

    def measured(self) -> dict[str, Relative]:
        """Relative separability of the model as it is now, by point, the state above the cut last."""
        model, watched = self.eraser.model, (*self.points, self.cut)
        features: dict[str, list[Tensor]] = {point.name: [] for point in watched}
        labels: list[Tensor] = []
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for batch in self.look():
                    states = model(pixel_values=batch["pixel_values"], **self.eraser.hidden_state_kwargs).hidden_states
                    for point in watched:
                        pooled = pool(take(states, point), point, self.eraser.config.pooling)
                        features[point.name].append(pooled.float().cpu())
                    labels.append(batch["labels"].cpu())
        finally:
            model.train(was_training)
        y, forgotten = torch.cat(labels), self.eraser.forget_classes or ()
        return {name: relative_separability(torch.cat(own), y, forgotten) for name, own in features.items()}

    def adjust(self) -> dict[str, PointLook]:
        """Look at the model, and let EC set in, change or end at each point; what was found, by point."""
        found = self.measured()
        original = {name: each.value for name, each in self.original.items()}
        depths = {point.name: point.index for point in (*self.points, self.cut)}
        target = expected(original, found[self.cut.name].value, depths)
        looks = {}
        for name, seen in self.seen.items():
            seen.append(Relative(found[name].value - target[name], found[name].error))
            looks[name] = PointLook(found[name], original[name], target[name], weight_after(seen, self.given[name]))
        self.weigh({name: look.weight for name, look in looks.items()})
        return looks

    def resume(self, log_history: Sequence[Mapping[str, Any]]) -> None:
        """Go on from the looks that a log holds, if it holds any."""
        for name, seen in self.seen.items():
            found, target, error = (f"{key}/{name}" for key in ("separability", "expected", "error"))
            told = [entry for entry in log_history if found in entry and target in entry]
            seen[:] = [Relative(entry[found] - entry[target], entry[error]) for entry in told]
        self.weigh({name: weight_after(seen, self.given[name]) for name, seen in self.seen.items()})

    def weights(self) -> dict[str, float]:
        """EC's weight by point, of all points of the eraser."""
        return dict(zip((point.name for point in self.eraser.points), self.eraser.weights.points, strict=True))

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Give EC other weights at some points."""
        self.eraser.weigh(list({**self.weights(), **weights}.values()))


def weight_after(seen: Iterable[Relative], given: float) -> float:
    """EC's weight at a point after some looks, 0 for none.

    Args:
        seen: of each look, by how much relative separability was above what is expected, and its standard error; NaN
            where it was not to be had.
        given: the weight of the settings.
    """
    weight = at_first = 0.0
    since = 0
    for above, error in seen:
        if not math.isfinite(above):
            continue
        if not weight:
            weight, at_first, since = (given, above, 0) if above > SURE * error else (0.0, 0.0, 0)
            continue
        since += 1
        if since >= PATIENCE and above >= at_first:
            return 0.0
        weight = min(weight * math.exp(GAIN * above), STRONGEST * given)
        weight = weight if weight >= WEAKEST * given else 0.0
    return weight


def expected(original: Mapping[str, float], at_cut: float, depths: Mapping[str, int]) -> dict[str, float]:
    """Relative separability that retraining is expected to leave below a cut.

        target_l = original_l - (original_c - found_c) · l / c,  c the first state above the cut

    Measured on six cases of the results, three retrained models each; see `recipes/results/README.md`.

    Args:
        original: of the original, by point, shallow to deep, the state above the cut last.
        at_cut: what was found there; where it is above the original's, nothing is taken off.
        depths: number of the hidden state of each.
    """
    *_, cut = original
    lost = max(original[cut] - at_cut, 0.0)
    return {name: value - lost * depths[name] / depths[cut] for name, value in original.items()}


def cut_of(eraser: Eraser) -> SupervisionPoint | None:
    """The first hidden state that an eraser's objective does not leave to EC, if there is one."""
    of_objective = eraser.objective.leaves_to_ec
    return next((state for state in eraser.hidden if not of_objective(state.index, len(eraser.hidden))), None)


def is_due(step: int, steps: int) -> bool:
    """Whether the points are looked at ahead of a step of a run of so many steps; `step` are done."""
    return step >= max(SETTLED * steps, 1) and not step % max(round(EVERY * steps), 1)


def steers(eraser: Eraser) -> bool:
    """Whether there is something to steer, and to steer by: whole classes, EC with frozen heads below a cut."""
    cut = cut_of(eraser)
    if cut is None or not eraser.points or not eraser.forget_classes or eraser.config.train_heads:
        return False
    return eraser.points[0].is_hidden_state and eraser.points[0].index < cut.index


def few_of_each_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Rows of a set to look at: as many of each class, of a few classes where there are many.

    Args:
        labels: `(n,)` label ids.
        seed: seed of the draw.
    """
    classes = np.random.default_rng(seed).permutation(np.unique(labels))[:CLASSES]
    quota = max(IMAGES // len(classes), 2)
    return stratified_rows(labels, {int(label): quota for label in classes}, seed)
