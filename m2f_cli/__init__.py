"""m2f: universal image segmentation with Mask2Former, MaskFormer and MP-Former.

    import m2f_cli
    model = m2f_cli.load("coco-panoptic-swin-t")
    result = model("photo.jpg", task="panoptic")
    result.plot().show()

Public names are imported on first use, so that `import m2f_cli` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .errors import ConfigError, DataError, ExportError, M2FError, MissingDependency, WeightsError
    from .inference.load import load
    from .inference.segmenter import Segmenter
    from .results.types import Instances, PanopticMap, Segment, SemanticMap
    from .structures.categories import Category

_HOMES = {
    "load": "inference.load",
    "Segmenter": "inference.segmenter",
    "Category": "structures.categories",
    **dict.fromkeys(("Instances", "PanopticMap", "Segment", "SemanticMap"), "results.types"),
    **dict.fromkeys(
        ("M2FError", "ConfigError", "DataError", "WeightsError", "ExportError", "MissingDependency"), "errors"
    ),
}
__all__ = [
    "Category",
    "ConfigError",
    "DataError",
    "ExportError",
    "Instances",
    "M2FError",
    "MissingDependency",
    "PanopticMap",
    "Segment",
    "Segmenter",
    "SemanticMap",
    "WeightsError",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm2f_cli' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
