"""Each objective against its formula, computed here by hand in NumPy or written out as a number."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.models import make_model, make_processor
from torch import Tensor, nn

from ec_hf import distributed
from ec_hf.losses.distillation import cross_entropy, distillation, hide_classes
from ec_hf.objectives import Part, Progress, Setting, Step, get_objective
from ec_hf.objectives import coun as coun_file
from ec_hf.objectives.boundary_shrink import nearest_wrong_labels
from ec_hf.objectives.coun import augment, contrast_of_views
from ec_hf.objectives.random_label import random_labels
from ec_hf.objectives.scrub import maximises

FORGET_LOGITS, FORGET_LABELS = [[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]], [0, 2]
RETAIN_LOGITS, RETAIN_LABELS = [[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]], [1, 1]
TEACHER_FORGET, TEACHER_RETAIN = [[3.0, 1.0, 2.0], [1.0, 0.0, 4.0]], [[0.0, 3.0, 1.0], [1.0, 1.0, 0.0]]
CE_FORGET = [math.log(math.e**2 + 1 + math.e) - 2, math.log(1 + math.e + math.e**3) - 3]  # 0.407606, 0.169846
CE_RETAIN = [math.log(2 * math.e + 1) - 1, math.log(2 + math.e**2) - 2]  # 0.861995, 0.239512


def part(logits, labels, features=None, pixel_values=None, dtype=torch.float64) -> Part:
    logits = torch.tensor(logits, dtype=dtype)
    features = torch.zeros(len(logits), 2, dtype=dtype) if features is None else torch.tensor(features, dtype=dtype)
    return Part(
        logits.requires_grad_(),
        features.requires_grad_(),
        torch.tensor(labels),
        torch.zeros(len(logits), 1, 2, 2) if pixel_values is None else pixel_values,
    )


def make_step(**changes) -> Step:
    """Two rows a half; the teacher's logits are constants, told apart by the images' value."""
    forget = part(FORGET_LOGITS, FORGET_LABELS, pixel_values=torch.zeros(2, 1, 2, 2))
    retain = part(RETAIN_LOGITS, RETAIN_LABELS, pixel_values=torch.ones(2, 1, 2, 2))

    def teacher(pixel_values):
        return torch.tensor(TEACHER_RETAIN if pixel_values.any() else TEACHER_FORGET, dtype=torch.float64)

    return Step(**({"forget": forget, "retain": retain, "teacher": teacher} | changes))


def test_follow_is_the_retain_cross_entropy_and_the_divergence_from_the_pilot(tmp_path):
    make_model("ViT", seed=3).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    model, images = make_model("ViT").eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = get_objective("follow", pilot=str(tmp_path), retain_weight=0.5, forget_weight=2.0)
    objective.prepare(Setting(model, None, None, None, None, 0))
    with torch.no_grad():
        own = model(pixel_values=images).logits.double()
        wanted = softmax(make_model("ViT", seed=3).eval()(pixel_values=images).logits.double().numpy())
    forget = Part(own, own, torch.tensor([0, 1]), images)
    retain = part(RETAIN_LOGITS, RETAIN_LABELS)
    losses = values(objective(Step(forget=forget, retain=retain)))
    divergence = (wanted * (np.log(wanted) - np.log(softmax(own.numpy())))).sum(1).mean()
    assert losses == pytest.approx(
        {"retain_ce": 0.5 * np.mean(CE_RETAIN), "follow_kl": 2.0 * divergence}, rel=1e-4
    )  # in float32


def test_follow_refuses_nobody_and_a_pilot_of_other_classes(tmp_path):
    with pytest.raises(ValueError, match="needs a pilot"):
        get_objective("follow").check(1, whole_classes=False)
    model = make_model("ViT")
    other = copy.deepcopy(model.config)
    other.num_labels = 2
    type(model)(other).save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is no rewind of this model: it differs in .'classifier"):
        get_objective("follow", pilot=tmp_path).prepare(Setting(model, None, None, None, None, 0))


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def softmax(rows) -> np.ndarray:
    powers = np.exp(np.asarray(rows, dtype=float))
    return powers / powers.sum(axis=1, keepdims=True)


def kl(teacher, student, temperature: float = 1.0) -> float:
    """mean over rows of Σ_c p_c · log(p_c / q_c), times T²."""
    p, q = softmax(np.array(teacher) / temperature), softmax(np.array(student) / temperature)
    return temperature**2 * float(np.mean(np.sum(p * np.log(p / q), axis=1)))


def cosine(a, b) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# Losses that more than one objective uses


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher_averaged_over_rows_alone(temperature):
    student, teacher = torch.tensor(FORGET_LOGITS).double(), torch.tensor(TEACHER_FORGET).double()
    assert distillation(student, teacher, temperature).item() == pytest.approx(
        kl(TEACHER_FORGET, FORGET_LOGITS, temperature), abs=1e-12
    )
    reference = nn.KLDivLoss(reduction="batchmean", log_target=True)
    rows = (student / temperature).log_softmax(1), (teacher / temperature).log_softmax(1)
    assert distillation(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * reference(*rows).item(), abs=1e-12
    )


def test_the_temperature_of_distillation_hardly_changes_the_size_of_its_gradient():
    sizes = []
    for temperature in (50.0, 100.0):
        student = torch.tensor(FORGET_LOGITS).double().requires_grad_()
        distillation(student, torch.tensor(TEACHER_FORGET).double(), temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_no_gradient_reaches_a_teacher():
    teacher = torch.tensor(TEACHER_FORGET).requires_grad_()
    student = torch.tensor(FORGET_LOGITS).requires_grad_()
    distillation(student, teacher).backward()
    assert teacher.grad is None and student.grad.any()
    assert not hide_classes(teacher, torch.tensor([0, 2])).requires_grad


def test_hide_classes_hides_the_own_label_and_the_forgotten_classes():
    logits = torch.arange(8.0).reshape(2, 4)
    hidden = hide_classes(logits, torch.tensor([0, 3]))
    assert hidden.isneginf().tolist() == [[True, False, False, False], [False, False, False, True]]
    hidden = hide_classes(logits, torch.tensor([0, 3]), (1, 3))
    assert hidden.isneginf().tolist() == [[True, True, False, True], [False, True, False, True]]
    assert torch.equal(hidden[~hidden.isneginf()], torch.tensor([2.0, 4.0, 6.0]))


def test_hide_classes_refuses_a_row_that_it_would_leave_without_a_class():
    logits = torch.arange(8.0).reshape(2, 4)
    assert hide_classes(logits, torch.tensor([0, 2]), (0, 1, 2)).isfinite().sum(dim=1).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"must hold the label of every forget image"):
        hide_classes(logits, torch.tensor([0, 3]), (0, 1, 2))


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits = torch.tensor(FORGET_LOGITS, dtype=torch.bfloat16)
    assert cross_entropy(logits, torch.tensor(FORGET_LABELS)).dtype == torch.float32
    assert distillation(logits, logits).dtype == torch.float32


# On the forget set


def test_gradient_ascent_is_the_negative_cross_entropy_on_forget():
    now = make_step()
    losses = get_objective("gradient_ascent")(now)
    assert values(losses) == pytest.approx({"ascent": -0.2887260}, abs=1e-7)
    before = cross_entropy(now.forget.logits, now.forget.labels).item()
    total(losses).backward()
    after = cross_entropy(now.forget.logits - 0.1 * now.forget.logits.grad, now.forget.labels).item()
    assert after > before and now.retain.logits.grad is None


def test_gradient_ascent_stops_at_its_bound_sample_by_sample():
    now = make_step()
    losses = get_objective("gradient_ascent", bound=0.2)(now)
    assert values(losses) == pytest.approx({"ascent": -(0.2 + 0.1698462) / 2}, abs=1e-7)
    total(losses).backward()
    assert not now.forget.logits.grad[0].any() and now.forget.logits.grad[1].any()


@pytest.mark.parametrize(
    "name", ["gradient_ascent", "boundary_shrink", "boundary_expand", "pseudo_label", "delete", "random_label"]
)
def test_retain_is_added_to_methods_of_the_forget_set_by_a_weight_and_only_then(name):
    for weight in (0.0, 0.5):
        objective = get_objective(name, retain_weight=weight)
        now = make_step(teacher=lambda pixels: pixels.flatten(1)[:, :3])
        objective.prepare(fake_setting())
        losses = objective(now)
        total(losses).backward()
        assert (now.retain.logits.grad is not None) == ("retain_ce" in losses) == (weight > 0)
        assert now.forget.logits.grad.any()
    assert losses["retain_ce"].item() == pytest.approx(0.5 * sum(CE_RETAIN) / 2, abs=1e-12)


@pytest.mark.parametrize("wrong", [False, True])
def test_random_label_is_the_cross_entropy_of_the_labels_it_draws(wrong):
    torch.manual_seed(3)
    drawn = random_labels(torch.tensor(FORGET_LABELS), 3, wrong=wrong)
    torch.manual_seed(3)
    losses = get_objective("random_label", wrong=wrong)(make_step())
    by_hand = -np.log(softmax(FORGET_LOGITS)[[0, 1], drawn.numpy()]).mean()
    assert values(losses) == pytest.approx({"random_label": by_hand, "retain_ce": sum(CE_RETAIN) / 2}, abs=1e-12)


def test_random_labels_are_uniform_over_all_classes_or_over_the_wrong_ones():
    torch.manual_seed(0)
    true = torch.full((30_000,), 2)
    counts = torch.bincount(random_labels(true, 4, wrong=False), minlength=4)
    assert counts.tolist() == pytest.approx([7_500] * 4, rel=0.05)
    counts = torch.bincount(random_labels(true, 4, wrong=True), minlength=4)
    assert counts.tolist() == pytest.approx([10_000, 10_000, 0, 10_000], rel=0.05)


def test_random_labels_are_fresh_at_each_step_and_the_same_from_the_same_random_state():
    true = torch.zeros(50, dtype=torch.int64)
    torch.manual_seed(0)
    random_labels(true, 9, wrong=False)
    state = torch.get_rng_state()
    second, third = random_labels(true, 9, wrong=False), random_labels(true, 9, wrong=False)
    assert not torch.equal(second, third)
    torch.set_rng_state(state)  # as a resume does
    assert torch.equal(random_labels(true, 9, wrong=False), second)


def test_processes_draw_different_random_labels_and_stay_in_step(monkeypatch):
    true, drawn, states = torch.zeros(50, dtype=torch.int64), [], []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank_offset", lambda rows, rank=rank: rank * rows)
        torch.manual_seed(0)
        drawn.append(random_labels(true, 9, wrong=False))
        states.append(torch.get_rng_state())
    assert not torch.equal(*drawn) and torch.equal(*states)


# A linear teacher of three classes over images of four pixels, for gradients by hand.
WEIGHTS = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, -2.0], [0.3, 0.2, 0.0], [-1.0, 0.4, 0.1]])
IMAGES = np.array([[1.0, 0.2, -0.3, 0.1], [0.5, 0.4, 0.1, -0.2]])


MEAN, STD = (0.4,), (0.25,)


@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.1, 0.5])
def test_boundary_shrink_takes_the_best_wrong_class_behind_one_step_on_pixels_from_0_to_1(epsilon):
    # As the published attack does: un-normalise, add, clamp to 0 .. 1, round to 256 values, normalise.
    labels = np.array([0, 0])
    gradient = (softmax(IMAGES @ WEIGHTS) - np.eye(3)[labels]) @ WEIGHTS.T
    pixels = np.clip(IMAGES * STD[0] + MEAN[0] + epsilon * np.sign(gradient), 0, 1)
    stepped = (np.round(pixels * 255) / 255 - MEAN[0]) / STD[0] if epsilon else IMAGES
    moved = stepped @ WEIGHTS
    moved[[0, 1], labels] = -np.inf
    expected = moved.argmax(axis=1)

    calls = []

    def teacher(pixel_values):
        calls.append(pixel_values.flatten(1).detach())
        return pixel_values.flatten(1) @ torch.tensor(WEIGHTS)

    images = torch.tensor(IMAGES).reshape(2, 1, 2, 2)
    found = nearest_wrong_labels(teacher, images, torch.tensor(labels), epsilon, MEAN, STD)
    assert found.tolist() == expected.tolist()
    np.testing.assert_allclose(calls[1].numpy(), stepped, atol=1e-12)
    assert not images.requires_grad and not found.requires_grad and len(calls) == 2

    forget = part(FORGET_LOGITS, labels.tolist(), pixel_values=images)
    for told in ({"image_mean": MEAN, "image_std": STD}, {}):
        objective = get_objective("boundary_shrink", epsilon=epsilon, **told)
        objective.prepare(fake_setting(normalisation=None if told else (MEAN, STD)))
        losses = objective(make_step(forget=forget, teacher=teacher))
    by_hand = -np.log(softmax(FORGET_LOGITS)[[0, 1], expected]).mean()
    assert values(losses) == pytest.approx({"boundary_shrink": by_hand}, abs=1e-12)


def test_the_step_of_boundary_shrink_changes_which_class_is_nearest():
    def teacher(pixel_values):
        return pixel_values.flatten(1) @ torch.tensor(WEIGHTS)

    images, labels = torch.tensor(IMAGES).reshape(2, 1, 2, 2), torch.tensor([0, 0])
    assert nearest_wrong_labels(teacher, images, labels, 0.0, MEAN, STD).tolist() == [1, 1]
    assert nearest_wrong_labels(teacher, images, labels, 0.125, MEAN, STD).tolist() == [2, 1]


def test_boundary_shrink_refuses_a_step_where_it_does_not_know_the_pixels():
    with pytest.raises(ValueError, match=r"image_mean.*image_std"):
        get_objective("boundary_shrink").prepare(fake_setting(normalisation=None))
    get_objective("boundary_shrink", epsilon=0).prepare(fake_setting(normalisation=None))
    with pytest.raises(ValueError, match="go together"):
        get_objective("boundary_shrink", image_mean=[0.5])


def fake_setting(model=None, seed: int = 0, **changes) -> Setting:
    """Three classes; features are the first two pixels; retain rows of classes 0 and 1."""
    pixels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.5]])

    def retain():
        yield {"pixel_values": pixels[:3], "labels": torch.tensor([0, 0, 1])}
        yield {"pixel_values": pixels[3:], "labels": torch.tensor([1])}

    defaults = {
        "model": SimpleNamespace(config=SimpleNamespace(num_labels=3)) if model is None else model,
        "forget": lambda: iter([{"pixel_values": pixels, "labels": torch.tensor([2, 2, 2, 2])}]),
        "retain": retain,
        "features": lambda pixel_values: pixel_values.flatten(1)[:, :2],
        "forget_classes": (2,),
        "seed": seed,
        "normalisation": (MEAN, STD),
    }
    return Setting(**(defaults | changes))


def test_boundary_expand_is_the_cross_entropy_towards_a_class_that_the_model_does_not_have():
    objective = get_objective("boundary_expand")
    objective.prepare(fake_setting())
    features = [[1.0, 2.0], [-1.0, 0.5]]
    now = make_step(forget=part(FORGET_LOGITS, FORGET_LABELS, features))
    losses = objective(now)
    extra = np.array(features) @ objective._row.double().numpy()
    by_hand = -np.log(softmax(np.concatenate([np.array(FORGET_LOGITS), extra[:, None]], axis=1))[:, 3]).mean()
    assert values(losses) == pytest.approx({"boundary_expand": by_hand}, abs=1e-12)
    total(losses).backward()
    assert (now.forget.logits.grad > 0).all(), "every class the model has is pushed down"
    assert now.forget.features.grad.any()


def test_the_row_of_boundary_expand_comes_from_the_seed_and_is_as_wide_as_xavier_has_it():
    rows = []
    for seed in (0, 0, 1):
        objective = get_objective("boundary_expand")
        objective.prepare(fake_setting(seed=seed, features=lambda pixel_values: pixel_values.new_zeros(1, 4000)))
        rows.append(objective._row)
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert rows[0].std().item() == pytest.approx(math.sqrt(2 / 4004), rel=0.05)


def test_pseudo_label_is_the_best_class_of_the_original_model_that_stays():
    # The teacher's best classes without the own label are 2 and 0, and 1 and 1 without the forgotten 0 and 2.
    logp = np.log(softmax(FORGET_LOGITS))
    losses = get_objective("pseudo_label")(make_step())
    assert values(losses) == pytest.approx({"pseudo_label": -(logp[0, 2] + logp[1, 0]) / 2}, abs=1e-12)
    losses = get_objective("pseudo_label")(make_step(forget_classes=(0, 2)))
    assert values(losses) == pytest.approx({"pseudo_label": -(logp[0, 1] + logp[1, 1]) / 2}, abs=1e-12)


def test_delete_has_its_golden_value():
    forget = part([[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0]], [0, 2])
    teacher = torch.tensor([[2.0, 1.0, 0.5, -1.0], [0.3, 0.2, 3.0, 0.1]], dtype=torch.float64)
    losses = get_objective("delete")(make_step(forget=forget, teacher=lambda pixels: teacher))
    assert values(losses) == pytest.approx({"delete": 0.8063455948}, abs=1e-9)


# On both sets


def test_neggrad_plus_weighs_descent_on_retain_against_ascent_on_forget():
    now = make_step()
    losses = get_objective("neggrad_plus", alpha=0.75)(now)
    expected = {"retain_ce": 0.75 * sum(CE_RETAIN) / 2, "ascent": -0.25 * 0.2887260}
    assert values(losses) == pytest.approx(expected, abs=1e-7)
    total(losses).backward()
    for half, sign in ((now.forget, 1), (now.retain, -1)):
        moved = half.logits - 0.1 * half.logits.grad
        assert sign * (cross_entropy(moved, half.labels) - cross_entropy(half.logits, half.labels)) > 0


def test_neggrad_plus_does_not_depend_on_how_many_rows_each_half_has():
    doubled = part(FORGET_LOGITS * 2, FORGET_LABELS * 2)
    assert values(get_objective("neggrad_plus")(make_step(forget=doubled))) == pytest.approx(
        values(get_objective("neggrad_plus")(make_step()))
    )


@pytest.mark.parametrize(
    ("form", "temperature", "expected"), [("csul", 0.7, 0.6664472815), ("uuef", 1.0, 2.2723349491)]
)
def test_contrastive_has_the_golden_values_of_its_published_forms(form, temperature, expected):
    grid = np.arange(30).reshape(6, 5) + 1
    forget = part(np.zeros((4, 3)).tolist(), [0, 0, 1, 1], np.sin(grid[:4]).tolist())
    retain = part(np.zeros((6, 3)).tolist(), [0, 1, 2, 2, 1, 0], np.cos(grid).tolist())
    losses = get_objective("contrastive", form=form, temperature=temperature, retain_weight=1 / 3)(
        make_step(forget=forget, retain=retain)
    )
    assert values(losses) == pytest.approx({"contrast": expected, "retain_ce": math.log(3) / 3}, abs=1e-9)


def test_bad_teacher_distils_ignorance_on_forget_and_the_original_on_retain():
    model = make_model("ViT")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = get_objective("bad_teacher", temperature=2.0, retain_weight=0.5)
    objective.prepare(fake_setting(model))
    with torch.no_grad():
        ignorant = objective._bad(pixel_values=pixels).logits.tolist()
    student = [[2.0, 0.0, 1.0, 0.0, -1.0], [0.0, 1.0, 3.0, 0.5, 0.0]]
    now = make_step(forget=part(student, FORGET_LABELS, pixel_values=pixels))
    losses = objective(now)
    expected = {"forget_kl": kl(ignorant, student, 2.0), "retain_kl": 0.5 * kl(TEACHER_RETAIN, RETAIN_LOGITS, 2.0)}
    assert values(losses) == pytest.approx(expected, abs=1e-6)
    total(losses).backward()
    assert now.forget.logits.grad.any() and now.retain.logits.grad.any()
    assert "retain_kl" not in get_prepared("bad_teacher", model, retain_weight=0.0)(now)


def test_bad_teacher_has_the_gradient_of_one_mean_over_a_mixed_batch_as_published():
    # The published batch holds all 2 forget rows and 30 % of 20 retain rows; its loss is one mean over those 8.
    model = make_model("ViT")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    rows = {name: torch.randn(n, 5, generator=generator).double() for name, n in (("forget", 2), ("retain", 6))}
    kept = torch.randn(6, 5, generator=generator).double()
    objective = get_objective("bad_teacher")
    objective.prepare(fake_setting(model, images={"forget": 2, "retain": 20}))
    now = make_step(
        forget=part(rows["forget"].tolist(), FORGET_LABELS, pixel_values=pixels),
        retain=part(rows["retain"].tolist(), [0] * 6),
        teacher=lambda pixel_values: kept,
    )
    total(objective(now)).backward()
    with torch.no_grad():
        ignorant = objective._bad(pixel_values=pixels).logits.double()
    mixed = torch.cat([rows["forget"], rows["retain"]]).requires_grad_()
    target = torch.cat([ignorant, kept]).softmax(dim=1)
    (target * (target.log() - mixed.log_softmax(dim=1))).sum(dim=1).mean().backward()
    ours = torch.cat([now.forget.logits.grad, now.retain.logits.grad])
    torch.testing.assert_close(ours / (1 + 3.0), mixed.grad, rtol=1e-6, atol=1e-7)


def test_the_images_of_a_set_are_counted_where_nobody_said_how_many_there_are():
    assert (fake_setting().count("forget"), fake_setting().count("retain")) == (4, 4)
    assert fake_setting(images={"forget": 7, "retain": 9}).count("retain") == 9


def get_prepared(name: str, model, seed: int = 0, **settings):
    objective = get_objective(name, **settings)
    objective.prepare(fake_setting(model, seed))
    return objective


@pytest.mark.parametrize("family", ["ViT", "ResNet", "timm ViT"])
def test_the_bad_teacher_is_a_new_network_of_the_same_kind_and_leaves_random_states_alone(family):
    model = make_model(family, seed=5)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, again, other = (get_prepared("bad_teacher", model, seed)._bad for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    weights = [list(net.parameters()) for net in (first, again, other, model)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    for unlike in weights[2:]:
        assert not all(torch.equal(a, b) for a, b in zip(weights[0], unlike, strict=True))
    assert not first.training and not any(parameter.requires_grad for parameter in weights[0])


def test_scrub_leaves_the_teacher_on_forget_in_a_max_step_and_joins_it_on_retain_in_a_min_step():
    schedule = {"total": 10, "epoch_steps": 4, "forget_steps": 1}
    losses = get_objective("scrub")(now := make_step(progress=Progress(index=0, **schedule)))
    assert values(losses) == pytest.approx({"forget_kl": -kl(TEACHER_FORGET, FORGET_LOGITS, 4.0)}, abs=1e-12)
    assert now.log == {"max_steps": 1}
    total(losses).backward()
    assert now.retain.logits.grad is None
    further = kl(TEACHER_FORGET, (now.forget.logits - 0.1 * now.forget.logits.grad).tolist(), 4.0)
    assert further > kl(TEACHER_FORGET, FORGET_LOGITS, 4.0)

    losses = get_objective("scrub")(now := make_step(progress=Progress(index=1, **schedule)))
    expected = {
        "retain_ce": 0.99 * sum(CE_RETAIN) / 2,
        "retain_kl": 0.001 * kl(TEACHER_RETAIN, RETAIN_LOGITS, 4.0),
    }
    assert values(losses) == pytest.approx(expected, abs=1e-12)
    assert now.log == {"max_steps": 0}
    total(losses).backward()
    assert now.forget.logits.grad is None


@pytest.mark.parametrize(
    ("total_steps", "epoch_steps", "forget_steps", "msteps", "expected"),
    [
        (15, 3, 2, 2, "MMmmmMMmmmmmmmm"),  # rounds of 2 + 3, the first two with a max pass
        (10, 3, 2, 9, "MMmmmMmmmm"),
        (6, 3, 2, 2, "Mmmmmm"),  # one step is left of the second round: none of it is a max step
        (8, 3, 2, 2, "MMmmmmmm"),
        (4, 9, 5, 2, "Mmmm"),  # a run shorter than a round
        (4, 3, 2, 0, "mmmm"),
        (1, 1, 1, 2, "m"),
    ],
)
def test_scrub_alternates_passes_and_ends_on_min_steps(total_steps, epoch_steps, forget_steps, msteps, expected):
    schedule = {"total": total_steps, "epoch_steps": epoch_steps, "forget_steps": forget_steps}
    steps = [make_step(progress=Progress(index=index, **schedule)) for index in range(total_steps)]
    assert "".join("M" if maximises(each, msteps) else "m" for each in steps) == expected


def test_scrub_of_3_published_epochs_has_the_steps_of_the_published_loop():
    # 45,000 retain images in batches of 128, 5,000 forget images in batches of 32, max passes in the first 2 rounds.
    epoch_steps, forget_steps = math.ceil(45_000 / 128), math.ceil(5_000 / 32)
    official = ("M" * forget_steps + "m" * epoch_steps) * 2 + "m" * epoch_steps
    schedule = {"total": len(official), "epoch_steps": epoch_steps, "forget_steps": forget_steps}
    steps = (make_step(progress=Progress(index=index, **schedule)) for index in range(len(official)))
    assert "".join("M" if maximises(each, 2) else "m" for each in steps) == official
    assert (official.count("M"), official.count("m")) == (314, 1056)
    assert get_objective("scrub").published["num_train_epochs"] == round(len(official) / epoch_steps, 1) == 3.9


def duck_step(**changes) -> Step:
    forget = part(FORGET_LOGITS, [2, 2], [[1.0, 1.0], [0.2, 2.0]])
    return make_step(**({"forget": forget} | changes))


def test_duck_moves_forget_to_the_nearest_centroid_of_retain():
    objective = get_prepared("duck", None)
    assert torch.equal(objective._centroids[:2], torch.tensor([[2.0, 0.0], [0.0, 1.25]]))
    assert objective._centroids[2].isnan().all()
    now = duck_step()
    losses = objective(now)
    # The first row is as near to both centroids, the second nearer to that of class 1.
    distance = (1 - math.sqrt(0.5) + 1 - cosine([0.2, 2.0], [0, 1])) / 2
    halved = np.log(softmax(np.array(RETAIN_LOGITS) / 2))
    expected = {"centroid": distance, "retain_ce": -1.4 * (halved[0, 1] + halved[1, 1]) / 2}
    assert values(losses) == pytest.approx(expected, abs=1e-6)
    total(losses).backward()
    moved = now.forget.features[1] - now.forget.features.grad[1]
    assert cosine(moved.tolist(), [0, 1]) > cosine([0.2, 2.0], [0, 1])


def test_duck_never_takes_the_centroid_of_the_own_class_and_does_not_rely_on_the_order_of_rows():
    objective = get_prepared("duck", None)
    labels = [0, 1]
    forget = part(FORGET_LOGITS, labels, [[1.0, 0.1], [0.2, 2.0]])
    expected = (1 - cosine([1.0, 0.1], [0, 1]) + 1 - cosine([0.2, 2.0], [1, 0])) / 2
    assert objective(duck_step(forget=forget))["centroid"].item() == pytest.approx(expected, abs=1e-6)
    turned = part(FORGET_LOGITS, labels[::-1], [[0.2, 2.0], [1.0, 0.1]])
    assert objective(duck_step(forget=turned))["centroid"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("total_steps", "epoch_steps", "last_epochs", "expected"),
    [(10, 2, 2, "......LLLL"), (10, 3, 2, ".....LLLLL"), (5, 2, 0, "....."), (3, 9, 2, "..L"), (1, 1, 2, ".")],
)
def test_duck_keeps_retain_and_hardly_pulls_in_its_last_passes(total_steps, epoch_steps, last_epochs, expected):
    schedule = {"total": total_steps, "epoch_steps": epoch_steps}
    objective = get_prepared("duck", None, last_epochs=last_epochs)
    first = values(get_prepared("duck", None, last_epochs=0)(duck_step()))
    found = ""
    for index in range(total_steps):
        losses = values(objective(duck_step(progress=Progress(index=index, **schedule))))
        last = losses["centroid"] == pytest.approx(first["centroid"] / 10)
        assert losses["centroid"] == pytest.approx(first["centroid"] / (10 if last else 1))
        assert losses["retain_ce"] == pytest.approx(first["retain_ce"] / (1.4 if last else 1))
        found += "L" if last else "."
    assert found == expected


def test_duck_refuses_a_retain_set_without_a_wrong_class():
    def retain():
        yield {"pixel_values": torch.ones(2, 2), "labels": torch.tensor([1, 1])}

    with pytest.raises(ValueError, match="retain has one class only"):
        get_objective("duck").prepare(fake_setting(retain=retain, forget_classes=None))
    get_objective("duck").prepare(fake_setting(retain=retain))


# On retain


class Net(nn.Module):
    """Weights 1, -2, 3; two more that the penalty leaves out, frozen and of an EC head."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.frozen = nn.Parameter(torch.tensor([100.0]), requires_grad=False)
        self.ec_heads = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("index", "without", "alpha"),
    [(0, 0.0, 0.1), (5, 0.0, 0.05), (9, 0.0, 0.01), (2, 0.5, 0.06), (5, 0.5, 0.0), (9, 0.5, 0.0), (0, 1.0, 0.0)],
)
def test_l1_sparse_adds_a_penalty_on_the_models_own_weights_that_fades_out(index, without, alpha):
    now = make_step(model=Net(), progress=Progress(index=index, total=10))
    losses = get_objective("l1_sparse", alpha=0.1, without=without)(now)
    assert values(losses) == pytest.approx({"retain_ce": sum(CE_RETAIN) / 2, "l1": 6 * alpha}, abs=1e-6)
    assert now.log["alpha"].item() == pytest.approx(alpha)
    total(losses).backward()
    assert now.model.weight.grad.tolist() == pytest.approx([alpha, -alpha, alpha])
    assert now.model.ec_heads.weight.grad is None and now.forget.logits.grad is None


