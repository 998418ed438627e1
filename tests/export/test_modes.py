"""Exported files can be read by whom the umask lets read new files, whatever library wrote them."""

from __future__ import annotations

import os

import pytest
from export.tiny import tiny_segmenter
from helpers.small_segmenter import small_segmenter

from m2f_cli.export.base import ExportOptions, export

SIZE = (64, 96)
FORMATS = {  # name → (file, package, options)
    "safetensors": ("x.safetensors", "safetensors", {}),
    "huggingface": ("x", "transformers", {}),
    "detectron2": ("x.pth", "torch", {}),
    "detectron2-pkl": ("x.pkl", "torch", {}),
    "onnx": ("x.onnx", "onnxruntime", {"size": SIZE, "runner": True}),
    "torch": ("x.pt2", "torch", {"size": SIZE}),
    "openvino": ("x", "openvino", {"size": SIZE}),
}
GRAPHS = ("onnx", "torch", "openvino")


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize(
    "name", [name if name not in GRAPHS else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]
)
def test_they_obey_the_umask(tmp_path, name):
    file, package, options = FORMATS[name]
    pytest.importorskip(package, reason="needs an extra")
    segmenter = small_segmenter() if name == "huggingface" else tiny_segmenter()
    for umask in (0o022, 0o002):
        folder = tmp_path / f"{umask:o}"
        old = os.umask(umask)
        try:
            export(segmenter, folder / file, name, ExportOptions(**options))
        finally:
            os.umask(old)
        modes = {str(path): path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
        assert len(modes) >= 2 and {path: mode for path, mode in modes.items() if mode != 0o666 & ~umask} == {}
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
