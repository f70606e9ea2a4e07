"""`evaluate.load` finds `infonce` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Infonce = module_class("infonce")
