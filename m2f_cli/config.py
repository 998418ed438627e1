"""The configuration: one frozen tree, read from YAML, complete and explicit. No torch here.

A preset is a YAML file that `extends` at most one other file and states the rest; a shipped preset extends exactly one
recipe (a YAML in presets/recipes/). Every number that identifies a model is in the file: the classes below have no
defaults for those. How presets are named: presets/README.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError, nearest, unknown_name

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C, where PyYAML has it: all presets in 0.04 s, not 0.19 s
_OF_ONE_ROW = ("name", "summary", "published")  # what is said of a preset is not true of another that extends it
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


class ModelConfig(Node):
    method: Literal["mask2former", "maskformer", "mpformer"]
    backbone: Component
    pixel_decoder: Component
    decoder: Component


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


class TestConfig(Node):
    """Inference as published.

    tasks: what the published model was switched on for. It decides the order of operations: a model for semantic
        alone resizes score maps, every other one resizes mask logits first (facts 5.1).
    """

    tasks: tuple[Task, ...]
    resize: ResizeConfig
    size_divisor: int = Field(ge=0, description="pictures are padded (bottom, right) to a multiple; 0 or 1: not at all")
    object_threshold: float = Field(ge=0, le=1, description="panoptic: least class probability of a query")
    overlap_threshold: float = Field(ge=0, le=1, description="panoptic: least share of a mask that must stay visible")
    top_k: int = Field(gt=0, description="instance: how many (query, class) pairs are kept")


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
    """Weights of the losses, which are also those of the matching costs (facts 4)."""

    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object_weight: float
    num_points: int = Field(gt=0)
    oversample_ratio: float = Field(ge=1)
    importance_ratio: float = Field(ge=0, le=1)


class TrainConfig(Node):
    """Training as published, for the published batch; fewer GPUs accumulate gradients to reach it.

    augment: the steps in order; each is a name of the group "transforms" and its options.
    batch: pictures per optimiser step over all processes.
    precision: of the forward pass; the pixel decoder, costs and losses are fp32 in any case.
    drop_empty: leave out pictures without an annotated (non-crowd) object.
    """

    iterations: int = Field(gt=0)
    batch: int = Field(gt=0)
    augment: tuple[Component, ...]
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loss: LossConfig
    precision: Literal["fp32", "bf16", "fp16"]
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


# --- presets ----------------------------------------------------------------------------------------------------------


def presets_dir() -> Path:
    """The folder of the shipped presets: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "presets"
    return inside if inside.is_dir() else here.parent / "presets"


@functools.cache
def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in presets_dir().glob("*.yaml")))


def preset_path(name: str) -> Path:
    """The file of a shipped preset.

    Raises:
        ConfigError: there is none of that name; the nearest names are in the message.
    """
    path = presets_dir() / f"{name}.yaml"
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    return path


def load(ref: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a preset (by name) or a YAML file (by path) into a checked `Config`.

    Args:
        ref: a preset's name, or a path that ends in .yaml or .yml.
        overrides: "key.path=value" pairs, the values in YAML; they win over the file.

    Raises:
        ConfigError: unknown name, unreadable file, unknown key, wrong value; the message says which.
    """
    is_file = str(ref).endswith((".yaml", ".yml"))
    path = Path(ref) if is_file else preset_path(str(ref))
    tree = _read_with_base(path)
    tree.setdefault("name", path.stem)
    for pair in overrides:
        _override(tree, pair)
    return parse(tree, str(path))


def parse(tree: Mapping[str, Any], where: str) -> Config:
    """Check a plain tree against the configuration's classes; `where` names it in error messages."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: lists of plain values in one line."""

    def represent_list(self, values: list[Any]) -> yaml.Node:
        plain = not any(isinstance(value, (list, dict)) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)


def dump(config: Config, *, named: bool = True) -> str:
    """The resolved configuration as YAML; `load` reads it back to an equal `Config`.

    Args:
        named: whether the name is written. Without it, the stem of the file is the name.
    """
    tree = config.model_dump(mode="json", exclude_none=True, exclude=None if named else {"name"})
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: missing, unreadable, not YAML, or not a mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} should hold a mapping of keys to values, not {type(tree).__name__}.")
    return tree


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` over `base`, mappings merged key by key, everything else replaced.

    A mapping with another `name` replaces the one below: the options of one component are no options of another.
    """
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        same_kind = isinstance(below, Mapping) and isinstance(value, Mapping)
        if same_kind and ("name" not in value or value["name"] == below.get("name")):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    tree = read_yaml(path)
    base_name = tree.pop("extends", None)
    if base_name is None:
        return tree
    if path.parent.name == "recipes":
        raise ConfigError(f"{path}: a recipe stands for itself and cannot extend another.")
    base = _find_base(path, base_name)
    if base.resolve() in [p.resolve() for p in (*above, path)]:
        raise ConfigError(f"{path}: extends {base_name!r}, which extends this file again.")
    below = _read_with_base(base, (*above, path))
    return merge({key: value for key, value in below.items() if key not in _OF_ONE_ROW}, tree)


def _find_base(path: Path, name: Any) -> Path:
    if not isinstance(name, str):
        raise ConfigError(f"{path}: extends takes the name of one recipe, preset or file, not {name!r}.")
    candidates = [path.parent / f"{name}.yaml", path.parent / name, presets_dir() / f"{name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = [f"recipes/{p.stem}" for p in (presets_dir() / "recipes").glob("*.yaml")] + list(preset_names())
    raise unknown_name(f"recipe (that {path.name} extends)", name, known)


def _override(tree: dict[str, Any], pair: str) -> None:
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, not {pair!r}.", hint="For example: --set test.object_threshold=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in --set {pair!r} is not valid YAML.") from error
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {name!r} is a value, it has no keys below it.")
    is_component = bool(parents) and "name" in node  # pydantic finds a misspelt key everywhere but here
    if is_component and last == "name" and value != node["name"]:
        node.clear()
    close = nearest(last, node) if is_component and last not in node else []
    if close:
        raise ConfigError(f"--set {key}: there is no such key.", hint=f"Did you mean {' or '.join(close)}?")
    node[last] = value


def _explain(error: ValidationError) -> str:
    first, *rest = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(rest)} more)" if rest else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        close = nearest(str(first["loc"][-1]), known)
        meant = f" Did you mean {' or '.join(close)}?" if close else f" Known: {', '.join(known)}."
        return f"unknown key {key!r}.{meant}{more}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing.{more}"
    if first["type"] == "value_error":
        return f"{key}: {first['ctx']['error']}.{more}"
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}.{more}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Config
    for part in location:
        annotation = model.model_fields[part].annotation if isinstance(part, str) else model
        model = next((a for a in getattr(annotation, "__args__", ()) if isinstance(a, type)), annotation)
    return list(getattr(model, "model_fields", {}))
