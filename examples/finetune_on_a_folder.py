"""Train on a folder of annotated images, then measure the best checkpoint on its validation split.

The folder may have any format that m2f recognises, such as images and a COCO json. Classes come from it.

python examples/finetune_on_a_folder.py DIR --init coco-instance-r50 --iterations 1000 --out runs/mine
"""

from __future__ import annotations

import argparse
from pathlib import Path

import m2f_cli as m2f


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune a model on a folder of annotated images.")
    parser.add_argument("data", type=Path, help="the folder")
    parser.add_argument("--preset", default="small-instance", help="the network and how it is trained")
    parser.add_argument("--init", help="weights to start from; by default the backbone's, random for none")
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the preset")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    arguments = parser.parse_args()

    config = m2f.load_config(arguments.preset, [f"train.iterations={arguments.iterations}", *arguments.set])
    run = m2f.train(config, data=arguments.data, out=arguments.out, init=arguments.init)
    print(f"trained {run.iteration} iterations in {run.seconds:.0f} s; best: {run.best}")

    model = m2f.load(run.folder)
    dataset = m2f.open_dataset(arguments.data, "val", task=model.default_task)
    report = m2f.evaluate(model, dataset)
    for name, value in report.figures.items():
        print(f"{name} {value:.2f}")


if __name__ == "__main__":
    main()
