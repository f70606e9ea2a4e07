"""EC heads: the auxiliary branches through which a supervision point is contrasted and classified.

The head of point k of L is a chain of (L - k) blocks that brings its features to the width and resolution of the last
point, then pooling and a linear classifier, so that all points are compared in features of the same depth and width.
Blocks are separable convolutions for maps, as in Contrastive Deep Supervision (ECCV 2022), and transformer layers for
the tokens of isotropic models. They hold no batch statistics, so none of them can remember a forget image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ec_hf.files import CONFIG, HEADS, WEIGHTS, find_file, read_json
from ec_hf.models.modules import modules_at
from ec_hf.models.penultimate import Layer, Penultimate, classifier_of
from ec_hf.models.points import VECTOR, SupervisionPoint, pool, pooled_rows, take

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


@dataclass
class ECImageClassifierOutput(ModelOutput):
    """What a model with attached heads returns in training.

    Attributes:
        logits: the model's own logits, ``(batch, labels)``.
        last_features: penultimate features, which the model's classifier reads, ``(batch, width)``; without a
            classifier that is known, pooled features of the deepest hidden state.
        features: pooled features of each head, a tuple of ``(batch, head width)``, None for a head that did not run.
        head_logits: logits of each head, a tuple of ``(batch, labels)``, with None in the same places.
        pooled: the pooled features at each point, before its head, a tuple of ``(batch, channels)``; None where they
            were not asked for.
    """

    logits: Tensor | None = None
    last_features: Tensor | None = None
    features: tuple[Tensor | None, ...] | None = None
    head_logits: tuple[Tensor | None, ...] | None = None
    pooled: tuple[Tensor, ...] | None = None


class ECHeads(
    nn.Module, PyTorchModelHubMixin, library_name="ec_hf", tags=["machine-unlearning", "erase-at-the-core", "ec-heads"]
):
    """One auxiliary head for each supervision point.

    Args:
        points: the supervision points, as `SupervisionPoint.to_dict` gives them, shallow to deep.
        last: the model's deepest hidden state, in the same form.
        num_labels: number of classes of the model.
        pooling: how tokens become one vector at the end of a head, see `ec_hf.models.points.pool`.
        last_pooling: the same for the model's deepest hidden state, as the model's own classifier pools it, where its
            head stands on tokens.

    Attributes:
        active: which heads run while they are attached.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` store the heads on their own, for the next request on
    the same original model.

    Example:
        >>> heads = ECHeads.from_pretrained("out/ec_heads")  # doctest: +SKIP
        >>> Eraser(model, forget_classes=[3], heads=heads)  # of the same original: not fitted again  # doctest: +SKIP
    """

    def __init__(
        self,
        points: Sequence[dict[str, Any]],
        last: dict[str, Any],
        num_labels: int,
        pooling: str = "mean",
        last_pooling: str = "mean",
    ) -> None:
        super().__init__()
        self.points = tuple(SupervisionPoint(**point) for point in points)
        self.last = SupervisionPoint(**last)
        self.num_labels = num_labels
        self.pooling = pooling
        self.last_pooling = last_pooling
        self.heads = nn.ModuleList(
            ECHead(self.points[depth:], num_labels, last_pooling if point == self.last else pooling)
            for depth, point in enumerate(self.points)
        )
        self._attached_to: tuple[PreTrainedModel, Any, Any] | None = None
        self._penultimate = Penultimate(())
        self.active = (True,) * len(self.points)
        self._pools = True

    def forward(
        self, hidden_states: Sequence[Any], active: Sequence[bool] | None = None
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Pooled features and logits of every head, from the model's hidden states.

        Args:
            hidden_states: as `ec_hf.models.penultimate.Penultimate.after` gives them.
            active: which heads run, all if left out; the others give None.
        """
        active = (True,) * len(self.points) if active is None else active
        pairs = [
            head(take(hidden_states, point)) if runs else (None, None)
            for head, point, runs in zip(self.heads, self.points, active, strict=True)
        ]
        return tuple(features for features, _ in pairs), tuple(logits for _, logits in pairs)

    def attach(
        self,
        model: PreTrainedModel,
        classifier: Mapping[str, Layer] | None = None,
        *,
        active: Sequence[bool] | None = None,
        pooled: bool = True,
    ) -> None:
        """Make the heads a submodule of `model` that runs inside its forward in training mode.

        The optimiser, DDP and gradient clipping then see one model, while what `save_pretrained` writes stays the
        plain checkpoint. Calls in eval mode, or without hidden states, return the model's own output.

        Args:
            model: an image classifier.
            classifier: what `ec_hf.models.penultimate.classifier_of` gives; found anew if left out.
            active: which heads run, all if left out; what none asks for costs nothing.
            pooled: whether the output holds the pooled features at the points, too.

        Raises:
            ValueError: the heads were built for another number of classes, or the model has heads already.
        """
        if self.num_labels != model.config.num_labels:
            raise ValueError(
                f"The EC heads classify {self.num_labels} classes, the model {model.config.num_labels}: fit heads for "
                "this model (leave out `heads`) or load the ones that belong to it."
            )
        if hasattr(model, HEADS):
            raise ValueError("The model has EC heads attached already; detach those first.")
        layers = (classifier_of(model) if classifier is None else classifier).values()
        ignored = getattr(model, "_keys_to_ignore_on_save", None)
        model.add_module(HEADS, self.to(model.device))
        model._keys_to_ignore_on_save = {*(ignored or ()), *(f"{HEADS}.{key}" for key in self.state_dict())}
        self._attached_to = (model, model.register_forward_hook(self._run, with_kwargs=True), ignored)
        self._penultimate = Penultimate(layers, modules_at(model, self.points))
        self._penultimate.attach()
        self.active = (True,) * len(self.points) if active is None else tuple(active)
        self._pools = pooled

    def detach(self) -> None:
        """Take the heads off the model again; it is then as it was, but for what was trained."""
        if self._attached_to is None:
            return
        model, handle, ignored = self._attached_to
        handle.remove()
        self._penultimate.detach()
        delattr(model, HEADS)
        model._keys_to_ignore_on_save = ignored
        self._attached_to = None

    def _run(self, model: nn.Module, _args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook: what the model returns, with what the heads make of its hidden states."""
        read = self._penultimate.take()
        modules = self._penultimate.after(())
        if not (model.training and kwargs.get("output_hidden_states")):
            return output
        # Accelerate's mixed precision gives hidden states back in the type of the heads, but not what modules give.
        dtype = next(self.parameters()).dtype if modules else None
        states = (*output.hidden_states, *(each.to(dtype) for each in modules), read)
        features, head_logits = self(states, self.active)
        pooled = tuple(self._pooled(states, point) for point in self.points) if self._pools else None
        last = self._pooled(states, self.last) if read is None else read
        return ECImageClassifierOutput(output.logits, last, features, head_logits, pooled)

    def _pooled(self, states: Sequence[Any], point: SupervisionPoint) -> Tensor:
        return pool(take(states, point), point, self.last_pooling if point == self.last else self.pooling)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ECHeads:
        """Load heads from a folder or Hub repository of their own, or from `ec_heads` inside that of a model.

        Args:
            pretrained_model_name_or_path: local folder or Hub id.
            **kwargs: `revision`, `token` and others of `huggingface_hub.hf_hub_download`.

        Raises:
            FileNotFoundError: there are no heads.
        """
        hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
        for inside in ("", f"{HEADS}/"):
            config = find_file(pretrained_model_name_or_path, f"{inside}{CONFIG}", **hub)
            if config is None or "last_pooling" not in read_json(config):  # a model's own configuration
                continue
            if find_file(pretrained_model_name_or_path, f"{inside}{WEIGHTS}", **hub):
                return super().from_pretrained(config.parent, **{k: v for k, v in kwargs.items() if k not in hub})
        raise FileNotFoundError(
            f"no EC heads in {str(pretrained_model_name_or_path)!r}, nor in {HEADS}/ there: they are published with "
            "a model only where that is asked for (with_heads). Leave out `heads` to fit new ones."
        )


class ECHead(nn.Module):
    """Head of the first of `points`: a block for each deeper point, normalisation, pooling, linear classifier.

    A vector, such as the penultimate layer, has a head without blocks, and is none of the points that others lead to.
    """

    def __init__(self, points: Sequence[SupervisionPoint], num_labels: int, pooling: str) -> None:
        super().__init__()
        points = points[:1] if points[0].kind == VECTOR else [each for each in points if each.kind == points[0].kind]
        make_block = TokenBlock if points[0].kind == "tokens" else SeparableBlock
        self.blocks = nn.Sequential(*(make_block(a, b) for a, b in pairwise(points)))
        self.out, self.pooling = points[-1], pooling
        self.norm = nn.LayerNorm(self.out.channels)
        self.classifier = nn.Linear(self.out.channels, num_labels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features ``(batch, width)`` and logits ``(batch, labels)``."""
        if self.blocks and isinstance(self.blocks[-1], TokenBlock):
            pooled = self.blocks[-1].pooled(self.blocks[:-1](features), pooled_rows(self.out, self.pooling))
        else:
            pooled = pool(self.blocks(features), self.out, self.pooling)
        pooled = self.norm(pooled)
        return pooled, self.classifier(pooled)


class TokenBlock(nn.TransformerEncoderLayer):
    """Pre-norm transformer layer from one supervision point to the next one, which is as wide, with a lean MLP.

    The weights are those of torch's layer; the forward is written out for two reasons. Queries, keys and values are
    views of one product, where torch copies them; and the last block of a head need not compute what only its mean is
    asked of.
    """

    def __init__(self, start: SupervisionPoint, _end: SupervisionPoint) -> None:
        width = start.channels
        heads = next(count for count in range(max(1, width // 64), 0, -1) if width % count == 0)
        super().__init__(width, heads, 2 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True)

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens ``(batch, tokens, width)`` of the next point."""
        tokens = tokens + self._attention(tokens)
        return tokens + self.linear2(F.gelu(self.linear1(self.norm2(tokens))))

    def pooled(self, tokens: Tensor, rows: slice) -> Tensor:
        """The mean of some rows of what `forward` gives, ``(batch, width)``: the last layer takes the mean itself."""
        kept = tokens[:, rows] + self._attention(tokens, rows)
        hidden = F.gelu(self.linear1(self.norm2(kept)))
        return kept.mean(dim=1) + self.linear2(hidden.mean(dim=1))

    def _attention(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """What the tokens of `rows` take from all tokens."""
        layer = self.self_attn
        joint = F.linear(self.norm1(tokens), layer.in_proj_weight, layer.in_proj_bias)
        queries, keys, values = joint.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries[:, :, rows], keys, values)
        return layer.out_proj(mixed.transpose(1, 2).flatten(2))


class SeparableBlock(nn.Sequential):
    """Two depthwise-separable convolutions from one supervision point's shape to the next one's."""

    def __init__(self, start: SupervisionPoint, end: SupervisionPoint) -> None:
        a, b = start.channels, end.channels
        super().__init__(
            nn.Conv2d(a, a, 3, stride=max(1, round(start.height / end.height)), padding=1, groups=a, bias=False),
            nn.Conv2d(a, a, 1, bias=False),
            _group_norm(a),
            nn.ReLU(),
            nn.Conv2d(a, a, 3, padding=1, groups=a, bias=False),
            nn.Conv2d(a, b, 1, bias=False),
            _group_norm(b),
            nn.ReLU(),
        )


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)
