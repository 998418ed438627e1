"""The classes of the configuration: each field with its bounds and a description. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["panoptic", "instance", "semantic"]

# Bounds are about ten times the usual values, because the file of a stranger must not ask for terabytes or years.
LARGEST_SIDE = 65_536  # pixels, of an image that is resized with its aspect kept
LARGEST_CANVAS = 16_384  # pixels, of a crop or a padded image, whose memory is the square of it
MOST_CLASSES = 100_000
LONGEST = 1_000_000_000  # iterations
MOST_PARAMETERS = 5_000_000_000  # of a network; the largest published one has 0.2
_MOST_OPTIONS = 1000  # entries of a list in an option of a component
_LONGEST_TEXT = 10_000
_LARGEST_NUMBER = 2**63
_LARGEST: dict[str, float] = {  # option of a component → its largest value; the least is 0
    "num_layers": 200,
    "num_blocks": 200,
    "depths": 500,
    "depth": 1000,
    "num_heads": 1024,
    "num_points": 1024,
    "num_levels": 16,
    "groups": 1024,
    "num_queries": 100_000,
    "dim": 32_768,
    "mask_dim": 32_768,
    "ffn_dim": 262_144,
    "embed_dim": 16_384,
    "stem_channels": 16_384,
    "window_size": 64,
    "width": LARGEST_CANVAS,
    "height": LARGEST_CANVAS,
    "size": LARGEST_CANVAS,
    "divisor": LARGEST_CANVAS,
    "short_edges": LARGEST_SIDE,
    "max_edge": LARGEST_SIDE,
    "min_size": LARGEST_SIDE,
    "max_size": LARGEST_SIDE,
    "min_scale": 100,
    "max_scale": 100,
    "img_size": LARGEST_CANVAS,
}

_Side = Annotated[int, Field(le=LARGEST_SIDE)]
_Iteration = Annotated[int, Field(le=LONGEST)]
_Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
_Objects = Annotated[int, Field(le=10_000)]
_Deviation = Annotated[float, Field(gt=0)]
_Canvas = Annotated[int, Field(le=LARGEST_CANVAS)]


class Node(BaseModel):
    """A frozen record. Unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Component(BaseModel):
    """A named part and the arguments of its constructor, such as {name: swin, embed_dim: 96, …}."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(max_length=_LONGEST_TEXT, description="A name of its group in plugins.py, or module:object.")

    @model_validator(mode="after")
    def _is_bounded(self) -> Component:
        for key, value in self.options.items():
            _refuse_huge(key, value)
        return self

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return dict(self.model_extra or {})


def _refuse_huge(key: str, value: Any, depth: int = 0) -> None:
    """Refuse numbers, lists and texts that no part of a network takes."""
    if isinstance(value, (list, tuple, Mapping)):
        if len(value) > _MOST_OPTIONS or depth > 4:
            raise ValueError(f"{key} has {len(value):,} entries, or entries of entries, more than any part takes")
        for each in value.values() if isinstance(value, Mapping) else value:
            _refuse_huge(key, each, depth + 1)
        if key == "depths" and sum(each for each in value if isinstance(each, int)) > _LARGEST["depth"]:
            raise ValueError(f"depths has more than {_LARGEST['depth']:,} blocks in all")
    elif isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"{key} is a text of {len(value):,} characters")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = (0, _LARGEST[key]) if key in _LARGEST else (-_LARGEST_NUMBER, _LARGEST_NUMBER)
        if not least <= value <= most:
            shown = f"{value:.3g}" if isinstance(value, float) or abs(value) > 10**15 else f"{value:,}"
            raise ValueError(f"{key} = {shown}, where {least:,} to {most:,} is possible")


class PilotingConfig(Node):
    """Mask-piloted training (MP-Former; docs/methods/published-behaviour.md#6-2 to #6-6). The defaults are published.

    Each target is given to the decoder `groups` times as a pilot query. A pilot starts from the class of its target and
    attends where the target is. With `budget`, the number of groups follows the batch: budget // (targets of the
    image that has most).
    """

    groups: int | None = Field(None, ge=1, le=10_000, description="Pilot queries per target (NUM_DN below 100).")
    budget: int | None = Field(
        None, ge=1, le=100_000, description="Most pilot queries per image (NUM_DN from 100 on). Give this or groups."
    )
    mode: Literal["points"] = Field(
        "points",
        description="The only published mode that works (docs/methods/published-behaviour.md#6-7).",
    )
    mask_noise: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Noise of masks (NOISE_SCALE): a cell flips with probability mask_noise x share of the mask.",
    )
    label_noise: float = Field(
        0.2, ge=0, le=1, description="Probability that a pilot starts from a random class (LB_NOISE_RATIO)."
    )
    noise_per_head: bool = Field(False, description="Draw the noise of masks for each attention head (HEAD_DN).")
    layers: Literal["all"] | int = Field(
        "all", description="Number of first layers in which pilots attend to their targets (ALL_LY_DN; its false is 4)."
    )
    class_loss: bool = Field(True, description="Apply the class loss to pilots, too (not DN_NO_LB).")
    query_positions: bool | None = Field(
        None,
        description="Give ordinary queries learned positions. Null: as the method has it (MP-Former: false).",
    )

    @model_validator(mode="after")
    def _one_count(self) -> PilotingConfig:
        if (self.groups is None) == (self.budget is None):
            raise ValueError("give either groups (pilots per target) or budget (pilots per image), the other null")
        if self.layers != "all" and not 1 <= self.layers <= _LARGEST["num_layers"]:
            raise ValueError(f"layers is 'all' or at least 1 and at most {_LARGEST['num_layers']}, not {self.layers}")
        return self


def _least_parameters(part: Component) -> int:
    """Return a lower bound of the number of parameters of a part, from its options."""
    number = {key: value if isinstance(value, int) else 0 for key, value in part.options.items()}
    dim, layers = number.get("dim", 0), number.get("num_layers", 0)
    total = layers * dim * (4 * dim + 2 * number.get("ffn_dim", 0)) + dim * number.get("num_queries", 0)
    total += dim * number.get("mask_dim", 0)
    depths = part.options.get("depths", ())
    for i, blocks in enumerate(depths if isinstance(depths, (list, tuple)) else ()):
        total += 12 * (blocks if isinstance(blocks, int) else 0) * (number.get("embed_dim", 0) * 2 ** min(i, 8)) ** 2
    return total + 50 * number.get("width", 0) ** 2


class ModelConfig(Node):
    """The network: its method, its three parts, and pilots."""

    method: Literal["mask2former", "maskformer", "mpformer", "eomt", "pmt"] = Field(
        description="Method that the parts belong to."
    )
    backbone: Component = Field(description="Network that turns an image into feature maps, and its options.")
    pixel_decoder: Component = Field(description="Part that turns feature maps into mask features, and its options.")
    decoder: Component = Field(description="Part that turns queries into classes and masks, and its options.")
    piloting: PilotingConfig | None = Field(None, description="Mask-piloted training. Null: without pilots.")

    @model_validator(mode="after")
    def _is_buildable(self) -> ModelConfig:
        count = sum(map(_least_parameters, (self.backbone, self.pixel_decoder, self.decoder)))
        if count > MOST_PARAMETERS:
            raise ValueError(f"the network has {count:,} parameters or more; {MOST_PARAMETERS:,} are possible")
        return self

    @model_validator(mode="after")
    def _pilots_replace_attention_masks(self) -> ModelConfig:
        if self.piloting is not None and (
            self.method not in ("mask2former", "mpformer") or self.decoder.name == "plain"
        ):
            raise ValueError(
                "a pilot query looks where its target is, in place of where its last mask was; the plain decoder of "
                "MaskFormer attends everywhere and has no such mask: use a masked decoder, or leave model.piloting out"
            )
        return self


class InputConfig(Node):
    """Normalisation of images: RGB from 0 to 255, then (x - mean) / std per channel."""

    mean: tuple[float, float, float] = Field(description="Mean of red, green and blue.")
    std: tuple[_Deviation, _Deviation, _Deviation] = Field(
        description="Standard deviation of red, green and blue, each above 0."
    )


class ResizeConfig(Node):
    """The size at test time: short and longest edge with the aspect kept, or a fixed height and width."""

    short_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE, description="Length of the short edge, in pixels.")
    max_edge: int | None = Field(
        None, gt=0, le=LARGEST_SIDE, description="Most pixels of the long edge. Where it is longer, both edges shrink."
    )
    fixed: tuple[_Canvas, _Canvas] | None = Field(
        None, description="(height, width), with the aspect lost (transformers' processors)."
    )
    resampling: Literal["pillow", "opencv"] = Field(
        "pillow",
        description="pillow: bilinear, averaging when it shrinks (detectron2). opencv: bilinear between four pixels "
        "(OpenMMLab). Shrunk images differ visibly.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> ResizeConfig:
        if self.fixed and (self.short_edge or self.max_edge):
            raise ValueError("give either short_edge and max_edge, or fixed")
        if self.fixed and min(self.fixed) <= 0:
            raise ValueError("sizes are above 0")
        return self


class TtaConfig(Node):
    """Test-time augmentation: the image at several sizes, each as it is and mirrored, with scores averaged."""

    short_edges: tuple[_Side, ...] = Field(
        (), max_length=100, description="Sizes as short edges. Give these or scales."
    )
    max_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE, description="Most pixels of the long edge.")
    scales: tuple[Annotated[float, Field(le=100)], ...] = Field((), max_length=100, description="Sizes as factors.")
    of: Literal["test_size", "picture"] = Field(
        "test_size",
        description="Image that sizes apply to. test_size: after the test resize, so that it is resized twice "
        "(detectron2, docs/methods/published-behaviour.md#2-2). picture: the image itself (OpenMMLab).",
    )
    flip: bool = Field(True, description="Add the mirrored image of each size.")
    softmax: bool = Field(False, description="Apply a softmax to class scores before they are averaged (OpenMMLab).")

    @model_validator(mode="after")
    def _one_kind(self) -> TtaConfig:
        if bool(self.short_edges) == bool(self.scales):
            raise ValueError("give either short_edges or scales")
        if any(size <= 0 for size in (*self.short_edges, *self.scales)):
            raise ValueError("sizes are above 0")
        return self


class SlideConfig(Node):
    """Windows over the resized image (MMSegmentation's `slide`)."""

    crop: tuple[_Canvas, _Canvas] = Field(description="Height and width of a window, in pixels of the network's input.")
    stride: tuple[_Canvas, _Canvas] = Field(description="Steps between windows, down and to the right.")

    @model_validator(mode="after")
    def _covers(self) -> SlideConfig:
        if any(not 0 < stride <= crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is from 1 to the crop {self.crop}, or pixels are left out")
        if any(16 * stride < crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is at least a sixteenth of the crop {self.crop}")
        return self


class TestConfig(Node):
    """Inference as published."""

    tasks: tuple[Task, ...] = Field(
        description="Tasks that the published model was switched on for. They decide the order of operations: a "
        "model for semantic alone resizes score maps, every other one resizes mask logits first "
        "(docs/methods/published-behaviour.md#5-1)."
    )
    resize: ResizeConfig = Field(description="Size of images at test time.")
    size_divisor: int = Field(
        ge=0, le=4096, description="Images are padded at the bottom and right to a multiple of it. 0 or 1: no padding."
    )
    object_threshold: float = Field(ge=0, le=1, description="Panoptic: least class probability of a query.")
    overlap_threshold: float = Field(ge=0, le=1, description="Panoptic: least share of a mask that must stay visible.")
    top_k: int = Field(gt=0, le=1_000_000, description="Instance: number of (query, class) pairs that are kept.")
    only_sure_pixels: bool = Field(
        True,
        description="Panoptic: a segment keeps only pixels where its own mask is at least 0.5. MaskFormer's rule "
        "(false) gives it all pixels that it owns.",
    )
    semantic_scores: Literal["probabilities", "logits"] = Field(
        "probabilities",
        description="Score of a class at a pixel: the sum of its queries' mask probabilities, or of their logits "
        "(per-pixel baselines, whose queries are classes).",
    )
    tta: TtaConfig | None = Field(None, description="Test-time augmentation. Null: none was published.")
    slide: SlideConfig | None = Field(None, description="Sliding windows. Null: the whole image at once.")


class ScenesConfig(Node):
    """Generated images (the data set `synthetic`)."""

    train: int = Field(gt=0, le=10_000_000, description="Number of images to train on.")
    val: int = Field(gt=0, le=10_000_000, description="Number of images to evaluate on.")
    size: tuple[_Canvas, _Canvas] = Field(description="Height and width of an image.")
    objects: tuple[_Objects, _Objects] = Field(description="Least and most objects in an image.")
    difficulty: float = Field(
        ge=0, le=1, description="0 to 1: smaller, more turned and squeezed objects, paler colours, more grain."
    )


class DataConfig(Node):
    """The data set and its classes."""

    dataset: str = Field(description="Name of the data set. It finds the folder below DETECTRON2_DATASETS.")
    classes: str = Field(description="A table in m2f_cli/structures/classes/, or a YAML file, with names of classes.")
    scenes: ScenesConfig | None = Field(None, description="Generated images, for the data set synthetic.")
    ignore_index: int | None = Field(
        None, ge=-(2**31), lt=2**31, description="Label maps: pixel value that is ignored."
    )
    label_map: dict[int, str | int | None] | None = Field(
        None,
        max_length=MOST_CLASSES,
        description="Label maps: pixel value to class name or number. Null: ignored.",
    )


class WeightsSource(Node):
    """A location of released weights: either a file (`url`) or a Hugging Face repository (`hub`)."""

    url: str | None = Field(None, description="Address of a file.")
    hub: str | None = Field(None, description="Hugging Face repository, as organisation/name.")
    hash_prefix: str | None = Field(
        None, description="Start of the file's SHA-256 or MD5, which the publisher put into its name."
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the file, or of the repository's one file of weights, where it is published.",
    )
    format: Literal["detectron2", "openmmlab", "huggingface", "m2f", "eomt", "pmt"] = Field(
        description="Program that wrote them. eomt, pmt: the original code, without the encoder where that is DINOv3."
    )
    licence: str = Field(description="Licence of the weights.")
    note: str | None = Field(None, description="What else a user should know.")

    @model_validator(mode="after")
    def _one_place(self) -> WeightsSource:
        if (self.url is None) == (self.hub is None):
            raise ValueError("give either url or hub")
        return self


class Published(Node):
    """A published figure of the released weights."""

    metric: str = Field(description="Name of the figure, such as pq or miou.")
    value: float = Field(description="The figure as published; figures of quality in percent.")
    source: str = Field(description="Table that it stands in.")
    setting: str = Field("single scale", description="How it was measured, such as multi-scale + flip.")
    verified: bool = Field(True, description="False where docs/methods/published-behaviour.md says UNVERIFIED.")


class OptimizerConfig(Node):
    """AdamW with a group per kind of parameter (docs/methods/published-behaviour.md#2-1)."""

    learning_rate: float = Field(gt=0, le=1000, description="Learning rate after the warm-up; see backbone_multiplier.")
    weight_decay: float = Field(ge=0, le=1000, description="Weight decay of all parameters but those below.")
    norm_weight_decay: float = Field(ge=0, le=1000, description="Weight decay of weights and biases of norm layers.")
    embedding_weight_decay: float = Field(
        ge=0, le=1000, description="Weight decay of embeddings and of tables of relative position biases."
    )
    backbone_multiplier: float = Field(gt=0, le=1000, description="Factor of learning_rate for the backbone.")
    clip_norm: float = Field(ge=0, le=1e9, description="Largest L2 norm of all gradients together. 0: off.")


class ScheduleConfig(Node):
    """The learning rate over the iterations."""

    name: Literal["poly", "step", "cosine", "constant"] = Field(
        description="poly: (1 - iteration / iterations)^power. step: times gamma at each of steps. cosine: half a "
        "cosine. constant: unchanged."
    )
    power: float = Field(0.9, ge=0, le=100, description="Exponent of poly: 1 is a straight line.")
    floor: float = Field(0.0, ge=0, le=1, description="Least share of the learning rate after the warm-up.")
    steps: tuple[_Iteration, ...] = Field((), max_length=10_000, description="Iterations at which step falls.")
    gamma: float = Field(0.1, ge=0, le=1000, description="Factor of the learning rate at each of steps.")
    warmup_iterations: int = Field(0, ge=0, le=LONGEST, description="Iterations of a linear warm-up. 0: none.")
    warmup_factor: float = Field(
        1.0, gt=0, le=1000, description="Share of the learning rate in the first iteration of the warm-up."
    )


class LossConfig(Node):
    """Weights of the losses, which are also those of the matching costs (docs/methods/published-behaviour.md#4)."""

    masks: Literal["points", "full", "per_pixel"] = Field(
        "points",
        description="Where masks are compared. points: at random points (Mask2Former). full: at all pixels "
        "(MaskFormer). per_pixel: nowhere; the loss is each pixel's cross entropy, weighted by class_weight.",
    )
    mask_loss: Literal["bce", "focal"] = Field("bce", description="Loss of masks that mask_weight applies to.")
    class_weight: _Weight = Field(description="Weight of the class loss.")
    mask_weight: _Weight = Field(description="Weight of mask_loss.")
    dice_weight: _Weight = Field(description="Weight of the dice loss of masks.")
    no_object_weight: _Weight = Field(description="Weight of the class 'no object' within the class loss.")
    num_points: int | None = Field(None, gt=0, le=1_000_000, description="Points per mask; masks: points only.")
    oversample_ratio: float | None = Field(
        None, ge=1, le=100, description="Candidates per point, of which the least certain are kept; masks: points only."
    )
    importance_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of points that are chosen by uncertainty; masks: points only."
    )

    @model_validator(mode="after")
    def _points_have_numbers(self) -> LossConfig:
        for name in ("num_points", "oversample_ratio", "importance_ratio"):
            if (getattr(self, name) is None) == (self.masks == "points"):
                state = "missing" if self.masks == "points" else "set"
                raise ValueError(f"{name} is {state}; it belongs to masks: points, and this is masks: {self.masks}")
        return self


class TrainConfig(Node):
    """Training as published, for the published batch. Fewer GPUs accumulate gradients to reach it."""

    iterations: int = Field(gt=0, le=LONGEST, description="Optimiser steps. The later of iterations and epochs holds.")
    epochs: float | None = Field(
        None,
        gt=0,
        le=LONGEST,
        description="Passes over the training images, in place of iterations. When a run begins, it computes the "
        "iterations and scales schedule.steps alike; its config.yaml has the iterations.",
    )
    batch: int = Field(gt=0, le=100_000, description="Images per optimiser step over all processes.")
    augment: tuple[Component, ...] = Field(
        max_length=100, description="Steps of augmentation in order: names of the group transforms, and their options."
    )
    optimizer: OptimizerConfig = Field(description="Learning rate, weight decay and clipping.")
    schedule: ScheduleConfig = Field(description="Learning rate over the iterations.")
    loss: LossConfig = Field(description="Losses and their weights.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        description="Number format of the forward pass. Sampling points and weights of the pixel decoder, costs and "
        "losses are fp32 in any case; with fp16 the whole pixel decoder is."
    )
    hardware: str = Field("", description="Machine of the published training, such as 8 V100. It is for tables only.")
    drop_empty: bool = Field(description="Leave out images without an annotated object that is no crowd.")
    group_by_aspect: bool = Field(description="Put images of like aspect (wide or tall) into one batch.")
    eval_every: int = Field(ge=0, le=LONGEST, description="Iterations between evaluations. 0: only at the end.")
    best_metric: str | None = Field(
        None,
        max_length=_LONGEST_TEXT,
        description="Figure that says which checkpoint is best, such as rq or ap50. Null: pq, ap or miou, by the task.",
    )
    patience: int | None = Field(
        None,
        gt=0,
        le=LONGEST,
        description="Evaluations in a row without a better best_metric after which training stops early. Null: never.",
    )
    checkpoint_every: int = Field(gt=0, le=LONGEST, description="Iterations between checkpoints.")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="Seed for all random number generators.")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="Decay of the moving average of weights. 0: no average.")
    repeat_factor_threshold: float = Field(
        0.0, ge=0, le=1000, description="Threshold of repeat-factor sampling (LVIS). 0: off."
    )
    class_weights: tuple[_Weight, ...] = Field(
        (), max_length=MOST_CLASSES, description="Weights within the class loss, one per class. (): all are 1."
    )

    @model_validator(mode="after")
    def _patience_has_evaluations(self) -> TrainConfig:
        if self.patience is not None and not self.eval_every:
            raise ValueError("patience counts evaluations, and eval_every is 0 (only at the end): set eval_every, too")
        return self


class Config(Node):
    """A whole configuration: the model, its data, how it is tested and trained, and its published figures."""

    name: str = Field(description="Name, without slashes and spaces. By default the stem of the file.")
    summary: str = Field("", description="One line for people, shown by m2f presets list.")
    task: Task = Field(description="Task that the model is trained and evaluated for.")
    data: DataConfig = Field(description="The data set to train on and to evaluate with.")
    model: ModelConfig = Field(description="The network: its method and its parts.")
    input: InputConfig = Field(description="Normalisation of images.")
    test: TestConfig = Field(description="Inference: size of images, thresholds, what is done at test time.")
    train: TrainConfig | None = Field(None, description="Training. Null: the preset does not say how to train.")
    weights: tuple[WeightsSource, ...] = Field((), description="Released weights. The first is the one that is used.")
    published: tuple[Published, ...] = Field((), description="Published figures of the released weights.")

    @field_validator("name")
    @classmethod
    def _name_is_a_stem(cls, value: str) -> str:
        if not value or any(c in value for c in "/\\ "):
            raise ValueError("a name is a file stem: no slashes, no spaces")
        return value