def test_l1_sparse_is_as_weak_as_it_was_used():
    assert get_objective("l1_sparse").alpha == 1e-4


def views_by_hand(first, second, temperature: float) -> float:
    """The paper's listing: each view against the other views alone, a mean in each direction, and their sum."""
    loss = 0.0
    for anchors, others in ((first, second), (second, first)):
        for i, anchor in enumerate(anchors):
            scores = [math.exp(cosine(anchor, other) / temperature) for other in others]
            loss -= math.log(scores[i] / sum(scores)) / len(anchors)
    return loss


VIEWS = np.sin(np.arange(40).reshape(2, 5, 4) ** 1.5)


def test_coun_is_the_cross_entropy_and_the_contrast_of_two_views_on_retain():
    retain = part([[1.0, 1.0, 0.0]] * 5, [1] * 5, VIEWS[0].tolist())
    extra = part([[0.0, 0.0, 0.0]] * 5, [-100] * 5, VIEWS[1].tolist())
    now = make_step(retain=retain, extra=extra)
    losses = get_objective("coun", temperature=0.5, contrast_weight=2.0)(now)
    expected = {"retain_ce": CE_RETAIN[0], "views": 2 * views_by_hand(*VIEWS, 0.5)}
    assert values(losses) == pytest.approx(expected, abs=1e-9)
    total(losses).backward()
    assert retain.features.grad.any() and extra.features.grad.any()
    assert now.forget.logits.grad is None and now.forget.features.grad is None


