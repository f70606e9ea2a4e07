"""Train an original image classifier with the plain Trainer: the model that is to unlearn.

    accelerate launch recipes/train_original.py                            # a small ViT on the digits of MNIST-5k
    accelerate launch recipes/train_original.py --architecture resnet --dataset_name uoft-cs/cifar10 --output_dir out
    accelerate launch recipes/train_original.py --base_model ID --dataset_name ID --output_dir out    # fine-tuning
    accelerate launch --multi_gpu --num_processes 2 recipes/train_original.py --use_cpu

Every field of `TrainingArguments` is a flag. `--without_classes cat dog` gives the retrained model of a request, and
`--seeds 3` three of them; `ec-hf retrain` does so for any request.
"""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import PartialState
from transformers.hf_argparser import HfArg

from ec_hf import ForgetRequest, split
from ec_hf.commands.parsing import parse
from ec_hf.data.columns import find_label_column
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.training.classifier import ClassifierConfig, class_names, train_seeds


@dataclass
class RecipeArguments:
    """What to train on."""

    dataset_name: str = HfArg(
        default="mnist5k", help="Hub id, local folder, or mnist5k, which comes with the package."
    )
    dataset_config: str | None = HfArg(default=None, help="Configuration of the dataset on the Hub.")
    without_classes: list[str] | None = HfArg(
        default=None, help="Classes to leave out of both parts: a retrained model, the reference for unlearning them."
    )
    seeds: int = HfArg(
        default=1,
        help="Train so many models, with the seeds from --seed on, into OUTPUT_DIR-1, OUTPUT_DIR-2 and so on; the "
        "spread of retrained models is the unit of an audit.",
    )


def main() -> None:
    """Run the recipe."""
    recipe, config = parse(RecipeArguments, ClassifierConfig, description=__doc__)
    state = PartialState(cpu=config.use_cpu)
    state.print(f"{state.num_processes} process(es), backend {state.backend or 'none'}, device {state.device}")
    images = load_images(recipe.dataset_name, config=recipe.dataset_config)
    parts = train_and_test(images, label_column=config.label_column)
    if recipe.without_classes:
        column = find_label_column(parts[0], config.label_column)
        config.classes = config.classes or class_names([part.select_columns([column]) for part in parts])
        request = ForgetRequest(classes=recipe.without_classes)
        parts = tuple(split(part, request, label_column=config.label_column)["retain"] for part in parts)
    train_seeds(config, recipe.seeds, *parts)
    state.wait_for_everyone()  # gloo may abort a process that leaves while another still works
    state.destroy_process_group()


if __name__ == "__main__":
    main()
