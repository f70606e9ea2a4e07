"""Host objectives: what an unlearning method minimises at the model's last layer, found by name.

A new one is one short file with a subclass of `Objective` and one line in the table below. From another package:
`@register("name")`, a "package.module:Class" path, or an entry point of the group "ec_hf.objectives".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

__all__ = ["Objective", "Part", "Setting", "Step", "available", "get_objective", "register"]

ENTRY_POINTS = "ec_hf.objectives"


@dataclass
class Part:
    """One half of a batch, as the model sees it.

    Attributes:
        logits: (rows, classes).
        features: (rows, width), pooled, of the last supervision point.
        labels: (rows,) int64.
        pixel_values: (rows, channels, height, width), the model's input.
    """

    logits: Tensor
    features: Tensor
    labels: Tensor
    pixel_values: Tensor


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
        index: number of this optimiser step, from 0.
        total: number of optimiser steps of the run.
        epoch_steps: optimiser steps of one pass over the retain set.
        forget_steps: optimiser steps of one pass over the forget set, rounded up.
        extra: what the model made of the rows that `Objective.extra_pixels` added, labels -100; None without such.
        log: an objective may put detached scalars here that are worth a line in the log and no part of the loss.
    """

    forget: Part
    retain: Part
    teacher: Callable[[Tensor], Tensor] | None = None
    forget_classes: tuple[int, ...] | None = None
    model: Any = None
    index: int = 0
    total: int = 1
    epoch_steps: int = 1
    forget_steps: int = 1
    extra: Part | None = None
    log: dict[str, Tensor] = field(default_factory=dict)
    _teacher_logits: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def teacher_logits(self, part: Literal["forget", "retain"]) -> Tensor:
        """Logits (rows, classes) of the original model on one half, without gradient, computed once a step.

        Raises:
            RuntimeError: the step has no teacher.
        """
        if self.teacher is None:
            raise RuntimeError("this step has no teacher: an objective that asks for it sets `needs_teacher = True`")
        if part not in self._teacher_logits:
            with torch.no_grad():
                self._teacher_logits[part] = self.teacher(getattr(self, part).pixel_values)
        return self._teacher_logits[part]


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
    """

    model: Any
    forget: Callable[..., Iterable[Mapping[str, Tensor]]]
    retain: Callable[..., Iterable[Mapping[str, Tensor]]]
    features: Callable[[Tensor], Tensor]
    forget_classes: tuple[int, ...] | None
    seed: int


class Objective(ABC):
    """A host objective. Its settings are the keyword arguments of its constructor.

    What it must know of the data or the model before training it gathers in `prepare`, which is also where closed
    forms edit the model: those have `trains = False` and their `__call__` gives no loss.

    Attributes:
        name: what it is called in flags, logs and cards; the class's own name in lower case unless given.
        uses: the data that the published method uses, for an honest label where retain data is added to it.
        needs_teacher: it reads `step.teacher_logits`.
        covers_last_point: it contrasts the features of the last supervision point itself, so EC does not do it again.
        trains: it has a loss; closed forms are done after `prepare`, and EC, if any, trains after them.
        from_scratch: `prepare` starts the weights anew, so there is nothing for supervision points to erase.
        saliency: share of the weights that may move, where `ECConfig.saliency` does not say; None for all.
        source: paper or code it follows.
        conflict: where it and EC would meet in one place, and how that is settled.
    """

    name: ClassVar[str]
    uses: ClassVar[Literal["forget", "retain", "both"]] = "both"
    needs_teacher: ClassVar[bool] = False
    covers_last_point: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    from_scratch: ClassVar[bool] = False
    saliency: ClassVar[float | None] = None
    source: ClassVar[str] = ""
    conflict: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

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


_OBJECTIVES: dict[str, str | type[Objective]] = {
    "bad_teacher": "ec_hf.objectives.bad_teacher:BadTeacher",
    "boundary_expand": "ec_hf.objectives.boundary_expand:BoundaryExpand",
    "boundary_shrink": "ec_hf.objectives.boundary_shrink:BoundaryShrink",
    "contrastive": "ec_hf.objectives.contrastive:Contrastive",
    "coun": "ec_hf.objectives.coun:CoUn",
    "damp": "ec_hf.objectives.damp:Damp",
    "delete": "ec_hf.objectives.delete:Delete",
    "duck": "ec_hf.objectives.duck:Duck",
    "esc": "ec_hf.objectives.esc:Esc",
    "finetune": "ec_hf.objectives.finetune:Finetune",
    "gradient_ascent": "ec_hf.objectives.gradient_ascent:GradientAscent",
    "l1_sparse": "ec_hf.objectives.l1_sparse:L1Sparse",
    "neggrad_plus": "ec_hf.objectives.neggrad_plus:NegGradPlus",
    "pseudo_label": "ec_hf.objectives.pseudo_label:PseudoLabel",
    "random_label": "ec_hf.objectives.random_label:RandomLabel",
    "retrain": "ec_hf.objectives.retrain:Retrain",
    "saliency": "ec_hf.objectives.saliency:Saliency",
    "scrub": "ec_hf.objectives.scrub:Scrub",
    "ssd": "ec_hf.objectives.ssd:Ssd",
}

Class = TypeVar("Class", bound=type[Objective])


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator that makes an objective known by a name.

    Raises:
        TypeError: what is decorated is not a subclass of `Objective`.
        ValueError: another class has the name, or it holds a ":".
    """
    if not name or ":" in name:
        raise ValueError(f"an objective's name must be a word without ':', got {name!r}")

    def decorate(cls: Class) -> Class:
        _check_class(cls, name)
        path = f"{cls.__module__}:{cls.__qualname__}"
        known = _OBJECTIVES.get(name, path)
        # The same class again is a notebook cell or a module that ran twice.
        if path != (known if isinstance(known, str) else f"{known.__module__}:{known.__qualname__}"):
            raise ValueError(f"objective {name!r} is {known} already: register {path} by another name")
        cls.name = name
        _OBJECTIVES[name] = cls
        return cls

    return decorate


