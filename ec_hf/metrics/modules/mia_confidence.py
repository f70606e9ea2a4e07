"""`evaluate.load` finds `mia_confidence` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

MiaConfidence = module_class("mia_confidence")
