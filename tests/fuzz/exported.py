"""Mutants of exported files: ONNX, OpenVINO and `.pt2`, above all of what they say of themselves."""

from __future__ import annotations

import functools
import importlib.util
import io
import json
import random
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fuzz.harness import Target
from fuzz.spoil import spoil_bytes, spoil_json
from onnx import TensorProto, helper
from weights.models import CATEGORIES, config_of

from m2f_cli.errors import ConfigError
from m2f_cli.inference.engines import base as engines
from m2f_cli.inference.engines.torch_engine import read_description
from m2f_cli.inference.load import load

Mutants = Iterator[tuple[str, Path]]
QUERIES = 3
XML = "model.xml"


def described(**options: Any) -> dict[str, Any]:
    made = engines.Description(config_of(), CATEGORIES, "tiny", multiple=32, **options)
    return json.loads(made.to_json())


@functools.cache
def network() -> bytes:
    """An ONNX network whose answers have the right shapes: averages of the image, and constants."""
    values = {
        "weights": np.ones((QUERIES, 3, 4, 4), np.float32) / 4800,
        "logits": np.linspace(-1, 1, QUERIES * (len(CATEGORIES) + 1), dtype=np.float32).reshape(1, QUERIES, -1),
    }
    nodes = [
        helper.make_node("Conv", ["images", "weights"], ["mask_logits"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Identity", ["logits"], ["class_logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [
            helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, [1, QUERIES, len(CATEGORIES) + 1]),
            helper.make_tensor_value_info("mask_logits", TensorProto.FLOAT, None),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def onnx_file(text: str | None) -> bytes:
    model = onnx.load_from_string(network())
    if text is not None:
        helper.set_model_props(model, {engines.KEY: text})
    return model.SerializeToString()


def _odd_description(rng: random.Random, tree: dict[str, Any]) -> tuple[str, str]:
    done, text = spoil_json(rng, tree)
    return done, text.decode("utf-8", "replace")


def onnx_files(rng: random.Random, folder: Path) -> Mutants:
    folder = folder / "export"
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        tree = described(size=rng.choice((None, (64, 96))), batch=rng.choice((None, 1)), normalised=rng.random() < 0.5)
        done, text = _odd_description(rng, tree) if rng.random() < 0.8 else ("good", json.dumps(tree))
        content = onnx_file(text)
        if done == "good":
            more, content = spoil_bytes(rng, content)
            done = f"bytes: {more}"
        path = folder / "model.onnx"
        path.write_bytes(content)
        if rng.random() < 0.1:
            record, name = {"file": "model.onnx", "format": "onnx"}, folder / engines.RECORD
            more, content = spoil_json(rng, record)
            name.write_bytes(content)
            yield f"{done}; record: {more}", folder
            name.unlink()
        else:
            yield done, path


def programs(rng: random.Random, folder: Path) -> Mutants:
    """The zip of a `.pt2` file with its description; there is no program in it, for none is run."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        tree = described(extra={"outputs": ["class_logits", "mask_logits"], "torch": "2.14"})
        done, text = _odd_description(rng, tree)
        file = io.BytesIO()
        with zipfile.ZipFile(
            file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
        ) as archive:
            archive.writestr("model/version", "1")
            for name in rng.choice(
                (["model/extra/m2f"], ["model/extra/m2f"] * 2, ["extra_files/m2f", "extra/m2f"], ["x"])
            ):
                archive.writestr(name, text if rng.random() < 0.98 else bytes(20 << 20))
        content = file.getvalue()
        if rng.random() < 0.4:
            more, content = spoil_bytes(rng, content)
            done = f"{done}; {more}"
        path = folder / "model.pt2"
        path.write_bytes(content)
        yield done, path


def read_program(path: Path) -> object:
    """Read the description, and see that the program is not opened without the user's word."""
    read_description(path)
    try:
        load(path)
    except ConfigError as error:
        if "trust" in str(error):
            return error
        raise
    raise AssertionError("a program was opened without --trust-code")


@functools.cache
def openvino_files() -> dict[str, bytes]:
    import openvino

    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "model.onnx")
        source.write_bytes(onnx_file(None))
        model = openvino.Core().read_model(source)
        model.set_rt_info("@@", engines.KEY)
        openvino.save_model(model, Path(name, XML), compress_to_fp16=False)
        return {each: Path(name, each).read_bytes() for each in (XML, "model.bin")}


def openvino_folders(rng: random.Random, folder: Path) -> Mutants:
    while True:
        files, tree = dict(openvino_files()), described(size=rng.choice((None, (64, 96))))
        done, text = _odd_description(rng, tree) if rng.random() < 0.6 else ("good", json.dumps(tree))
        kept = "".join(letter for letter in text if letter >= " " and letter not in '&<>"\ufffe\uffff')
        shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
        files[XML] = files[XML].replace(b"@@", (shown if rng.random() < 0.9 else kept).encode("utf-8", "replace"))
        if done == "good":
            name = rng.choice((XML, XML, "model.bin"))
            done, files[name] = spoil_bytes(rng, files[name])
        shutil.rmtree(folder / "model", ignore_errors=True)
        (folder / "model").mkdir(parents=True)
        for name, content in files.items():
            (folder / "model" / name).write_bytes(content)
        yield done, folder / "model"


def use(path: Path) -> object:
    """Open an exported file and segment an image, as `m2f predict` does."""
    return load(path)(np.zeros((40, 60, 3), np.uint8))


# onnxruntime and OpenVINO say of many faults what their own parts are called, so the file's path is what must be there.
TARGETS = (
    Target("ONNX", onnx_files, use, share=0.2),
    Target("pt2", programs, read_program, share=0.1),
    *((Target("OpenVINO", openvino_folders, use, share=0.1),) if importlib.util.find_spec("openvino") else ()),
)
