from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from ec_hf.losses.contrast import csul, supcon
from ec_hf.losses.distillation import cross_entropy, delete_kl
from ec_hf.objectives import Objective, Part, Step, available, get_objective, register
from ec_hf.objectives.contrastive import Contrastive
from ec_hf.objectives.delete import Delete
from ec_hf.objectives.finetune import Finetune

THIRD_PARTY = """
from dataclasses import dataclass
from ec_hf.objectives import Objective

@dataclass
class GradientAscent(Objective):
    scale: float = 1.0
    uses = "forget"

    def __call__(self, step):
        return {"ascent": -self.scale * step.forget.logits.sum()}
"""


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("third_party", None)


def part(seed: int, rows: int, labels: list[int]) -> Part:
    generator = torch.Generator().manual_seed(seed)
    return Part(
        logits=torch.randn(rows, 4, generator=generator).requires_grad_(),
        features=torch.randn(rows, 5, generator=generator).requires_grad_(),
        labels=torch.tensor(labels),
        pixel_values=torch.randn(rows, 3, 2, 2, generator=generator),
    )


def step(**changes) -> Step:
    return Step(forget=part(0, 3, [2, 3, 3]), retain=part(1, 4, [0, 1, 1, 3]), **changes)


def reached(losses: dict[str, Tensor], now: Step) -> set[str]:
    """What the gradient of the summed loss gets to."""
    leaves = {
        f"{half}.{what}": getattr(getattr(now, half), what)
        for half in ("forget", "retain")
        for what in ("features", "logits")
    }
    total = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None and gradient.any()}


class Teacher:
    """A linear map that counts its calls."""

    def __init__(self):
        self.calls = 0
        self.weight = torch.randn(12, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def __call__(self, pixel_values):
        self.calls += 1
        return pixel_values.flatten(1) @ self.weight


FACTS = {  # uses, needs_teacher, covers_last_point
    "bad_teacher": ("both", True, False),
    "boundary_expand": ("forget", False, False),
    "boundary_shrink": ("forget", True, False),
    "contrastive": ("both", False, True),
    "coun": ("retain", False, False),
    "delete": ("forget", True, False),
    "duck": ("both", False, True),
    "finetune": ("retain", False, False),
    "gradient_ascent": ("forget", False, False),
    "l1_sparse": ("retain", False, False),
    "neggrad_plus": ("both", False, False),
    "pseudo_label": ("forget", True, False),
    "random_label": ("both", False, False),
    "scrub": ("both", True, False),
}


@pytest.mark.parametrize("name", available())
def test_a_built_in_objective_carries_the_name_it_is_found_by_and_says_where_it_is_from(name):
    objective = get_objective(name)
    assert objective.name == name in available()
    assert objective.source


@pytest.mark.parametrize(("name", "facts"), FACTS.items())
def test_facts_that_the_trainer_reads(name, facts):
    objective = get_objective(name)
    assert (objective.uses, objective.needs_teacher, objective.covers_last_point) == facts
    assert objective.trains
    assert "Published settings: " in (type(objective).__doc__ or "")


def test_the_available_names_are_sorted():
    assert available() == sorted(available())


@pytest.mark.parametrize(("form", "loss"), [("supcon", supcon), ("csul", csul)])
def test_contrastive_is_the_contrast_and_the_weighted_cross_entropy(form, loss):
    now = step()
    losses = get_objective("contrastive", form=form, temperature=0.3, retain_weight=2.0)(now)
    forget, retain = now.forget, now.retain
    expected = loss(forget.features, retain.features, forget.labels, retain.labels, temperature=0.3)
    assert losses == {
        "contrast": expected.loss,
        "retain_ce": 2 * cross_entropy(retain.logits, retain.labels),
    }
    assert now.log == {"fallbacks": expected.fallbacks / len(now.forget.labels)} and expected.fallbacks > 0


def test_contrastive_reaches_features_of_both_halves_and_retain_logits():
    now = step()
    assert reached(Contrastive()(now), now) == {"forget.features", "retain.features", "retain.logits"}


def test_contrastive_refuses_settings_that_cannot_work_when_it_is_made():
    with pytest.raises(ValueError, match="csul, supcon, uuef"):
        get_objective("contrastive", form="simclr")
    with pytest.raises(ValueError, match="temperature must be a positive"):
        get_objective("contrastive", temperature=0)
    with pytest.raises(ValueError, match="retain_weight must be 0 or more"):
        get_objective("contrastive", retain_weight=-1)


def test_contrastive_refuses_uuef_for_one_class_before_training():
    with pytest.raises(ValueError, match="two classes or more"):
        get_objective("contrastive", form="uuef").check(1, whole_classes=True)
    get_objective("contrastive", form="uuef").check(2, whole_classes=True)
    for name in ("contrastive", "delete", "finetune"):
        get_objective(name).check(1, whole_classes=True)


def test_delete_masks_whole_classes_where_they_go_and_the_own_label_otherwise():
    teacher = Teacher()
    now = step(teacher=teacher, forget_classes=(2, 3))
    logits, labels = now.forget.logits, now.forget.labels
    target = teacher(now.forget.pixel_values)
    whole, own = delete_kl(logits, target, labels, (2, 3)), delete_kl(logits, target, labels)
    assert whole != own
    assert get_objective("delete")(now) == {"delete": whole}
    assert get_objective("delete", mask="sample")(now) == {"delete": own}
    assert get_objective("delete")(step(teacher=teacher)) == {"delete": own}


def test_delete_adds_retain_only_with_a_weight():
    now = step(teacher=Teacher())
    losses = Delete(retain_weight=0.5)(now)
    assert list(losses) == ["delete", "retain_ce"]
    assert losses["retain_ce"] == 0.5 * cross_entropy(now.retain.logits, now.retain.labels)
    assert reached(losses, now) == {"forget.logits", "retain.logits"}
    assert reached(Delete()(now), now) == {"forget.logits"}


def test_delete_refuses_settings_that_cannot_work():
    with pytest.raises(ValueError, match="'classes' or 'sample'"):
        Delete(mask="all")
    with pytest.raises(ValueError, match="retain_weight must be 0 or more"):
        Delete(retain_weight=float("nan"))


def test_finetune_is_the_cross_entropy_on_retain():
    now = step()
    assert Finetune()(now) == {"retain_ce": cross_entropy(now.retain.logits, now.retain.labels)}


def test_the_teacher_runs_once_a_step_and_half_and_without_gradient():
    teacher = Teacher()
    now = step(teacher=teacher)
    first = now.teacher_logits("forget")
    assert now.teacher_logits("forget") is first and teacher.calls == 1
    assert not first.requires_grad
    assert len(now.teacher_logits("retain")) == 4 and teacher.calls == 2
    step(teacher=teacher).teacher_logits("forget")
    assert teacher.calls == 3


def test_a_step_without_teacher_says_how_to_get_one():
    with pytest.raises(RuntimeError, match="needs_teacher = True"):
        step().teacher_logits("forget")


def test_a_class_of_another_package_is_found_by_its_path(third_party):
    objective = get_objective("third_party:GradientAscent", scale=2.0)
    now = step()
    assert objective(now) == {"ascent": -2 * now.forget.logits.sum()}
    assert (objective.name, objective.uses) == ("gradientascent", "forget")


def test_a_class_of_another_package_is_found_by_its_entry_point(third_party):
    info = third_party / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ec_hf.objectives]\nascent = third_party:GradientAscent\n")
    assert "ascent" in available()
    assert vars(get_objective("ascent", scale=3.0)) == {"scale": 3.0}


