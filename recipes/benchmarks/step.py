"""What a step of erasure costs, against plain fine-tuning on as many images and against the style of published code.

    python recipes/benchmarks/step.py                                  # four shapes at 112 pixels, 100 classes
    python recipes/benchmarks/step.py --shapes vit --repetitions 9 --phases
    python recipes/benchmarks/step.py --shapes vit resnet --ways       # bf16, checkpointing and others, EC alone

Times are processor time of one thread. In each repetition every method takes one step after the other, and a ratio is
the median over the repetitions of a method's step over plain fine-tuning's in the same one, so that other work on the
machine does not distort it. Memory is counted and not sampled: weights, gradients and optimiser states, and what the
forward keeps for the backward, each storage once. Operations are counted too: those of matrix products and
convolutions in forward and backward, which say how fast a step can be at best. Weights are random, since the cost does
not depend on them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import accelerate
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ec_hf
from ec_hf import Eraser, EraserConfig
from ec_hf.losses import cross_entropy, global_contrast

CLASSES = 100
SHAPES: dict[str, Callable[[int], Any]] = {
    "vit": lambda side: transformers.ViTConfig(
        image_size=side, hidden_size=192, num_attention_heads=3, intermediate_size=768, num_labels=CLASSES
    ),
    "swin": lambda side: transformers.SwinConfig(
        image_size=side, embed_dim=48, window_size=4, num_labels=CLASSES  # the last maps are 4x4 with 112 pixels
    ),
    "convnext": lambda side: transformers.ConvNextConfig(
        image_size=side, hidden_sizes=[48, 96, 192, 384], num_labels=CLASSES
    ),
    "resnet": lambda _: transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[128, 256, 512, 1024], num_labels=CLASSES
    ),
    "tiny": lambda side: transformers.ViTConfig(
        image_size=side, hidden_size=16, num_attention_heads=2, num_hidden_layers=4, intermediate_size=32,
        num_labels=CLASSES,
    ),
}  # fmt: skip
"""ViT-Ti/16; Swin-T, ConvNeXt-T and ResNet-50 in full depth and half width; and one for tests."""
DELETE: dict[str, Any] = {"objective": "delete", "objective_kwargs": {"retain_weight": 1.0}}
METHODS: dict[str, dict[str, Any]] = {
    "EC": {"objective": "contrastive"},
    "EC + delete, teacher asked": {**DELETE, "cache_teacher": False},
    "EC calibrated, teacher asked": {**DELETE, "calibrated": True, "cache_teacher": False},
    "EC calibrated, teacher remembered": {**DELETE, "calibrated": True, "cache_teacher": True},
}
PLAIN, APART = "plain fine-tuning", "EC, a forward a set and loss"


@dataclass
class Method:
    """What takes steps.

    Attributes:
        loss: of the batch, with a graph.
        optimizer: of all weights that train.
        modules: what lies in memory.
    """

    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer
    modules: tuple[nn.Module, ...]

    def step(self) -> None:
        """Forward, backward, and the optimiser's step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def make_model(shape: str, side: int) -> transformers.PreTrainedModel:
    """A randomly initialised classifier in training mode."""
    torch.manual_seed(0)
    return transformers.AutoModelForImageClassification.from_config(SHAPES[shape](side)).train()


def make_batch(side: int, forget: int, retain: int, classes: int = CLASSES) -> dict[str, Any]:
    """Noise with labels: the forget images of the first tenth of the classes, the retain images of the others."""
    generator, forgotten = torch.Generator().manual_seed(0), classes // 10
    labels = [
        torch.randint(forgotten, (forget,), generator=generator),
        torch.randint(forgotten, classes, (retain,), generator=generator),
    ]
    return {
        "pixel_values": torch.randn(forget + retain, 3, side, side, generator=generator),
        "labels": torch.cat(labels),
        "num_forget": forget,
        "rows": torch.arange(forget + retain),
    }


