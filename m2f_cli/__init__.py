"""m2f: universal image segmentation with Mask2Former, MaskFormer and MP-Former.

    import m2f_cli as m2f

    model = m2f.load("coco-panoptic-swin-t")
    result = model("photo.jpg", task="panoptic")
    result.plot().show()

Public names are imported on first use, so that `import m2f_cli` costs nothing. docs/reference/api.md lists them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .config.presets import load as load_config
    from .config.presets import preset_names
    from .config.schema import Config
    from .data.formats.base import Format
    from .data.open_dataset import open_data as open_dataset
    from .data.records import DataSet as Dataset
    from .data.records import Record
    from .data.transforms import Transform
    from .errors import ConfigError, DataError, ExportError, M2FError, MissingDependency, Unreachable, WeightsError
    from .evaluation.evaluate import EvalResult
    from .export.base import Exporter, ExportReport, export
    from .inference.engines.base import Engine
    from .inference.load import load
    from .inference.segmenter import Segmenter
    from .metrics import Metric
    from .model.build import build as build_model
    from .results.draw_options import DrawOptions
    from .results.types import Instances, PanopticMap, Segment, SemanticMap
    from .structures.categories import Category
    from .training.run import TrainOutcome, train
    from .workflows.evaluate import evaluate

_HOMES = {  # public name → module, and the object's own name where it differs
    "load": "inference.load",
    "open_dataset": "data.open_dataset:open_data",
    "evaluate": "workflows.evaluate",
    "load_config": "config.presets:load",
    "train": "training.run",
    "export": "export.base",
    "build_model": "model.build:build",
    "preset_names": "config.presets",
    "Segmenter": "inference.segmenter",
    "PanopticMap": "results.types",
    "Instances": "results.types",
    "SemanticMap": "results.types",
    "Segment": "results.types",
    "DrawOptions": "results.draw_options",
    "Category": "structures.categories",
    "Config": "config.schema",
    "Dataset": "data.records:DataSet",
    "Record": "data.records",
    "EvalResult": "evaluation.evaluate",
    "TrainOutcome": "training.run",
    "ExportReport": "export.base",
    "Metric": "metrics",
    "Transform": "data.transforms",
    "Exporter": "export.base",
    "Engine": "inference.engines.base",
    "Format": "data.formats.base",
    "M2FError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "WeightsError": "errors",
    "Unreachable": "errors",
    "ExportError": "errors",
    "MissingDependency": "errors",
}
__all__ = [
    "Category",
    "Config",
    "ConfigError",
    "DataError",
    "Dataset",
    "DrawOptions",
    "Engine",
    "EvalResult",
    "ExportError",
    "ExportReport",
    "Exporter",
    "Format",
    "Instances",
    "M2FError",
    "Metric",
    "MissingDependency",
    "PanopticMap",
    "Record",
    "Segment",
    "Segmenter",
    "SemanticMap",
    "TrainOutcome",
    "Transform",
    "Unreachable",
    "WeightsError",
    "__version__",
    "build_model",
    "evaluate",
    "export",
    "load",
    "load_config",
    "open_dataset",
    "preset_names",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm2f_cli' has no attribute {name!r}")
    module, _, own_name = _HOMES[name].partition(":")
    return getattr(import_module(f".{module}", __name__), own_name or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


class _Package(ModuleType):
    """The package, in which `export` is the public function although a sub-package has that name, too."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):  # what importing m2f_cli.export.base would set
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
