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
import functools
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
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


def make_side(side: str, folder: str, size: tuple[int, int], threads: int):
    """The work of one side, in its process."""
    name, *settings = side.split(":")
    if "keep" in settings:
        from m2f_cli.runtime.allocator import keep_memory

        keep_memory()
    import torch

    from m2f_cli.benchmark.process import Work

    torch.set_num_threads(threads)
    precision = torch.bfloat16 if "bf16" in settings else torch.float32
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    forward = {"ours": ours, "theirs": theirs, "openvino": openvino}[name](
        folder, images, precision, threads, "compile" in settings
    )
    forward = torch.inference_mode()(forward)
    run = functools.partial(forward, images)
    tell = lambda answers: {"answers": [answer.float().numpy() for answer in answers]}  # noqa: E731
    if name == "openvino":  # its graph is for one size
        return Work(run, tell=tell)
    return Work(run, functools.partial(forward, images[..., :64, :64]), tell)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 1024], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", choices=SWIN, default="t")
    parser.add_argument("--sides", nargs="+", default=["theirs", "ours"])
    arguments = parser.parse_args()

    from m2f_cli.benchmark.interleaved import race
    from m2f_cli.benchmark.machine import summary
    from m2f_cli.benchmark.statistics import between, ratio, share

    height, width = arguments.size
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), arguments.backbone)
        make = functools.partial(make_side, folder=folder, size=(height, width), threads=arguments.threads)
        sides = race({name: functools.partial(make, name) for name in arguments.sides}, arguments.rounds)
    print(
        f"Mask2Former Swin-{arguments.backbone.upper()}, 1 x 3 x {height} x {width}, "
        f"{summary(arguments.threads, arguments.rounds)}"
    )
    first = sides[arguments.sides[0]]
    print(
        f"{'':22}{'seconds':>9}{'best':>8}{'speed':>8}{'best':>7}{'growth MiB':>12}{'ratio':>9}   "
        f"largest (mean) difference of classes, masks from {arguments.sides[0]}"
    )
    for name, side in sides.items():
        middle, best = statistics.median(side.seconds), min(side.seconds)
        differences = ", ".join(
            f"{abs(a - b).max():.1e} ({abs(a - b).mean():.1e})"
            for a, b in zip(first.first["answers"], side.first["answers"], strict=True)
        )
        speed = ratio(first.seconds, side.seconds)
        growth = side.first["growth"]
        told = "not told" if growth is None else f"{growth:.0f}"
        print(
            f"{name:22}{middle:9.3f}{best:8.3f}{speed['value']:7.2f}x{min(first.seconds) / best:6.2f}x"
            f"{told:>12}{share(growth, first.first['growth']):>9}   {differences}; speed{between(speed)}"
        )


if __name__ == "__main__":
    main()
