"""`evaluate.load` finds `accuracy_masked` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

AccuracyMasked = module_class("accuracy_masked")
