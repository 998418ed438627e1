"""The whole of `m2f predict` over a folder, beside a plain loop over transformers; reading and writing included.

    python benchmarks/predict_vs_transformers.py [--pictures 20] [--rounds 5] [--threads 2] [--model REF]
        [--compile] [--no-keep-memory] [--precision bf16] [--json FILE]

Ours is the pipeline that the command runs, with its defaults: on glibc it keeps freed memory. The loop is what a
user of transformers writes: Pillow, the image processor, the network, the published post-processing, PNG and json.
Both have the same weights: random ones of the preset, with class logits as of a trained model (18 queries are sure), or
those of --model. Each side is a process of its own, rounds alternate, and each round does all the images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from m2f_cli.benchmark import interleaved as race
from m2f_cli.benchmark import report as results
from m2f_cli.benchmark.case import Case
from m2f_cli.results.writers import write_json
from m2f_cli.runtime.allocator import is_kept_by

IMAGES = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco_panoptic_160" / "val2017"
GOAL = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=IMAGES, help="a folder of images; default: %(default)s")
    parser.add_argument("--preset", default="coco-panoptic-swin-t")
    parser.add_argument("--model", metavar="REF", help="these weights, in place of the preset's random ones")
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--compile", action="store_true", help="`m2f predict --compile`, on our side")
    parser.add_argument("--no-keep-memory", action="store_true", help="`m2f --no-keep-memory predict`, on our side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    case = Case(
        what="predict",
        preset=None if arguments.model else arguments.preset,
        model=arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        images=arguments.images,
        source=str(arguments.source),
        threads=arguments.threads,
        compile=arguments.compile,
        keep_memory=is_kept_by("predict") and not arguments.no_keep_memory,
    )
    tree = race.bench(case, race.BenchOptions(rounds=arguments.rounds, peer="huggingface", peer_precision="fp32"))
    print(results.headline(tree))
    for name, side in tree["sides"].items():
        stages = ", ".join(f"{stage} {1000 * seconds:.0f}" for stage, seconds in (side["stages"] or {}).items())
        seconds = f"{side['median']:8.2f} s ({side['low']:.2f}-{side['high']:.2f})"
        print(f"{name:12} {seconds}  {side['images_per_second']:.3f} images/s; one after another, ms: {stages}")
    print("\n".join(results.findings(tree)))
    print(f"goal: {GOAL} times as fast")
    if arguments.json:
        write_json(arguments.json, tree)


if __name__ == "__main__":
    main()
