"""`evaluate.load` finds `linear_cka_uuef` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

LinearCkaUuef = module_class("linear_cka_uuef")
