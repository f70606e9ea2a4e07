"""`evaluate.load` finds `activation_distance` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

ActivationDistance = module_class("activation_distance")
