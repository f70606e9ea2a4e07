"""How an audit measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["AuditSettings"]


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class AuditSettings:
    """How an audit measures; every field is a keyword of `audit` and a flag of `ec-hf audit`."""

    seed: int = _setting(0, "Seed of samples, bootstrap, probes, random weights and t-SNE.")
    batch_size: int = _setting(64, "Images a batch and process.")
    num_workers: int = _setting(0, "Processes that load images.")
    pooling: str = _setting("all", "What of a layer's tokens is compared: the mean of all, of the patches, or cls.")
    layers: list[str] | None = _setting(
        None,
        "Layers to look at, beside what the classifier reads: blocks for all repeated blocks, names of modules, or "
        "indices of hidden states. All hidden states if left out.",
    )
    max_images: int | None = _setting(None, "Look at a random, class-stratified part of each split, of about so many.")
    train_sample: int = _setting(2000, "About how many training images keep their features, for probes and k-NN.")
    test_sample: int = _setting(1000, "About how many test images keep their features.")
    embedding: bool = _setting(True, "Compute the t-SNE picture.")
    int8: bool = _setting(True, "Measure the unlearned models with 8-bit weights too.")
    cka_mode: str = _setting("debiased", "uuef: also give CKA as UUEF computes it, to compare with its tables.")
    attacks: str = _setting(
        "none",
        "Recovery attacks on all models: quick relearns by steps, rounds and prunes; full makes all, in many minutes.",
    )
    relearning: bool = _setting(False, "Older name of --attacks quick.")
    residual: bool = _setting(
        False, "Also ask whether small changes make forgotten images named again; a part of --attacks full."
    )
    svc: bool = _setting(False, "Also attack membership with a support vector classifier.")
    idi: bool = _setting(False, "Also estimate the information difference index; needs a retrained model.")
    downstream_features: str = _setting("penultimate", "Features of the k-NN on the downstream set.")

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            object.__setattr__(self, "layers", [self.layers])
        for name in ("batch_size", "train_sample", "test_sample", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        choices = {
            "pooling": ("all", "mean", "cls"),
            "cka_mode": ("debiased", "uuef"),
            "downstream_features": ("penultimate", "logits"),
            "attacks": ("none", "quick", "full"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {list(allowed)}")
        if self.relearning and self.attacks == "none":
            object.__setattr__(self, "attacks", "quick")

    @property
    def asks_residual(self) -> bool:
        """Whether small changes of forgotten images are tried."""
        return self.residual or self.attacks == "full"