def available() -> list[str]:
    """Sorted names that `get_objective` knows, those of installed entry points among them."""
    return sorted({*_OBJECTIVES, *entry_points(group=ENTRY_POINTS).names})


def get_objective(name_or_path: str, **settings: Any) -> Objective:
    """Build an objective.

    Args:
        name_or_path: a registered name, a "package.module:Class" path, or the name of an entry point.
        **settings: keyword arguments of its constructor.

    Raises:
        ValueError: unknown name, or a setting out of range.
        ImportError: a path that leads nowhere.
        TypeError: a setting that the objective does not have, or a class that is no `Objective`.
    """
    cls = _find(name_or_path)
    signature = inspect.signature(cls)
    try:
        signature.bind(**settings)
    except TypeError as error:
        accepted = [str(setting.replace(annotation=setting.empty)) for setting in signature.parameters.values()]
        raise TypeError(
            f"objective {name_or_path!r}: {error}; its settings are: {', '.join(accepted) or 'none'}"
        ) from None
    return cls(**settings)


def _find(name_or_path: str) -> type[Objective]:
    found: Any = _OBJECTIVES.get(name_or_path, name_or_path)
    if isinstance(found, str):
        if ":" in found:
            found = _import(found)
        elif matches := entry_points(group=ENTRY_POINTS, name=found):
            found = next(iter(matches)).load()
        else:
            close = difflib.get_close_matches(found, available(), n=1)
            raise ValueError(
                f"unknown objective {found!r}{f', did you mean {close[0]!r}?' if close else ''} Known are "
                f"{', '.join(available())}; any other class goes by its path, 'package.module:Class'"
            )
    return _check_class(found, name_or_path)


def _import(path: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"objective {path!r}: {error}; install the package that holds it, or run where it can be imported"
        ) from error
    if not hasattr(module, name):
        raise ImportError(f"objective {path!r}: {module_name} has no {name!r}; write 'package.module:Class'")
    return getattr(module, name)


def _check_class(cls: Any, name: str) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise TypeError(f"objective {name!r} is {cls!r}: it must be a subclass of ec_hf.objectives.Objective")
    return cls
