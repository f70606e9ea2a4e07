from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ec_hf.losses.contrast import CONTRASTS, Contrast, check_contrast, csul, global_contrast, similarity, supcon, uuef
from ec_hf.losses.distillation import cross_entropy, delete_kl
from ec_hf.losses.schedules import LAYER_WEIGHTS, layer_weights


def grid(rows: int) -> Tensor:
    return torch.arange(5 * rows, dtype=torch.float64).reshape(rows, 5) + 1


FORGET, RETAIN = grid(4).sin(), grid(6).cos()
FORGET_LABELS, RETAIN_LABELS = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 2, 2, 1, 0])
ABSENT = torch.full((4,), 9)  # a class that retain does not have
# An anchor with partners in both sets, one with a partner in forget only, and one with none at all.
MIXED_LABELS = torch.tensor([0, 7, 7, 9])


def batch(
    seed: int, classes: int = 3, forget_rows: int = 5, retain_rows: int = 7
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(forget_rows, 6, generator=generator, dtype=torch.float64),
        torch.randn(retain_rows, 6, generator=generator, dtype=torch.float64),
        torch.randint(classes, (forget_rows,), generator=generator),
        torch.randint(classes, (retain_rows,), generator=generator),
    )


def step(leaf: Tensor, loss: Tensor) -> Tensor:
    """The leaf after a small step against the gradient of the loss."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    return leaf.detach() - 0.1 * gradient


def by_loop(form: str, t: float, forget: Tensor, retain: Tensor, forget_labels: Tensor, retain_labels: Tensor):
    """`csul` and `supcon` straight from the formula, one pair at a time, in Python floats."""

    def similarity(x: Tensor, y: Tensor) -> float:
        dot = sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))
        return dot / math.sqrt(sum(a * a for a in x.tolist()) * sum(b * b for b in y.tolist())) / t

    terms, fallbacks = [], 0
    for i, anchor in enumerate(forget):
        own = forget_labels[i]
        pulled = [similarity(anchor, r) for r, label in zip(retain, retain_labels, strict=True) if label != own]
        partners = [similarity(anchor, r) for r, label in zip(retain, retain_labels, strict=True) if label == own]
        if form == "supcon":
            partners += [similarity(anchor, f) for j, f in enumerate(forget) if j != i and forget_labels[j] == own]
        fallbacks += not partners
        if not pulled:
            continue
        total = sum(math.exp(s) for s in (partners if form == "csul" else pulled + partners))
        total = total if partners else len(pulled)
        terms.append(-sum(math.log(math.exp(s) / total) for s in pulled) / len(pulled))
    return (sum(terms) / len(terms) if terms else 0.0), fallbacks


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 0.6265862615), (0.7, 0.6664472815), (0.5, 0.7497991158), (0.1, 2.3399126734)]
)
def test_csul_has_its_golden_values(temperature, expected):
    loss, fallbacks = csul(FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, temperature=temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert fallbacks == 0


def test_csul_has_its_golden_value_on_raw_features():
    loss = csul(FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, temperature=0.7, normalize=False).loss
    assert loss.item() == pytest.approx(1.3280514936, abs=1e-9)


def test_csul_has_its_golden_values_per_anchor():
    terms = [
        csul(FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, temperature=0.7, anchors=slice(i, i + 1)).loss.item()
        for i in range(4)
    ]
    assert terms == pytest.approx([0.950332, -0.884463, 1.195265, 1.404656], abs=1e-6)


def test_csul_has_its_golden_value_in_class_mode_and_counts_every_anchor():
    loss, fallbacks = csul(FORGET, RETAIN, ABSENT, RETAIN_LABELS, temperature=0.7)
    assert loss.item() == pytest.approx(1.8489250198, abs=1e-9)
    assert fallbacks == 4 and not fallbacks.is_floating_point() and fallbacks.ndim == 0


def test_uuef_has_its_golden_value_and_no_fallback():
    loss, fallbacks = uuef(FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, temperature=1.0)
    assert loss.item() == pytest.approx(2.2723349491, abs=1e-9)
    assert fallbacks == 0


def test_uuef_of_one_class_is_exactly_zero_with_zero_gradient():
    forget = FORGET.clone().requires_grad_()
    loss = uuef(forget, RETAIN, ABSENT, RETAIN_LABELS, temperature=1.0).loss
    (gradient,) = torch.autograd.grad(loss, forget)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(forget))


def test_uuef_does_not_depend_on_retain():
    first = uuef(FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, temperature=1.0).loss
    assert first == uuef(FORGET, -RETAIN[:2], FORGET_LABELS, RETAIN_LABELS[:2] + 5, temperature=1.0).loss


@pytest.mark.parametrize("form", ["csul", "supcon"])
@pytest.mark.parametrize("classes", [1, 2, 3, 12])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_loop_over_the_formula(form, classes, seed):
    rows = batch(seed, classes)
    loss, fallbacks = CONTRASTS[form](*rows, temperature=0.3)
    expected, expected_fallbacks = by_loop(form, 0.3, *rows)
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert fallbacks == expected_fallbacks


def test_the_loop_is_given_every_kind_of_anchor():
    rows = [batch(seed, 12) for seed in range(5)]
    partners = [(labels[:, None] == retain_labels).any(dim=1) for _, _, labels, retain_labels in rows]
    assert any(found.any() and not found.all() for found in partners)


@pytest.mark.parametrize(("form", "expected"), [("csul", 3), ("supcon", 1)])
def test_counts_the_anchors_without_a_partner_and_only_these(form, expected):
    assert CONTRASTS[form](FORGET, RETAIN, MIXED_LABELS, RETAIN_LABELS, temperature=0.5).fallbacks == expected


def test_an_anchor_without_partner_is_pulled_the_same_by_csul_and_supcon():
    losses = [
        CONTRASTS[form](FORGET, RETAIN, MIXED_LABELS, RETAIN_LABELS, temperature=0.5, anchors=slice(3, 4)).loss
        for form in ("csul", "supcon")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_supcon_is_at_least_the_log_of_its_pulls_where_every_anchor_has_a_partner(seed, temperature):
    forget, retain, labels, retain_labels = batch(seed, classes=2, forget_rows=6, retain_rows=8)
    labels[:2], labels[2:4], retain_labels[:2], retain_labels[2:4] = 0, 1, 0, 1
    forget = 5 * forget  # raw features, so that only the normaliser can bound the loss
    loss, fallbacks = supcon(forget, retain, labels, retain_labels, temperature=temperature, normalize=False)
    assert fallbacks == 0
    assert loss >= math.log(2)


def test_csul_has_no_lower_bound_on_raw_features():
    retain, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    forget = torch.tensor([[-100.0, 100.0]])
    assert csul(forget, retain, labels[:1], labels, temperature=1.0, normalize=False).loss == -200
    assert supcon(forget, retain, labels[:1], labels, temperature=1.0, normalize=False).loss >= 0


@pytest.mark.parametrize("form", CONTRASTS)
@pytest.mark.parametrize("labels", [FORGET_LABELS, MIXED_LABELS, ABSENT])
def test_equal_slices_of_anchors_average_to_the_whole(form, labels):
    whole = CONTRASTS[form](FORGET, RETAIN, labels, RETAIN_LABELS, temperature=0.5)
    parts = [
        CONTRASTS[form](FORGET, RETAIN, labels, RETAIN_LABELS, temperature=0.5, anchors=slice(start, start + 2))
        for start in (0, 2)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts) / 2, whole.loss, rtol=0, atol=1e-12)
    assert sum(part.fallbacks for part in parts) == whole.fallbacks


@pytest.mark.parametrize("form", ["csul", "supcon"])
def test_an_anchor_with_no_other_class_in_retain_is_left_out_of_the_mean(form):
    one_class = torch.zeros_like(RETAIN_LABELS)
    labels = torch.tensor([0, 0, 1, 0])
    # Alone in its class and absent from retain, row 2 is the one that counts: 4 anchors, mean over 1.
    whole = CONTRASTS[form](FORGET, RETAIN, labels, one_class, temperature=0.5)
    alone = CONTRASTS[form](FORGET[2:3], RETAIN, labels[2:3], one_class, temperature=0.5)
    torch.testing.assert_close(whole.loss, alone.loss, rtol=0, atol=1e-12)
    assert whole.fallbacks == 1
    halves = [
        CONTRASTS[form](FORGET, RETAIN, labels, one_class, temperature=0.5, anchors=slice(start, start + 2)).loss
        for start in (0, 2)
    ]
    assert halves[0] == 0
    torch.testing.assert_close(sum(halves) / 2, whole.loss, rtol=0, atol=1e-12)


DEGENERATE = {
    "no anchor has a partner": (ABSENT, RETAIN_LABELS),
    "some anchors have a partner": (MIXED_LABELS, RETAIN_LABELS),
    "no anchor has a pull": (torch.zeros(4, dtype=torch.long), torch.zeros(6, dtype=torch.long)),
    "one anchor has a pull": (torch.tensor([0, 0, 1, 0]), torch.zeros(6, dtype=torch.long)),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("form", CONTRASTS)
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("rows", [4, 1])
def test_no_nan_is_met_anywhere_in_the_backward_pass(form, case, rows):
    forget = FORGET[:rows].clone().requires_grad_()
    labels, retain_labels = DEGENERATE[case]
    with torch.autograd.detect_anomaly():
        loss = CONTRASTS[form](forget, RETAIN, labels[:rows], retain_labels, temperature=0.1).loss
        (gradient,) = torch.autograd.grad(loss, forget)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("form", ["csul", "supcon"])
def test_a_batch_with_nothing_to_pull_to_is_a_zero_with_a_graph(form):
    forget, retain = FORGET.clone().requires_grad_(), RETAIN.clone().requires_grad_()
    labels, retain_labels = DEGENERATE["no anchor has a pull"]
    loss = CONTRASTS[form](forget, retain, labels, retain_labels, temperature=0.1).loss
    gradients = torch.autograd.grad(loss, (forget, retain))
    assert loss == 0
    assert not gradients[0].any() and not gradients[1].any()


@pytest.mark.parametrize("form", CONTRASTS)
def test_one_row_in_each_set_gives_its_closed_form(form):
    forget, retain = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    contrast = CONTRASTS[form](forget, retain, torch.tensor([0]), torch.tensor([1]), temperature=0.5)
    # One pull and no partner: log 1 − 0.6 / 0.5. UUEF has no pair.
    assert contrast.loss.item() == pytest.approx(0 if form == "uuef" else -1.2, abs=1e-6)


@pytest.mark.parametrize("form", ["csul", "supcon"])
def test_a_step_moves_an_anchor_towards_other_classes_and_away_from_its_own(form):
    axes = torch.eye(4, dtype=torch.float64)
    anchor = torch.tensor([[1.0, 1.0, 0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    own, other = axes[0], axes[1]
    loss = CONTRASTS[form](anchor, axes[:2], torch.tensor([0]), torch.tensor([0, 1]), temperature=0.5).loss
    moved = step(anchor, loss)
    assert cosine_similarity(moved, other) > cosine_similarity(anchor, other)
    assert cosine_similarity(moved, own) < cosine_similarity(anchor, own)


@pytest.mark.parametrize("form", ["csul", "supcon"])
def test_a_step_moves_an_anchor_without_partner_towards_the_mean_of_the_others(form):
    forget = FORGET[:1].clone().requires_grad_()
    loss = CONTRASTS[form](forget, RETAIN, ABSENT[:1], RETAIN_LABELS, temperature=0.5).loss
    mean = normalize(RETAIN).mean(dim=0)
    assert cosine_similarity(step(forget, loss), mean) > cosine_similarity(forget, mean)


def test_supcon_pushes_the_rows_of_one_forget_class_apart_and_csul_does_not():
    axes = torch.eye(4, dtype=torch.float64)
    retain, labels, retain_labels = axes[2:3], torch.tensor([0, 0]), torch.tensor([1])
    start = torch.tensor([[1.0, 0.3, 0.3, 0.0], [1.0, -0.3, 0.3, 0.0]], dtype=torch.float64)
    gradients = {}
    for form in ("csul", "supcon"):
        forget = start.clone().requires_grad_()
        # One anchor, so that only its own term moves it.
        loss = CONTRASTS[form](forget, retain, labels, retain_labels, temperature=0.5, anchors=slice(0, 1)).loss
        (gradients[form],) = torch.autograd.grad(loss, forget)
    partner = start[1]
    assert gradients["supcon"][0] @ partner > gradients["csul"][0] @ partner
    assert torch.equal(gradients["csul"][1], torch.zeros(4, dtype=torch.float64))


def test_uuef_pulls_two_forget_classes_together():
    forget = FORGET[1:3].clone().requires_grad_()
    first, second = step(forget, uuef(forget, RETAIN, torch.tensor([0, 1]), RETAIN_LABELS, temperature=1.0).loss)
    assert cosine_similarity(first, second, dim=0) > cosine_similarity(FORGET[1], FORGET[2], dim=0)


@pytest.mark.parametrize("form", CONTRASTS)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_the_float32_loss_and_finite_gradients(form, normalized, dtype):
    # Raw products of these overflow float16, and float16 cannot tell the scores at this temperature apart.
    halves = [(60 * features).to(dtype) for features in (FORGET, RETAIN)]
    results: list[tuple[Tensor, ...]] = []
    for to in (dtype, torch.float32):
        forget, retain = (features.detach().to(to).requires_grad_() for features in halves)
        loss = CONTRASTS[form](
            forget, retain, FORGET_LABELS, RETAIN_LABELS, temperature=0.05, normalize=normalized
        ).loss
        results.append((loss, *torch.autograd.grad(loss, forget)))
    (loss, grad), (expected, expected_grad) = results
    assert loss.dtype == torch.float32 and loss == expected
    assert grad.isfinite().all() and torch.equal(grad, expected_grad.to(dtype))


@pytest.mark.parametrize("form", CONTRASTS)
def test_autocast_does_not_lower_the_precision(form):
    features = FORGET.float(), RETAIN.float()
    expected = CONTRASTS[form](*features, FORGET_LABELS, RETAIN_LABELS, temperature=0.05).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CONTRASTS[form](*features, FORGET_LABELS, RETAIN_LABELS, temperature=0.05).loss == expected


@pytest.mark.parametrize("form", CONTRASTS)
def test_gradients_agree_with_finite_differences(form):
    def loss(forget: Tensor, retain: Tensor) -> Tensor:
        return CONTRASTS[form](forget, retain, MIXED_LABELS, RETAIN_LABELS, temperature=0.5).loss

    assert torch.autograd.gradcheck(loss, (FORGET.clone().requires_grad_(), RETAIN.clone().requires_grad_()))


@pytest.mark.parametrize("form", CONTRASTS)
def test_global_contrast_of_one_process_is_the_contrast(form):
    rows = FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS
    contrast = global_contrast(form, *rows, 0.5)
    assert isinstance(contrast, Contrast)
    assert contrast == CONTRASTS[form](*rows, temperature=0.5)


@pytest.mark.parametrize("form", CONTRASTS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature must be a positive"),
        ({"temperature": math.nan}, "temperature must be a positive"),
        ({"forget": FORGET[None]}, "forget features must have shape"),
        ({"retain_labels": RETAIN_LABELS[:3]}, "retain features must have shape"),
        ({"forget": FORGET[:0], "forget_labels": FORGET_LABELS[:0]}, "at least one row"),
        ({"retain": RETAIN[:, :3]}, "one width, got 5 and 3"),
        ({"anchors": slice(4, 8)}, "at least one of the 4 forget rows"),
    ],
)
def test_bad_input_is_refused_by_name(form, change, message):
    call = {
        "forget": FORGET,
        "retain": RETAIN,
        "forget_labels": FORGET_LABELS,
        "retain_labels": RETAIN_LABELS,
        "temperature": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        CONTRASTS[form](**call | change)


def test_uuef_is_refused_for_a_forget_set_of_one_class_only():
    with pytest.raises(ValueError, match="use 'supcon' or 'csul'"):
        check_contrast("uuef", 1)
    for form, classes in (("uuef", 2), ("uuef", None), ("supcon", 1), ("csul", 1)):
        check_contrast(form, classes)


def test_an_unknown_contrast_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="csul, supcon, uuef"):
        check_contrast("infonce", 2)
    with pytest.raises(ValueError, match="csul, supcon, uuef"):
        global_contrast("infonce", FORGET, RETAIN, FORGET_LABELS, RETAIN_LABELS, 0.5)


TEACHER = torch.tensor([[2, 1, 0.5, -1], [0.3, 0.2, 3, 0.1]], dtype=torch.float64)
STUDENT = torch.tensor([[1, 1, 1, 1], [0, 1, 2, 3]], dtype=torch.float64)


def test_delete_kl_has_its_golden_value():
    loss = delete_kl(STUDENT, TEACHER, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(0.8063455948, abs=1e-9)


def test_delete_kl_masks_the_own_label_or_all_forgotten_classes():
    # Hiding class 0 leaves the teacher 3 : 1; hiding 0 and 1 leaves it certain of class 2. The student is uniform.
    teacher, student, label = torch.tensor([[9.0, math.log(3), 0.0]]), torch.zeros(1, 3), torch.tensor([0])
    own = 0.75 * math.log(0.75 * 3) + 0.25 * math.log(0.25 * 3)
    assert delete_kl(student, teacher, label).item() == pytest.approx(own, abs=1e-6)
    assert delete_kl(student, teacher, label, ()).item() == pytest.approx(own, abs=1e-6)
    assert delete_kl(student, teacher, label, (0, 1)).item() == pytest.approx(math.log(3), abs=1e-6)
    assert delete_kl(student, teacher, label, (1,)).item() == pytest.approx(math.log(3), abs=1e-6)


def test_delete_kl_gradient_is_student_minus_target_and_none_reaches_the_teacher():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss = delete_kl(student, teacher, torch.tensor([0, 2]), (0, 2))
    gradient, of_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
    target = torch.zeros_like(TEACHER)
    target[:, [1, 3]] = TEACHER[:, [1, 3]].softmax(dim=1)
    torch.testing.assert_close(gradient, (STUDENT.softmax(dim=1) - target) / 2)
    assert of_teacher is None


@pytest.mark.parametrize(
    ("classes", "message"),
    [((0, 1, 2, 3), "nothing is left to distil"), ((4,), "from 0 to 3"), ((-1,), "from 0 to 3")],
)
def test_delete_kl_refuses_a_mask_that_cannot_work(classes, message):
    with pytest.raises(ValueError, match=message):
        delete_kl(STUDENT, TEACHER, torch.tensor([0, 2]), classes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logit_losses_are_computed_in_float32(dtype):
    labels = torch.tensor([0, 2])
    student, teacher = (7 * STUDENT).to(dtype), (7 * TEACHER).to(dtype)
    for loss, expected in (
        (delete_kl(student, teacher, labels), delete_kl(student.float(), teacher.float(), labels)),
        (cross_entropy(student, labels), cross_entropy(student.float(), labels)),
    ):
        assert loss.dtype == torch.float32 and loss == expected


def test_cross_entropy_is_the_mean_negative_log_probability():
    expected = (math.log(4) + math.log(sum(math.exp(k) for k in range(4))) - 2) / 2
    assert cross_entropy(STUDENT, torch.tensor([0, 2])).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("uniform", [1, 1, 1, 1]),
        ("deeper", [0.4, 0.8, 1.2, 1.6]),
        ("earlier", [1.6, 1.2, 0.8, 0.4]),
        ([4, 2, 1, 0.5], [4, 2, 1, 0.5]),
        ((0, 0, 0, 1), [0, 0, 0, 1]),
    ],
)
def test_layer_weights_are_the_schedule(schedule, expected):
    assert layer_weights(schedule, 4) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", LAYER_WEIGHTS)
@pytest.mark.parametrize("count", [1, 3, 12])
def test_named_layer_weights_have_mean_one(schedule, count):
    weights = layer_weights(schedule, count)
    assert len(weights) == count and sum(weights) == pytest.approx(count)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("deepest", "choose one of uniform, deeper, earlier"),
        ([1, 2], "3 supervision points"),
        ([1, -1, 1], "not negative"),
        ([1, math.nan, 1], "finite"),
        ([1, math.inf, 1], "finite"),
        ([0, 0, 0], "not all zero"),
    ],
)
def test_layer_weights_that_cannot_work_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        layer_weights(schedule, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_row_of_zeros_has_a_gradient_of_ordinary_size(dtype):
    rows = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]], dtype=dtype, requires_grad=True)
    columns = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=dtype)
    scores = similarity(rows, columns)
    torch.testing.assert_close(scores.double(), torch.tensor([[0, 0], [0, 0.8]], dtype=torch.float64))
    scores.sum().backward()
    assert rows.grad.isfinite().all() and rows.grad.abs().max() <= 1
    for form in ("csul", "supcon", "uuef"):
        features = torch.zeros(4, 5, dtype=dtype, requires_grad=True)
        CONTRASTS[form](features, RETAIN.to(dtype), FORGET_LABELS, RETAIN_LABELS, temperature=0.1).loss.backward()
        assert features.grad.isfinite().all() and features.grad.abs().max() < 100


def test_similarity_is_the_cosine_of_other_rows_with_its_gradient():
    rows = FORGET.clone().requires_grad_()
    expected = cosine_similarity(rows[:, None], RETAIN[None], dim=2)
    torch.testing.assert_close(similarity(rows, RETAIN), expected)
    weights = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (ours,) = torch.autograd.grad((similarity(rows, RETAIN) * weights).sum(), rows)
    torch.testing.assert_close(ours, torch.autograd.grad((expected * weights).sum(), rows)[0])


def test_the_released_code_of_csul_weighs_the_push_by_the_batch_and_is_equal_for_whole_classes():
    # −(1/|N|) Σ over all columns of [mask_N · s − log Σ_P], 1 added to an empty Σ_P, as its docstring says.
    for labels in (FORGET_LABELS, ABSENT):
        gradients = []
        for official in (True, False):
            features = FORGET.clone().requires_grad_()
            if official:
                scores = normalize(features, dim=1) @ normalize(RETAIN, dim=1).T / 0.7
                own = labels[:, None] == RETAIN_LABELS
                total = (scores.exp() * own).sum(dim=1) + (~own.any(dim=1)).double()
                pulled = (scores * ~own).sum(dim=1)
                loss = ((len(RETAIN) * total.log() - pulled) / (~own).sum(dim=1)).mean()
            else:
                loss = csul(features, RETAIN, labels, RETAIN_LABELS, temperature=0.7).loss
            gradients.append(torch.autograd.grad(loss, features)[0])
        same = torch.allclose(*gradients)
        assert same == (labels is ABSENT)
        assert gradients[0].norm() >= gradients[1].norm() - 1e-12
