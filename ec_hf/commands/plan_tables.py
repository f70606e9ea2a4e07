"""A plan in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ec_hf.reporting.markdown import table

__all__ = ["as_markdown"]


def as_markdown(planned: Mapping[str, Any]) -> str:
    """A plan in words and tables, as Markdown.

    Args:
        planned: what `ec_hf.commands.plan.plan` gives.
    """
    paragraphs = (_what_is_done(planned), _measured_table(planned), _device_tables(planned), _assumed(planned))
    return "\n\n".join(paragraphs)


def _what_is_done(planned: Mapping[str, Any]) -> str:
    channels, height, width = planned["image_shape"]
    parts, held, steps = planned["original_images"], planned["evaluated"], planned["steps"]
    parameters, of_heads = planned["parameters"], planned["head_parameters"]
    lines = [
        planned["plan"],
        f"  {planned['model']}, {parameters:,} parameters; EC heads, {of_heads:,} parameters",
        f"  images of {channels}x{height}x{width}; the request names {parts['forget_train']:,} training images of "
        f"{parts['forget_train'] + parts['retain_train']:,}",
        f"  {steps:,} steps, {planned['epoch_steps']:,} to a pass over the retain set, unless it stops sooner",
        f"  forward and backward: {_count(planned['trained_on'])}",
        f"  forward for fitting the EC heads: {planned['fitted_on']:,} images at most",
        f"  forward in evaluation: {planned['evaluations']:,} times {_count(held) if held else 'nothing'}",
    ]
    if planned["objective_looks"]:
        lines.append("  the objective looks at the sets before training; that is not counted here")
    return "\n".join(lines)


def _count(images: Mapping[str, int]) -> str:
    return " and ".join(f"{count:,} {name}" for name, count in images.items()) + " images"


def _measured_table(planned: Mapping[str, Any]) -> str:
    measured, seconds = planned["measured"], planned["measured"]["seconds"]
    threads = f", {measured['threads']} thread(s)" if measured["device"] == "CPU" else ""
    head = f"measured on this machine: {measured['device']}{threads}"
    how = f"{measured['clock']}, median of {measured['repeats']} with {measured['images']} images a step"
    rows = [
        ("step of the erasure, an image", f"{1e3 * seconds['step']:,.1f} ms"),
        ("plain training, an image", f"{1e3 * seconds['plain']:,.1f} ms"),
        ("erasure against plain training", f"{seconds['step'] / seconds['plain']:.2f}"),
        ("optimiser, a step", f"{1e3 * seconds['update']:,.1f} ms"),
        ("fitting the EC heads, an image", f"{1e3 * seconds['fitting']:,.1f} ms"),
        ("forward alone, an image", f"{1e3 * seconds['inference']:,.1f} ms"),
        ("kept for the backward pass, an image", f"{measured['sizes']['activations'] / 2**20:,.1f} MiB"),
    ]
    return table((head, how), rows)


def _device_tables(planned: Mapping[str, Any]) -> str:
    each = planned["devices"]
    rows = [
        (
            "forget + retain images a step and device",
            [f"{d['batch']['forget']} + {d['batch']['retain']}" for d in each],
        ),
        ("steps", [f"{d['steps']:,}" for d in each]),
        ("seconds a step", [_number(d["seconds_a_step"]) for d in each]),
        ("of these, exchange between devices", [f"{d['communication']:,.2g}" for d in each]),
        ("sent by a device in a step", [f"{d['exchanged'] / 2**20:,.0f} MiB" for d in each]),
        ("hours: fitting the EC heads", [_hours(d["hours"]["heads"]) for d in each]),
        ("hours: erasure", [_hours(d["hours"]["erasure"]) for d in each]),
        ("hours: evaluation", [_hours(d["hours"]["evaluation"]) for d in each]),
        ("hours in all", [_hours(d["total_hours"]) for d in each]),
    ]
    if planned["retrain_epochs"]:
        rows.append(
            (
                f"hours: retraining, {planned['retrain_epochs']:g} epochs",
                [_hours(d["hours"]["retraining"]) for d in each],
            )
        )
        rows.append(("erasure against retraining", [f"{d['share_of_retraining']:.1%}" for d in each]))
    rows += [
        (f"GiB a device: {name}", [f"{d['memory'][name] / 2**30:.2f}" for d in each]) for name in each[0]["memory"]
    ]
    rows.append(("GiB a device in all", [f"{sum(d['memory'].values()) / 2**30:.2f}" for d in each]))
    heads = ["devices", *(str(d["devices"]) for d in each)]
    return table(heads, [(name, *cells) for name, cells in rows])


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else _number(hours)


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _assumed(planned: Mapping[str, Any]) -> str:
    rate = planned["images_per_second"]
    speed = f"takes {rate:g} images a second in steps of the erasure, as given" if rate else "is this machine"
    return (
        f"Assumed: each device {speed}; the devices share the batch of one, so that steps and images stay the same; "
        "they work at that rate with a smaller batch too, are fed fast enough, and wait for each other's gradients "
        "(ring all-reduce) and features (gathered, with their gradients) at "
        f"{planned['gigabytes_per_second']:g} GB a second, with no overlap. Memory is that of weights, gradients, "
        "optimiser and what the graph keeps, without buffers of the libraries. The audit is not in it."
    )