def test_a_decorated_class_is_found_by_its_name(own_registry):
    def define():
        @register("ascent")
        class Ascent(Objective):
            def __call__(self, step):
                return {"ascent": -step.forget.logits.sum()}

        return Ascent

    define()
    again = define()  # as when a notebook cell is run a second time
    assert again.name == "ascent" and "ascent" in available()
    assert type(get_objective("ascent")) is again


def test_a_name_is_not_taken_from_another_class(own_registry):
    with pytest.raises(ValueError, match=r"'delete' is .*delete:Delete already"):

        @register("delete")
        class Other(Finetune):
            pass

    assert type(get_objective("delete")) is Delete


def test_only_objectives_can_be_registered(own_registry):
    with pytest.raises(TypeError, match=r"subclass of ec_hf.objectives.Objective"):
        register("thing")(dict)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="without ':'"):
        register("a:b")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'contrastive'.*contrastive, coun, d"):
        get_objective("contrastiv")
    with pytest.raises(ValueError, match=r"unknown objective 'zzz'.*package\.module:Class"):
        get_objective("zzz")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_package:Thing", ImportError, "No module named 'no_such_package'"),
        ("ec_hf.losses:Thing", ImportError, "ec_hf.losses has no 'Thing'"),
        ("ec_hf.losses:csul", TypeError, "subclass of ec_hf.objectives.Objective"),
    ],
)
def test_a_path_that_leads_to_no_objective_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        get_objective(name)


def test_an_unknown_setting_is_refused_with_the_accepted_ones():
    settings = "form='supcon', temperature=0.1, detach_retain=False, retain_weight=1.0"
    with pytest.raises(TypeError, match=f"'tau'.*{settings}"):
        get_objective("contrastive", tau=0.1)
    with pytest.raises(TypeError, match="its settings are: none"):
        get_objective("finetune", temperature=0.1)
