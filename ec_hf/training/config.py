"""`EraserConfig`: settings of an erasure, whoever trains. `ECConfig`: these and the `TrainingArguments` of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ec_hf.losses.contrast import CONTRASTS
from ec_hf.losses.schedules import LAYER_WEIGHTS
from ec_hf.objectives.registry import published_settings

__all__ = ["ECConfig", "EraserConfig", "from_preset"]

LEAST_TEMPERATURE = 1e-3
CHECKED_IMAGES = 20_000
"""Images up to which all are decoded before training. Measured: 0.13 ms for a PNG of 32 pixels, 0.8 ms for a JPEG of
224 and 3.1 ms for one of 500."""

DEFAULTS: dict[str, Any] = {
    "objective": "rewind",
    "calibrated": False,
    "points": "auto",
    "contrast": "supcon",
    "temperature": 0.1,
    "retain_weight": 1.0,
    "strength": "fixed",
    "layer_weights": "uniform",
    "batch_norm": "frozen",
    "learning_rate": 1e-4,
    "per_device_train_batch_size": 64,
    "warmup_steps": 0.05,
    "retain_floor": 0.01,
}
"""What is taken where neither the user nor a preset says otherwise; for other fields, what `TrainingArguments` has."""
NOT_GIVEN = -1
"""What `max_steps` says where it says nothing."""
TOGETHER = (("optim", "optim_args"), ("num_train_epochs", "max_steps", "forget_epochs"))
"""Settings that say one thing together: of a preset all of a group count, or none where the user names one."""
PAPER: dict[str, Any] = {
    "objective": "contrastive",
    "contrast": "csul",
    "temperature": 0.7,
    "detach_retain": False,
    "ec_weight": 1.0,
    "retain_weight": 1 / 3,
    "layer_weights": "uniform",
    "optim": "sgd",
    "optim_args": "momentum=0.9",
    "weight_decay": 5e-4,
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 256,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
}
"""EC in its published form: contrast and cross-entropy at every point, gradient into both sets. Temperature, weights
and schedule of the paper are not public: those of the contrast are its authors' (arXiv 2401.10458: τ 0.7, 3 : 1 at a
learning rate of 1e-3, here divided by 3 and multiplied by 3), weight decay and batch those of arXiv 2503.06991."""
REWIND: dict[str, Any] = {
    "calibrated": True,
    "ec_weight": 0.1,
    "per_device_forget_batch_size": 32,
    "weight_decay": 0.05,
    "learning_rate": None,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": None,
    "retain_floor": 0.05,  # a fraction of a training does not bring new weights back to the last point
}
"""What came nearest to retraining in `recipes/results/README.md`: the deep half starts anew, and calibrated EC erases
below. Two are None until the run knows model and data: see `ec_hf.training.learning_rate` and `RunLength`."""
PRESETS = ("default", "paper", "published")


def _inherited(name: str) -> Any:
    """The default of `TrainingArguments`, None for a setting that it does not have."""
    return getattr(TrainingArguments, name, None)


@dataclass
class EraserConfig:
    """Settings of an erasure: what to supervise, and with which losses.

    What a field means stands in its help text, which `ec-hf erase --help-all` prints.

    What is left out is filled in when the object is made, from `preset` where that says something (`ec_weight` and
    `detach_retain` depend on `calibrated`). `dataclasses.replace` keeps what was filled in: to change `preset` or
    `calibrated`, make a new object.

    Raises:
        ValueError: for a setting that does not exist or is out of range.

    Example:
        >>> EraserConfig(objective="delete", calibrated=True).ec_weight
        1.0
    """

    objective: str = HfArg(
        default=None,
        help="Host objective at the model's output: a registered name or package:Class. Default: rewind, a deep part "
        "that starts anew.",
    )
    objective_kwargs: dict | str | None = HfArg(default=None, help="Settings of the host objective, as a JSON object.")
    preset: str = HfArg(
        default="default",
        help="What is taken for settings that are not given: 'published' for those of the objective's authors, its "
        "weights, optimiser, learning rate, batch and epochs, and no supervision points; 'paper' for EC as published; "
        "'default' for this package's own. A setting that is given always counts.",
    )
    saliency: float | None = HfArg(
        default=None,
        help="SalUn's mask beside any objective: the share of the model's weights, those with the largest gradient on "
        "the forget set, that may move; the others stay as they are to the bit. Limits what EC does to the model too, "
        "never the EC heads. Default: what the objective says, which is all weights but for 'saliency'.",
    )
    cache_teacher: bool | None = HfArg(
        default=None,
        help="Compute the original model's logits on the forget set once instead of at every step, for objectives "
        "that read them. Images must be the same each time: no random augmentation of the forget set. Default: "
        "ECTrainer does it where the images of a datasets.Dataset have no transform and the run comes round to each.",
    )
    points: list[str] | str = HfArg(
        default_factory=lambda: None,  # HfArgumentParser passes on no plain default of a list
        help="Supervision points that carry an EC head: 'auto' for about four depths, 'none' for the host objective "
        "alone, 'blocks' for all blocks that the model repeats, or a list: indices into the model's hidden states "
        "(negative ones count from the output), names of modules, and 'penultimate' for what the classifier reads. "
        "Default: auto.",
    )
    pooling: str = HfArg(
        default="mean", help="How tokens become one vector in the EC heads: mean (of the patches), cls, or all."
    )
    contrast: str = HfArg(
        default=None, help=f"Contrastive unlearning loss, one of {', '.join(sorted(CONTRASTS))}. Default: supcon."
    )
    temperature: float = HfArg(default=None, help="Temperature of the contrast. Default: 0.1.")
    calibrated: bool = HfArg(
        default=None,
        help="Aim at what retraining would leave, without a retrained model: at each point, forget images are pulled "
        "towards the retain classes that the original, blind to the forgotten ones, takes them for, and not towards "
        "all. In place of `contrast`; for objectives that leave the features alone, such as delete. "
        "Default: false; for rewind true.",
    )
    repulsion: float = HfArg(
        default=0.5,
        help="With `calibrated`: how strongly forget images of one class are pushed apart. 0 leaves more of the "
        "original's features, 1 less; which is nearer to retraining depends on the data.",
    )
    probe_weight: float = HfArg(
        default=0.02,
        help="With `calibrated`: weight, against the contrast, of taking out of each point what a linear probe that "
        "trains along with the true labels still reads. 0 leaves it out.",
    )
    detach_retain: bool | None = HfArg(
        default=None,
        help="Whether the contrast moves forget images alone, with no gradient into the retain features that they are "
        "pulled towards. The published form, false, moves both. Default: true, and false with `calibrated`.",
    )
    retain_weight: float = HfArg(
        default=None,
        help="Weight (lambda) of the retain cross-entropy against the contrast, at each point. Default: 1.",
    )
    ec_weight: float | None = HfArg(
        default=None,
        help="Weight of EC's terms at the supervision points against the host objective's. More erases more and costs "
        "more retain accuracy. Default: 0.1, and 1 with `calibrated`.",
    )
    layer_weights: list[str] | str = HfArg(
        default_factory=lambda: None,
        help="Weight of each supervision point, shallow to deep: one number a point, or a schedule, one of "
        f"{', '.join(sorted(LAYER_WEIGHTS))}. Times ec_weight, but for the last one where "
        "a contrastive host objective takes the place of EC there. Default: uniform.",
    )
    batch_norm: str = HfArg(
        default=None,
        help="Batch-norm running statistics of the model: frozen, or retain to update them from the retain half of "
        "each batch. Forget images never enter them. Default: frozen.",
    )
    train_heads: bool = HfArg(
        default=False,
        help="Whether the EC heads go on training during erasure. Frozen ones leave it to the backbone to forget.",
    )
    heads_epochs: int = HfArg(default=3, help="Passes over all images for fitting the heads on the original model.")
    heads_learning_rate: float = HfArg(default=1e-3, help="Peak learning rate of that fit.")
    seed: int = HfArg(
        default=42,
        help="Seed of the heads' first weights, of what an objective draws, and of the order of the images.",
    )

    def __post_init__(self) -> None:
        _fill(self)
        self._settle()

    def _settle(self) -> None:
        """Bring settings that are filled in to one form, and refuse what is out of range."""
        self.points = _one_or_list(self.points)
        if self.points == "none":
            self.points = []
        self.layer_weights = _one_or_list(self.layer_weights)
        if self.detach_retain is None:
            self.detach_retain = not self.calibrated
        if self.ec_weight is None:
            self.ec_weight = 1.0 if self.calibrated else 0.1
        _check_choice(self, "contrast", sorted(CONTRASTS))
        _check_choice(self, "batch_norm", ["frozen", "retain"])
        _check_choice(self, "pooling", ["mean", "cls", "all"])
        _check_above_0(self, ("temperature", "ec_weight", "heads_learning_rate", "heads_epochs"))
        if self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"temperature={self.temperature}: below {LEAST_TEMPERATURE} the contrast has no gradient left. Common "
                "values are 0.05 to 1."
            )
        _check_0_or_more(self, ("retain_weight", "repulsion", "probe_weight"))
        if self.saliency is not None and not 0 < self.saliency <= 1:
            raise ValueError(f"saliency={self.saliency}: expected a share above 0 and at most 1.")


@dataclass
class ECConfig(EraserConfig, TrainingArguments):
    """Settings of `ECTrainer`: those of the erasure, when to stop it, and how to train.

    The defaults of `TrainingArguments` that differ here are ``learning_rate`` (1e-4), ``per_device_train_batch_size``
    (64), ``warmup_steps`` (0.05, a share of the run), ``logging_steps`` (10), ``eval_strategy`` and ``save_strategy``
    ("epoch"), ``save_total_limit`` (2), ``eval_on_start`` (True: the stopping rule compares with the original),
    ``dataloader_pin_memory`` (where there is a GPU) and ``remove_unused_columns`` (False: the collator reads the image
    column).

    An epoch is one pass over the retain set; the forget set cycles beside it, freshly shuffled at each turn.
    `forget_epochs` measures a run in passes over the forget set instead. What a field means stands in its help text,
    which `ec-hf erase --help-all` prints.

    Raises:
        ValueError: as `EraserConfig` and `TrainingArguments`, and for settings that do not go together.

    Example:
        >>> config = ECConfig("out", max_steps=200, learning_rate=1e-3, calibrated=True, objective="delete")
        >>> config.points, config.retain_floor
        ('auto', 0.01)
        >>> ECConfig("out").objective
        'rewind'
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "objective_kwargs"]  # noqa: RUF012 - no field there

    output_dir: str | None = HfArg(default=None, help="Folder for checkpoints and the finished model.")
    per_device_forget_batch_size: int = HfArg(
        default=0,
        help="Forget images a step and device; default: per_device_train_batch_size, which counts the retain images.",
    )
    pilot: bool | None = HfArg(
        default=None,
        help="With rewind: the rewound model is a pilot alone, and the original learns to answer on the forget images "
        "as it does, in the last third of the run and at half the rate. This keeps the accuracy of the rest. "
        "ec_hf.erase does it; one ECTrainer makes one run. Default: for rows; whole classes would stay in the hidden "
        "layers.",
    )
    strength: str = HfArg(
        default=None,
        help="With rewind and whole classes: 'auto' lets EC set in, at each point below the cut, where the forgotten "
        "classes stand apart better than is expected after retraining, and end where it has done its work or does not "
        "help (`ec_hf.training.steering`); 'fixed' is ec_weight from the first step to the last. Default: fixed.",
    )
    heads: str | None = HfArg(
        default=None, help="Folder or Hub id of fitted EC heads to start from; default: fit them first."
    )
    forget_target: float | None = HfArg(
        default=None,
        help="Stop when forget accuracy on the evaluation data is at most this (a share) and retain accuracy is above "
        "its floor. Default: chance, 1 / number of classes, for classes; for rows, the accuracy on held-out "
        "images of the same classes. A negative value never stops.",
    )
    min_steps: int = HfArg(
        default=100,
        help="Steps before which the stopping rule does not stop: outputs forget within tens of steps, hidden layers "
        "need longer.",
    )
    retain_floor: float = HfArg(
        default=None,
        help="How far retain accuracy on the evaluation data may fall below the original's (a share). Default: 0.01; "
        "for rewind 0.05.",
    )
    retain_rows: int | None = HfArg(
        default=None,
        help="Rows of a retain set that is streamed, which does not tell its length. Without it such a run needs "
        "max_steps, or forget_epochs.",
    )
    image_column: str | None = HfArg(default=None, help="Column of the images; default: found by its type.")
    label_column: str | None = HfArg(default=None, help="Column of the labels; default: found by its type.")
    check_images: bool | None = HfArg(
        default=None,
        help="Decode every image once before training, so that a damaged one is found at once and named. Default: "
        f"up to {CHECKED_IMAGES:,} images, which takes 2 seconds (32 pixels) to a minute (500 pixels) on 2 cores.",
    )

    forget_epochs: float | None = HfArg(
        default=None,
        help="Length of the run in passes over the forget set, in place of num_train_epochs; methods that use the "
        "forget set alone count so.",
    )
    learning_rate: float = HfArg(
        default=None,
        help="Peak learning rate. Small networks trained from scratch want what they were trained with. Default: "
        "1e-4; for rewind what a range test on the retain set finds.",
    )
    per_device_train_batch_size: int = HfArg(default=None, help="Retain images a step and device. Default: 64.")
    warmup_steps: float = HfArg(default=None, help="Warm-up steps, or a share of the run when below 1. Default: 0.05.")
    optim: str = HfArg(default=None, help=f"Optimiser. Default: {_inherited('optim')}.")
    weight_decay: float = HfArg(default=None, help=f"Weight decay. Default: {_inherited('weight_decay')}.")
    max_grad_norm: float = HfArg(
        default=None,
        help=f"Length to which gradients are clipped, 0 for none. Default: {_inherited('max_grad_norm')}.",
    )
    lr_scheduler_type: str = HfArg(
        default=None, help=f"How the learning rate falls. Default: {_inherited('lr_scheduler_type')}."
    )
    num_train_epochs: float = HfArg(
        default=None,
        help="Passes over the retain set. Of a small one these are few steps: see max_steps. Default: "
        f"{_inherited('num_train_epochs')}; for rewind 100 steps or more.",
    )
    max_steps: int = HfArg(default=None, help="Optimiser steps, in place of num_train_epochs. Default: -1, not given.")
    logging_steps: float = HfArg(default=10, help="Log every so many steps.")
    eval_strategy: str = HfArg(default="epoch", help="When to evaluate: no, steps or epoch.")
    save_strategy: str = HfArg(default="epoch", help="When to save a checkpoint: no, steps or epoch.")
    save_total_limit: int | None = HfArg(default=2, help="Checkpoints to keep.")
    eval_on_start: bool = HfArg(default=True, help="Evaluate the original model first; the stopping rule needs it.")
    dataloader_pin_memory: bool = HfArg(default=torch.cuda.is_available(), help="Pin batches in memory.")
    remove_unused_columns: bool = HfArg(default=False, help="Leave as it is: the collator needs the image column.")

    def __post_init__(self) -> None:
        _fill(self)
        TrainingArguments.__post_init__(self)
        self._settle()
        if self.per_device_forget_batch_size == 0:
            self.per_device_forget_batch_size = self.per_device_train_batch_size
        _check_choice(self, "strength", ["auto", "fixed"])
        _check_above_0(self, ("per_device_train_batch_size", "per_device_forget_batch_size"))
        _check_0_or_more(self, ("retain_floor", "min_steps"))
        for name in ("forget_epochs", "retain_rows"):
            if getattr(self, name) is not None:
                _check_above_0(self, (name,))
        if self.learning_rate is not None and (math.isnan(self.learning_rate) or self.learning_rate < 0):
            raise ValueError(f"learning_rate={self.learning_rate}: expected 0 or more.")
        if self.forget_target is not None and math.isnan(self.forget_target):
            raise ValueError("forget_target=nan: expected a share such as 0.1, or a negative value to never stop.")
        for name in ("retain_floor", "forget_target"):
            if (getattr(self, name) or 0) > 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a share, 0.01 for one point, not a percentage."
                )
        self.check_batch_norm(self.batch_norm)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the image column; leave it False.")

    def check_batch_norm(self, batch_norm: str) -> None:
        """Refuse a way to treat batch norm that does not go with how this run trains.

        Raises:
            ValueError: for statistics that follow the retain images under activation checkpointing, which runs each
                forward a second time.
        """
        if batch_norm == "retain" and (self.gradient_checkpointing or self.activation_checkpointing):
            raise ValueError(
                "batch_norm='retain' does not work with activation checkpointing; use batch_norm='frozen'."
            )

    def own_settings(self) -> dict[str, Any]:
        """The fields that `TrainingArguments` does not have, as plain values."""
        inherited = {field.name for field in fields(TrainingArguments)}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in inherited}


