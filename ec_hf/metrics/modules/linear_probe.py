"""`evaluate.load` finds `linear_probe` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

LinearProbe = module_class("linear_probe")
