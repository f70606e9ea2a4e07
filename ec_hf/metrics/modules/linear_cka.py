"""`evaluate.load` finds `linear_cka` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

LinearCka = module_class("linear_cka")
