"""Retraining as a host objective."""

from __future__ import annotations

from typing import ClassVar

from ec_hf.models.loading import new_like
from ec_hf.objectives.base import Setting
from ec_hf.objectives.finetune import Finetune
from ec_hf.objectives.published import sgd

__all__ = ["Retrain"]


class Retrain(Finetune):
    """Cross-entropy on retain from new weights: a model that has never seen the forget set, the reference for others.

    The weights are drawn as for a new model of the same configuration, from the run's seed. Batch norm follows the
    retain images, whatever `batch_norm` says, and no forget target stops the run. The learning rate and the number of
    epochs must be those of a training from scratch. One seed is one draw: the noise between retrained models can
    exceed the gap that is reported.

    Published settings: CIFAR ResNet-18 SGD 0.9/5e-4, learning rate 0.1, batch 256, 160 epochs (SalUn); ImageNet
    ResNet-50 the same over 182 epochs, Swin and ConvNeXt AdamW 1e-4, weight decay 0.05, cosine decay (UUEF).
    """

    name = "retrain"
    uses = "retain"
    from_scratch = True
    source = "the reference of machine unlearning"
    published: ClassVar = sgd(
        0.1,
        weight_decay=5e-4,
        num_train_epochs=160,
        per_device_train_batch_size=256,
        lr_scheduler_type="cosine",
        batch_norm="retain",
    )

    def prepare(self, setting: Setting) -> None:
        """Put new weights and buffers in place of the original's; frozen parameters stay."""
        model = setting.model
        frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
        new = {name: value for name, value in new_like(model).state_dict().items() if name not in frozen}
        model.load_state_dict({**model.state_dict(), **new})
