"""What travels between the parts: tensors of the network on one side, results for people on the other.

Dimension letters, used as suffixes wherever a layout matters (`mask_logits_BQHW`):

    B images                Q queries             K classes + 1 (the last is "no object")
    N targets of one image  C channels            H W height, width       S = H·W, flattened
    L levels                A attention heads     P sampled points        T pilot queries

Class numbers are contiguous, 0-based positions in a `Categories` tuple; the ids of a data set live in `Category.id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import plugins

if TYPE_CHECKING:
    from PIL.Image import Image

Task: TypeAlias = Literal["panoptic", "instance", "semantic"]


# --- what a model is trained on and what it returns -------------------------------------------------------------------


@dataclass
class Target:
    """What one picture of a training batch shows: N class numbers (int64), and where each is.

    Exactly one of the two forms is given. Masks may overlap; an id map is one plane however many targets there are:
    200 segments of a 4k picture are 33 MB instead of 1.7 GB.

    masks_NHW: (N, H, W), bool or uint8.
    owner_HW: (H, W), int16 or int32: the number of the target that a pixel belongs to, -1 where there is none.

    H, W are those of the picture itself; a batch's padding belongs to no target and is not stored.
    """

    labels_N: Tensor
    masks_NHW: Tensor | None = None
    owner_HW: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.masks_NHW is None) == (self.owner_HW is None):
            raise ValueError("a Target has either masks_NHW or owner_HW")

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def size(self) -> tuple[int, int]:
        plane = self.masks_NHW if self.masks_NHW is not None else self.owner_HW
        return plane.shape[-2], plane.shape[-1]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Target:
        moved = (None if x is None else x.to(device, non_blocking=non_blocking)
                 for x in (self.labels_N, self.masks_NHW, self.owner_HW))
        return Target(*moved)

    def masks(self) -> Tensor:
        """(N, H, W) bool, whichever form is stored. For tests and pictures: large."""
        if self.masks_NHW is not None:
            return self.masks_NHW.bool()
        numbers = torch.arange(len(self), device=self.owner_HW.device)
        return self.owner_HW[None] == numbers[:, None, None]


@dataclass
class Projection:
    """The last linear map of mask features, not applied to them: weights (M, C), bias (M,).

    A mask is the dot product of an embedding with projected features, and the map can go to the other side:
    e · (W y + b) = (Wᵀ e) · y + e · b. Embeddings are a hundred, pixels of stride 4 are tens of thousands.
    """

    weight_MC: Tensor
    bias_M: Tensor

    def of_pixels(self, features_BCHW: Tensor) -> Tensor:
        """(B, M, H, W): the features as the method describes them."""
        return F.conv2d(features_BCHW, self.weight_MC[:, :, None, None], self.bias_M)

    def of_queries(self, embeds_BQM: Tensor) -> tuple[Tensor, Tensor]:
        """(…, Q, C), embeddings for features as they are, and (…, Q, 1), to be added to their products. fp32."""
        with torch.autocast(embeds_BQM.device.type, enabled=False):
            embeds_BQM = embeds_BQM.float()
            return embeds_BQM @ self.weight_MC, embeds_BQM @ self.bias_M[:, None]


@dataclass
class PixelFeatures:
    """What a pixel decoder gives to a decoder.

    mask_features_BCHW: stride 4: a mask is the dot product of an embedding with it, when both are `projected`.
    levels: the feature maps that the decoder attends to, coarse to fine.
    projection: what is still to be applied to the mask features, or to embeddings instead; never in training.
    """

    mask_features_BCHW: Tensor
    levels: list[Tensor]
    projection: Projection | None = None

    def projected(self) -> PixelFeatures:
        """The same with the projection applied."""
        if self.projection is None:
            return self
        return PixelFeatures(self.projection.of_pixels(self.mask_features_BCHW), self.levels)

    def of_queries(self, embeds_BQM: Tensor) -> tuple[Tensor, Tensor | float]:
        """What to multiply the mask features with as they are, and what to add then."""
        return (embeds_BQM, 0.0) if self.projection is None else self.projection.of_queries(embeds_BQM)


@dataclass
class LayerOutput:
    """One decoder layer's answer: class logits (B, Q, K) and mask embeddings (B, Q, C)."""

    class_logits_BQK: Tensor
    mask_embeds_BQC: Tensor


