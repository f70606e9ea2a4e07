"""The losses of unlearning, as pure functions of tensors.

Half-precision inputs are computed in float32, also under autocast; float64 stays float64.
"""

from ec_hf.losses.calibrated import global_guided, guided
from ec_hf.losses.contrast import (
    CONTRASTS,
    Contrast,
    check_contrast,
    check_temperature,
    csul,
    global_contrast,
    global_rows,
    similarity,
    supcon,
    uuef,
)
from ec_hf.losses.distillation import cross_entropy, delete_kl, distillation, hide_classes
from ec_hf.losses.schedules import LAYER_WEIGHTS, PointWeights, layer_weights

__all__ = [
    "CONTRASTS",
    "LAYER_WEIGHTS",
    "Contrast",
    "PointWeights",
    "check_contrast",
    "check_temperature",
    "cross_entropy",
    "csul",
    "delete_kl",
    "distillation",
    "global_contrast",
    "global_guided",
    "global_rows",
    "guided",
    "hide_classes",
    "layer_weights",
    "similarity",
    "supcon",
    "uuef",
]
