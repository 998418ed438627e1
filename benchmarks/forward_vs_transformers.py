"""Forward pass of Mask2Former on a CPU, ours against transformers' (eager), same weights, one run on one machine.

    python benchmarks/forward_vs_transformers.py [--size 512 1024] [--rounds 5] [--threads 2] [--backbone t|l]
        [--sides theirs ours theirs:bf16 ours:bf16 ours:keep ours:keep:bf16 openvino openvino:bf16 …]

A side is "theirs" (transformers), "ours", or "openvino" (OpenVINO's conversion of transformers' model), and what is
different about it: "bf16", "keep" (`m2f --keep-memory`: glibc keeps freed memory), "compile" (ours only: a few
operators, as `m2f predict --compile`). All else is the same. The others are compared with the first side.

Weights are random, with sampling offsets, attention weights and position biases that are not degenerate. Each side
runs in a process of its own, so that memory can be measured: by how much a first pass raises it at its peak. Rounds
alternate between the sides, and so does who is first, so that a slow moment of the machine hits all. The ratio is that
of the medians, with its 95 % interval (with fewer than six rounds: the range of the rounds).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SWIN = {
    "t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "l": {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
}
QUERIES = {"t": 100, "l": 200}


def make_model(folder: Path, backbone: str = "t") -> None:
    """A transformers Swin Mask2Former with random weights that matter, as a folder."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(**SWIN[backbone], drop_path_rate=0.3, out_features=stages)
    config = Mask2FormerConfig(backbone_config=swin, num_labels=133, num_queries=QUERIES[backbone])
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name or "position_bias_table" in name:
                parameter.normal_(0, 0.5 if name.endswith("bias") else 0.05)
    model.save_pretrained(folder)


def growth_of(work: Callable[[], T]) -> tuple[T, float | None]:
    """What a piece of work gives, and by how many MiB it raises the memory of this process; None: not told here."""
    import torch

    from m2f_cli.benchmark.machine import Memory

    memory = Memory(torch.device("cpu"))
    return work(), memory.growth()["resident_growth_mib"]


def raced(sides: Iterable[Side], rounds: int) -> None:
    """Rounds in turns; who is first changes from round to round."""
    sides = list(sides)
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            side.run()


def about(threads: int, rounds: int) -> str:
    """What a timing means nothing without."""
    import torch

    from m2f_cli.benchmark import machine

    found = machine.allocator()
    settings = f" {found['settings']}" if found["settings"] else ""
    return (
        f"{machine.cpu_name()}, {threads} threads, {found['name']}{settings}, torch {torch.__version__}, "
        f"{rounds} rounds, load {machine.load_average()}"
    )


def share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.2f}" if part is not None and whole else "not told"


def worker(side: str, folder: str, height: int, width: int, threads: int) -> None:
    """Load one side, then answer each line on stdin with one timed forward pass."""
    name, *settings = side.split(":")
    if "keep" in settings:
        from m2f_cli.runtime.allocator import keep_memory

        keep_memory()
    import torch

    torch.set_num_threads(threads)
    precision = torch.bfloat16 if "bf16" in settings else torch.float32
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    forward = {"ours": ours, "theirs": theirs, "openvino": openvino}[name](
        folder, images, precision, threads, "compile" in settings
    )
    with torch.inference_mode():
        if name != "openvino":  # its graph is for one size
            forward(images[..., :64, :64])  # lazy imports and code paths are not part of the growth
        (classes, masks), growth = growth_of(lambda: forward(images))
        torch.save((classes.float(), masks.float()), Path(folder) / f"{side}.pt")
        print(json.dumps({"growth": growth}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            forward(images)
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def ours(folder, images, precision, threads, compile):
    import torch

    from m2f_cli.inference.compile import compile_operators
    from m2f_cli.inference.load_network import load_model

    model = load_model(folder).model.eval()
    if compile:
        compile_operators()

    def forward(images):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
            prediction = model(images)
            return prediction.last.class_logits_BQK, prediction.render()

    return forward


def theirs(folder, images, precision, threads, compile):
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()

    def forward(images):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
            output = model(pixel_values=images)
            return output.class_queries_logits, output.masks_queries_logits

    return forward


def logits_of(folder):
    """Transformers' model with the two outputs that ours has, and none of the layers before."""
    import torch
    from transformers import Mask2FormerForUniversalSegmentation

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Mask2FormerForUniversalSegmentation.from_pretrained(folder)

        def forward(self, images):
            answer = self.model(pixel_values=images)
            return answer.class_queries_logits, answer.masks_queries_logits

    return Logits().eval()


def openvino(folder, images, precision, threads, compile):
    import openvino as ov
    import torch

    with torch.no_grad():
        converted = ov.convert_model(logits_of(folder), example_input=images, input=list(images.shape))
    hint = "bf16" if precision is torch.bfloat16 else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(converted, "CPU", settings)

    def forward(images):
        answers = compiled([images.numpy()])
        return torch.from_numpy(answers[0].copy()), torch.from_numpy(answers[1].copy())

    return forward


class Side:
    def __init__(self, name: str, folder: str, options: list[str]):
        command = [sys.executable, __file__, "--worker", name, "--folder", folder, *options]
        self.name = name
        quiet = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)
        self.growth = self.answer()["growth"]
        self.seconds: list[float] = []

    def answer(self) -> dict:
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit("a worker ended early")
            if line.startswith("{"):
                return json.loads(line)

    def run(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self.answer()["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", choices=SWIN, default="t")
    parser.add_argument("--sides", nargs="+", default=["theirs", "ours"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, arguments.folder, *arguments.size, arguments.threads)

    import torch

    from m2f_cli.benchmark.statistics import between, ratio

    options = ["--size", *map(str, arguments.size), "--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), arguments.backbone)
        sides = [Side(name, folder, options) for name in arguments.sides]
        raced(sides, arguments.rounds)
        for side in sides:
            side.process.stdin.close()
            side.process.wait()
        answers = {side.name: torch.load(Path(folder) / f"{side.name}.pt") for side in sides}
    height, width = arguments.size
    print(
        f"Mask2Former Swin-{arguments.backbone.upper()}, 1 x 3 x {height} x {width}, "
        f"{about(arguments.threads, arguments.rounds)}"
    )
    first = sides[0]
    print(
        f"{'':22}{'seconds':>9}{'best':>8}{'speed':>8}{'best':>7}{'growth MiB':>12}{'ratio':>9}   "
        f"largest (mean) difference of classes, masks from {first.name}"
    )
    for side in sides:
        middle, best = statistics.median(side.seconds), min(side.seconds)
        differences = ", ".join(
            f"{(a - b).abs().max():.1e} ({(a - b).abs().mean():.1e})"
            for a, b in zip(answers[first.name], answers[side.name], strict=True)
        )
        speed = ratio(first.seconds, side.seconds)
        growth = "not told" if side.growth is None else f"{side.growth:.0f}"
        print(
            f"{side.name:22}{middle:9.3f}{best:8.3f}{speed['value']:7.2f}x{min(first.seconds) / best:6.2f}x"
            f"{growth:>12}{share(side.growth, first.growth):>9}   {differences}; speed{between(speed)}"
        )


if __name__ == "__main__":
    main()
