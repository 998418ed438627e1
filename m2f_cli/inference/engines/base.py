"""Exported files in place of a network, with the same inputs and the same post-processing.

An engine runs a file of tensors. The file itself has a `Description` of its inputs and of the model. `EngineSegmenter`
is a `Segmenter` around an engine, so that predict, eval and test-time augmentation work unchanged. Engines are the
group "engines" of plugins.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from ... import plugins
from ...config import presets as configuration
from ...config.schema import LARGEST_CANVAS, Config
from ...errors import ConfigError, M2FError, WeightsError
from ...results.types import Instances, PanopticMap, Result, Segment, SemanticMap
from ...runtime import documents
from ...runtime.files import open_to_read
from ...runtime.text import json_text
from ...structures import Task
from ...structures.categories import Categories, Category
from ...version import __version__
from ...weights.readers import path_of
from ..base import Prepared
from ..mask_rendering import Size
from ..preprocess import resized_shape
from ..segmenter import Segmenter

SCHEMA_VERSION = 1
KEY = "m2f"  # of the metadata in which a file keeps its Description
RECORD = "export.json"  # beside what `m2f export` wrote
MULTIPLE = 32  # network inputs are multiples of the coarsest stride
LEAST = 2  # multiples: a map of one cell is a special case, which a graph for any size does not have
CLASS_LOGITS, MASK_LOGITS = "class_logits", "mask_logits"
_MOST_BATCH = 1024  # images that a file takes at a time


_Side = Annotated[int, Field(ge=1, le=LARGEST_CANVAS)]


class _Stated(BaseModel, extra="forbid", strict=True):
    """The plain values of a description, within bounds: a file may be anybody's."""

    source: str
    size: tuple[_Side, _Side] | None
    batch: Annotated[int, Field(ge=1, le=_MOST_BATCH)] | None
    multiple: _Side
    normalised: bool
    precision: str
    postprocess: Task | None
    extra: dict[str, Any]


