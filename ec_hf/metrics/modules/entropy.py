"""`evaluate.load` finds `entropy` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Entropy = module_class("entropy")
