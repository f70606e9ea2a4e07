"""`evaluate.load` finds `mia_loss` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

MiaLoss = module_class("mia_loss")
