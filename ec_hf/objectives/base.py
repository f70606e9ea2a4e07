"""What a host objective is, and what it sees of a run and of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

__all__ = ["Objective", "Part", "Progress", "Setting", "Step"]


@dataclass
class Part:
    """One half of a batch, as the model sees it.

    Attributes:
        logits: (rows, classes).
        features: (rows, width), penultimate: what the model's classifier reads, with gradient. For a model whose
            logits come from no linear layer, the pooled deepest hidden state.
        labels: (rows,) int64.
        pixel_values: (rows, channels, height, width), the model's input.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    pixel_values: Tensor


@dataclass(frozen=True)
class Progress:
    """All that an objective with a schedule may know of the run.

    Attributes:
        index: number of this optimiser step, from 0.
        total: number of optimiser steps of the run.
        epoch_steps: optimiser steps of one pass over the retain set.
        forget_steps: optimiser steps of one pass over the forget set, rounded up.
    """

    index: int = 0
    total: int = 1
    epoch_steps: int = 1
    forget_steps: int = 1


@dataclass
class Step:
    """What an objective sees of one training step.

    Attributes:
        forget: the forget half.
        retain: the retain half.
        teacher: maps pixel values to the original model's logits; given to objectives with `needs_teacher`. Its
            parameters take no gradient, its input may.
        forget_classes: label ids, where the forget set is whole classes: no retain row has one of them.
        model: the model in training, unwrapped; its parameters are for penalties, its forward is not to be called.
            EC heads, where there are any, ride on it as `ec_heads`.
        progress: where in the run this step is.
        extra: what the model made of the rows that `Objective.extra_pixels` added, labels -100; None without such.
        known_teacher_logits: the original model's logits (rows, classes) by half, "forget" or "retain", as far as they
            were computed; `teacher_logits` looks here first.
        log: an objective may put detached scalars here that are worth a line in the log and no part of the loss.
    """

    forget: Part
    retain: Part
    teacher: Callable[[Tensor], Tensor] | None = None
    forget_classes: tuple[int, ...] | None = None
    model: Any = None
    progress: Progress = Progress()
    extra: Part | None = None
    known_teacher_logits: dict[str, Tensor] = field(default_factory=dict)
    log: dict[str, Tensor] = field(default_factory=dict)

    def teacher_logits(self, part: Literal["forget", "retain"]) -> Tensor:
        """Logits (rows, classes) of the original model on one half, without gradient, computed once a step.

        Raises:
            RuntimeError: the step has no teacher.
        """
        if self.teacher is None:
            raise RuntimeError("this step has no teacher: an objective that asks for it sets `needs_teacher = True`")
        if part not in self.known_teacher_logits:
            with torch.no_grad():
                self.known_teacher_logits[part] = self.teacher(getattr(self, part).pixel_values)
        return self.known_teacher_logits[part]


@dataclass
class Setting:
    """What an objective may look at, and change, once before training.

    Attributes:
        model: the original model in eval mode, which `prepare` may edit in place: the values of its parameters and
            buffers, not which tensors these are.
        forget: call it for batches of the forget set: dicts of ``pixel_values`` and ``labels`` on the model's device,
            in a fixed order; every process sees all of them. With a number k, it gives each k-th image only.
        retain: the same of the retain set.
        features: call it with pixel values for what `Part.features` holds of them: (rows, width), with gradient.
        forget_classes: label ids, where the forget set is whole classes.
        seed: of the run.
        images: number of images by set, "forget" and "retain", where it is known; `count` counts them otherwise.
        normalisation: mean and standard deviation of each channel with which pixels from 0 to 1 were normalised, where
            that is known.
    """

    model: Any
    forget: Callable[..., Iterable[Mapping[str, Tensor]]]
    retain: Callable[..., Iterable[Mapping[str, Tensor]]]
    features: Callable[[Tensor], Tensor]
    forget_classes: tuple[int, ...] | None
    seed: int
    images: Mapping[str, int | None] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def count(self, part: Literal["forget", "retain"]) -> int:
        """Number of images of one set; it reads all of them where nobody said it."""
        if self.images is not None and (known := self.images.get(part)) is not None:
            return known
        return sum(len(batch["labels"]) for batch in getattr(self, part)())


class Objective(ABC):
    """A host objective. Its settings are the keyword arguments of its constructor.

    What it must know of the data or the model before training it gathers in `prepare`, which is also where closed
    forms edit the model: those have `trains = False` and their `__call__` gives no loss.

    Attributes:
        name: what it is called in flags, logs and cards; the class's own name in lower case unless given.
        uses: the data that the published method uses, for an honest label where retain data is added to it.
        needs_teacher: it reads `step.teacher_logits`.
        covers_last_point: it moves the penultimate features itself, so EC does not do it again at the deepest hidden
            state or at the penultimate layer, where that is the last supervision point.
        trains: it has a loss; closed forms are done after `prepare`, and EC, if any, trains after them.
        from_scratch: `prepare` starts the weights anew, so there is nothing for supervision points to erase.
        renews: `prepare` starts a part of the weights anew: batch norm follows the retain images, and no forget target
            stops the run before the model is back.
        saliency: share of the weights that may move, where `ECConfig.saliency` does not say; None for all.
        source: paper or code it follows.
        published: the settings of its authors, by the name of the setting: those of its constructor, and of
            `ec_hf.ECConfig` the schedule. ``preset="published"`` takes them where nothing else is said.
        conflict: where it and EC would meet in one place, and how that is settled.
    """

    name: ClassVar[str]
    uses: ClassVar[Literal["forget", "retain", "both"]] = "both"
    needs_teacher: ClassVar[bool] = False
    covers_last_point: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False
    renews: ClassVar[bool] = False
    saliency: ClassVar[float | None] = None
    source: ClassVar[str] = ""
    conflict: ClassVar[str] = ""
    published: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    @property
    def has_new_weights(self) -> bool:
        """Whether training starts with random weights in at least a part of the network, as a training does."""
        return self.from_scratch or self.renews

    def leaves_to_ec(self, state: int, states: int) -> bool:
        """Whether EC has work at a hidden state, for ``points="auto"``; elsewhere the objective does it by itself.

        Args:
            state: index of the hidden state, from the input side.
            states: number of hidden states.
        """
        return True

    def check(self, forget_classes: int, whole_classes: bool) -> None:
        """Refuse, before anything is trained, a forget set that the objective cannot forget.

        Args:
            forget_classes: number of classes that have an image in it.
            whole_classes: whether no retain image has one of these classes.
        """
        return None

    def prepare(self, setting: Setting) -> None:
        """Look at the data, or edit the model, once before training. Must do the same in every process.

        It sees the original model, also before a resume, whose checkpoint then replaces the weights. The random state
        is set from the seed of the run, and put back afterwards.
        """
        return None

    def extra_pixels(self, forget: Tensor, retain: Tensor) -> Tensor | None:
        """Further rows of pixel values that the model shall see in the same forward, given as `step.extra`.

        Batch-norm statistics leave them out. Every process must add the same number.
        """
        return None

    @abstractmethod
    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Named scalar components of the loss; their sum is what is minimised, so each carries its weight."""
