"""The classes of the configuration: each field with its bounds and a description. This module imports no torch.

What is of tests and of training has files of its own; all classes are imported from here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..errors import nearest
from .methods import methods
from .schema_base import LARGEST as LARGEST
from .schema_base import LARGEST_CANVAS as LARGEST_CANVAS
from .schema_base import LONGEST as LONGEST
from .schema_base import MOST_CLASSES as MOST_CLASSES
from .schema_base import MOST_PARAMETERS as MOST_PARAMETERS
from .schema_base import Component as Component
from .schema_base import Deviation, Node, Objects, SceneSide
from .schema_base import LoraConfig as LoraConfig
from .schema_base import Task as Task
from .schema_testing import ResizeConfig as ResizeConfig
from .schema_testing import SlideConfig as SlideConfig
from .schema_testing import TestConfig as TestConfig
from .schema_testing import TtaConfig as TtaConfig
from .schema_training import LayerDecayConfig as LayerDecayConfig
from .schema_training import LossConfig as LossConfig
from .schema_training import OptimizerConfig as OptimizerConfig
from .schema_training import ScheduleConfig as ScheduleConfig
from .schema_training import TrainConfig as TrainConfig


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
        if self.layers != "all" and not 1 <= self.layers <= LARGEST["num_layers"]:
            raise ValueError(f"layers is 'all' or at least 1 and at most {LARGEST['num_layers']}, not {self.layers}")
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

    method: str = Field(description="Method that the parts belong to, of presets/methods/table.yaml.")
    backbone: Component = Field(description="Network that turns an image into feature maps, and its options.")
    pixel_decoder: Component = Field(description="Part that turns feature maps into mask features, and its options.")
    decoder: Component = Field(description="Part that turns queries into classes and masks, and its options.")
    piloting: PilotingConfig | None = Field(None, description="Mask-piloted training. Null: without pilots.")

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in methods():
            close = nearest(name, methods())
            meant = f"did you mean {' or '.join(close)}" if close else f"known: {', '.join(methods())}"
            raise ValueError(f"there is no method named {name!r}; {meant}")
        return name

    @model_validator(mode="after")
    def _is_buildable(self) -> ModelConfig:
        count = sum(map(_least_parameters, (self.backbone, self.pixel_decoder, self.decoder)))
        if count > MOST_PARAMETERS:
            raise ValueError(f"the network has {count:,} parameters or more; {MOST_PARAMETERS:,} are possible")
        return self

    @model_validator(mode="after")
    def _lora_is_of_the_backbone(self) -> ModelConfig:
        wrong = next((name for name in ("pixel_decoder", "decoder") if getattr(self, name).lora is not None), None)
        if wrong is not None:
            raise ValueError(f"{wrong}.lora is set, but LoRA is for pretrained backbones: set backbone.lora")
        return self

    def without_lora(self) -> ModelConfig:
        """Return the network whose weights have the changes of LoRA in them."""
        if self.backbone.lora is None:
            return self
        return self.model_copy(update={"backbone": self.backbone.model_copy(update={"lora": None})})

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
    std: tuple[Deviation, Deviation, Deviation] = Field(
        description="Standard deviation of red, green and blue, each above 0."
    )


class ScenesConfig(Node):
    """Generated images (the data set `synthetic`)."""

    train: int = Field(gt=0, le=10_000_000, description="Number of images to train on.")
    val: int = Field(gt=0, le=10_000_000, description="Number of images to evaluate on.")
    size: tuple[SceneSide, SceneSide] = Field(description="Height and width of an image.")
    objects: tuple[Objects, Objects] = Field(description="Least and most objects in an image.")
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
    """A location of released weights: either a file (`url`) or a Hugging Face repository (`hub`).

    A file may lack the weights of the network that it was trained from (`kind`); those have a location of their own.
    """

    url: str | None = Field(None, description="Address of a file.")
    hub: str | None = Field(None, description="Hugging Face repository, as organisation/name.")
    file: str | None = Field(None, description="File of the repository. Null: the one that transformers would read.")
    kind: Literal["full", "delta", "decoder_only"] = Field(
        "full",
        description="full: all weights. delta: what the backbone's weights differ by from `base`, and all of the rest. "
        "decoder_only: all but those of the backbone, which are `base`.",
    )
    base: str | None = Field(
        None, description="Hugging Face repository of the backbone that delta and decoder_only need."
    )
    hash_prefix: str | None = Field(
        None, description="Start of the file's SHA-256 or MD5, which the publisher put into its name."
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of the file, or of the repository's one file of weights, where it is published.",
    )
    format: Literal["detectron2", "openmmlab", "huggingface", "m2f", "original"] = Field(
        description="Program that wrote them. original: the method's own code, which is none of the others."
    )
    licence: str = Field(description="Licence of the weights.")
    licence_verified: bool = Field(
        True,
        description="False where it was read in the repository of the code, and not beside the weights themselves.",
    )
    note: str | None = Field(None, description="What else a user should know.")

    @model_validator(mode="after")
    def _one_place(self) -> WeightsSource:
        if (self.url is None) == (self.hub is None):
            raise ValueError("give either url or hub")
        if self.file is not None and self.hub is None:
            raise ValueError("file is the name of a file in a repository: give hub, too")
        if (self.kind == "full") != (self.base is None):
            raise ValueError(f"kind is {self.kind} and base is {self.base}: base belongs to delta and decoder_only")
        return self


class Published(Node):
    """A published figure of the released weights."""

    metric: str = Field(description="Name of the figure, such as pq or miou.")
    value: float = Field(description="The figure as published; figures of quality in percent.")
    source: str = Field(description="Table that it stands in.")
    setting: str = Field("single scale", description="How it was measured, such as multi-scale + flip.")
    verified: bool = Field(True, description="False where docs/methods/published-behaviour.md says UNVERIFIED.")


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
    commercial_default: bool = Field(
        False, description="Whether it is the model of its task where --commercial asks for one."
    )

    @model_validator(mode="after")
    def _pilots_have_a_loss(self) -> Config:
        if self.train is not None and self.train.loss.masks == "per_pixel" and self.model.piloting is not None:
            raise ValueError("model.piloting is set, but train.loss.masks: per_pixel has no loss for pilots")
        return self

    @field_validator("name")
    @classmethod
    def _name_is_a_stem(cls, value: str) -> str:
        if not value or any(c in value for c in "/\\ "):
            raise ValueError("a name is a file stem: no slashes, no spaces")
        return value
