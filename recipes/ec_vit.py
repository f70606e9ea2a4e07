"""Erase classes, rows or people from an image classifier, and show layer by layer what is left.

    accelerate launch recipes/ec_vit.py                                    # digits 3, 5 and 8 of MNIST-5k
    accelerate launch recipes/ec_vit.py --with_retrained --with_delete     # beside it: retrained, and logit erasure
    accelerate launch recipes/ec_vit.py settings.yaml --seed 1             # settings from a file, flags override them
    accelerate launch recipes/ec_vit.py --model_name_or_path ID --dataset_name ID --forget_classes cat dog
    accelerate launch recipes/ec_vit.py ... --push_to_hub --hub_model_id NAME/REPOSITORY     # with its card

Every field of `ECConfig` is a flag. Where neither settings file, model nor dataset is named, `ec_vit.yaml` beside this
file gives the settings. Without a model, an original one is trained first and cached.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import reduce
from itertools import count
from operator import or_
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedModel
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from ec_hf import ECConfig, ECTrainer, ForgetRequest, audit, split
from ec_hf.auditing.earlier import checked_again
from ec_hf.auditing.subjects import info
from ec_hf.cli import parse, write_audit
from ec_hf.command import public
from ec_hf.data.columns import find_label_column
from ec_hf.data.manifests import earlier_manifests, earlier_requests, manifest
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.files import HEADS
from ec_hf.models.loading import load_model
from ec_hf.publishing.card import card
from ec_hf.publishing.hub import PushError
from ec_hf.reporting.tables import to_rich
from ec_hf.reporting.verdict import findings
from train_original import train_original

UNNAMED = "trainer_output"  # what TrainingArguments calls the folder where none was named
DEMONSTRATION = str(Path(__file__).with_suffix(".yaml"))
CACHE = Path(os.environ.get("EC_HF_CACHE", Path.home() / ".cache" / "ec_hf"))


@dataclass
class RecipeArguments:
    """What to forget, from which model and data."""

    model_name_or_path: str | None = HfArg(
        default=None, help="Hub id, local folder or timm name; default: train a small ViT."
    )
    model_revision: str | None = HfArg(default=None, help="Branch, tag or commit of the model.")
    dataset_name: str = HfArg(
        default="mnist5k", help="Hub id, local folder, or mnist5k, which comes with the package."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of the dataset on the Hub.")
    forget_classes: list[str] | None = HfArg(default=None, help="Class names or ids to forget.")
    forget_request: str | None = HfArg(default=None, help="JSON file with a ForgetRequest; replaces the classes.")
    id_column: str | None = HfArg(
        default=None, help="Column that identifies an image; its duplicates are forgotten together."
    )
    with_retrained: bool = HfArg(
        default=False, help="Also train the small ViT on the retain set alone, the reference for forgetting."
    )
    retrained_name_or_path: str | None = HfArg(
        default=None, help="A retrained model that there is already; recipes/train_original.py makes one."
    )
    with_delete: bool = HfArg(default=False, help="Also erase with DELETE at the logits only, for contrast.")
    manifest_detail: Literal["hashes", "classes", "rows"] = HfArg(
        default="hashes",
        help="What the card and a push tell of the request: hashes and counts, class names, all of it.",
    )
    finish: Literal["keep", "mask", "drop"] = HfArg(
        default="keep", help="What becomes of the logits of the forgotten classes in the copy that is pushed."
    )
    with_heads: str | None = HfArg(
        default=None, help="Push the EC heads too: 'folder' for ec_heads/ beside the model, or a repository id."
    )


def main() -> None:
    recipe, config = parse(RecipeArguments, ECConfig, description=__doc__)
    own_settings = sys.argv[1:] and sys.argv[1].endswith((".yaml", ".yml"))
    if not own_settings and (recipe.model_name_or_path, recipe.dataset_name) == (None, RecipeArguments.dataset_name):
        recipe, config = parse(RecipeArguments, ECConfig, argv=[DEMONSTRATION, *sys.argv[1:]])
    logging.set_verbosity_warning()
    state = PartialState(cpu=config.use_cpu)
    state.print(f"{state.num_processes} process(es), backend {state.backend or 'none'}, device {state.device}")

    if recipe.with_retrained and recipe.model_name_or_path:
        raise ValueError(
            "--with_retrained retrains this recipe's own ViT. For your model, train one of the same architecture on "
            "the retain set (recipes/train_original.py --without_classes ...) and pass it as --retrained_name_or_path."
        )

    # Request and data
    request = read_request(recipe)
    state.print(request.summary())
    config.output_dir = new_folder(config)
    state.wait_for_everyone()  # no process writes before all have looked
    images = load_images(recipe.dataset_name, config=recipe.dataset_config)
    config.label_column = find_label_column(next(iter(images.values())), config.label_column)
    train, test = train_and_test(images, label_column=config.label_column, seed=config.seed)
    columns = {"label_column": config.label_column, "id_column": recipe.id_column}
    splits = four_splits(train, test, request, **columns)

    # What a model was made to forget before is not retained either
    original, processor, history = None, None, []
    if recipe.model_name_or_path:
        original, processor = load_model(recipe.model_name_or_path, revision=recipe.model_revision)
        commit = getattr(original.config, "_commit_hash", None)  # a local model has none
        history = earlier_manifests(original.config._name_or_path, revision=commit)
    earlier, notes = earlier_requests(history, train, **columns)
    if earlier:
        ever = four_splits(train, test, reduce(or_, earlier.values(), request), **columns)
        splits |= {name: part for name, part in ever.items() if name.startswith("retain")}
    for line in (*(f"Not retained, by {name}: {each.summary()}" for name, each in earlier.items()), *notes):
        state.print(line)
    parts = {"forget": splits["forget_train"], "retain": splits["retain_train"]}
    state.print(", ".join(f"{name} {len(part):,} images" for name, part in splits.items()))

    # The original model, and its heads, which serve every later request
    heads_folder = None
    if original is None:
        folder = cached("original", train, config)
        original, processor = train_once(folder, train, test, config)
        if not config.heads:
            how = (config.points, config.pooling, config.heads_epochs, config.heads_learning_rate)
            heads_folder = folder / f"{HEADS}-{digest(how)}"
    fitted = heads_folder if heads_folder and (heads_folder / "model.safetensors").exists() else None
    trainer = trainer_for(original, config, parts, splits, processor, heads=fitted)
    if heads_folder and not trainer.heads_fitted:
        trainer.fit_heads()
        if state.is_main_process:
            trainer.heads.save_pretrained(heads_folder)

    # Erase
    trainer.train(resume_from_checkpoint=resumed(config))
    trainer.save_model(_internal_call=True)  # it is pushed once it is audited

    # Compare
    ec = "EC" if config.objective == "contrastive" else f"{config.objective} + EC"
    name = ec if trainer.points else config.objective
    unlearned: dict[str, PreTrainedModel] = {name: trainer.model}
    if recipe.with_delete:
        unlearned["delete"] = erase_logits(original, config, parts, splits, processor)
    retrained: PreTrainedModel | str | None = recipe.retrained_name_or_path
    if recipe.with_retrained and not retrained:
        folder = cached("retrained", parts["retain"], config)
        classes = list(original.config.id2label.values())  # of text labels the retain set holds some only
        retrained, _ = train_once(folder, parts["retain"], splits["retain_test"], config, classes=classes)
    report = audit(
        original,
        unlearned,
        retrained=retrained,
        splits=splits,
        request=request,
        processor=processor,
        dataset_name=public(recipe.dataset_name),
        image_column=config.image_column,
        label_column=config.label_column,
        seed=config.seed,
    )
    report.measurements += checked_again(
        {name: split(train, each, **columns)["forget"] for name, each in earlier.items()},
        {"original": original, **unlearned},
        trainer.data_collator,
        label_column=config.label_column,
    )
    report.notes += notes
    if state.is_main_process:
        if recipe.model_name_or_path:
            report.models["original"] = info(original, "original", by_name=True)
        document = manifest(
            train, request, split(train, request, **columns), name=recipe.dataset_name, history=history, **columns
        )
        write(config.output_dir, "forget_manifest.json", document)
        write_audit(report, config.output_dir)
        text = card(config.output_dir, manifest_detail=recipe.manifest_detail)
        Path(config.output_dir, "README.md").write_text(text, encoding="utf-8")
        console = Console()
        console.print(to_rich(report))
        console.print(*map(str, findings(report)), sep="\n")
        print(f"\nIn {config.output_dir}: the unlearned model, its card, EC heads, manifest, audit and figures")
    if config.push_to_hub:
        publish(trainer, recipe)
    trainer.end()


def read_request(recipe: RecipeArguments) -> ForgetRequest:
    """What to forget, from the file or the class flags."""
    if recipe.forget_request:
        return ForgetRequest.load(recipe.forget_request)
    if recipe.forget_classes:
        return ForgetRequest(classes=recipe.forget_classes)
    raise ValueError("Say what to forget: --forget_classes NAME ... or --forget_request FILE.json.")


def publish(trainer: ECTrainer, recipe: RecipeArguments) -> None:
    """Push the finished folder; where that fails, end with what to do about it."""
    choices = {"manifest_detail": recipe.manifest_detail, "finish": recipe.finish, "with_heads": recipe.with_heads}
    try:
        url = trainer.push_to_hub(commit_message="Unlearned model", **choices)
    except PushError as error:
        sys.exit(str(error))
    if url:
        print(f"Published at {url}")


def resumed(config: ECConfig) -> str | bool | None:
    """The checkpoint to go on from; on a command line "true" stands for the last one in the output folder."""
    name = config.resume_from_checkpoint
    return True if name and name.lower() == "true" else name


def new_folder(config: ECConfig) -> str:
    """The output folder, which must not hold a model yet; a new one where none was named."""
    if config.output_dir != UNNAMED:
        if Path(config.output_dir, "config.json").exists() and not config.resume_from_checkpoint:
            raise FileExistsError(f"--output_dir {config.output_dir} holds a model already: name another folder.")
        return config.output_dir
    return next(str(path) for path in (Path(f"outputs/ec_vit-{i}") for i in count(1)) if not path.exists())


def evaluated(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    """What is evaluated during erasure: test images, or the forgotten rows where no test image is named."""
    forget = splits["forget_test"] if len(splits["forget_test"]) else splits["forget_train"]
    return {"forget": forget, "retain": splits["retain_test"]}


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def cached(kind: str, train: Dataset, config: ECConfig) -> Path:
    """Folder of a model that this recipe trains, one for each training set and seed."""
    return CACHE / f"{kind}-{digest([train._fingerprint, config.label_column, config.image_column, config.seed])}"


def train_once(
    folder: Path, train: Dataset, test: Dataset, config: ECConfig, **settings: Any
) -> tuple[PreTrainedModel, Any]:
    """Train a model into `folder`, or load the one that is there."""
    state = PartialState()
    there = (folder / "model.safetensors").exists()
    state.wait_for_everyone()
    if there:
        state.print(f"Using the model in {folder}")
        return load_model(folder)
    columns = {"label_column": config.label_column, "image_column": config.image_column}
    return train_original(folder, train, test, seed=config.seed, use_cpu=config.use_cpu, **columns, **settings)


def trainer_for(
    original: PreTrainedModel, config: ECConfig, parts: Any, splits: Any, processor: Any, heads: Path | None = None
) -> ECTrainer:
    """A trainer on a copy of the original."""
    return ECTrainer(
        model=copy.deepcopy(original),
        args=config,
        forget_dataset=parts["forget"],
        retain_dataset=parts["retain"],
        eval_dataset=evaluated(splits),
        processing_class=processor,
        heads=heads,
    )


def erase_logits(
    original: PreTrainedModel, config: ECConfig, parts: Any, splits: Any, processor: Any
) -> PreTrainedModel:
    """DELETE with retain cross-entropy and no supervision points: what changing the last layer's output gives."""
    args = copy.copy(config)
    args.objective, args.objective_kwargs, args.points, args.heads = "delete", {"retain_weight": 1.0}, [], None
    args.output_dir, args.save_strategy = str(Path(config.output_dir) / "delete"), "no"
    args.push_to_hub = False
    trainer = trainer_for(original, args, parts, splits, processor)
    trainer.train()
    return trainer.model


def write(folder: str, name: str, content: dict[str, Any]) -> None:
    Path(folder, name).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