@dataclass(frozen=True)
class Description:
    """Description of an exported file, which the file contains.

    Attributes:
        config: configuration of the model.
        categories: classes, in the order of their class numbers.
        source: origin of the model, for people.
        size: fixed (height, width) of the input. None: any multiples of `multiple`, at least twice `multiple`.
        batch: fixed number of images. None: any.
        multiple: divisor of height and width of the input.
        normalised: True if the file computes (x - mean) / std; its input is RGB from 0 to 255 then.
        precision: number format of most of the network ("fp32", "fp16", "int8").
        postprocess: task whose maps the file returns beside class and mask logits, if any; see `export.graph`.
        extra: more values of the exporter (opset, versions); plain values.
    """

    config: Config
    categories: Categories
    source: str
    size: Size | None = None
    batch: int | None = None
    multiple: int = MULTIPLE
    normalised: bool = False
    precision: str = "fp32"
    postprocess: Task | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("source", "size", "batch", "multiple", "normalised", "precision", "postprocess", "extra")
        }
        tree = {
            "schema_version": SCHEMA_VERSION,
            "m2f": __version__,
            **own,
            "categories": [category.to_dict() for category in self.categories],
            "config": self.config.model_dump(mode="json", exclude_none=True),
        }
        return json_text(tree)

    @classmethod
    def from_json(cls, text: str, where: str) -> Description:
        """Read a description.

        Args:
            text: JSON from `to_json`.
            where: name of the file, for messages.

        Raises:
            WeightsError: the description is damaged, or of a newer m2f.
        """
        try:
            tree = documents.parse_json(text, f"The description in {where}", error=WeightsError)
            version = tree.pop("schema_version")
            writer = tree.pop("m2f")
            if version > SCHEMA_VERSION:
                raise WeightsError(
                    f"{where} was exported by m2f {writer} in version {version} of its description; this m2f "
                    f"{__version__} reads version {SCHEMA_VERSION}.",
                    hint="Run: pip install --upgrade m2f-cli",
                )
            settings = configuration.parse(tree.pop("config"), where)
            categories = tuple(Category.from_dict(record) for record in tree.pop("categories"))
            stated = _Stated.model_validate_json(json.dumps(tree))  # as json, where lists are tuples
            return cls(settings, categories, **dict(stated))
        except ValidationError as error:
            first = error.errors()[0]
            what = ".".join(map(str, first["loc"])) or "all of it"
            reason = f"{what}: {first['msg'][0].lower()}{first['msg'][1:]}"
            raise WeightsError(f"The description in {where} is damaged: {reason}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise WeightsError(f"The description in {where} is damaged: {str(error).rstrip('.')}.") from error


class Engine(Protocol):
    """Runtime of one exported file. A plug-in of the group "engines" is a class `Engine(path, device)`.

    The constructor raises WeightsError for a file that is damaged or not of m2f (`not_ours`). It raises
    MissingDependency where its runtime is not installed, and ConfigError for a device that the runtime does not have.
    The device "auto" is the best one.

    Attributes:
        description: the description in the file.
        device: device of the input tensors.
    """

    description: Description
    device: torch.device

    @staticmethod
    def recognises(path: Path) -> bool:
        """Return True if a file or folder is of this engine's kind, by its name alone and without slow imports."""

    def __call__(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Run the network on float32 images that fit the description.

        Returns:
            On the CPU, by name: "class_logits" (B, Q, K), "mask_logits" (B, Q, H/4, W/4), and the outputs of
            post-processing that the file has.
        """


def not_ours(path: Path) -> WeightsError:
    """Return the error for a file without a description."""
    return WeightsError(
        f"{path} was not exported by m2f: it does not say what its classes and outputs are.",
        hint="Export the model again: m2f export --model REF",
    )


def file_in(path: Path) -> Path:
    """Return the file that `m2f export` wrote into a folder; `path` itself where it is no such folder.

    Raises:
        WeightsError: the record of the export is damaged.
    """
    record = path / RECORD
    if not record.is_file() or engine_for(path) is not None:
        return path
    tree = documents.read_json(record, error=WeightsError)
    name = tree.get("file") if isinstance(tree, dict) else None
    if not isinstance(name, str) or name != Path(name).name or "\0" in name:  # a file outside of this folder
        raise WeightsError(f"{record} is damaged.", hint="Name the exported file itself.")
    return path / name if (path / name).is_file() else path


def _refuse_pipe(path: Path) -> None:
    try:
        if not path.is_dir():
            open_to_read(path).close()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error


def engine_for(path: Path) -> str | None:
    """Return the name of the engine that runs a file or folder; None where it is no exported file."""
    for name in plugins.names("engines"):
        engine: Any = plugins.get("engines", name)
        if engine.recognises(path):
            return name
    return None


def load(
    path: str | Path,
    *,
    engine: str | None = None,
    task: Task | None = None,
    device: str = "auto",
    precision: str = "fp32",
    trust_code: bool = False,
) -> EngineSegmenter:
    """Open an exported file.

    Args:
        path: the file, or a folder of `m2f export`.
        engine: a name of the group "engines"; by default the one for this kind of file.
        task: task of a call that names none; by default the model's own.
        device: "auto", or a device of the engine.
        precision: "fp32" (any file) or the number format of the file, which was chosen at the export.
        trust_code: allow a program (.pt2), whose code runs when it is opened, and an `engine` "module:object".

    Raises:
        WeightsError: the file is missing, damaged, or not of m2f.
        MissingDependency: the runtime of the engine is not installed.
        ConfigError: there is no such engine, device or precision, or `trust_code` is missing for a program.
    """
    path = file_in(path_of(path))
    if not path.exists():
        raise WeightsError(f"There is no file or folder {str(path)!r}.", hint="Check the path.")
    name = engine or engine_for(path)
    if name is None:
        raise ConfigError(f"No engine runs {path}.", hint=f"Engines: {', '.join(plugins.names('engines'))}.")
    chosen: Any = plugins.get("engines", name, trust_code=trust_code)
    if getattr(chosen, "runs_code", False) and not trust_code:
        hint = "Pass --trust-code if you trust whoever made this file."
        raise ConfigError(f"{path} is a program: opening it runs what is in it.", hint=hint)
    _refuse_pipe(path)
    opened = chosen(path, device)
    if precision not in ("fp32", opened.description.precision):
        raise ConfigError(
            f"{path} computes in {opened.description.precision}, not in {precision}.",
            hint=f"The number format of an exported file is chosen by m2f export --precision {precision}.",
        )
    return EngineSegmenter(opened, source=str(path), task=task)


class EngineSegmenter(Segmenter):
    """Segmenter whose network is an exported file; `model` is None."""

    def __init__(self, engine: Engine, *, source: str = "", task: Task | None = None):
        described = engine.description
        self.engine, self.description, self.model = engine, described, None
        self.config, self.categories = described.config, described.categories
        self.device, self.precision = engine.device, described.precision
        self.source = source or described.source
        self.notes = (
            []
            if described.size is None
            else [f"The file takes images of {described.size[0]} x {described.size[1]}: others are resized to fit."]
        )
        self.default_task = self.check_task(task or self.config.task)

    def input_shape(self, height: int, width: int) -> Size:
        """Return the published test size, reduced where the file's input has a smaller fixed size."""
        height, width = resized_shape(height, width, self.config.test.resize)
        slide, fixed = self.config.test.slide, self.description.size
        if fixed is None or (slide is not None and slide.crop[0] <= fixed[0] and slide.crop[1] <= fixed[1]):
            return height, width  # the windows of a larger image fit
        scale = min(1.0, fixed[0] / height, fixed[1] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))

    def padded_size(self, images: Sequence[Tensor]) -> Size:
        if self.description.size is not None:
            return self.description.size
        height, width = super().padded_size(images)
        return max(height, LEAST * self.divisor), max(width, LEAST * self.divisor)

    @property
    def divisor(self) -> int:
        return self.description.multiple

    @torch.inference_mode()
    def outputs(self, batch: Sequence[Prepared]) -> dict[str, Tensor]:
        """Return all outputs of the file for a batch, by name; see `Engine`."""
        return self._run(self.collate([prepared.pixels_CHW for prepared in batch]))

    def answers(self, batch: Sequence[Prepared]) -> list[Result]:
        """Return the results of the post-processing in the file, at the size of its input with padding.

        Raises:
            ConfigError: the file has no post-processing.
        """
        task = self.description.postprocess
        if task is None:
            raise ConfigError(f"{self.source} has no post-processing inside.", hint="m2f export --postprocess TASK")
        outputs = self.outputs(batch)
        return [
            _RESULTS[task]({name: value[i].cpu().numpy() for name, value in outputs.items()}, self.categories)
            for i in range(len(batch))
        ]

    def _forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self._run(images_BCHW)
        classes, masks_BQHW = (outputs.get(name, torch.empty(0)).float() for name in (CLASS_LOGITS, MASK_LOGITS))
        if masks_BQHW.ndim != 4 or classes.shape != (*masks_BQHW.shape[:2], len(self.categories) + 1):
            raise WeightsError(
                f"{self.source} answers with {CLASS_LOGITS} of {_shape_of(classes)} and {MASK_LOGITS} of "
                f"{_shape_of(masks_BQHW)}, which does not fit its {len(self.categories)} classes.",
                hint="Export the model again.",
            )
        if not masks_BQHW.isfinite().all():
            raise M2FError(f"{self.source} answered with NaN or infinity in {self.precision}.")
        # A rendered mask is its own feature: the dot product with row q of the identity is mask q, exactly.
        each = torch.eye(masks_BQHW.shape[1], device=masks_BQHW.device).expand(len(masks_BQHW), -1, -1)
        return classes, each, masks_BQHW

    def _run(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Run a batch of any length. Where the file has a fixed one, the last part is padded with zero images."""
        if self.description.normalised:
            mean, std = (
                torch.tensor(values, device=images_BCHW.device)[:, None, None]
                for values in (self.config.input.mean, self.config.input.std)
            )
            images_BCHW = images_BCHW * std + mean
        count, size = len(images_BCHW), self.description.batch or len(images_BCHW)
        missing = -count % size
        images_BCHW = torch.cat([images_BCHW, images_BCHW.new_zeros(missing, *images_BCHW.shape[1:])])
        parts = [self.engine(part) for part in torch.split(images_BCHW, size)]
        return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def _shape_of(values: Tensor) -> str:
    return " x ".join(map(str, values.shape))


# --- outputs of the post-processing in a file -------------------------------------------------------------------------


def _panoptic(outputs: dict[str, np.ndarray], categories: Categories) -> PanopticMap:
    rows = zip(*(outputs[f"segment_{name}"].tolist() for name in ("ids", "labels", "scores", "areas")), strict=True)
    segments = [Segment(*row) for row in rows if row[0]]
    ids_HW = outputs["panoptic_map"].astype(np.int32)
    return PanopticMap(ids_HW.shape, categories, ids_HW, segments)


def _instances(outputs: dict[str, np.ndarray], categories: Categories) -> Instances:
    kept = outputs["instance_labels"] >= 0
    masks_NHW = outputs["instance_masks"][kept]
    rles = coco_mask.encode(np.asfortranarray(masks_NHW.transpose(1, 2, 0).astype(np.uint8)))
    size = outputs["instance_masks"].shape[1:]
    labels_N, scores_N = outputs["instance_labels"][kept].astype(np.int64), outputs["instance_scores"][kept]
    return Instances(size, categories, labels_N, scores_N, rles)


def _semantic(outputs: dict[str, np.ndarray], categories: Categories) -> SemanticMap:
    labels_HW = outputs["semantic_map"]
    return SemanticMap(labels_HW.shape, categories, labels_HW.astype(np.uint8 if len(categories) < 255 else np.uint16))


_RESULTS = {"panoptic": _panoptic, "instance": _instances, "semantic": _semantic}


def described(segmenter: Segmenter, **options: Any) -> Description:
    """Return the description of a file exported from a segmenter; `options` are fields of `Description`."""
    multiple = int(np.lcm(MULTIPLE, max(1, segmenter.config.test.size_divisor)))
    base = Description(segmenter.config, segmenter.categories, segmenter.source, multiple=multiple)
    return replace(base, **options)
