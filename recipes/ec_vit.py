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
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from ec_hf import AuditReport, ECConfig, ECTrainer, ForgetRequest, audit, split
from ec_hf.auditing.earlier import checked_again
from ec_hf.auditing.subjects import info
from ec_hf.cli import parse, write_audit
from ec_hf.command import public
from ec_hf.data.columns import find_label_column
from ec_hf.data.manifests import earlier_manifests, earlier_requests, manifest
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits
from ec_hf.files import CARD, HEADS, MANIFEST, ModelFolder
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
    retrained_name_or_path: list[str] | None = HfArg(
        default=None,
        help="A retrained model that is there already, or several of other seeds (recipes/train_original.py).",
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
    recipe, config = settings()
    logging.set_verbosity_warning()
    state = PartialState(cpu=config.use_cpu)
    state.print(f"{state.num_processes} process(es), backend {state.backend or 'none'}, device {state.device}")

    request = read_request(recipe)
    state.print(request.summary())
    config = replace(config, output_dir=new_folder(config))
    state.wait_for_everyone()  # no process writes before all have looked
    given = given_model(recipe)
    data = load_data(recipe, config, request, given)
    config = replace(config, label_column=data.columns["label_column"])
    original, processor = given.model, given.processor
    heads_folder = None  # of a user's own model the heads go into the output folder alone
    if original is None:
        folder = cached("original", data.train, config)
        original, processor = train_once(folder, data.train, data.test, config)
        heads_folder = None if config.heads else folder / f"{HEADS}-{digest(how_heads_are_fitted(config))}"

    trainer = erase(original, config, data, processor, heads_folder)
    ec = "EC" if config.objective == "contrastive" else f"{config.objective} + EC"
    models: dict[str, Any] = {"original": original, (ec if trainer.eraser.points else config.objective): trainer.model}
    if recipe.with_delete:
        models["delete"] = erase_logits(original, config, data, processor)
    models["retrained"] = retrained_model(recipe, config, data, original)
    report = compare(models, recipe, config, data, trainer)
    if state.is_main_process:
        if given.model is not None:
            report.models["original"] = info(original, "original", by_name=True)
        write_results(report, recipe, config, data)
    if config.push_to_hub:
        publish(trainer, recipe)
    trainer.end()


@dataclass(frozen=True)
class GivenModel:
    """The user's own original model, if there is one, and what it was made to forget before."""

    model: PreTrainedModel | None = None
    processor: Any = None
    history: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Data:
    """Images, what a request makes of them, and the requests that came before it."""

    train: Dataset
    test: Dataset
    request: ForgetRequest
    splits: dict[str, Dataset]
    columns: dict[str, Any]
    earlier: dict[str, ForgetRequest]
    notes: list[str]
    history: Sequence[dict[str, Any]]

    @property
    def evaluated(self) -> dict[str, Dataset]:
        """What is evaluated during erasure: test images, or the forgotten rows where no test image is named."""
        forget = self.splits["forget_test"] if len(self.splits["forget_test"]) else self.splits["forget_train"]
        return {"forget": forget, "retain": self.splits["retain_test"]}


def settings() -> tuple[RecipeArguments, ECConfig]:
    """The settings of the command line; those of the demonstration where nothing else is named."""
    recipe, config = parse(RecipeArguments, ECConfig, description=__doc__)
    own_settings = sys.argv[1:] and sys.argv[1].endswith((".yaml", ".yml"))
    if not own_settings and (recipe.model_name_or_path, recipe.dataset_name) == (None, RecipeArguments.dataset_name):
        recipe, config = parse(RecipeArguments, ECConfig, argv=[DEMONSTRATION, *sys.argv[1:]])
    if recipe.with_retrained and recipe.model_name_or_path:
        raise ValueError(
            "--with_retrained retrains this recipe's own ViT. For your model, train one of the same architecture on "
            "the retain set (recipes/train_original.py --without_classes ...) and pass it as --retrained_name_or_path."
        )
    return recipe, config


def given_model(recipe: RecipeArguments) -> GivenModel:
    """Load the user's own model, if one is named."""
    if not recipe.model_name_or_path:
        return GivenModel()
    model, processor = load_model(recipe.model_name_or_path, revision=recipe.model_revision)
    commit = getattr(model.config, "_commit_hash", None)  # a local model has none
    return GivenModel(model, processor, earlier_manifests(model.config._name_or_path, revision=commit))


def load_data(recipe: RecipeArguments, config: ECConfig, request: ForgetRequest, given: GivenModel) -> Data:
    """Load the images and split them; what earlier requests named is not retained either."""
    images = load_images(recipe.dataset_name, config=recipe.dataset_config)
    label_column = find_label_column(next(iter(images.values())), config.label_column)
    train, test = train_and_test(images, label_column=label_column, seed=config.seed)
    columns = {"label_column": label_column, "id_column": recipe.id_column}
    splits = four_splits(train, test, request, **columns)
    earlier, notes = earlier_requests(given.history, train, **columns)
    if earlier:
        ever = four_splits(train, test, reduce(or_, earlier.values(), request), **columns)
        splits |= {name: part for name, part in ever.items() if name.startswith("retain")}
    not_retained = [f"Not retained, by {name}: {each.summary()}" for name, each in earlier.items()]
    sizes = ", ".join(f"{name} {len(part):,} images" for name, part in splits.items())
    PartialState().print("\n".join([*not_retained, *notes, sizes]))
    return Data(train, test, request, splits, columns, earlier, notes, given.history)


def erase(
    original: PreTrainedModel, config: ECConfig, data: Data, processor: Any, heads_folder: Path | None
) -> ECTrainer:
    """Erase from a copy of the original, and save it; fitted heads are kept for every later request."""
    fitted = heads_folder if heads_folder and (heads_folder / "model.safetensors").exists() else None
    trainer = trainer_for(original, config, data, processor, heads=fitted)
    if heads_folder and not trainer.eraser.heads_fitted:
        trainer.fit_heads()
        if trainer.is_world_process_zero():
            trainer.heads.save_pretrained(heads_folder)
    trainer.train(resume_from_checkpoint=resumed(config))
    trainer.save_model(_internal_call=True)  # it is pushed once it is audited
    return trainer


def retrained_model(
    recipe: RecipeArguments, config: ECConfig, data: Data, original: PreTrainedModel
) -> PreTrainedModel | list[str] | None:
    """The reference for forgetting: what is named, or the small ViT trained without the forget set."""
    if recipe.retrained_name_or_path or not recipe.with_retrained:
        return recipe.retrained_name_or_path
    retain = data.splits["retain_train"]
    classes = list(original.config.id2label.values())  # of text labels the retain set holds some only
    folder = cached("retrained", retain, config)
    return train_once(folder, retain, data.splits["retain_test"], config, classes=classes)[0]


def compare(
    models: dict[str, Any],
    recipe: RecipeArguments,
    config: ECConfig,
    data: Data,
    trainer: ECTrainer,
) -> AuditReport:
    """Audit "original", "retrained" and the unlearned models, and ask these again about earlier requests."""
    original, retrained = models["original"], models["retrained"]
    unlearned = {name: model for name, model in models.items() if name not in ("original", "retrained")}
    report = audit(
        original,
        unlearned,
        retrained=retrained,
        splits=data.splits,
        request=data.request,
        processor=trainer.processing_class,
        dataset_name=public(recipe.dataset_name),
        image_column=config.image_column,
        label_column=config.label_column,
        seed=config.seed,
    )
    report.measurements += checked_again(
        {name: split(data.train, each, **data.columns)["forget"] for name, each in data.earlier.items()},
        {"original": original, **unlearned},
        trainer.data_collator,
        label_column=config.label_column,
    )
    report.notes += data.notes
    return report


def write_results(report: AuditReport, recipe: RecipeArguments, config: ECConfig, data: Data) -> None:
    """Put manifest, audit, figures and card beside the model, and print what was found."""
    parts = split(data.train, data.request, **data.columns)
    document = manifest(
        data.train, data.request, parts, name=recipe.dataset_name, history=data.history, **data.columns
    )
    folder = ModelFolder(config.output_dir)
    folder.write(MANIFEST, document)
    write_audit(report, folder.path)
    folder.write(CARD, card(folder.path, manifest_detail=recipe.manifest_detail))
    console = Console()
    console.print(to_rich(report))
    console.print(*map(str, findings(report)), sep="\n", markup=False)
    print(f"\nIn {config.output_dir}: the unlearned model, its card, EC heads, manifest, audit and figures")


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
    """The output folder, which must hold neither a model nor checkpoints yet; a new one where none was named."""
    if config.output_dir == UNNAMED:
        return next(str(path) for path in (Path(f"outputs/ec_vit-{i}") for i in count(1)) if not path.exists())
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint:
        return config.output_dir
    if (folder / "config.json").exists():
        raise FileExistsError(f"--output_dir {folder} holds a model already: name another folder.")
    if folder.is_dir() and get_last_checkpoint(folder):
        raise FileExistsError(
            f"--output_dir {folder} holds checkpoints of a run that did not end: --resume_from_checkpoint true goes "
            "on with it; for a new run name another folder."
        )
    return config.output_dir


def how_heads_are_fitted(config: ECConfig) -> tuple:
    """What fitted heads depend on, beside the model and its training set."""
    return config.points, config.pooling, config.heads_epochs, config.heads_learning_rate


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
    original: PreTrainedModel, config: ECConfig, data: Data, processor: Any, heads: Path | None = None
) -> ECTrainer:
    """A trainer on a copy of the original."""
    return ECTrainer(
        model=copy.deepcopy(original),
        args=config,
        forget_dataset=data.splits["forget_train"],
        retain_dataset=data.splits["retain_train"],
        eval_dataset=data.evaluated,
        processing_class=processor,
        heads=heads,
    )


def erase_logits(original: PreTrainedModel, config: ECConfig, data: Data, processor: Any) -> PreTrainedModel:
    """DELETE with retain cross-entropy and no supervision points: what changing the last layer's output gives."""
    args = replace(
        config,
        objective="delete",
        objective_kwargs={"retain_weight": 1.0},
        points=[],
        heads=None,
        output_dir=str(Path(config.output_dir) / "delete"),
        save_strategy="no",
        push_to_hub=False,
    )
    trainer = trainer_for(original, args, data, processor)
    trainer.train()
    return trainer.model


if __name__ == "__main__":
    main()
