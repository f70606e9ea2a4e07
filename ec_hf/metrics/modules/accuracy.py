"""`evaluate.load` finds `accuracy` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Accuracy = module_class("accuracy")