@dataclass
class Prediction:
    """The answers of all decoder layers, first to last, over one shared feature map. The last layer is the answer.

    A mask stays a dot product until somebody needs its pixels: `render` gives logits, for few queries and at the size
    that is needed. `projection` is that of `PixelFeatures`.
    """

    mask_features_BCHW: Tensor
    layers: list[LayerOutput]
    projection: Projection | None = None

    @property
    def last(self) -> LayerOutput:
        return self.layers[-1]

    def projected(self) -> Prediction:
        """The same with the projection applied to the mask features."""
        if self.projection is None:
            return self
        return Prediction(self.projection.of_pixels(self.mask_features_BCHW), self.layers)

    def of_queries(self, layer: int = -1) -> tuple[Tensor, Tensor | None]:
        """(B, Q, C) and (B, Q, 1): one layer's masks are the products of the first with the mask features as they are,
        plus the second, where there is one."""
        embeds_BQM = self.layers[layer].mask_embeds_BQC
        return (embeds_BQM, None) if self.projection is None else self.projection.of_queries(embeds_BQM)

    def render(
        self, size: tuple[int, int] | None = None, *, image: int | None = None, queries: Tensor | None = None,
        layer: int = -1,
    ) -> Tensor:
        """Mask logits of one layer.

        Args:
            size: (height, width) to resize to, bilinear with half-pixel centres; None keeps stride 4.
            image: one picture of the batch: the result is (Q, H, W) instead of (B, Q, H, W).
            queries: indices of the queries to render; needs `image`.
        """
        # Under autocast the embeddings are of lower precision; the masks are as precise as the features.
        embeds, offsets = self.of_queries(layer)
        embeds = embeds.to(self.mask_features_BCHW.dtype)
        if image is not None:
            few = slice(None) if queries is None else queries
            logits = torch.einsum("qc,chw->qhw", embeds[image][few], self.mask_features_BCHW[image])
            offsets = None if offsets is None else offsets[image][few]
        elif queries is not None:
            raise ValueError("render(queries=…) needs image=…: each picture keeps queries of its own.")
        else:
            logits = torch.einsum("bqc,bchw->bqhw", embeds, self.mask_features_BCHW)
        logits = logits if offsets is None else logits.add_(offsets[..., None])
        return logits if size is None else resize_logits(logits, size)


