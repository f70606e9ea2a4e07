"""Erase through LoRA adapters of several ranks, beside full fine-tuning and retraining, and print a table.

    pip install ec_hf[peft]
    python recipes/train_original.py --output_dir original
    python recipes/train_original.py --output_dir retrained --without_classes 3 5 8
    python recipes/lora.py --original original --retrained retrained

Settings are those of `lora.yaml`; every field of `ECConfig` is a flag. The base weights stay as they are, the
original model is the one with its adapters switched off, and what is audited is the merged model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import set_seed

from ec_hf import AuditReport, ECConfig, ECTrainer, ForgetRequest, audit
from ec_hf.cli import parse
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.models.loading import load_model
from ec_hf.reporting.markdown import table
from ec_hf.reporting.verdict import findings

SETTINGS = str(Path(__file__).with_name("lora.yaml"))


@dataclass
class LoraArguments:
    """Models, data and adapters."""

    original: str = HfArg(default="original", help="The original model: Hub id, folder or timm name.")
    retrained: str | None = HfArg(default=None, help="A model that was trained without the forget set.")
    dataset_name: str = HfArg(default="mnist5k", help="Hub id, local folder, or mnist5k.")
    forget_classes: list[str] = HfArg(default_factory=list, help="Class names or ids to forget.")
    ranks: list[int] = HfArg(default_factory=lambda: [4, 16, 64], help="Ranks of the adapters.")
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    trained_whole: list[str] = HfArg(
        default_factory=lambda: ["classifier"], help="Layers that are trained whole and saved with the adapter."
    )
    lora_learning_rate: float | None = HfArg(default=None, help="For the adapters; default: learning_rate.")
    with_delete: bool = HfArg(default=False, help="Also DELETE alone through adapters, at the logits only.")
    with_full: bool = HfArg(default=True, help="Also erase without adapters.")


def main() -> None:
    argv = sys.argv[1:]
    own = argv and argv[0].endswith((".yaml", ".yml"))
    arguments, config = parse(LoraArguments, ECConfig, argv=argv if own else [SETTINGS, *argv], description=__doc__)
    train, test = train_and_test(load_images(arguments.dataset_name), label_column=config.label_column)
    request = ForgetRequest(classes=arguments.forget_classes)
    splits = four_splits(train, test, request, label_column=config.label_column)
    unlearned = {"full": erase(arguments, config, splits)} if arguments.with_full else {}
    for rank in arguments.ranks:
        unlearned[f"rank {rank}"] = erase(arguments, config, splits, rank)
        if arguments.with_delete:
            alone = replace(config, points=[], calibrated=False, output_dir=f"{config.output_dir}/delete")
            unlearned[f"delete, rank {rank}"] = erase(arguments, alone, splits, rank)
    report = audit(
        load_model(arguments.original)[0],
        unlearned,
        retrained=arguments.retrained,
        splits=splits,
        request=request,
        processor=load_model(arguments.original)[1],
    )
    report.save(Path(config.output_dir) / "audit.json")
    print(as_markdown(report))
    for finding in findings(report):
        if finding.topic == "summary":
            print(f"- {finding}")


def erase(arguments: LoraArguments, config: ECConfig, splits: dict[str, Dataset], rank: int = 0) -> Any:
    """The original model after erasure: all of its weights, or adapters of a rank, which are saved and merged too."""
    model, processor = load_model(arguments.original)
    folder = str(Path(config.output_dir) / (f"rank-{rank}" if rank else "full"))
    config = replace(config, output_dir=folder)
    if rank:
        set_seed(config.seed)  # of the adapters' first weights
        targets = arguments.target_modules
        lora = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            modules_to_save=arguments.trained_whole,
        )
        model = get_peft_model(model, lora)
        config.learning_rate = arguments.lora_learning_rate or config.learning_rate
    trainer = ECTrainer(
        model,
        config,
        forget_dataset=splits["forget_train"],
        retain_dataset=splits["retain_train"],
        eval_dataset={"forget": splits["forget_test"], "retain": splits["retain_test"]},
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    if rank:
        trainer.save_merged(Path(folder) / "merged")
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    print(f"{Path(folder).name}: {trainable:,} trainable weights, {trainer.cost}")
    return model


ROWS = [
    ("accuracy", "retain_test", "accuracy, retain test"),
    ("accuracy", "forget_test", "accuracy, forget test"),
    ("linear_probe", "forget_test", "linear probe, forget test"),
    ("knn", "forget_test", "k-NN, forget test"),
    ("linear_cka", "forget_test", "CKA to original, forget test"),
]


def as_markdown(report: AuditReport) -> str:
    """Accuracy, probe, k-NN and CKA of each model, at every third layer and at the last ones."""
    layers = [layer for layer in report.layers if layer.startswith("hidden")]
    shown = [None, *layers[2::3], "penultimate", "logits"]
    values = {
        (m.metric, m.split, m.layer, m.model): m.value
        for m in report.measurements
        if m.reference in (None, "original")
    }
    rows = []
    for metric, split, title in ROWS:
        for layer in shown:
            line = [values.get((metric, split, layer, model)) for model in report.models]
            if any(value is not None for value in line):
                label = title if layer is None else f"{title}, {layer}"
                rows.append([label, *(text(metric, value) for value in line)])
    return table(["", *report.models], rows)


def text(metric: str, value: float | None) -> str:
    if value is None:
        return "—"
    return f"{value:.2f}".lstrip("0") if metric == "linear_cka" else f"{value:.1%}"


if __name__ == "__main__":
    main()
