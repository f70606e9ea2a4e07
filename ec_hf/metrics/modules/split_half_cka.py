"""`evaluate.load` finds `split_half_cka` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

SplitHalfCka = module_class("split_half_cka")
