"""`evaluate.load` finds `knn` here; see ec_hf/metrics/module.py."""

from ec_hf.metrics.module import module_class

Knn = module_class("knn")
