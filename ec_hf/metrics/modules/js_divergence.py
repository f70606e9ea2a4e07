"""`evaluate.load` finds `js_divergence` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

JsDivergence = module_class("js_divergence")
