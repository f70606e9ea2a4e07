"""Representation metrics, one file a metric."""

from __future__ import annotations

from ec_hf.metrics.linear_cka import LinearCKA, linear_cka

__all__ = ["LinearCKA", "linear_cka"]
