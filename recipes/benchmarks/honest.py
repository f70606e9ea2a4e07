"""How often does an audit call an honest retrained model anything else?

    train="accelerate launch recipes/train_original.py --architecture resnet --num_train_epochs 6"
    $train --seed 1 --output_dir original
    $train --seed 11 --seeds 12 --without_classes 3 7 --output_dir retrained
    python recipes/benchmarks/honest.py --original original --retrained retrained-* --forget_classes 3 7

All models come from one training but for the seed. Some are the references in turn, and the others are audited as if
they were unlearned.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

import datasets

from ec_hf import ForgetRequest, audit
from ec_hf.data.sources import load_images, train_and_test
from ec_hf.data.splitting import four_splits


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", required=True)
    parser.add_argument("--retrained", nargs="+", required=True, help="more models than --references")
    parser.add_argument("--dataset_name", default="mnist5k")
    parser.add_argument("--forget_classes", nargs="+", required=True)
    parser.add_argument("--references", type=int, default=3, help="retrained models of an audit")
    parser.add_argument("--draws", type=int, default=4, help="audits, each with other references")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    datasets.disable_progress_bars()
    request = ForgetRequest(classes=options.forget_classes)
    splits = four_splits(*train_and_test(load_images(options.dataset_name), seed=0), request)
    statuses: Counter[str] = Counter()
    for draw in range(options.draws):
        references = random.Random(draw).sample(options.retrained, options.references)
        others = {name: name for name in options.retrained if name not in references}
        report = audit(
            options.original,
            others,
            retrained=references,
            splits=splits,
            request=request,
            embedding=False,
            int8=False,
        )
        statuses.update(report.status[name] for name in others)
        print(f"audit {draw + 1}, so far:", dict(statuses), flush=True)


if __name__ == "__main__":
    main()
