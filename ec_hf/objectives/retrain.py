"""Retraining as a host objective."""

from __future__ import annotations

from ec_hf.models.loading import new_like
from ec_hf.objectives.base import Setting
from ec_hf.objectives.finetune import Finetune

__all__ = ["Retrain"]


class Retrain(Finetune):
    """Cross-entropy on retain from new weights: a model that has never seen the forget set, the reference for others.

    The weights are drawn as for a new model of the same configuration, from the run's seed. Batch norm follows the
    retain images, whatever `batch_norm` says, and no forget target stops the run. The learning rate and the number of
    epochs must be those of a training from scratch: ImageNet ResNet-50 SGD 0.1 over 182 epochs, Swin and ConvNeXt
    AdamW 1e-4, weight decay 0.05, cosine decay (UUEF). One seed is one draw: the noise between retrained models can
    exceed the gap that is reported.
    """

    name = "retrain"
    uses = "retain"
    from_scratch = True
    source = "the reference of machine unlearning"

    def prepare(self, setting: Setting) -> None:
        """Put new weights and buffers in place of the original's; frozen parameters stay."""
        model = setting.model
        frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
        new = {name: value for name, value in new_like(model).state_dict().items() if name not in frozen}
        model.load_state_dict({**model.state_dict(), **new})
