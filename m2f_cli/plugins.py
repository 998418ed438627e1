"""The table of contents: which names stand for which objects.

Built-in parts and parts of other packages are found in the same way: a group and a name give "module:object".
Another package adds a line with an entry point of the group `m2f.<group>` (for example `m2f.backbones`). A name that
the user typed, on the command line or in a YAML file, may also be an object such as `my_pkg.mod:Name`. Importing a
module runs its code, so such a name is refused unless the caller passes `trust_code=True`.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from .errors import ConfigError, M2FError, unknown_name

BUILT_IN: dict[str, dict[str, str]] = {
    "commands": {
        "predict": "m2f_cli.commands.predict:predict",
        "demo": "m2f_cli.commands.demo:demo",
        "train": "m2f_cli.commands.train:train",
        "eval": "m2f_cli.commands.eval:evaluate",
        "report": "m2f_cli.commands.report:report",
        "export": "m2f_cli.commands.export:export",
        "data": "m2f_cli.commands.data:app",
        "presets": "m2f_cli.commands.presets:app",
        "bench": "m2f_cli.commands.bench:bench",
        "reproduce": "m2f_cli.commands.reproduce:reproduce",
        "doctor": "m2f_cli.commands.doctor:doctor",
    },
    "backbones": {
        "resnet": "m2f_cli.model.backbones.resnet:ResNet",
        "swin": "m2f_cli.model.backbones.swin:Swin",
        "timm": "m2f_cli.model.backbones.timm:Timm",
        "vit": "m2f_cli.model.backbones.vit:Pyramid",
        "vit_tokens": "m2f_cli.model.backbones.vit:TokenEncoder",
    },
    "pixel_decoders": {
        "deformable": "m2f_cli.model.pixel_decoders.deformable:DeformablePixelDecoder",
        "fapn": "m2f_cli.model.pixel_decoders.fapn:AlignedPixelDecoder",
        "fpn": "m2f_cli.model.pixel_decoders.fpn:FPNPixelDecoder",
        "lateral": "m2f_cli.model.pixel_decoders.tokens:LateralFusion",
        "tokens": "m2f_cli.model.pixel_decoders.tokens:LastTokens",
        "transformer_fpn": "m2f_cli.model.pixel_decoders.transformer_fpn:TransformerFPNPixelDecoder",
    },
    "decoders": {
        "masked": "m2f_cli.model.decoders.masked:MaskedDecoder",
        "eomt": "m2f_cli.model.decoders.eomt:EoMTDecoder",
        "pmt": "m2f_cli.model.decoders.pmt:PMTDecoder",
        "plain": "m2f_cli.model.decoders.plain:PlainDecoder",
        "per_pixel": "m2f_cli.model.decoders.per_pixel:PerPixelDecoder",
        "per_pixel_plus": "m2f_cli.model.decoders.per_pixel:PerPixelPlusDecoder",
    },
    "transforms": {
        "flip": "m2f_cli.data.transforms.resize:Flip",
        "resize_choice": "m2f_cli.data.transforms.resize:ResizeChoice",
        "large_scale_jitter": "m2f_cli.data.transforms.resize:LargeScaleJitter",
        "fixed_crop": "m2f_cli.data.transforms.crop:FixedCrop",
        "crop": "m2f_cli.data.transforms.crop:RandomCrop",
        "sometimes_crop": "m2f_cli.data.transforms.crop:DetrCrop",
        "color_factors": "m2f_cli.data.transforms.color:ColorFactors",
        "color_jitter": "m2f_cli.data.transforms.color:ColorJitter",
        "pad": "m2f_cli.data.transforms.pad:Pad",
        "drop_vanished": "m2f_cli.data.transforms.crop:DropVanished",
    },
    "metrics": {
        "pq": "m2f_cli.metrics.panoptic_quality:PanopticQuality",
        "ap": "m2f_cli.metrics.average_precision:AveragePrecision",
        "miou": "m2f_cli.metrics.mean_iou:MeanIoU",
        "boundary-ap": "m2f_cli.metrics.average_precision:BoundaryAveragePrecision",
        "boundary-iou": "m2f_cli.metrics.boundary:BoundaryIoU",
        "boundary-iou-mass13k": "m2f_cli.metrics.boundary:MaSS13KBoundaryIoU",
        "pq-stuff": "m2f_cli.metrics.panoptic_quality:StuffQuality",
        "pq-per-picture": "m2f_cli.metrics.pq_per_image:ImageQuality",
        "pq-errors": "m2f_cli.metrics.pq_errors:PanopticErrors",
        "calibration": "m2f_cli.metrics.calibration:PanopticCalibration",
        "calibration-instance": "m2f_cli.metrics.calibration:InstanceCalibration",
        "cityscapes-pixels": "m2f_cli.metrics.cityscapes:CityscapesPixels",
        "cityscapes-ap": "m2f_cli.metrics.cityscapes:CityscapesObjects",
    },
    "formats": {
        "ade20k": "m2f_cli.data.formats.ade20k:FORMAT",
        "cityscapes": "m2f_cli.data.formats.cityscapes:FORMAT",
        "coco-instance": "m2f_cli.data.formats.coco_instance:FORMAT",
        "coco-panoptic": "m2f_cli.data.formats.coco_panoptic:FORMAT",
        "label-maps": "m2f_cli.data.formats.label_maps:FORMAT",
        "labelme": "m2f_cli.data.formats.labelme:FORMAT",
        "mapillary": "m2f_cli.data.formats.mapillary:FORMAT",
        "roboflow-coco": "m2f_cli.data.formats.roboflow_coco:FORMAT",
        "webdataset": "m2f_cli.data.formats.webdataset:FORMAT",
        "yolo-seg": "m2f_cli.data.formats.yolo_seg:FORMAT",
    },
    "converters": {
        "cityscapes": "m2f_cli.dataset_tools.convert.cityscapes:TARGET",
        "coco-instance": "m2f_cli.dataset_tools.convert.coco_instance:TARGET",
        "coco-panoptic": "m2f_cli.dataset_tools.convert.coco_panoptic:TARGET",
        "label-maps": "m2f_cli.dataset_tools.convert.label_maps:TARGET",
        "labelme": "m2f_cli.dataset_tools.convert.labelme:TARGET",
        "webdataset": "m2f_cli.dataset_tools.convert.webdataset:TARGET",
        "yolo-seg": "m2f_cli.dataset_tools.convert.yolo_seg:TARGET",
    },
    "preparers": {
        "ade20k": "m2f_cli.dataset_tools.prepare.ade20k:PREPARER",
        "ade20k-full": "m2f_cli.dataset_tools.prepare.ade20k_full:PREPARER",
        "cityscapes": "m2f_cli.dataset_tools.prepare.cityscapes:PREPARER",
        "coco-panoptic": "m2f_cli.dataset_tools.prepare.coco_panoptic:PREPARER",
        "coco-stuff-10k": "m2f_cli.dataset_tools.prepare.coco_stuff:PREPARER",
        "mapillary": "m2f_cli.dataset_tools.prepare.mapillary:PREPARER",
        "mass13k": "m2f_cli.dataset_tools.prepare.mass13k:PREPARER",
        "nuinsseg": "m2f_cli.dataset_tools.prepare.nuinsseg:PREPARER",
    },
    "sources": {  # in this order: the first that takes a source reads it
        "hf": "m2f_cli.storage.sources.hf:SOURCE",
        "archive": "m2f_cli.storage.sources.archive:SOURCE",
        "parquet": "m2f_cli.storage.sources.parquet:SOURCE",
        "manifest": "m2f_cli.storage.sources.manifest:SOURCE",
        "folder": "m2f_cli.storage.sources.folder:SOURCE",
        "object": "m2f_cli.storage.sources.object:SOURCE",
    },
    "workloads": {
        "forward": "m2f_cli.benchmark.workloads:forward",
        "picture": "m2f_cli.benchmark.workloads:ImageWork",
        "predict": "m2f_cli.benchmark.workloads:Predict",
        "post": "m2f_cli.benchmark.workloads:Post",
        "eval": "m2f_cli.benchmark.workloads:Evaluate",
        "load": "m2f_cli.benchmark.workloads:Load",
        "train": "m2f_cli.benchmark.train_step:Train",
    },
    "peers": {
        "huggingface": "m2f_cli.benchmark.peers.huggingface:workload",
        "published": "m2f_cli.benchmark.peers.published:workload",
    },
    "exporters": {
        "detectron2": "m2f_cli.export.detectron2:Detectron2",
        "detectron2-pkl": "m2f_cli.export.detectron2:Detectron2Pickle",
        "huggingface": "m2f_cli.export.huggingface:HuggingFace",
        "onnx": "m2f_cli.export.onnx:OnnxExporter",
        "openvino": "m2f_cli.export.openvino:OpenVino",
        "safetensors": "m2f_cli.export.safetensors:Safetensors",
        "torch": "m2f_cli.export.torch_export:TorchExport",
    },
    "engines": {
        "onnx": "m2f_cli.inference.engines.onnx_engine:OnnxEngine",
        "openvino": "m2f_cli.inference.engines.openvino_engine:OpenVinoEngine",
        "torch": "m2f_cli.inference.engines.torch_engine:TorchEngine",
    },
    "displays": {
        "canvas": "m2f_cli.report.result:result_frame",
    },
    "shards": {
        "parquet": "m2f_cli.results.shards.parquet:FORMAT",
        "webdataset": "m2f_cli.results.shards.webdataset:FORMAT",
        "coco-panoptic-shards": "m2f_cli.results.shards.coco_panoptic:FORMAT",
    },
    "writers": {
        "overlay": "m2f_cli.results.writers:write_overlay",
        "overlay-png": "m2f_cli.results.writers:write_overlay_png",
        "coco-panoptic": "m2f_cli.results.writers:write_coco_panoptic",
        "coco-instance": "m2f_cli.results.writers:write_coco_instance",
        "label-png": "m2f_cli.results.writers:write_label_png",
        "color-png": "m2f_cli.results.writers:write_color_png",
        "polygons": "m2f_cli.results.writers:write_polygons",
        "crops": "m2f_cli.results.writers:write_crops",
        "coco-panoptic-zip": "m2f_cli.results.server_formats:write_coco_panoptic_zip",
        "cityscapes-semantic": "m2f_cli.results.server_formats:write_cityscapes_semantic",
        "cityscapes-instance": "m2f_cli.results.server_formats:write_cityscapes_instance",
    },
}

_TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


@functools.cache
def table(group: str) -> dict[str, str]:
    """Return all names of a group with their "module:object". Other packages cannot replace a built-in name."""
    added = {entry.name: entry.value for entry in entry_points(group=f"m2f.{group}")}
    return {**added, **BUILT_IN.get(group, {})}


def names(group: str) -> list[str]:
    return sorted(table(group))


def names_code(where: str, name: str) -> ConfigError:
    """Return the error for an untrusted "module:object" that was found in `where`."""
    return ConfigError(
        f"{where} names code of its own, {name!r}, which would be run.",
        hint="Pass --trust-code (in Python trust_code=True) if you trust whoever made it.",
    )


@contextmanager
def using(name: str) -> Iterator[None]:
    """Turn errors of code that the user named into one sentence. Errors of built-in names pass unchanged.

    Raises:
        ConfigError: the code of "module:object" raised something that is no error of m2f.
    """
    try:
        yield
    except M2FError:
        raise
    except Exception as error:  # code of others may raise anything
        if ":" not in name:
            raise
        reason = " ".join(str(error).split()) or "no reason given"
        raise ConfigError(
            f"{name!r} cannot be used here: {type(error).__name__}: {reason.rstrip('.')}.",
            hint="Look into that code; M2F_DEBUG=1 shows where.",
        ) from error


def load(target: str) -> object:
    """Import "module:object".

    Raises:
        ConfigError: the module or the object does not exist.
    """
    module_name, _, attribute = target.partition(":")
    if not _TARGET.fullmatch(target):
        raise ConfigError(f"{target!r} names no code.", hint="It is written module:object, such as my_pkg.mod:Name.")
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(str(error.name)):
            raise
        raise ConfigError(f"The module of {target!r} cannot be imported: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ConfigError(f"The module {module_name!r} has no object {attribute!r}.")
        value = getattr(value, part)
    return value


def get(group: str, name: str, *, trust_code: bool = False) -> object:
    """Return the object that `name` stands for in `group`.

    Args:
        trust_code: allow `name` to be "module:object". Pass True only for a name that the user typed, because a file
            may come from anybody.

    Raises:
        ConfigError: an unknown name (the message has the nearest ones), or an untrusted "module:object".
    """
    if ":" in name:
        if not trust_code:
            raise names_code("What was read", name)
        with using(name):
            return load(name)
    known = table(group)
    if name not in known:
        raise unknown_name(group.removesuffix("s").replace("_", " "), name, known)
    return load(known[name])