def from_preset(config: EraserConfig) -> dict[str, Any]:
    """The settings that a configuration has as its preset gives them."""
    preset = _preset_settings(config)
    given = preset.pop("objective_kwargs", {})
    taken = {name: value for name, value in (config.objective_kwargs or {}).items() if given.get(name) == value}  # type: ignore[union-attr]
    same = {name: value for name, value in preset.items() if getattr(config, name) == value}
    return ({"objective_kwargs": taken} if taken else {}) | same


def _preset_settings(config: EraserConfig) -> dict[str, Any]:
    _check_choice(config, "preset", PRESETS)
    known = {each.name for each in fields(config)}
    if config.preset == "published":
        settings = {"points": [], **published_settings(config.objective or DEFAULTS["objective"])}
    elif config.preset == "paper":
        settings = PAPER
    else:
        settings = REWIND if config.objective in (None, "rewind") else {}
    return {name: value for name, value in settings.items() if name in known}


def _fill(config: EraserConfig) -> None:
    """Give each setting that was left out its value, from the preset where that has one."""
    preset = _preset_settings(config)
    own = preset.pop("objective_kwargs", {})
    given = _json_object("objective_kwargs", config.objective_kwargs)
    config.objective_kwargs = {**own, **(given or {})} if own else given
    for group in TOGETHER:
        if any(getattr(config, name, None) not in (None, NOT_GIVEN) for name in group):
            preset = {name: value for name, value in preset.items() if name not in group}
    for field in fields(config):
        if getattr(config, field.name) is None:
            value = preset.get(field.name, DEFAULTS.get(field.name, _inherited(field.name)))
            setattr(config, field.name, value)
    if getattr(config, "per_device_forget_batch_size", None) == 0:
        config.per_device_forget_batch_size = preset.get("per_device_forget_batch_size", 0)  # type: ignore[attr-defined]


def _check_choice(config: EraserConfig, name: str, allowed: Sequence[str]) -> None:
    if getattr(config, name) not in allowed:
        raise ValueError(f"{name}={getattr(config, name)!r}: expected one of {', '.join(allowed)}.")


def _check_above_0(config: EraserConfig, names: Sequence[str]) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)}: expected a number above 0.")


def _check_0_or_more(config: EraserConfig, names: Sequence[str]) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)}: expected 0 or more.")


def _json_object(name: str, text: Any) -> dict[str, Any] | None:
    """The object that a setting is, or that its text holds."""
    if text is None or isinstance(text, Mapping):
        return text  # type: ignore[return-value]
    if not isinstance(text, str):
        raise TypeError(f'{name}={text!r}: expected names and values, such as {{"retain_weight": 1.0}}.')
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}={text!r} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f'{name}={text!r}: expected a JSON object such as {{"retain_weight": 1.0}}.')
    return value


def _one_or_list(value: Any) -> Any:
    """A command line gives ['auto'] where Python gives 'auto'."""
    if isinstance(value, (list, tuple)):
        value = list(value)
        return value[0] if len(value) == 1 and isinstance(value[0], str) and not _is_number(value[0]) else value
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
