"""Initial weights of a backbone: ImageNet weights as released by torchvision, detectron2, the Swin authors and timm.

A file of a backbone alone has the names of a whole model's file without the prefix "backbone.". torchvision's ResNet
has OpenMMLab's names. detectron2's converted ResNet and the Swin releases have detectron2's. So the name tables are
those of `key_tables.py`, and loads are as strict. detectron2's own suffix matching is not strict
(docs/methods/published-behaviour.md#7-1).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..config import presets as config
from ..config.schema import Component
from ..errors import ConfigError, WeightsError, about, unknown_name
from . import readers as containers
from . import resolve as refs
from .checkpoint import Checkpoint, refuse_infinite
from .download import Progress, download
from .key_mapping import OurView, Rule, Shape, Table, spelled, to_m2f, unwrapped
from .key_tables import DETECTRON2, MARKS, OPENMMLAB, TABLES
from .timm_weights import OF_TIMM, load_timm

BACKBONE = "backbone."
# Norms of Swin that no ImageNet file has (docs/methods/published-behaviour.md#3-3).
_OUTPUT_NORMS = re.compile(r"backbone\.norms\.\d+\.(weight|bias)$")
_ENCODERS = {"huggingface": "model.pixel_level_module.encoder."}  # prefix of the backbone in a whole model's file
_BIAS_TABLE = "relative_position_bias_table"


# --- releases ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Release:
    """Published file of ImageNet weights.

    Attributes:
        url: address of the file.
        licence: licence of the weights.
        hash_prefix: as in `schema.WeightsSource`.
        note: remark on the origin.
    """

    url: str
    licence: str
    hash_prefix: str | None = None
    note: str | None = None


_TORCHVISION = "https://download.pytorch.org/models/"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
_SWIN_STEMS = (
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "swin_base_patch4_window12_384_22k",
    "swin_large_patch4_window12_384_22k",
)

SOURCES: dict[str, Release] = {
    "resnet18": Release(_TORCHVISION + "resnet18-f37072fd.pth", "BSD-3-Clause", "f37072fd", "IMAGENET1K_V1."),
    "resnet34": Release(_TORCHVISION + "resnet34-b627a593.pth", "BSD-3-Clause", "b627a593", "IMAGENET1K_V1."),
    "resnet50": Release(
        _TORCHVISION + "resnet50-0676ba61.pth",
        "BSD-3-Clause",
        "0676ba61",
        "IMAGENET1K_V1. The published recipes start from R-50, which was made from torchvision's older file "
        "resnet50-19c8e357; this is the same training, serialised anew (timm pull request 2346).",
    ),
    "resnet101": Release(
        _TORCHVISION + "resnet101-63fe2227.pth",
        "BSD-3-Clause",
        "63fe2227",
        "IMAGENET1K_V1. The published recipes convert this very file to R-101.pkl.",
    ),
    "R-50": Release(
        _DETECTRON2 + "ImageNetPretrained/torchvision/R-50.pkl",
        "BSD-3-Clause",
        note="The published recipes' file: torchvision's resnet50-19c8e357 under detectron2's names.",
    ),
    "R-103": Release(
        _DETECTRON2 + "DeepLab/R-103.pkl",
        "CC-BY-SA-3.0",
        note="ResNet-101 with the deeplab stem (R101c). The licence is that of detectron2's model zoo (UNVERIFIED).",
    ),
    **{stem: Release(f"{_SWIN}{stem}.pth", "MIT") for stem in _SWIN_STEMS},
}


def release_name(backbone: Component, pretrained: str) -> str:
    """Return the name of a release. "torchvision", as in the presets, means the ResNet of the backbone's depth.

    Raises:
        ConfigError: torchvision has not released the ResNet.
    """
    if pretrained != "torchvision":
        return pretrained
    if backbone.options.get("stem") == "deeplab":
        raise ConfigError(
            "torchvision has released no ResNet with the deeplab stem.", hint="Set model.backbone.pretrained=R-103"
        )
    return f"resnet{backbone.options.get('depth')}"


# --- name tables of a backbone alone ----------------------------------------------------------------------------------


def _alone(table: Table, name: str, marks: tuple[str, ...], *rules: Rule) -> Table:
    """Return a table for files of a backbone alone, which leave out "backbone." and have a classifier instead."""
    return dataclasses.replace(
        table,
        format=name,
        marks=marks,
        rules=(*rules, *table.rules),
        spellings=((r"^(?!backbone\.)", BACKBONE),),
        harmless=(*table.harmless, (r"backbone\.(stem\.fc|fc|head|norm)\..*", "the ImageNet classifier")),
    )


BACKBONE_TABLES = (  # the first whose mark is in a file is used
    _alone(OPENMMLAB, "torchvision", ("layer1.0.",)),
    # timm's Swin merges at the start of a stage, the authors' at the end of the one before
    _alone(
        DETECTRON2,
        "timm Swin",
        ("layers.3.downsample.",),
        Rule("backbone.stages.{i}.downsample.{rest}", "backbone.layers.{i+1}.downsample.{rest}"),
    ),
    _alone(DETECTRON2, "Swin or detectron2 ResNet", ("layers.0.blocks.", "stem.conv1.")),
)


def table_of(tensors: Mapping[str, Tensor]) -> Table | None:
    return next((table for table in BACKBONE_TABLES if any(name.startswith(table.marks) for name in tensors)), None)


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a backbone alone without a prefix that all names have.

    The names of a whole model are not changed.
    """
    if any(mark in name for name in tensors for mark in MARKS):
        return tensors
    plain, _ = unwrapped(tensors, [mark for table in BACKBONE_TABLES for mark in table.marks])
    return plain if not set(plain) & set(tensors) else tensors


