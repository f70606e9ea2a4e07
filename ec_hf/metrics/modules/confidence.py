"""`evaluate.load` finds `confidence` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Confidence = module_class("confidence")