def test_the_contrast_of_views_is_the_same_over_processes_as_in_one(monkeypatch):
    first, second = (torch.tensor(view[:4]).requires_grad_() for view in VIEWS)
    whole = contrast_of_views(first, second, 0.3)
    expected = torch.autograd.grad(whole, (first, second))
    # Each process has two rows of each view and is given those of both by the gather.
    everything = {2: first, 3: second}
    shares = []
    for rank in (0, 1):
        calls = iter(everything.values())
        monkeypatch.setattr(coun_file, "gather_with_grad", lambda rows, calls=calls: next(calls))
        monkeypatch.setattr(coun_file, "rank_offset", lambda rows, rank=rank: rank * rows)
        own = slice(2 * rank, 2 * rank + 2)
        shares.append(contrast_of_views(first[own], second[own], 0.3))
    mean = torch.stack(shares).mean()
    assert mean.item() == pytest.approx(whole.item(), abs=1e-12)
    assert shares[0] != shares[1]
    for a, b in zip(torch.autograd.grad(mean, (first, second)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_second_view_is_each_image_shifted_and_perhaps_mirrored():
    # Each pixel's value tells its place and its image, so that a view says where it is from.
    images = torch.arange(1.0, 1 + 24 * 16 * 8).reshape(24, 1, 16, 8)
    views = augment(images, torch.Generator().manual_seed(0))
    found = set()
    for image, view in zip(images, views, strict=True):
        places = [
            (down, right, mirror)
            for mirror in (False, True)
            for down in (-2, -1, 0, 1, 2)
            for right in (-1, 0, 1)
            if torch.equal(view.flip(-1) if mirror else view, shifted(image, down, right))
        ]
        assert len(places) == 1
        found |= set(places)
    assert {mirror for *_, mirror in found} == {False, True}
    assert {down for down, *_ in found} == {-2, -1, 0, 1, 2} and {right for _, right, _ in found} == {-1, 0, 1}


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved over a ground of zeros, one pixel at a time."""
    moved = torch.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if 0 <= y - down < image.shape[1] and 0 <= x - right < image.shape[2]:
                moved[:, y, x] = image[:, y - down, x - right]
    return moved


def test_coun_adds_a_view_of_each_retain_image_from_the_seeded_random_state():
    retain = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    coun = get_objective("coun")
    torch.manual_seed(0)
    first, second = (coun.extra_pixels(torch.zeros(2, 3, 16, 16), retain) for _ in range(2))
    assert first.shape == retain.shape and not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(coun.extra_pixels(torch.zeros(2, 3, 16, 16), retain), first)
    torch.manual_seed(0)
    upright = get_objective("coun", flip=False).extra_pixels(torch.zeros(2, 3, 16, 16), retain)
    mirrored = [not torch.equal(a, b) for a, b in zip(upright, first, strict=True)]
    assert any(mirrored) and not all(mirrored)


# Settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gradient_ascent", {"bound": 0.0}, "bound must be a positive number, got 0"),
        ("gradient_ascent", {"retain_weight": -1}, "retain_weight must be 0 or more, got -1"),
        ("neggrad_plus", {"alpha": 1.5}, "alpha must be a share from 0 to 1, got 1.5"),
        ("random_label", {"retain_weight": math.nan}, "retain_weight must be 0 or more"),
        ("l1_sparse", {"alpha": -0.1}, "alpha must be 0 or more"),
        ("l1_sparse", {"without": 2}, "without must be a share"),
        ("boundary_shrink", {"epsilon": math.inf}, "epsilon must be 0 or more"),
        ("bad_teacher", {"temperature": 0}, "temperature must be a positive number"),
        ("scrub", {"msteps": -1}, "msteps must be 0 or more"),
        ("duck", {"temperature": -2}, "temperature must be a positive number"),
        ("coun", {"contrast_weight": -2}, "contrast_weight must be 0 or more"),
        ("laf", {"latent": 0}, "latent must be a whole number from 1, got 0"),
        ("laf", {"repair": 1.5}, "repair must be a share from 0 to 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_when_the_objective_is_built(name, settings, message):
    with pytest.raises(ValueError, match=message):
        get_objective(name, **settings)


@pytest.mark.parametrize("name", ["bad_teacher", "boundary_expand", "boundary_shrink", "duck", "laf"])
def test_an_objective_that_was_not_prepared_says_so(name):
    with pytest.raises(RuntimeError, match=rf"{name}.*call its prepare\(setting\)"):
        get_objective(name)(make_step())
