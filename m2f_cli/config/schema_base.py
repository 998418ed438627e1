"""Bounds, frozen records and named parts: the base of the configuration's classes. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Task = Literal["panoptic", "instance", "semantic"]

# Bounds are about ten times the usual values, because the file of a stranger must not ask for terabytes or years.
LARGEST_SIDE = 65_536  # pixels, of an image that is resized with its aspect kept
LARGEST_CANVAS = 16_384  # pixels, of a crop or a padded image, whose memory is the square of it
MOST_CLASSES = 100_000
LONGEST = 1_000_000_000  # iterations
MOST_PARAMETERS = 5_000_000_000  # of a network; the largest published one has 0.2
_MOST_OPTIONS = 1000  # entries of a list in an option of a component
LONGEST_TEXT = 10_000
_LARGEST_NUMBER = 2**63
LARGEST: dict[str, float] = {  # option of a component → its largest value; the least is 0
    "num_layers": 200,
    "depths": 500,
    "layers": 500,
    "depth": 500,
    "num_blocks": 200,
    "first_block": 500,
    "drop_path": 0.99,
    **dict.fromkeys(("drop_rate", "drop_path_rate", "drop_block_rate", "attn_drop_rate"), 0.99),  # of timm
    **dict.fromkeys(("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "dropout"), 0.99),
    "num_heads": 1024,
    "anneal_power": 100,
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

Side = Annotated[int, Field(le=LARGEST_SIDE)]
Iteration = Annotated[int, Field(le=LONGEST)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Objects = Annotated[int, Field(le=1000)]
SceneSide = Annotated[int, Field(le=4096)]
Deviation = Annotated[float, Field(gt=0)]
Canvas = Annotated[int, Field(le=LARGEST_CANVAS)]


class Node(BaseModel):
    """A frozen record. Unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class LoraConfig(Node):
    """LoRA of a backbone (Hu et al. 2021): weights W become W + alpha / rank · B A, of which B and A are trained."""

    rank: int = Field(ge=1, le=LARGEST["dim"], description="Rows of A and columns of B; 4 to 32 are usual.")
    alpha: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Size of the change. Null: the rank, so that its factor is 1 and does not depend on the rank.",
    )
    targets: tuple[Literal["q", "k", "v", "proj", "mlp"], ...] = Field(
        ("q", "v"),
        min_length=1,
        max_length=5,
        description="Layers that change: projections of queries, keys and values, of what was attended, and the MLPs.",
    )

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Component(BaseModel):
    """A named part and the arguments of its constructor, such as {name: swin, embed_dim: 96, …}."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = Field(max_length=LONGEST_TEXT, description="A name of its group in plugins.py, or module:object.")
    lora: LoraConfig | None = Field(None, description="LoRA, for backbones alone. Null: none.")

    @model_validator(mode="after")
    def _is_bounded(self) -> Component:
        for key, value in self.options.items():
            _refuse_huge(key, value)
        return self

    @model_serializer(mode="wrap")
    def _with_null_options(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep options that are null where those of other parts of the tree are left out: a default may differ."""
        tree: dict[str, Any] = serialize(self)
        return tree | {key: None for key, value in self.options.items() if value is None}

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return dict(self.model_extra or {})


def _refuse_huge(key: str, value: Any, depth: int = 0) -> None:
    """Refuse numbers, lists, texts and keys that no part of a network takes."""
    if isinstance(value, Mapping) and (others := [each for each in value if not isinstance(each, str)]):
        raise ValueError(f"{key} has the key {others[0]!r}, where names are needed")
    if isinstance(value, (list, tuple, Mapping)):
        if len(value) > _MOST_OPTIONS or depth > 4:
            raise ValueError(f"{key} has {len(value):,} entries, or entries of entries, more than any part takes")
        for each in value.values() if isinstance(value, Mapping) else value:
            _refuse_huge(key, each, depth + 1)
        if key == "depths" and sum(each for each in value if isinstance(each, int)) > LARGEST["depth"]:
            raise ValueError(f"depths has more than {LARGEST['depth']:,} blocks in all")
    elif isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"{key} is a text of {len(value):,} characters")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        least, most = (0, LARGEST[key]) if key in LARGEST else (-_LARGEST_NUMBER, _LARGEST_NUMBER)
        if not least <= value <= most:
            shown = f"{value:.3g}" if isinstance(value, float) or abs(value) > 10**15 else f"{value:,}"
            raise ValueError(f"{key} = {shown}, where {least:,} to {most:,} is possible")
