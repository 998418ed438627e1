"""The classes of the configuration's tree: what a preset may say, and what of it cannot be. No torch here.

Read through `config`, which has every name of this file: `from m2f_cli.config.presets import Config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["panoptic", "instance", "semantic"]

# Bounds: about ten times what anybody uses. A configuration that came with a file may not ask for terabytes or years.
LARGEST_SIDE = 65_536  # pixels, of an image that is resized with its aspect kept
LARGEST_CANVAS = 16_384  # pixels, of a crop or a padded image, whose memory is the square of it
MOST_CLASSES = 100_000
MOST_PARAMETERS = 5_000_000_000  # of a network; the largest published one has 0.2
_LONGEST = 1_000_000_000  # iterations
_MOST_OPTIONS = 1000  # entries of a list in an option of a component
_LONGEST_TEXT = 10_000
_LARGEST_NUMBER = 2**63
_LARGEST: dict[str, float] = {  # of options of components, by their names; each is at least 0
    "num_layers": 200,
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
_Iteration = Annotated[int, Field(le=_LONGEST)]
_Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
_Objects = Annotated[int, Field(le=10_000)]
_Deviation = Annotated[float, Field(gt=0)]
_Canvas = Annotated[int, Field(le=LARGEST_CANVAS)]


class Node(BaseModel):
    """A frozen record: unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Component(BaseModel):
    """A named part of the network and the arguments of its constructor, such as {name: swin, embed_dim: 96, …}."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(max_length=_LONGEST_TEXT, description="a name of the group in plugins.py, or module:object")

    @model_validator(mode="after")
    def _is_bounded(self) -> Component:
        for key, value in self.options.items():
            _refuse_huge(key, value)
        return self

    @property
    def options(self) -> dict[str, Any]:
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
    """Mask-piloted training (MP-Former; docs/methods/published-behaviour.md#6-2 to #6-6). The defaults are those of the
    published script.

    Each target is given to the decoder `groups` times as a pilot query, which starts from its class and looks where it
    is. With `budget` the number of groups follows the batch: budget // (targets of the fullest picture).
    """

    groups: int | None = Field(None, ge=1, le=10_000, description="pilot queries per target (NUM_DN below 100)")
    budget: int | None = Field(
        None, ge=1, le=100_000, description="pilot queries per picture, at most (NUM_DN from 100 on)"
    )
    mode: Literal["points"] = Field(
        "points",
        description="the only published mode; the others are broken (docs/methods/published-behaviour.md#6-7)",
    )
    mask_noise: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="cells of a mask flip with probability mask_noise x its share of the grid (NOISE_SCALE)",
    )
    label_noise: float = Field(
        0.2, ge=0, le=1, description="probability that a pilot starts from a random class (LB_NOISE_RATIO)"
    )
    noise_per_head: bool = Field(False, description="each attention head gets mask noise of its own (HEAD_DN)")
    layers: Literal["all"] | int = Field(
        "all", description="how many layers, from the first, look where the targets are (ALL_LY_DN; its false is 4)"
    )
    class_loss: bool = Field(True, description="whether pilots answer for their class too (not DN_NO_LB)")
    query_positions: bool | None = Field(
        None, description="whether ordinary queries have learned positions; None: as the method has it, MP-Former not"
    )

    @model_validator(mode="after")
    def _one_count(self) -> PilotingConfig:
        if (self.groups is None) == (self.budget is None):
            raise ValueError("give either groups (pilots per target) or budget (pilots per picture), the other null")
        if self.layers != "all" and not 1 <= self.layers <= _LARGEST["num_layers"]:
            raise ValueError(f"layers is 'all' or at least 1 and at most {_LARGEST['num_layers']}, not {self.layers}")
        return self


def _least_parameters(part: Component) -> int:
    """Parameters that a part has at least: those of its layers' products, as far as its options tell."""
    number = {key: value if isinstance(value, int) else 0 for key, value in part.options.items()}
    dim, layers = number.get("dim", 0), number.get("num_layers", 0)
    total = layers * dim * (4 * dim + 2 * number.get("ffn_dim", 0)) + dim * number.get("num_queries", 0)
    total += dim * number.get("mask_dim", 0)
    depths = part.options.get("depths", ())
    for i, blocks in enumerate(depths if isinstance(depths, (list, tuple)) else ()):
        total += 12 * (blocks if isinstance(blocks, int) else 0) * (number.get("embed_dim", 0) * 2 ** min(i, 8)) ** 2
    return total + 50 * number.get("width", 0) ** 2


class ModelConfig(Node):
    method: Literal["mask2former", "maskformer", "mpformer"]
    backbone: Component
    pixel_decoder: Component
    decoder: Component
    piloting: PilotingConfig | None = None

    @model_validator(mode="after")
    def _is_buildable(self) -> ModelConfig:
        count = sum(map(_least_parameters, (self.backbone, self.pixel_decoder, self.decoder)))
        if count > MOST_PARAMETERS:
            raise ValueError(f"the network has {count:,} parameters or more; {MOST_PARAMETERS:,} are possible")
        return self

    @model_validator(mode="after")
    def _pilots_replace_attention_masks(self) -> ModelConfig:
        if self.piloting is not None and (self.method == "maskformer" or self.decoder.name == "plain"):
            raise ValueError(
                "a pilot query looks where its target is, in place of where its last mask was; the plain decoder of "
                "MaskFormer attends everywhere and has no such mask: use a masked decoder, or leave model.piloting out"
            )
        return self


class InputConfig(Node):
    """How pictures enter the network: RGB, 0 to 255, then (x - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[_Deviation, _Deviation, _Deviation]


class ResizeConfig(Node):
    """The size at test time. Either short/max edge with the aspect kept, or a fixed height and width.

    resampling: "pillow" (bilinear that averages when it shrinks, detectron2's) or "opencv" (bilinear between four
        pixels, OpenMMLab's). They give visibly different pixels when a picture shrinks.
    """

    short_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE)
    max_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE)
    fixed: tuple[_Canvas, _Canvas] | None = Field(
        None, description="(height, width), aspect lost (transformers' processors)"
    )
    resampling: Literal["pillow", "opencv"] = "pillow"

    @model_validator(mode="after")
    def _one_kind(self) -> ResizeConfig:
        if self.fixed and (self.short_edge or self.max_edge):
            raise ValueError("give either short_edge and max_edge, or fixed")
        if self.fixed and min(self.fixed) <= 0:
            raise ValueError("sizes are above 0")
        return self


class TtaConfig(Node):
    """Test-time augmentation: the picture at several sizes, each as it is and (with flip) mirrored; scores averaged.

    Sizes are either short edges (with a limit on the long one) or factors, and they are applied to the picture `of`:
    as it is after the test resize, so that it is resized twice (detectron2, docs/methods/published-behaviour.md#2-2),
    or to the picture itself (OpenMMLab).
    """

    short_edges: tuple[_Side, ...] = Field((), max_length=100)
    max_edge: int | None = Field(None, gt=0, le=LARGEST_SIDE)
    scales: tuple[Annotated[float, Field(le=100)], ...] = Field((), max_length=100)
    of: Literal["test_size", "picture"] = "test_size"
    flip: bool = True
    softmax: bool = Field(False, description="class scores go through a softmax before they are averaged (OpenMMLab)")

    @model_validator(mode="after")
    def _one_kind(self) -> TtaConfig:
        if bool(self.short_edges) == bool(self.scales):
            raise ValueError("give either short_edges or scales")
        if any(size <= 0 for size in (*self.short_edges, *self.scales)):
            raise ValueError("sizes are above 0")
        return self


class SlideConfig(Node):
    """Windows over the resized picture, (height, width) in pixels of the network's input (MMSegmentation's `slide`)."""

    crop: tuple[_Canvas, _Canvas]
    stride: tuple[_Canvas, _Canvas]

    @model_validator(mode="after")
    def _covers(self) -> SlideConfig:
        if any(not 0 < stride <= crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is from 1 to the crop {self.crop}, or pixels are left out")
        if any(16 * stride < crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is at least a sixteenth of the crop {self.crop}")
        return self


class TestConfig(Node):
    """Inference as published.

    tasks: what the published model was switched on for. It decides the order of operations: a model for semantic
        alone resizes score maps, every other one resizes mask logits first (docs/methods/published-behaviour.md#5-1).
    only_sure_pixels: panoptic: a segment keeps only pixels where its own mask is at least half sure. MaskFormer's rule
        gives it all that it owns.
    semantic_scores: a class's score of a pixel: the sum of its queries' mask "probabilities", or of their "logits"
        (per-pixel baselines, whose queries are classes).
    """

    tasks: tuple[Task, ...]
    resize: ResizeConfig
    size_divisor: int = Field(
        ge=0, le=4096, description="pictures are padded (bottom, right) to a multiple; 0 or 1: not at all"
    )
    object_threshold: float = Field(ge=0, le=1, description="panoptic: least class probability of a query")
    overlap_threshold: float = Field(ge=0, le=1, description="panoptic: least share of a mask that must stay visible")
    top_k: int = Field(gt=0, le=1_000_000, description="instance: how many (query, class) pairs are kept")
    only_sure_pixels: bool = True
    semantic_scores: Literal["probabilities", "logits"] = "probabilities"
    tta: TtaConfig | None = None
    slide: SlideConfig | None = None


class ScenesConfig(Node):
    """Generated pictures (the data set `synthetic`): how many, how large (height, width), how hard."""

    train: int = Field(gt=0, le=10_000_000)
    val: int = Field(gt=0, le=10_000_000)
    size: tuple[_Canvas, _Canvas]
    objects: tuple[_Objects, _Objects] = Field(description="least and most objects in a scene")
    difficulty: float = Field(ge=0, le=1)


class DataConfig(Node):
    """`classes` names a table in m2f_cli/structures/classes/ (or a YAML file): names and number come from it."""

    dataset: str
    classes: str
    scenes: ScenesConfig | None = None
    ignore_index: int | None = Field(
        None, ge=-(2**31), lt=2**31, description="label maps: the pixel value that counts nowhere"
    )
    label_map: dict[int, str | int | None] | None = Field(
        None,
        max_length=MOST_CLASSES,
        description="label maps: pixel value to class name or number, null for what counts nowhere",
    )


class WeightsSource(Node):
    """One place of released weights.

    Exactly one of `url` (a file) and `hub` (a Hugging Face repository) is given. `hash_prefix` is the start of the
    file's SHA-256 or MD5, which the publisher put into the file's name.
    """

    url: str | None = None
    hub: str | None = None
    hash_prefix: str | None = None
    format: Literal["detectron2", "openmmlab", "huggingface", "m2f"]
    licence: str
    note: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> WeightsSource:
        if (self.url is None) == (self.hub is None):
            raise ValueError("give either url or hub")
        return self


class Published(Node):
    """One published figure. `verified` is False where docs/methods/published-behaviour.md says UNVERIFIED."""

    metric: str
    value: float
    source: str
    setting: str = "single scale"
    verified: bool = True


class OptimizerConfig(Node):
    """AdamW, a group per kind of parameter (docs/methods/published-behaviour.md#2-1). Multipliers apply to
    `learning_rate`, decays are absolute."""

    learning_rate: float = Field(gt=0, le=1000)
    weight_decay: float = Field(ge=0, le=1000)
    norm_weight_decay: float = Field(ge=0, le=1000, description="weights and biases of every norm layer")
    embedding_weight_decay: float = Field(
        ge=0, le=1000, description="nn.Embedding weights and relative position bias tables"
    )
    backbone_multiplier: float = Field(gt=0, le=1000)
    clip_norm: float = Field(ge=0, le=1e9, description="global L2 norm of all gradients; 0 is off")


class ScheduleConfig(Node):
    """The learning rate's course. poly: (1 - it/iterations)^power; step: times gamma at each of `steps`."""

    name: Literal["poly", "step", "cosine", "constant"]
    power: float = Field(0.9, ge=0, le=100)
    floor: float = Field(0.0, ge=0, le=1, description="least share of the learning rate, after the warm-up")
    steps: tuple[_Iteration, ...] = Field((), max_length=10_000)
    gamma: float = Field(0.1, ge=0, le=1000)
    warmup_iterations: int = Field(0, ge=0, le=_LONGEST)
    warmup_factor: float = Field(
        1.0, gt=0, le=1000, description="the first iteration's share of the learning rate; linear"
    )


class LossConfig(Node):
    """Weights of the losses, which are also those of the matching costs (docs/methods/published-behaviour.md#4).

    masks: where masks are compared: at random "points" (Mask2Former), at all pixels ("full", MaskFormer), or not as
        masks at all: "per_pixel" is the cross entropy of each pixel's class, of which class_weight is the weight.
    mask_loss: what is weighed by mask_weight, beside dice.
    num_points, oversample_ratio, importance_ratio: of "points", and only of them.
    """

    masks: Literal["points", "full", "per_pixel"] = "points"
    mask_loss: Literal["bce", "focal"] = "bce"
    class_weight: _Weight
    mask_weight: _Weight
    dice_weight: _Weight
    no_object_weight: _Weight
    num_points: int | None = Field(None, gt=0, le=1_000_000)
    oversample_ratio: float | None = Field(None, ge=1, le=100)
    importance_ratio: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _points_have_numbers(self) -> LossConfig:
        for name in ("num_points", "oversample_ratio", "importance_ratio"):
            if (getattr(self, name) is None) == (self.masks == "points"):
                state = "missing" if self.masks == "points" else "set"
                raise ValueError(f"{name} is {state}; it belongs to masks: points, and this is masks: {self.masks}")
        return self


class TrainConfig(Node):
    """Training as published, for the published batch; fewer GPUs accumulate gradients to reach it.

    augment: the steps in order; each is a name of the group "transforms" and its options.
    batch: pictures per optimiser step over all processes.
    precision: of the forward pass; places and weights of the pixel decoder, costs and losses are fp32 in any case, in
        fp16 the whole pixel decoder.
    hardware: what the published run was trained on, such as 8 V100; "" where nobody says. Nothing reads it but tables.
    drop_empty: leave out pictures without an annotated (non-crowd) object.
    """

    iterations: int = Field(gt=0, le=_LONGEST)
    batch: int = Field(gt=0, le=100_000)
    augment: tuple[Component, ...] = Field(max_length=100)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    precision: Literal["fp32", "bf16", "fp16"]
    hardware: str = ""
    drop_empty: bool
    group_by_aspect: bool
    eval_every: int = Field(ge=0, le=_LONGEST, description="iterations; 0 is only at the end")
    checkpoint_every: int = Field(gt=0, le=_LONGEST)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 is off")
    repeat_factor_threshold: float = Field(0.0, ge=0, le=1000, description="LVIS repeat-factor sampling; 0 is off")
    class_weights: tuple[_Weight, ...] = Field(
        (), max_length=MOST_CLASSES, description="of the class loss, one per class; () is all 1"
    )


class Config(Node):
    """A whole configuration: the model, its data, how it is tested and trained, and its published figures."""

    name: str
    summary: str = ""
    task: Task
    data: DataConfig
    model: ModelConfig
    input: InputConfig
    test: TestConfig
    train: TrainConfig | None = None
    weights: tuple[WeightsSource, ...] = ()
    published: tuple[Published, ...] = ()

    @field_validator("name")
    @classmethod
    def _name_is_a_stem(cls, value: str) -> str:
        if not value or any(c in value for c in "/\\ "):
            raise ValueError("a name is a file stem: no slashes, no spaces")
        return value
