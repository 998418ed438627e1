"""The configuration: one frozen tree, read from YAML, complete and explicit. No torch here.

A preset is a YAML file that `extends` at most one other file and states the rest; a shipped preset extends exactly one
recipe (a YAML in presets/recipes/). Every number that identifies a model is in the file: the classes of the tree
(config_tree.py, all of them importable from here) have no defaults for those. How presets are named: presets/README.md.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .. import plugins
from ..errors import ConfigError, nearest, unknown_name
from ..runtime import documents
from .schema import (
    MOST_CLASSES,
    Component,
    Config,
    DataConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    Node,
    OptimizerConfig,
    PilotingConfig,
    Published,
    ResizeConfig,
    ScenesConfig,
    ScheduleConfig,
    SlideConfig,
    Task,
    TestConfig,
    TrainConfig,
    TtaConfig,
    WeightsSource,
)

__all__ = [
    "MOST_CLASSES",
    "Component",
    "Config",
    "DataConfig",
    "InputConfig",
    "LossConfig",
    "ModelConfig",
    "Node",
    "OptimizerConfig",
    "PilotingConfig",
    "Published",
    "ResizeConfig",
    "ScenesConfig",
    "ScheduleConfig",
    "SlideConfig",
    "Task",
    "TestConfig",
    "TrainConfig",
    "TtaConfig",
    "WeightsSource",
    "dump",
    "load",
    "merge",
    "overridden",
    "parse",
    "preset_names",
    "preset_path",
    "presets_dir",
    "read_yaml",
    "refuse_code",
]

_OF_ONE_ROW = ("name", "summary", "published")  # what is said of a preset is not true of another that extends it


# --- presets ----------------------------------------------------------------------------------------------------------


def presets_dir() -> Path:
    """The folder of the shipped presets: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "presets"
    return inside if inside.is_dir() else here.parent / "presets"


@functools.cache
def preset_names() -> tuple[str, ...]:
    """List the names of all shipped presets, sorted."""
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
    _override(tree, overrides)
    return parse(tree, str(path))


def overridden(base: Config, overrides: Sequence[str]) -> Config:
    """`base` with "key.path=value" pairs, as in `load`.

    Raises:
        ConfigError: unknown key, wrong value; the message says which.
    """
    tree = base.model_dump(mode="json", exclude_none=True)
    _override(tree, overrides)
    return parse(tree, base.name)


def parse(tree: Mapping[str, Any], where: str) -> Config:
    """Check a plain tree against the configuration's classes; `where` names it in error messages."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def refuse_code(settings: Config | ModelConfig, where: str) -> None:
    """Refuse a configuration of somebody else's that names code ("module:object"); nothing is imported.

    Args:
        settings: a whole configuration, or that of a network alone.
        where: what it came in, for the message.

    Raises:
        ConfigError: it names code.
    """
    model = settings.model if isinstance(settings, Config) else settings
    steps = settings.train.augment if isinstance(settings, Config) and settings.train else ()
    for part in (model.backbone, model.pixel_decoder, model.decoder, *steps):
        if ":" in part.name:
            raise plugins.names_code(where, part.name)


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


def read_yaml(path: Path, *, texts: Collection[str] = ()) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        texts: keys whose values are names, see `documents.parse_yaml`.

    Raises:
        ConfigError: missing, unreadable, not YAML, too large, or not a mapping.
    """
    tree = documents.read_yaml(path, texts=texts)
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


def _override(tree: dict[str, Any], pairs: Sequence[str]) -> None:
    exchanged: list[dict[str, Any]] = []  # components of which only the overrides say anything
    for pair in pairs:
        _override_one(tree, pair, exchanged)


def _override_one(tree: dict[str, Any], pair: str, exchanged: list[dict[str, Any]]) -> None:
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set takes key=value, not {pair!r}.", hint="For example: --set test.object_threshold=0.5")
    value = documents.parse_yaml(text, f"The value in --set {pair!r}")
    *parents, last = key.split(".")
    node: Any = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {key}: {name!r} is a value, it has no keys below it.")
    is_component = bool(parents) and "name" in node  # pydantic finds a misspelt key everywhere but here
    if is_component and last == "name" and value != node["name"]:
        node.clear()
        exchanged.append(node)
    is_known = is_component and not any(node is each for each in exchanged)
    close = nearest(last, node) if is_known and last not in node else []
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