def resize_logits(logits_QHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (…, Q, H, W), half-pixel centres, no antialiasing: the published resize of mask logits."""
    if tuple(logits_QHW.shape[-2:]) == tuple(size):
        return logits_QHW
    batched = logits_QHW if logits_QHW.dim() == 4 else logits_QHW[None]
    resized = F.interpolate(batched, size=size, mode="bilinear", align_corners=False)
    return resized if logits_QHW.dim() == 4 else resized[0]


for _cls in (PixelFeatures, LayerOutput, Prediction):
    torch.export.register_dataclass(_cls)


# --- classes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Category:
    """One class: its id in the data set's own files, its name, whether it is countable, and its colour."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "isthing": self.isthing, "color": list(self.color)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Category:
        return cls(int(record["id"]), str(record["name"]), bool(record["isthing"]), tuple(map(int, record["color"])))


Categories: TypeAlias = tuple[Category, ...]


# --- truth ------------------------------------------------------------------------------------------------------------


@dataclass
class TrueSegment:
    """One annotated region of a panoptic map. `label` is a class number; a crowd is a group that is not separated."""

    id: int
    label: int
    iscrowd: bool = False


@dataclass
class PanopticTruth:
    """An annotated picture: ids_HW (int32) holds ids of `segments`, 0 where nothing is annotated (void). `source` is
    the file that it was read from, for official tools that read it themselves."""

    ids_HW: np.ndarray
    segments: list[TrueSegment]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.ids_HW.shape


@dataclass
class SemanticTruth:
    """An annotated picture: labels_HW (uint8, uint16 or int32) holds class numbers, `ignore` where nothing counts.
    `source` is the file that it was read from."""

    labels_HW: np.ndarray
    ignore: int = 255
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        return self.labels_HW.shape


@dataclass
class TrueObject:
    """One annotated object: polygons (each (points, 2) float x, y in pixels, edges at whole numbers) or a COCO RLE.

    While a picture is augmented, the mask of an RLE travels as a `data.geometry.Cutout`.
    """

    label: int
    shape: list[np.ndarray] | dict[str, Any]
    iscrowd: bool = False
    area: float | None = None  # as annotated; COCO's size ranges use it


@dataclass
class InstanceTruth:
    """An annotated picture: objects that may overlap. `size` is (height, width), `source` the file of a picture that
    the objects were read from."""

    size: tuple[int, int]
    objects: list[TrueObject]
    source: Path | None = field(default=None, kw_only=True, repr=False, compare=False)


Truth: TypeAlias = PanopticTruth | SemanticTruth | InstanceTruth


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What was found in one picture. `image` is where it came from (a path) or its pixels (H, W, 3, uint8 RGB);
    `image_id` is the picture's id in its data set's own files, for the COCO formats."""

    size: tuple[int, int]
    categories: Categories
    image: Path | np.ndarray | None = field(default=None, kw_only=True, repr=False, compare=False)
    image_id: int | str | None = field(default=None, kw_only=True, repr=False, compare=False)

    def plot(self, image: Any = None) -> Image:
        """The picture with this result drawn over it: outlines, names and scores, one colour per class.

        Args:
            image: the picture, where the result does not know it (path, array or PIL image).
        """
        return plugins.load("m2f_cli.inference.draw:plot")(self, self.image if image is None else image)

    def save(
        self, folder: str | Path, formats: str | Sequence[str] = "overlay", *, name: str | None = None,
        trust_code: bool = False,
    ) -> list[Path]:
        """Write this result in any of the formats of `m2f predict --save`; returns the files written.

        Args:
            folder: where to; made if it is missing.
            formats: names of writers, such as "overlay", "coco-panoptic", "label-png".
            name: the stem of the files; the picture's own stem by default.
            trust_code: whether `formats` may be "module:function".
        """
        save = plugins.load("m2f_cli.inference.output:save")
        named = [formats] if isinstance(formats, str) else list(formats)
        return save(self, Path(folder), named, name=name, trust_code=trust_code)


@dataclass
class SemanticMap(Result):
    """One class for every pixel: labels_HW holds class numbers (uint8 or uint16), 255 / 65535 where there is none."""

    labels_HW: np.ndarray

    def to_coco(self) -> list[dict[str, Any]]:
        """One record per class present: {"category_id", "segmentation" (RLE), "area"} (COCO stuff results)."""
        return plugins.load("m2f_cli.inference.convert:semantic_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score": None, "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.inference.convert:semantic_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per class present."""
        return plugins.load("m2f_cli.inference.convert:semantic_to_supervision")(self)


@dataclass
class Segment:
    """One region of a panoptic map. `label` is a class number, `score` the class probability of its query."""

    id: int
    label: int
    score: float
    area: int


@dataclass
class PanopticMap(Result):
    """One segment for every pixel: ids_HW (int32) holds ids of `segments`, 0 where there is none (void)."""

    ids_HW: np.ndarray
    segments: list[Segment]

    def to_coco(self) -> dict[str, Any]:
        """The annotation of this picture in a COCO panoptic json: {"segments_info": [...]}; ids as in ids_HW."""
        return plugins.load("m2f_cli.inference.convert:panoptic_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score", "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.inference.convert:panoptic_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per segment."""
        return plugins.load("m2f_cli.inference.convert:panoptic_to_supervision")(self)


@dataclass
class Instances(Result):
    """Objects that may overlap, best first: class numbers (N), scores (N) and COCO run-length masks (N).

    Each mask is {"size": [H, W], "counts": bytes}, as pycocotools makes them; `masks_NHW()` unpacks them.
    """

    labels_N: np.ndarray
    scores_N: np.ndarray
    rles: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rles)

    def masks_NHW(self) -> np.ndarray:
        """All masks as booleans (N, H, W). Large: prefer the run lengths where they will do."""
        from pycocotools import mask as coco_mask

        if not self.rles:
            return np.zeros((0, *self.size), dtype=bool)
        return coco_mask.decode(self.rles).transpose(2, 0, 1).astype(bool)

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO instance results: [{"category_id", "segmentation" (RLE), "bbox" (x, y, w, h), "score"}]."""
        return plugins.load("m2f_cli.inference.convert:instances_to_coco")(self)

    def to_hf(self) -> list[dict[str, Any]]:
        """What transformers' image-segmentation pipeline returns: [{"score", "label", "mask": PIL image}]."""
        return plugins.load("m2f_cli.inference.convert:instances_to_hf")(self)

    def to_supervision(self) -> Any:
        """`supervision.Detections`, one per object."""
        return plugins.load("m2f_cli.inference.convert:instances_to_supervision")(self)
