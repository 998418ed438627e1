"""Graph of an exported file: the network, optionally with normalisation before and post-processing after it.

Inputs and outputs by name, with B images, Q queries, K classes + 1, and H x W as the size of the network's input:

    images         (B, 3, H, W) float32, RGB: normalised, or 0 to 255 where the graph normalises
    class_logits   (B, Q, K), the last class is "no object"
    mask_logits    (B, Q, H/4, W/4)

and with post-processing (docs/methods/published-behaviour.md#5-1; all sizes are fixed, so that no compiler needs
data-dependent shapes), at H x W:

    panoptic       panoptic_map (B, H, W) int32: segment ids from 1 on, 0 is void. Row i of the others is segment i + 1:
                   segment_ids (B, Q) int32, 0 where there is no such segment; segment_labels (B, Q) int32, -1 there;
                   segment_scores (B, Q) float32; segment_areas (B, Q) int32
    instance       instance_masks (B, N, H, W) bool, best first, N = top_k; instance_labels (B, N) int32, -1 where there
                   is no object (stuff, for a model that also does panoptic); instance_scores (B, N) float32
    semantic       semantic_map (B, H, W) int32: class numbers

The thresholds are those of the model's configuration. The whole input counts as the image, so crop padding off maps.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import ExportError
from ..inference.engines.base import CLASS_LOGITS, LEAST, MASK_LOGITS, described
from ..inference.segmenter import Segmenter
from ..model.layers.conv import ConvNorm, FrozenBatchNorm
from ..structures import Task
from .base import ExportOptions, input_size

INPUT = "images"
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "panoptic": ("panoptic_map", "segment_ids", "segment_labels", "segment_scores", "segment_areas"),
    "instance": ("instance_masks", "instance_labels", "instance_scores"),
    "semantic": ("semantic_map",),
}
LARGEST = 8192  # pixels of an edge, for a file that takes any size
MOST = 512  # images of a batch, for a file that takes any number
BEYOND = 2  # cells by which the coarsest map exceeds a window in the trace of a file for any size


def output_names(options: ExportOptions) -> list[str]:
    """Return the names of the outputs of `network`, in order."""
    return [CLASS_LOGITS, MASK_LOGITS, *(OUTPUTS[options.postprocess] if options.postprocess else ())]


def network(model: Segmenter, options: ExportOptions) -> nn.Module:
    """Return a module from `images` to a tuple of outputs, which the docstring of this module describes."""
    test = model.config.test
    things = [category.isthing for category in model.categories]
    behind = {
        "panoptic": lambda: Panoptic(things, test.object_threshold, test.overlap_threshold, test.only_sure_pixels),
        "instance": lambda: Instance([thing or "panoptic" not in test.tasks for thing in things], test.top_k),
        "semantic": lambda: Semantic(test.semantic_scores == "logits"),
    }
    post = behind[options.postprocess]() if options.postprocess else None
    normalisation = model.config.input if options.normalise else None
    whole = Exported(model.model, post, normalisation and (normalisation.mean, normalisation.std))
    return whole.to(model.device).eval()


class Exported(nn.Module):
    """Network with normalisation and post-processing; see `network`.

    Args:
        model: the network.
        post: module from class logits and full-size mask logits to more outputs, if any.
        mean_std: mean and deviation, where the module normalises.
    """

    def __init__(self, model: nn.Module, post: nn.Module | None, mean_std: tuple | None):
        super().__init__()
        self.model, self.post, self.is_normalised = model, post, mean_std is not None
        mean, std = mean_std or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.is_normalised:
            images = (images - self.mean) / self.std
        prediction = self.model(images)
        class_logits, mask_logits = prediction.last.class_logits_BQK, prediction.render()
        if self.post is None:
            return class_logits, mask_logits
        full_logits = F.interpolate(mask_logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return class_logits, mask_logits, *self.post(class_logits, full_logits)


# --- post-processing of fixed shapes ----------------------------------------------------------------------------------


class Panoptic(nn.Module):
    """Post-processing as in `postprocess.panoptic` for a batch. Dropped queries keep their rows and own no pixel."""

    def __init__(self, things: list[bool], object_threshold: float, overlap_threshold: float, only_sure_pixels: bool):
        super().__init__()
        self.object_threshold, self.overlap_threshold = object_threshold, overlap_threshold
        self.only_sure_pixels = only_sure_pixels
        self.register_buffer("is_thing_K", torch.tensor([*things, True]), persistent=False)

    def forward(self, class_logits_BQK: Tensor, logits_BQHW: Tensor) -> tuple[Tensor, ...]:
        scores_BQ, labels_BQ = class_logits_BQK.softmax(-1).max(-1)
        kept_BQ = (labels_BQ != class_logits_BQK.shape[-1] - 1) & (scores_BQ > self.object_threshold)
        probs_BQHW = logits_BQHW.sigmoid()
        weighed_BQHW = torch.where(kept_BQ[:, :, None, None], probs_BQHW * scores_BQ[:, :, None, None], -1.0)
        owner_BHW = weighed_BQHW.argmax(1)
        queries_Q = torch.arange(scores_BQ.shape[1], device=scores_BQ.device)
        owned_BQHW = owner_BHW[:, None] == queries_Q[:, None, None]
        sure_BQHW = probs_BQHW >= 0.5
        visible_BQHW = owned_BQHW & sure_BQHW
        owned, covered, visible = (_count(each) for each in (owned_BQHW, sure_BQHW, visible_BQHW))
        shown = visible if self.only_sure_pixels else owned
        valid_BQ = kept_BQ & (owned > 0) & (covered > 0) & (shown > 0)
        valid_BQ = valid_BQ & (owned >= self.overlap_threshold * covered)
        ids_BQ, is_first_BQ = self._number(valid_BQ, labels_BQ)
        ids_BHW = ids_BQ.gather(1, owner_BHW.flatten(1)).view_as(owner_BHW)
        if self.only_sure_pixels:
            ids_BHW = ids_BHW * visible_BQHW.any(1)
        return ids_BHW.int(), *_table(ids_BQ, is_first_BQ, labels_BQ, scores_BQ, shown)

    def _number(self, valid_BQ: Tensor, labels_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Return the segment id of each query (0: none), and True for the first query of each segment.

        All stuff of one class is one segment.
        """
        joins_BQ = valid_BQ & ~self.is_thing_K[labels_BQ]
        same_BQQ = joins_BQ[:, :, None] & joins_BQ[:, None] & (labels_BQ[:, :, None] == labels_BQ[:, None])
        queries_Q = torch.arange(valid_BQ.shape[1], device=valid_BQ.device)
        first_BQ = torch.where(joins_BQ, same_BQQ.float().argmax(-1), queries_Q)
        is_first_BQ = valid_BQ & (first_BQ == queries_Q)
        numbers_BQ = is_first_BQ.long().cumsum(1)
        return torch.where(valid_BQ, numbers_BQ.gather(1, first_BQ), 0), is_first_BQ