def plain(model: Any, batch: Mapping[str, Any]) -> Method:
    """Fine-tuning on the batch, forget and retain images alike."""

    def loss() -> Tensor:
        return F.cross_entropy(model(pixel_values=batch["pixel_values"]).logits, batch["labels"])

    return Method(loss, optimizer_of(model), (model,))


def erasing(model: Any, batch: Mapping[str, Any], settings: Mapping[str, Any], stack: ExitStack) -> Method:
    """A step of an `Eraser`, whose heads stay attached until the stack closes."""
    eraser = prepared(model, batch, settings, stack)
    kept = [eraser.loss] if eraser.teacher is None else [eraser.loss, eraser.teacher.model]
    return Method(lambda: eraser(batch).total, optimizer_of(model), (model, *kept))


def prepared(model: Any, batch: Mapping[str, Any], settings: Mapping[str, Any], stack: ExitStack) -> Eraser:
    """An eraser between `prepare` and the first step, of a batch as `make_batch` gives it."""
    side = batch["pixel_values"].shape[-1]
    tenth = range(model.config.num_labels // 10)
    eraser = Eraser(model, EraserConfig(**settings), forget_classes=tenth, image_shape=(3, side, side))
    eraser.heads_fitted = True
    forget = {name: batch[name][: batch["num_forget"]] for name in ("pixel_values", "labels")}
    eraser.prepare(
        lambda *_: [forget],
        lambda *_: [],
        batch_of_rows=lambda rows: {"pixel_values": forget["pixel_values"][rows]},
    )
    model.train()
    stack.enter_context(eraser.attached())
    return eraser


def apart(model: Any, batch: Mapping[str, Any], stack: ExitStack) -> Method:
    """EC's loss in the style of published code: forget and retain go through the model apart, once for each loss.

    The contrast moves both sets, as published.
    """
    eraser = prepared(model, batch, {"objective": "contrastive", "detach_retain": False}, stack)
    config, count = eraser.config, batch["num_forget"]
    pixels, labels = batch["pixel_values"].split(count), batch["labels"].split(count)

    def seen(part: Tensor) -> list[tuple[Tensor, Tensor]]:
        out = model(pixel_values=part, output_hidden_states=True)
        points = zip((*out.features, out.last_features), (*out.head_logits, out.logits), strict=True)
        return list(points)

    def loss() -> Tensor:
        weights = (*eraser.weights.points, eraser.weights.host)
        terms = []
        forget, retain = seen(pixels[0]), seen(pixels[1])
        for weight, (one, _), (other, _) in zip(weights, forget, retain, strict=True):
            if weight:
                contrast = global_contrast(config.contrast, one, other, *labels, config.temperature).loss
                terms.append(weight * contrast)
        for weight, (_, logits) in zip(weights, seen(pixels[1]), strict=True):
            if weight:
                terms.append(weight * config.retain_weight * cross_entropy(logits, labels[1]))
        return torch.stack(terms).sum()

    return Method(loss, optimizer_of(model), (model, eraser.loss))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW on all weights that train."""
    return torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1e-4)


@contextmanager
def methods(shape: str, side: int, forget: int, retain: int) -> Iterator[dict[str, Method]]:
    """All methods on one shape and one batch, each with a model of its own."""
    batch = make_batch(side, forget, retain)
    with ExitStack() as stack:
        yield {
            PLAIN: plain(make_model(shape, side), batch),
            **{name: erasing(make_model(shape, side), batch, each, stack) for name, each in METHODS.items()},
            APART: apart(make_model(shape, side), batch, stack),
        }


def seconds(run: Callable[[], Any]) -> float:
    """Processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


def megabytes(method: Method) -> float:
    """Weights, gradients, optimiser states, and what a forward keeps for its backward; each storage once."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    for tensor in tensors_of(method):
        keep(tensor)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = method.loss()  # noqa: F841 - the graph must live until the count is done
    return sum(held.values()) / 1e6


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products and convolutions; attention is written out, so that it counts."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: of_backward})
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops()


def of_backward(slope: list[int], _images: list[int], weight: list[int], *rest: Any, **_kwargs: Any) -> int:
    """Operations of a convolution's backward: its forward's for each of the gradients of input and weight.

    torch's own count takes a convolution in groups for a whole one.
    """
    batch, _, *places = slope
    return 2 * batch * math.prod(places) * math.prod(weight) * sum(rest[-1][:2])


def tensors_of(method: Method) -> Iterator[Tensor]:
    """What a method holds between two steps."""
    for module in method.modules:
        yield from module.buffers()
        for parameter in module.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
    for state in method.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def phases(method: Method, repetitions: int) -> dict[str, float]:
    """Share of a step's processor time by phase: model, heads, losses, backward, optimiser."""
    model, loss = method.modules[:2]
    heads = model.ec_heads
    spent: dict[str, list[float]] = {name: [] for name in ("model", "heads", "losses", "backward", "optimiser")}
    for _ in range(repetitions):
        inside = {"heads": 0.0, "losses": 0.0}
        with timed(heads, "forward", "heads", inside), timed(loss, "forward", "losses", inside):
            start = time.process_time()
            total = method.loss()
            forward = time.process_time() - start
        spent["model"].append(forward - inside["heads"] - inside["losses"])
        for name, value in inside.items():
            spent[name].append(value)
        spent["backward"].append(seconds(total.backward))
        spent["optimiser"].append(seconds(method.optimizer.step))
        method.optimizer.zero_grad()
    whole = sum(map(median, spent.values()))
    return {name: round(median(values) / whole, 3) for name, values in spent.items()}


@contextmanager
def timed(module: Any, name: str, phase: str, into: dict[str, float]) -> Iterator[None]:
    """Add up the processor time of one method of an object."""
    plain_method = getattr(module, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = plain_method(*args, **kwargs)
        into[phase] += time.process_time() - start
        return result

    setattr(module, name, run)
    try:
        yield
    finally:
        delattr(module, name)


def fitting(shape: str, side: int, size: int, repetitions: int) -> dict[str, float]:
    """What a pass of head fitting costs, in time and operations, by that of bare inference over the same images."""
    model, batches = make_model(shape, side), [make_batch(side, size // 3, size - size // 3)] * 3
    settings = EraserConfig("contrastive", heads_epochs=1)
    eraser = Eraser(model, settings, image_shape=(3, side, side))

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            model(pixel_values=batch["pixel_values"])

    bare()
    model.eval()
    ratios = [seconds(lambda: eraser.fit_heads(batches)) / seconds(bare) for _ in range(repetitions)]
    counted = operations(lambda: eraser.fit_heads(batches)) / operations(bare)
    return {"time": round(median(ratios), 3), "operations": round(counted, 3)}


WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "eager attention": {"attention": "eager"},
    "bf16 autocast": {"autocast": True},
    "activation checkpointing": {"checkpointing": True},
    "channels_last": {"channels_last": True},
}
"""Ways to take a step of EC whose losses `tests/training/test_equal_losses.py` compares."""


def in_a_way(
    shape: str,
    side: int,
    size: int,
    stack: ExitStack,
    *,
    attention: str | None = None,
    autocast: bool = False,
    checkpointing: bool = False,
    channels_last: bool = False,
) -> Method | None:
    """EC's step in one of the ways; None where the model does not have it."""
    model, batch = make_model(shape, side), make_batch(side, size, size)
    lacks = checkpointing and not model.supports_gradient_checkpointing
    if lacks or (attention and not model._supports_sdpa):
        return None
    if attention:
        model.set_attn_implementation(attention)
    if checkpointing:
        model.activation_checkpointing_enable()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batch["pixel_values"] = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
    method = erasing(model, batch, METHODS["EC"], stack)
    if autocast:
        plain_loss = method.loss

        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return plain_loss()

        method.loss = loss
    return method


def ways(shape: str, side: int, size: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Time and memory of EC's step in each way, by those of the step as it is."""
    with ExitStack() as stack:
        made = {name: in_a_way(shape, side, size, stack, **each) for name, each in WAYS.items()}
        run = {name: each for name, each in made.items() if each is not None}
        for each in run.values():
            each.step()
        memory = {name: megabytes(each) for name, each in run.items()}
        times = [{name: seconds(each.step) for name, each in run.items()} for _ in range(repetitions)]
    first = next(iter(run))
    return {
        name: {
            "time": round(median(each[name] / each[first] for each in times), 3),
            "memory": round(memory[name] / memory[first], 3),
        }
        for name in run
    }


def measure(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times, ratios and memory of all methods on one shape."""
    with methods(shape, arguments.pixels, arguments.batch, arguments.batch) as run:
        for each in run.values():
            each.step()
        memory = {name: megabytes(each) for name, each in run.items()}
        counted = {name: operations(lambda each=each: each.loss().backward()) for name, each in run.items()}
        times: dict[str, list[float]] = {name: [] for name in run}
        for _ in range(arguments.repetitions):
            for name, each in run.items():
                times[name].append(seconds(each.step))
        found: dict[str, Any] = {
            name: {
                "seconds": round(median(of_one), 4),
                "time": round(median(a / b for a, b in zip(of_one, times[PLAIN], strict=True)), 3),
                "megabytes": round(memory[name], 1),
                "memory": round(memory[name] / memory[PLAIN], 3),
                "operations": round(counted[name] / counted[PLAIN], 3),
            }
            for name, of_one in times.items()
        }
        of_ec = [a / b for a, b in zip(times[APART], times["EC"], strict=True)]
        found[APART]["over EC"] = round(median(of_ec), 3)
        if arguments.phases:
            for name in METHODS:
                found[name]["phases"] = phases(run[name], 3)
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row a method, a column a shape, each "time x (memory x, operations x)"."""
    head = ["method", *found]
    rows = [
        [name, *("{time:.2f} ({memory:.2f}, {operations:.2f})".format(**of_one[name]) for of_one in found.values())]
        for name in next(iter(found.values()))
    ]
    rows.append([f"{APART}, over EC", *(f"{of_one[APART]['over EC']:.2f}" for of_one in found.values())])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def versions() -> dict[str, str]:
    """What a measurement depends on."""
    packages = {each.__name__: each.__version__ for each in (torch, transformers, accelerate, ec_hf)}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, and write what was measured if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["vit", "swin", "convnext", "resnet"])
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8, help="images of each set, forget and retain")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--phases", action="store_true", help="where the time of a step goes")
    parser.add_argument("--ways", action="store_true", help="other ways to take EC's step, and nothing else")
    parser.add_argument("--fitting", action="store_true", help="what fitting the heads costs")
    parser.add_argument("--fitting_batch", type=int, default=96, help="images of a step of it; the default run has 96")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.ways:
        other = {
            shape: ways(shape, arguments.pixels, arguments.batch, arguments.repetitions) for shape in arguments.shapes
        }
        print(f"{versions()}\n{json.dumps(other, indent=1)}")
        return other
    found = {}
    for shape in arguments.shapes:
        found[shape] = measure(shape, arguments)
        print(shape, {name: of_one["time"] for name, of_one in found[shape].items()}, flush=True)
    print(f"{arguments.batch} + {arguments.batch} images of {arguments.pixels} pixels; {versions()}")
    print(f"time of a step (memory, operations), plain fine-tuning = 1; median of {arguments.repetitions}")
    print(f"\n{table(found)}")
    fits = {}
    for shape in arguments.shapes if arguments.fitting else ():
        fits[shape] = fitting(shape, arguments.pixels, arguments.fitting_batch, arguments.repetitions)
        print(
            f"{shape}: a pass of head fitting, {arguments.fitting_batch} images a step, takes "
            "{time:.2f} x the time and {operations:.2f} x the operations of bare inference".format(**fits[shape]),
            flush=True,
        )
    for shape, of_one in found.items():
        for name in [name for name in METHODS if arguments.phases]:
            print(f"{shape}, {name}: " + ", ".join(f"{k} {v:.0%}" for k, v in of_one[name]["phases"].items()))
    result = {"versions": versions(), "settings": {**vars(arguments), "output": None}, "found": found, "fitting": fits}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
