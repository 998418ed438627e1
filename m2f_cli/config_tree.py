"""The classes of the configuration's tree: what a preset may say, and what of it cannot be. No torch here.

Read through `config`, which has every name of this file: `from m2f_cli.config import Config`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Task = Literal["panoptic", "instance", "semantic"]


class Node(BaseModel):
    """A frozen record: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Component(BaseModel):
    """A named part of the network and the arguments of its constructor, such as {name: swin, embed_dim: 96, …}."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(description="a name of the group in plugins.py, or module:object")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class PilotingConfig(Node):
    """Mask-piloted training (MP-Former; facts 6.2 to 6.6). The defaults are those of the published script.

    Each target is given to the decoder `groups` times as a pilot query, which starts from its class and looks where it
    is. With `budget` the number of groups follows the batch: budget // (targets of the fullest picture).
    """

    groups: int | None = Field(None, ge=1, description="pilot queries per target (NUM_DN below 100)")
    budget: int | None = Field(None, ge=1, description="pilot queries per picture, at most (NUM_DN from 100 on)")
    mode: Literal["points"] = Field("points", description="the only published mode; the others are broken (facts 6.7)")
    mask_noise: float = Field(
        0.0, ge=0, description="cells of a mask flip with probability mask_noise x its share of the grid (NOISE_SCALE)"
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
        if self.layers != "all" and self.layers < 1:
            raise ValueError(f"layers is 'all' or at least 1, not {self.layers}")
        return self


class ModelConfig(Node):
    method: Literal["mask2former", "maskformer", "mpformer"]
    backbone: Component
    pixel_decoder: Component
    decoder: Component
    piloting: PilotingConfig | None = None

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
    std: tuple[float, float, float]


class ResizeConfig(Node):
    """The size at test time. Either short/max edge with the aspect kept, or a fixed height and width.

    resampling: "pillow" (bilinear that averages when it shrinks, detectron2's) or "opencv" (bilinear between four
        pixels, OpenMMLab's). They give visibly different pixels when a picture shrinks.
    """

    short_edge: int | None = Field(None, gt=0)
    max_edge: int | None = Field(None, gt=0)
    fixed: tuple[int, int] | None = Field(None, description="(height, width), aspect lost (transformers' processors)")
    resampling: Literal["pillow", "opencv"] = "pillow"

    @model_validator(mode="after")
    def _one_kind(self) -> ResizeConfig:
        if self.fixed and (self.short_edge or self.max_edge):
            raise ValueError("give either short_edge and max_edge, or fixed")
        return self


class TtaConfig(Node):
    """Test-time augmentation: the picture at several sizes, each as it is and (with flip) mirrored; scores averaged.

    Sizes are either short edges (with a limit on the long one) or factors, and they are applied to the picture `of`:
    as it is after the test resize, so that it is resized twice (detectron2, facts 2.2), or to the picture itself
    (OpenMMLab).
    """

    short_edges: tuple[int, ...] = ()
    max_edge: int | None = Field(None, gt=0)
    scales: tuple[float, ...] = ()
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

    crop: tuple[int, int]
    stride: tuple[int, int]

    @model_validator(mode="after")
    def _covers(self) -> SlideConfig:
        if any(not 0 < stride <= crop for crop, stride in zip(self.crop, self.stride, strict=True)):
            raise ValueError(f"the stride {self.stride} is from 1 to the crop {self.crop}, or pixels are left out")
        return self


class TestConfig(Node):
    """Inference as published.

    tasks: what the published model was switched on for. It decides the order of operations: a model for semantic
        alone resizes score maps, every other one resizes mask logits first (facts 5.1).
    only_sure_pixels: panoptic: a segment keeps only pixels where its own mask is at least half sure. MaskFormer's rule
        gives it all that it owns.
    semantic_scores: a class's score of a pixel: the sum of its queries' mask "probabilities", or of their "logits"
        (per-pixel baselines, whose queries are classes).
    """

    tasks: tuple[Task, ...]
    resize: ResizeConfig
    size_divisor: int = Field(ge=0, description="pictures are padded (bottom, right) to a multiple; 0 or 1: not at all")
    object_threshold: float = Field(ge=0, le=1, description="panoptic: least class probability of a query")
    overlap_threshold: float = Field(ge=0, le=1, description="panoptic: least share of a mask that must stay visible")
    top_k: int = Field(gt=0, description="instance: how many (query, class) pairs are kept")
    only_sure_pixels: bool = True
    semantic_scores: Literal["probabilities", "logits"] = "probabilities"
    tta: TtaConfig | None = None
    slide: SlideConfig | None = None


class ScenesConfig(Node):
    """Generated pictures (the data set `synthetic`): how many, how large (height, width), how hard."""

    train: int = Field(gt=0)
    val: int = Field(gt=0)
    size: tuple[int, int]
    objects: tuple[int, int] = Field(description="least and most objects in a scene")
    difficulty: float = Field(ge=0, le=1)


class DataConfig(Node):
    """`classes` names a table in m2f_cli/data/classes/ (or a YAML file); names and their number come from there."""

    dataset: str
    classes: str
    scenes: ScenesConfig | None = None
    ignore_index: int | None = Field(None, description="label maps: the pixel value that counts nowhere")
    label_map: dict[int, str | int | None] | None = Field(
        None, description="label maps: pixel value to class name or number, null for what counts nowhere"
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
    """One published figure. `verified` is False where reference/facts.md says UNVERIFIED."""

    metric: str
    value: float
    source: str
    setting: str = "single scale"
    verified: bool = True


class OptimizerConfig(Node):
    """AdamW, a group per kind of parameter (facts 2.1). Multipliers apply to `learning_rate`, decays are absolute."""

    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    norm_weight_decay: float = Field(ge=0, description="weights and biases of every norm layer")
    embedding_weight_decay: float = Field(ge=0, description="nn.Embedding weights and relative position bias tables")
    backbone_multiplier: float = Field(gt=0)
    clip_norm: float = Field(ge=0, description="global L2 norm of all gradients; 0 is off")


class ScheduleConfig(Node):
    """The learning rate's course. poly: (1 - it/iterations)^power; step: times gamma at each of `steps`."""

    name: Literal["poly", "step", "cosine", "constant"]
    power: float = 0.9
    floor: float = Field(0.0, ge=0, le=1, description="least share of the learning rate, after the warm-up")
    steps: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_iterations: int = Field(0, ge=0)
    warmup_factor: float = Field(1.0, gt=0, description="the first iteration's share of the learning rate; linear")


class LossConfig(Node):
    """Weights of the losses, which are also those of the matching costs (facts 4).

    masks: where masks are compared: at random "points" (Mask2Former), at all pixels ("full", MaskFormer), or not as
        masks at all: "per_pixel" is the cross entropy of each pixel's class, of which class_weight is the weight.
    mask_loss: what is weighed by mask_weight, beside dice.
    num_points, oversample_ratio, importance_ratio: of "points", and only of them.
    """

    masks: Literal["points", "full", "per_pixel"] = "points"
    mask_loss: Literal["bce", "focal"] = "bce"
    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object_weight: float
    num_points: int | None = Field(None, gt=0)
    oversample_ratio: float | None = Field(None, ge=1)
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

    iterations: int = Field(gt=0)
    batch: int = Field(gt=0)
    augment: tuple[Component, ...]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    precision: Literal["fp32", "bf16", "fp16"]
    hardware: str = ""
    drop_empty: bool
    group_by_aspect: bool
    eval_every: int = Field(ge=0, description="iterations; 0 is only at the end")
    checkpoint_every: int = Field(gt=0)
    seed: int = 0
    ema_decay: float = Field(0.0, ge=0, lt=1, description="0 is off")
    repeat_factor_threshold: float = Field(0.0, ge=0, description="LVIS repeat-factor sampling; 0 is off")
    class_weights: tuple[float, ...] = Field((), description="of the class loss, one per class; () is all 1")


class Config(Node):
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
