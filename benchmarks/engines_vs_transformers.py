"""onnxruntime and OpenVINO on a CPU, fed with our export and with that of transformers' Mask2Former: same weights.

    python benchmarks/engines_vs_transformers.py [--size 512 512] [--rounds 5] [--threads 2] [--engines onnxruntime …]

Weights are random ones of Swin-T that matter (forward_vs_transformers.py), one image of a fixed size, fp32. Ours goes
through `m2f export` (the library's), theirs through what its users have: `torch.onnx.export` (dynamo) for onnxruntime
and `openvino.convert_model` of the PyTorch model for OpenVINO. Our PyTorch network (eager) runs beside them. Each side
runs in a process of its own; rounds alternate between all, so that a slow moment of the machine hits each; ratios are
of medians. An export that does not work is told and left out.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from forward_vs_transformers import logits_of, make_model

if TYPE_CHECKING:
    from m2f_cli.benchmark.interleaved import Timed

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


def make_side(side: str, engine: str, folder: Path, size: tuple[int, int], threads: int):
    """The work of one side, in its process."""
    import numpy as np

    from m2f_cli.benchmark.process import Work

    forward = OPENERS[engine](folder, side, threads)
    images = np.random.default_rng(1).normal(size=(1, 3, *size)).astype(np.float32)
    return Work(functools.partial(forward, images), tell=lambda answers: {"answers": answers})


# --- the race ---------------------------------------------------------------------------------------------------------


def exported(engines: list[str], folder: Path, size: tuple[int, int]) -> list[tuple[str, str]]:
    """(side, engine) of the exports that worked, each made in a process of its own."""
    from m2f_cli.benchmark.process import side as process
    from m2f_cli.errors import M2FError

    found = []
    for engine in engines:
        for side, make in (("theirs", export_theirs), ("ours", export_ours)):
            print(f"exporting: {side} for {engine}", file=sys.stderr, flush=True)
            try:
                with process(f"the export of {side}", functools.partial(make, folder, engine, size)):
                    found.append((side, engine))
            except M2FError as error:
                print(f"the export of {side} for {engine} failed: {str(error)[:300]}", flush=True)
    return found


def differences(sides: Mapping[str, Timed]) -> None:
    """Each side's difference from our eager network, as a share of the range: the exports are the same model.

    One query that a threshold in the network sends elsewhere moves the largest difference: so the mean is there, too.
    """
    import numpy as np

    expected = sides[f"ours-{EAGER}"].first["answers"]
    for name, side in sides.items():
        told = []
        for a, b, what in zip(expected, side.first["answers"], ("classes", "masks"), strict=True):
            share = np.abs(a - b) / np.ptp(a)
            told.append(f"{what} {share.max():.1e} (mean {share.mean():.1e})")
        print(f"  {name:20} difference from eager / range: {', '.join(told)}")


def report(sides: Mapping[str, Timed], rounds: int) -> None:
    from m2f_cli.benchmark.statistics import between, ratio

    print(f"{'':22}{'median s':>10}{'best s':>10}")
    median = {name: statistics.median(side.seconds) for name, side in sides.items()}
    for name, side in sides.items():
        print(f"  {name:20}{median[name]:10.3f}{min(side.seconds):10.3f}")
    for engine in ENGINES:
        theirs, ours = (sides.get(f"{side}-{engine}") for side in ("theirs", "ours"))
        if ours and theirs:
            wins = sum(a > b for a, b in zip(theirs.seconds, ours.seconds, strict=True))
            speed = ratio(theirs.seconds, ours.seconds)
            print(
                f"{engine}: ours {speed['value']:.2f}x{between(speed)} the speed of transformers' export "
                f"(faster in {wins} of {rounds} rounds)"
            )
        if ours:
            speed = median[f"ours-{EAGER}"] / median[f"ours-{engine}"]
            print(f"{engine}: ours {speed:.2f}x the speed of our PyTorch network (eager)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    arguments = parser.parse_args()
    size = tuple(arguments.size)

    from m2f_cli.benchmark.interleaved import race
    from m2f_cli.benchmark.machine import summary

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "weights")
        make = functools.partial(make_side, folder=folder, size=size, threads=arguments.threads)
        pairs = [*exported(arguments.engines, folder, size), ("ours", EAGER)]
        makes = {f"{side}-{engine}": functools.partial(make, side, engine) for side, engine in pairs}
        sides = race(makes, arguments.rounds)
    print(f"Mask2Former Swin-T, 1 x 3 x {size[0]} x {size[1]}, fp32, {summary(arguments.threads, arguments.rounds)}")
    report(sides, arguments.rounds)
    differences(sides)


if __name__ == "__main__":
    main()