def _count(mask_BQHW: Tensor) -> Tensor:
    return mask_BQHW.float().sum((2, 3))


def _table(
    ids_BQ: Tensor, is_first_BQ: Tensor, labels_BQ: Tensor, scores_BQ: Tensor, shown_BQ: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ids, labels, scores and areas of segments 1 to Q from those of the queries."""
    slots_Q = torch.arange(1, ids_BQ.shape[1] + 1, device=ids_BQ.device)
    members_BSQ = ids_BQ[:, None] == slots_Q[:, None]
    firsts_BSQ = (members_BSQ & is_first_BQ[:, None]).float()
    labels = (firsts_BSQ * (labels_BQ[:, None] + 1)).sum(-1) - 1
    scores, areas = (firsts_BSQ * scores_BQ[:, None]).sum(-1), (members_BSQ * shown_BQ[:, None]).sum(-1)
    return (members_BSQ.any(-1) * slots_Q).int(), labels.int(), scores, areas.int()


class Instance(nn.Module):
    """Post-processing as in `postprocess.instances` for a batch, without a score threshold."""

    def __init__(self, counts_K: list[bool], top_k: int):
        super().__init__()
        self.top_k = top_k
        self.register_buffer("counts_K", torch.tensor(counts_K), persistent=False)

    def forward(self, class_logits_BQK: Tensor, logits_BQHW: Tensor) -> tuple[Tensor, ...]:
        probs_BQK = class_logits_BQK.softmax(-1)[:, :, :-1]
        num_classes = probs_BQK.shape[2]
        count = min(self.top_k, probs_BQK.shape[1] * num_classes)
        probs_BN, pairs_BN = probs_BQK.flatten(1).topk(count, sorted=True)
        labels_BN, queries_BN = pairs_BN % num_classes, pairs_BN // num_classes
        inside_BQHW = logits_BQHW > 0
        quality_BQ = (logits_BQHW.sigmoid() * inside_BQHW).sum((2, 3)) / (_count(inside_BQHW) + 1e-6)
        counts_BN = self.counts_K[labels_BN]
        scores_BN = torch.where(counts_BN, probs_BN * quality_BQ.gather(1, queries_BN), -1.0)
        scores_BN, order_BN = scores_BN.topk(count, sorted=True)
        queries_BN = queries_BN.gather(1, order_BN)
        labels_BN = torch.where(scores_BN >= 0, labels_BN.gather(1, order_BN), -1)
        images_B1 = torch.arange(len(queries_BN), device=queries_BN.device)[:, None]
        return inside_BQHW[images_B1, queries_BN], labels_BN.int(), scores_BN.clamp(min=0)


class Semantic(nn.Module):
    """Post-processing as in `postprocess.semantic` for a batch."""

    def __init__(self, of_logits: bool):
        super().__init__()
        self.of_logits = of_logits

    def forward(self, class_logits_BQK: Tensor, logits_BQHW: Tensor) -> tuple[Tensor]:
        masks_BQHW = logits_BQHW if self.of_logits else logits_BQHW.sigmoid()
        probs_BQK = class_logits_BQK.softmax(-1)[:, :, :-1]
        return (torch.einsum("bqk,bqhw->bkhw", probs_BQK, masks_BQHW).argmax(1).int(),)


# --- tracing ----------------------------------------------------------------------------------------------------------


def example(model: Segmenter, options: ExportOptions) -> Tensor:
    """Return an input of the right shape for the trace.

    A free shape avoids special cases of the network: the coarsest map has several windows (of Swin) in both directions,
    and needs padding to whole windows.
    """
    multiple = described(model).multiple
    window = model.config.model.backbone.options.get("window_size", 2)
    size = input_size(model, options) or ((window + BEYOND) * multiple, (2 * window + BEYOND) * multiple)
    batch = options.batch or 2
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, *size, generator=generator).mul(255 if options.normalise else 1).to(model.device)


def dynamic_shapes(model: Segmenter, options: ExportOptions) -> dict[str, dict] | None:
    """Return the free dimensions of the input in the form of torch.export; None where all are fixed."""
    free: dict[int, object] = {}
    if options.batch is None:
        free[0] = torch.export.Dim("batch", min=1, max=MOST)
    if input_size(model, options) is None:
        multiple = described(model).multiple
        for axis, name in ((2, "rows"), (3, "columns")):
            free[axis] = multiple * torch.export.Dim(name, min=LEAST, max=LARGEST // multiple)
    return {INPUT: free} if free else None


def exported_program(model: Segmenter, options: ExportOptions) -> torch.export.ExportedProgram:
    """Trace `network` to a graph of common operators, with attention as matrix products and a softmax.

    Raises:
        ExportError: the network cannot be traced.
    """
    whole = network(model, options)
    if not hasattr(torch.compiler, "is_exporting"):  # torch 2.6, whose translation to ONNX fails on batch norms
        whole = fused(whole)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(
                whole, (example(model, options),), dynamic_shapes=dynamic_shapes(model, options), strict=False
            )
            return program.run_decompositions(decompositions())
    except Exception as error:  # the tracer raises errors of many types, also those of parts of the network
        raise ExportError(
            f"The network of {model.source} cannot be traced: {_first_line(error)}",
            hint="A fixed --size H W and --batch N ask least of it; a backbone of timm may not be traceable at all.",
        ) from error


def fused(network: nn.Module) -> nn.Module:
    """Return a copy of a network in evaluation mode, with batch norms fused into the convolutions before them."""
    network = copy.deepcopy(network)
    for layer in [module for module in network.modules() if isinstance(module, ConvNorm)]:
        conv, norm = layer.conv, layer.norm
        if isinstance(norm, (FrozenBatchNorm, nn.BatchNorm2d)):
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight, conv.bias, layer.norm = nn.Parameter(weight), nn.Parameter(bias), nn.Identity()
    return network


def decompositions() -> dict:
    """Return decompositions of attention and some other operators into simpler ones.

    Norms, resizing and convolutions stay whole, because every format has operators for them. Attention must be first:
    the memory layout of its fused kernel differs from that of the simpler operators.
    """
    defaults = torch.export.default_decompositions()
    aten = torch.ops.aten
    operators = (
        aten.scaled_dot_product_attention.default,
        aten._scaled_dot_product_attention_math.default,
        aten._safe_softmax.default,
        aten.repeat_interleave.self_int,
        aten.roll.default,
    )
    return {operator: defaults[operator] for operator in operators}


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextmanager
def deployed(model: Segmenter) -> Iterator[Segmenter]:
    """Move the model to the CPU for the block, and back at its end."""
    device = model.device
    model.model.to("cpu")
    model.device = torch.device("cpu")
    try:
        yield model
    finally:
        model.model.to(device)
        model.device = device
