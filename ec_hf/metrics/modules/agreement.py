"""`evaluate.load` finds `agreement` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Agreement = module_class("agreement")
