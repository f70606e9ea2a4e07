"""`evaluate.load` finds `cka_floor` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

CkaFloor = module_class("cka_floor")
