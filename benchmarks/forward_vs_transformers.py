"""Forward pass of Mask2Former on a CPU, ours against transformers' (eager), same weights, one run on one machine.

    python benchmarks/forward_vs_transformers.py [--size 512 1024] [--rounds 5] [--threads 2]

Weights are random, with sampling offsets, attention weights and position biases that are not degenerate. Each side
runs in a process of its own, so that memory can be measured; rounds alternate between the two, so that a slow moment
of the machine hits both. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_model(folder: Path) -> None:
    """A transformers Swin-T Mask2Former with random weights that matter, as a folder."""
    import torch
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, drop_path_rate=0.3,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, num_labels=133))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets" in name or "attention_weights" in name or "position_bias_table" in name:
                parameter.normal_(0, 0.5 if name.endswith("bias") else 0.05)
    model.save_pretrained(folder)


def peak_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this benchmark reads /proc: it needs Linux")


def worker(side: str, folder: str, height: int, width: int, threads: int) -> None:
    """Load one side, then answer each line on stdin with one timed forward pass."""
    import torch

    torch.set_num_threads(threads)
    if side == "ours":
        from m2f_cli.inference.loading import load_model

        model = load_model(folder).model
        forward = _ours(model)
    else:
        from transformers import Mask2FormerForUniversalSegmentation

        forward = _theirs(Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval())
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        forward(images[..., :64, :64])  # lazy imports and code paths are not part of the growth
        before = peak_mib()
        classes, masks = forward(images)
        growth = peak_mib() - before
        torch.save((classes, masks), Path(folder) / f"{side}.pt")
        print(json.dumps({"growth": growth}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            forward(images)
            print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def _ours(model):
    def forward(images):
        prediction = model(images)
        return prediction.last.class_logits_BQK, prediction.render()

    return forward


def _theirs(model):
    def forward(images):
        output = model(pixel_values=images)
        return output.class_queries_logits, output.masks_queries_logits

    return forward


class Side:
    def __init__(self, name: str, folder: str, options: list[str]):
        command = [sys.executable, __file__, "--worker", name, "--folder", folder, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, arguments.folder, *arguments.size, arguments.threads)

    import torch

    options = ["--size", *map(str, arguments.size), "--threads", str(arguments.threads)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        theirs, ours = Side("theirs", folder, options), Side("ours", folder, options)
        for _ in range(arguments.rounds):
            theirs.run()
            ours.run()
        for side in (theirs, ours):
            side.process.stdin.close()
            side.process.wait()
        (their_classes, their_masks), (our_classes, our_masks) = (
            torch.load(Path(folder) / f"{name}.pt") for name in ("theirs", "ours")
        )
    height, width = arguments.size
    print(f"Mask2Former Swin-T, 1 x 3 x {height} x {width}, fp32, {arguments.threads} threads, "
          f"torch {torch.__version__}, median of {arguments.rounds}")
    print(f"{'':14}{'seconds':>10}{'(best)':>10}{'peak growth MiB':>18}")
    for name, side in (("transformers", theirs), ("m2f", ours)):
        print(f"{name:14}{statistics.median(side.seconds):10.3f}{min(side.seconds):10.3f}{side.growth:18.0f}")
    print(f"speed ratio {statistics.median(theirs.seconds) / statistics.median(ours.seconds):.2f}x "
          f"(best {min(theirs.seconds) / min(ours.seconds):.2f}x), memory ratio {ours.growth / theirs.growth:.2f}")
    print(f"largest difference: classes {(their_classes - our_classes).abs().max():.1e}, "
          f"masks {(their_masks - our_masks).abs().max():.1e} (mean {(their_masks - our_masks).abs().mean():.1e})")


if __name__ == "__main__":
    main()