# --- loading ----------------------------------------------------------------------------------------------------------


def load_backbone(
    backbone: Component,
    shapes: Mapping[str, Shape],
    *,
    resize_windows: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Return the weights that `backbone` names as its `pretrained`, under m2f's names. Floating point ones are fp32.

    Args:
        backbone: its `pretrained` is a name of `SOURCES`, "torchvision" (by the depth), or a file of a backbone alone.
            It may also refer to a whole model (see `weights.load`), whose backbone is taken. For timm's models see
            `timm_weights.load_timm`.
        shapes: shapes of the network's tensors. Names that do not begin with "backbone." are ignored, but for the
            blocks of a plain ViT that are in its decoder.
        resize_windows: resize Swin's tables of relative positions (bicubic) if the windows differ in size.

    Returns:
        Every tensor of the backbone. Swin's output norms are left out, and so start fresh, if the file has none.

    Raises:
        WeightsError: the file does not exist or holds no network, or tensors are missing, left over or misshapen.
        ConfigError: `pretrained` is no name that m2f knows.
        MissingDependency: a timm backbone without timm.
    """
    backbone_shapes = {name: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    if backbone.name in OF_TIMM:
        return _checked(load_timm(backbone, shapes, progress))
    ref = release_name(backbone, str(backbone.options["pretrained"]))
    tensors = load_alone(ref, backbone_shapes, resize_windows=resize_windows, progress=progress)
    if tensors is not None:
        return tensors
    is_bare_name = Path(ref).name == ref and not Path(ref).exists()
    if is_bare_name and ref not in config.preset_names():
        raise unknown_name("file or release of backbone weights", ref, SOURCES)
    # No code of the checkpoint runs, because its tensors go into an existing network.
    checkpoint = refs.load(ref, progress=progress, trust_code=True)
    if checkpoint.base is not None or checkpoint.model.backbone.lora is not None:
        raise WeightsError(
            f"{checkpoint.source} holds only what was trained, and not its whole backbone.",
            hint=f"Write all of it to a file first: m2f export --model {ref} --format safetensors",
        )
    return _place(
        TABLES[checkpoint.format],
        _backbone_of(checkpoint, backbone_shapes),
        backbone_shapes,
        checkpoint.source,
        resize_windows,
    )


def load_alone(
    ref: str | Path,
    shapes: Mapping[str, Shape],
    *,
    resize_windows: bool = False,
    partial: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor] | None:
    """Return weights like `load_backbone`, from a name of `SOURCES` or a file of a backbone alone.

    The result is None if `ref` is neither.

    Args:
        partial: True if the file may lack tensors of the network. It may never hold tensors that the network lacks.

    Raises:
        WeightsError: as for `load_backbone`.
    """
    if isinstance(ref, str) and ref in SOURCES:
        release = SOURCES[ref]
        path = download(release.url, hash_prefix=release.hash_prefix, progress=progress)
    else:
        path = containers.path_of(ref)
    if not path.is_file() or str(ref) in config.preset_names():
        return None
    tensors = _unwrapped(containers.read(path).tensors)
    table = table_of(tensors)
    backbone_shapes = {name: shape for name, shape in shapes.items() if name.startswith(BACKBONE)}
    return None if table is None else _place(table, tensors, backbone_shapes, str(path), resize_windows, partial)


def without_counters(tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Leave out batch norm's counters that the network does not have. Frozen batch norm has none."""
    return {name: x for name, x in tensors.items() if name in shapes or not name.endswith("num_batches_tracked")}


def _backbone_of(whole: Checkpoint, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    prefix = _ENCODERS.get(whole.format, BACKBONE)
    tensors = spelled(TABLES[whole.format], whole.tensors)
    part = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return without_counters(part, shapes) if whole.format == "m2f" else part


def _place(
    table: Table,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    source: str,
    resize_windows: bool,
    partial: bool = False,
) -> dict[str, Tensor]:
    view = OurView(table, tensors)
    may_lack = re.compile("") if partial else _OUTPUT_NORMS
    expected_shapes = {name: shape for name, shape in shapes.items() if name in view or not may_lack.match(name)}
    if not any(name in view for name in expected_shapes):
        raise WeightsError(
            f"The backbone in {source} (names of {table.format}) is of another kind than that of the network.",
            hint="Check model.backbone: its name, depth or size must be those of the weights.",
        )
    if resize_windows:
        tensors = _resized(table, tensors, expected_shapes)
    try:
        state = to_m2f(table, tensors, expected_shapes)
    except WeightsError as error:
        error.hint = (
            f"They are the backbone of {source}; the network's is described by model.backbone. "
            "Where the file lacks a part on purpose, --init-partial leaves that part fresh."
        )
        raise
    with about(source):
        return _checked(state)


def _checked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in result.items():
        if tensor.is_floating_point():
            refuse_infinite(name, tensor)
    return result


# --- windows of another size ------------------------------------------------------------------------------------------


def _resized(table: Table, tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    result = spelled(table, tensors)
    for name, shape in shapes.items():
        foreign = table.find(name)[0][0]
        if name.endswith(_BIAS_TABLE) and foreign in result:
            result[foreign] = resize_bias_table(result[foreign], shape[0])
    return result


def resize_bias_table(table_PA: Tensor, rows: int) -> Tensor:
    """Resize Swin's biases of relative positions, ((2w - 1)², heads), to another window size, by bicubic interpolation.

    Args:
        rows: (2w - 1)² of the new windows.
    """
    old, new = math.isqrt(table_PA.shape[0]), math.isqrt(rows)
    if old == new or old**2 != table_PA.shape[0] or new**2 != rows:
        return table_PA  # a table that cannot be resized is refused by its shape
    plane_1AHW = table_PA.float().T.reshape(1, -1, old, old)
    resized_1AHW = F.interpolate(plane_1AHW, size=(new, new), mode="bicubic", align_corners=False)
    return resized_1AHW.flatten(2)[0].T.contiguous()
