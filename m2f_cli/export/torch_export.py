"""Export to `.pt2`: PyTorch's own exported program, or a library that AOTInductor compiled ahead of time.

A program runs on any device of PyTorch. A compiled library is faster, and runs only with the same kind of CPU, device
and version of PyTorch. Its compilation takes a C++ compiler and minutes.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import torch

from ..errors import ExportError, MissingDependency, unknown_name
from ..inference.engines import base as engines
from ..inference.engines.torch_engine import COMPILED, OUTPUTS, TorchEngine
from ..inference.segmenter import Segmenter
from . import graph
from .base import ExportOptions, description_of, refuse_options
from .safetensors import refuse_precision

COMPILE = "compile"  # key of `ExportOptions.extra`: True for a library of AOTInductor
COMPILERS = ("c++", "g++", "clang++", "cl")


class TorchExport:
    """Exporter by `torch.export`, or by AOTInductor with the extra option `compile`."""

    suffix = ".pt2"
    packages = ()

    def check(self, model: Segmenter, options: ExportOptions) -> None:
        refuse_options("torch", options, "opset", "runner")
        refuse_precision("torch", options, "fp32")
        for name in options.extra:
            if name != COMPILE:
                raise unknown_name("option of the format torch", name, [COMPILE])
        if options.extra.get(COMPILE) and not _compiler():
            raise MissingDependency("g++", "Compiling a network (AOTInductor)")

    def write(self, model: Segmenter, path: Path, options: ExportOptions) -> None:
        compiled = bool(options.extra.get(COMPILE))
        with graph.deployed(model):
            program = graph.exported_program(model, options)
        described = description_of(
            model,
            options,
            torch=torch.__version__,
            **{OUTPUTS: graph.output_names(options)},
            **({COMPILED: "cpu"} if compiled else {}),
        )
        if compiled:
            _compile(program, path)
            _add_entry(path, described.to_json())
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about changes of the format, which `TorchEngine` reports
            archive = io.BytesIO()  # PyTorch ends the process where a disk is full, if it writes the file itself
            torch.export.save(_slim(program), archive, extra_files={engines.KEY: described.to_json()})
        path.write_bytes(archive.getbuffer())

    def open(self, path: Path, model: Segmenter, options: ExportOptions) -> Segmenter:
        return engines.EngineSegmenter(TorchEngine(path, "cpu"), source=str(path), task=model.default_task)


def _slim(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove what says nothing of the network, so that the same network gives the same file.

    These are the example input, which may be as large as some weights, the stack traces of operations, and their
    origins, which hold addresses in memory.
    """
    program._example_inputs = None  # the public setter of PyTorch 2.6 takes no None
    for node in program.graph.nodes:
        for key in ("stack_trace", "from_node"):
            node.meta.pop(key, None)
    return program


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "")) or next(filter(None, map(shutil.which, COMPILERS)), None)


def _compile(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # the compiler raises errors of many kinds, also those of g++
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"AOTInductor cannot compile the network: {reason.strip()[:300]}",
            hint="Export it without compiling it, or with a fixed --size and --batch.",
        ) from error


def _add_entry(path: Path, text: str) -> None:
    """Add the description in the folder of extra files of `torch.export.save`."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/{engines.KEY}", text)
