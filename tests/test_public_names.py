"""The names that users import. A name that goes, or moves out of these places, breaks their code."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import entry_points

import pytest

import ec_hf

PUBLIC = {
    "ec_hf": """
        AuditReport ECCallback ECConfig ECHeads ECTrainer Eraser EraserConfig ForgetRequest __version__ as_classifier
        audit erase load_report push split
    """,
    "ec_hf.losses": """
        CONTRASTS Contrast LAYER_WEIGHTS PointWeights check_contrast check_temperature cross_entropy csul delete_kl
        distillation global_contrast global_guided global_rows guided hide_classes layer_weights similarity supcon uuef
    """,
    "ec_hf.metrics": """
        BatchedCKA CKAStream LinearCKA METRICS Metric Relative activation_distance agreement attack_area aus avg_gap
        bootstrap_mean cka_floor class_matched confidence entropy h_mean half_sample_cka hits idi infonce js_divergence
        knn knn_hits linear_cka linear_probe lira_scores logit_confidence loss masked_hits membership_auc
        membership_svc membership_tpr modified_entropy nearest path population_scores probe_advantage probe_hits
        relative_separability relearning_area separability share_by_class_mix split_half_cka true_probability
        tug_of_war
    """,
    "ec_hf.objectives": "Objective Part Progress Setting Step available get_objective register",
}
OBJECTIVES = """
    bad_teacher boundary_expand boundary_shrink contrastive coun damp delete duck esc finetune gradient_ascent
    l1_sparse neggrad_plus pseudo_label random_label retrain saliency scrub ssd
"""


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names.split()]
)
def test_a_public_name_can_be_imported(module, name):
    loaded = importlib.import_module(module)
    assert getattr(loaded, name) is not None
    assert name in loaded.__all__


@pytest.mark.parametrize("module", PUBLIC)
def test_what_a_module_exports_is_listed_here(module):
    assert set(importlib.import_module(module).__all__) <= set(PUBLIC[module].split())


def test_the_objectives_keep_their_names():
    assert set(OBJECTIVES.split()) <= set(ec_hf.objectives.available())


@pytest.mark.parametrize("name", [name for name in ec_hf.__all__ if name != "__version__"])
def test_a_public_name_says_what_it_is(name):
    public = getattr(ec_hf, name)
    assert public.__doc__ and not public.__doc__.startswith(f"{name}("), "a dataclass makes one up"
    assert inspect.getdoc(public).strip()


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="ec-hf")
    assert command.load() is importlib.import_module("ec_hf.cli").main
