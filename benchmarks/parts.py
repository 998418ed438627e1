"""What each fast path gains: the whole forward pass with and without it, in turns, in one process.

    python benchmarks/parts.py [--preset coco-panoptic-swin-t] [--precision fp32] [--size 512 1024] [--rounds 12]
        [--sides all linear attention conv deformable_attention compiled]

A side is "all", the operator that runs as its reference ("linear" is `M2F_OPS=linear:blas`), or "compiled" (as
`m2f predict --compile`). Weights are random, memory is kept as by `m2f predict`, and each round has a fresh order. A
ratio is the median of a side divided by that of "all". SIGTERM ends the rounds.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from m2f_cli.benchmark import machine
from m2f_cli.benchmark.statistics import between, ratio, summary
from m2f_cli.ops.dispatch import OPERATORS
from m2f_cli.runtime.allocator import keep_memory


@functools.cache
def compiled(function: Callable) -> Callable:
    import torch

    return torch.compile(function, dynamic=True)


def switch(side: str) -> None:
    """Make all forward passes from now on those of a side."""
    from m2f_cli.model.pixel_decoders.deformable import softmax_on_cpu
    from m2f_cli.ops.deformable_attention.embedding_bag import corners_on_cpu

    os.environ["M2F_OPS"] = f"{side}:{OPERATORS[side].names[0]}" if side in OPERATORS else ""
    for each in (corners_on_cpu, softmax_on_cpu):
        each.runs = compiled(each.eager) if side == "compiled" else each.eager


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="coco-panoptic-swin-t")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--size", nargs=2, type=int, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=["all", *OPERATORS])
    arguments = parser.parse_args()
    keep_memory()
    import torch

    from m2f_cli.benchmark.model_under_test import autocast, shape
    from m2f_cli.config import presets
    from m2f_cli.model import build

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = build(presets.load(arguments.preset).model, 133).eval()
    shape(network)
    images = torch.randn(1, 3, *arguments.size, generator=torch.Generator().manual_seed(1))
    seconds: dict[str, list[float]] = {name: [] for name in arguments.sides}
    order = random.Random(0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), torch.inference_mode(), autocast(torch.device("cpu"), arguments.precision):
        for number in range(-2, arguments.rounds):  # two to warm up
            for name in order.sample(arguments.sides, len(arguments.sides)):
                switch(name)
                start = time.perf_counter()
                network(images)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
    whole = min(map(len, seconds.values()))
    print(
        f"{arguments.preset}, {arguments.precision}, {arguments.size}, {arguments.threads} threads, "
        f"{machine.cpu_name()}, torch {torch.__version__}, {whole} rounds, load {machine.load_average()}"
    )
    for name, values in seconds.items():
        found, of = summary(values[:whole]), ratio(values[:whole], seconds[arguments.sides[0]][:whole])
        print(f"{name:22}{found['median']:8.3f} s, best {min(values):.3f}; ratio {of['value']:.3f}{between(of, '.3f')}")


if __name__ == "__main__":
    main()
