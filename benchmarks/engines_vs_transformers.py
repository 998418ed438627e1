"""onnxruntime and OpenVINO on a CPU, fed with our export and with that of transformers' Mask2Former: same weights.

    python benchmarks/engines_vs_transformers.py [--size 512 512] [--rounds 5] [--threads 2] [--engines onnxruntime …]

Weights are random ones of Swin-T that matter (forward_vs_transformers.py), one picture of a fixed size, fp32. Ours goes
through `m2f export` (the library's), theirs through what its users have: `torch.onnx.export` (dynamo) for onnxruntime
and `openvino.convert_model` of the PyTorch model for OpenVINO. Our PyTorch network (eager) runs beside them. Each side
runs in a process of its own; rounds alternate between all, so that a slow moment of the machine hits each; ratios are
of medians. An export that does not work is told and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forward_vs_transformers import about, logits_of, make_model, raced

ENGINES = ("onnxruntime", "openvino")
EAGER = "eager"
Forward = Callable[..., tuple]  # images (1, 3, H, W) as a numpy array to class and mask logits


# --- making the files -------------------------------------------------------------------------------------------------


def export_ours(folder: Path, engine: str, size: tuple[int, int]) -> None:
    from m2f_cli.export.base import ExportOptions, export
    from m2f_cli.export.verify import Tolerance
    from m2f_cli.inference.load import load

    format, path = {"onnxruntime": ("onnx", "model.onnx"), "openvino": ("openvino", "model")}[engine]
    anything = Tolerance(logits=1.0, moved=1.0, pixels=1.0)  # random queries are all alike; `differences` tells
    options = ExportOptions(size=size, tolerance=anything)
    export(load(folder / "weights", device="cpu"), folder / f"ours-{engine}" / path, format, options)


def export_theirs(folder: Path, engine: str, size: tuple[int, int]) -> None:
    import torch

    model = logits_of(folder / "weights")
    images = torch.zeros(1, 3, *size)
    target = folder / f"theirs-{engine}"
    target.mkdir()
    with torch.no_grad():
        if engine == "onnxruntime":
            torch.onnx.export(
                model,
                (images,),
                target / "model.onnx",
                dynamo=True,
                opset_version=18,
                input_names=["images"],
                output_names=["class_logits", "mask_logits"],
            )
        else:
            import openvino

            converted = openvino.convert_model(model, example_input=images, input=[1, 3, *size])
            openvino.save_model(converted, target / "model.xml", compress_to_fp16=False)


# --- running them -----------------------------------------------------------------------------------------------------


def open_onnxruntime(folder: Path, side: str, threads: int) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    path = folder / f"{side}-onnxruntime" / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    [image] = session.get_inputs()
    return lambda images: session.run(["class_logits", "mask_logits"], {image.name: images})


def open_openvino(folder: Path, side: str, threads: int) -> Forward:
    import openvino

    path = folder / f"{side}-openvino"
    path = path / "model.xml" if side == "theirs" else path / "model" / "model.xml"
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def forward(images):
        answers = compiled([images])
        return answers[0].copy(), answers[1].copy()

    return forward


def open_eager(folder: Path, side: str, threads: int) -> Forward:
    import torch

    from m2f_cli.inference.load_network import load_model

    torch.set_num_threads(threads)
    model = load_model(folder / "weights").model.eval()

    @torch.inference_mode()
    def forward(images):
        prediction = model(torch.from_numpy(images))
        return prediction.last.class_logits_BQK.numpy(), prediction.render().numpy()

    return forward


OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino, EAGER: open_eager}


def worker(name: str, folder: Path, size: tuple[int, int], threads: int) -> None:
    """Export or open one side, then answer each line on stdin with one timed forward pass."""
    import numpy as np

    job, side, engine = name.split("-")
    if job == "export":
        with contextlib.redirect_stdout(sys.stderr):
            {"ours": export_ours, "theirs": export_theirs}[side](folder, engine, size)
        return
    forward = OPENERS[engine](folder, side, threads)
    images = np.random.default_rng(1).normal(size=(1, 3, *size)).astype(np.float32)
    answer = forward(images)  # the first run is not like the others
    np.savez(folder / f"{side}-{engine}.npz", *answer)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        forward(images)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


class Side:
    """A process that runs one engine on one export. engine: one of OPENERS."""

    def __init__(self, side: str, engine: str, command: list[str]):
        self.name, self.engine, self.side = f"{side}-{engine}", engine, side
        self.process = subprocess.Popen(
            [*command, "--worker", f"run-{self.name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds: list[float] = []
        self.answer()

    def answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended early")

    def run(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(self.answer()["seconds"])

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


# --- the race ---------------------------------------------------------------------------------------------------------


def exported(engines: list[str], command: list[str]) -> list[tuple[str, str]]:
    """(side, engine) of the exports that worked, each made in a process of its own."""
    found = []
    for engine in engines:
        for side in ("theirs", "ours"):
            print(f"exporting: {side} for {engine}", file=sys.stderr, flush=True)
            done = subprocess.run([*command, "--worker", f"export-{side}-{engine}"], capture_output=True, text=True)
            if done.returncode == 0:
                found.append((side, engine))
            else:
                reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
                print(f"the export of {side} for {engine} failed: {reason[:300]}", flush=True)
    return found


def differences(folder: Path, sides: list[Side]) -> None:
    """Each side's difference from our eager network, as a share of the range: the exports are the same model.

    One query that a threshold in the network sends elsewhere moves the largest difference: so the mean is there, too.
    """
    import numpy as np

    expected = np.load(folder / f"ours-{EAGER}.npz")
    for side in sides:
        found, told = np.load(folder / f"{side.name}.npz"), []
        for key, what in zip(expected.files, ("classes", "masks"), strict=True):
            share = np.abs(expected[key] - found[key]) / np.ptp(expected[key])
            told.append(f"{what} {share.max():.1e} (mean {share.mean():.1e})")
        print(f"  {side.name:20} difference from eager / range: {', '.join(told)}")


def report(sides: list[Side], rounds: int) -> None:
    from m2f_cli.benchmark.statistics import between, ratio

    print(f"{'':22}{'median s':>10}{'best s':>10}")
    for side in sides:
        print(f"  {side.name:20}{side.median:10.3f}{min(side.seconds):10.3f}")
    by_name = {side.name: side for side in sides}
    eager = by_name[f"ours-{EAGER}"]
    for engine in ENGINES:
        theirs, ours = (by_name.get(f"{side}-{engine}") for side in ("theirs", "ours"))
        if ours and theirs:
            wins = sum(a > b for a, b in zip(theirs.seconds, ours.seconds, strict=True))
            speed = ratio(theirs.seconds, ours.seconds)
            print(
                f"{engine}: ours {speed['value']:.2f}x{between(speed)} the speed of transformers' export "
                f"(faster in {wins} of {rounds} rounds)"
            )
        if ours:
            print(f"{engine}: ours {eager.median / ours.median:.2f}x the speed of our PyTorch network (eager)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = tuple(arguments.size)
    if arguments.worker:
        return worker(arguments.worker, arguments.folder, size, arguments.threads)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "weights")
        command = [
            sys.executable,
            __file__,
            "--size",
            *map(str, size),
            "--threads",
            str(arguments.threads),
            "--folder",
            name,
        ]
        pairs = [*exported(arguments.engines, command), ("ours", EAGER)]
        sides = [Side(side, engine, command) for side, engine in pairs]
        raced(sides, arguments.rounds)
        print(f"Mask2Former Swin-T, 1 x 3 x {size[0]} x {size[1]}, fp32, {about(arguments.threads, arguments.rounds)}")
        report(sides, arguments.rounds)
        differences(folder, sides)
        for side in sides:
            side.process.stdin.close()
            side.process.wait()


if __name__ == "__main__":
    main()
