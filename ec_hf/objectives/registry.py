"""Host objectives by name.

A new one is one short file with a subclass of `Objective` and one line in the table below. From another package:
`@register("name")`, a "package.module:Class" path, or an entry point of the group "ec_hf.objectives".
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ec_hf.objectives.base import Objective

__all__ = ["BUILT_IN", "available", "get_objective", "published_settings", "register"]

ENTRY_POINTS = "ec_hf.objectives"

_OBJECTIVES: dict[str, str | type[Objective]] = {
    "bad_teacher": "ec_hf.objectives.bad_teacher:BadTeacher",
    "boundary_expand": "ec_hf.objectives.boundary_expand:BoundaryExpand",
    "boundary_shrink": "ec_hf.objectives.boundary_shrink:BoundaryShrink",
    "cf_k": "ec_hf.objectives.cf_k:CfK",
    "contrastive": "ec_hf.objectives.contrastive:Contrastive",
    "coun": "ec_hf.objectives.coun:CoUn",
    "damp": "ec_hf.objectives.damp:Damp",
    "delete": "ec_hf.objectives.delete:Delete",
    "duck": "ec_hf.objectives.duck:Duck",
    "esc": "ec_hf.objectives.esc:Esc",
    "eu_k": "ec_hf.objectives.eu_k:EuK",
    "finetune": "ec_hf.objectives.finetune:Finetune",
    "follow": "ec_hf.objectives.follow:Follow",
    "gradient_ascent": "ec_hf.objectives.gradient_ascent:GradientAscent",
    "l1_sparse": "ec_hf.objectives.l1_sparse:L1Sparse",
    "laf": "ec_hf.objectives.laf:Laf",
    "neggrad_plus": "ec_hf.objectives.neggrad_plus:NegGradPlus",
    "pseudo_label": "ec_hf.objectives.pseudo_label:PseudoLabel",
    "random_label": "ec_hf.objectives.random_label:RandomLabel",
    "retrain": "ec_hf.objectives.retrain:Retrain",
    "rewind": "ec_hf.objectives.rewind:Rewind",
    "saliency": "ec_hf.objectives.saliency:Saliency",
    "scrub": "ec_hf.objectives.scrub:Scrub",
    "ssd": "ec_hf.objectives.ssd:Ssd",
    "undo": "ec_hf.objectives.undo:Undo",
}
BUILT_IN = frozenset(_OBJECTIVES)
"""Names of the objectives that the package brings along."""

Class = TypeVar("Class", bound=type[Objective])


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator that makes an objective known by a name.

    Args:
        name: a word without ":", by which `get_objective` and `--objective` then find it.

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


def published_settings(name_or_path: str) -> Mapping[str, Any]:
    """The settings of an objective's authors, by the name of the setting in `ec_hf.ECConfig`.

    Raises:
        ValueError: unknown name, or an objective that names none.
    """
    settings = _find(name_or_path).published
    if not settings:
        raise ValueError(f"objective {name_or_path!r} names no published settings: leave preset at 'default'")
    return settings


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
