"""Read presets and configuration files into one frozen tree. This module imports no torch.

A configuration `extends` other files and states the rest. A shipped preset extends a recipe (presets/recipes/) and a
backbone (presets/backbones/). The files state every number that identifies a model: the classes of schema.py have no
defaults for those. presets/README.md has the names, and the order in which files win.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from .. import plugins
from ..errors import ConfigError, nearest, unknown_name
from ..runtime import documents
from .schema import Config, ModelConfig
from .shipped import preset_names as preset_names
from .shipped import presets_dir as presets_dir

MOST_FILES = 50  # files that one configuration extends, directly or not
_NOT_INHERITED = ("name", "summary", "published", "commercial_default")  # keys that are true of one preset alone


# --- presets ----------------------------------------------------------------------------------------------------------


def preset_path(name: str) -> Path:
    """Return the file of a shipped preset.

    Raises:
        ConfigError: no preset has that name. The message has the nearest names.
    """
    path = presets_dir() / f"{name}.yaml"
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    return path


def load(ref: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a preset (by name) or a YAML file (by path) into a checked `Config`.

    Args:
        ref: a preset's name, or a path that ends in .yaml or .yml.
        overrides: "key.path=value" pairs, with values in YAML. They win over the file.

    Raises:
        ConfigError: an unknown name, an unreadable file, an unknown key or a wrong value. The message says which.
    """
    is_file = str(ref).endswith((".yaml", ".yml"))
    path = Path(ref) if is_file else preset_path(str(ref))
    tree = _resolve(path, (), {})
    tree.setdefault("name", path.stem)
    _override(tree, overrides)
    return parse(tree, str(path))


def overridden(base: Config, overrides: Sequence[str]) -> Config:
    """Return `base` with "key.path=value" pairs applied, as in `load`.

    Raises:
        ConfigError: an unknown key or a wrong value. The message says which.
    """
    tree = base.model_dump(mode="json", exclude_none=True)
    _override(tree, overrides)
    return parse(tree, base.name)


def parse(tree: Mapping[str, Any], where: str) -> Config:
    """Check a plain tree against the classes of the configuration.

    Args:
        where: the source of the tree, for error messages.

    Raises:
        ConfigError: an unknown key, a missing key or a wrong value.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error


def refuse_code(settings: Config | ModelConfig, where: str) -> None:
    """Refuse an untrusted configuration that names code ("module:object"). Nothing is imported.

    Args:
        settings: a whole configuration, or that of a network alone.
        where: the source of the configuration, for error messages.

    Raises:
        ConfigError: the configuration names code.
    """
    model = settings.model if isinstance(settings, Config) else settings
    steps = settings.train.augment if isinstance(settings, Config) and settings.train else ()
    for part in (model.backbone, model.pixel_decoder, model.decoder, *steps):
        if ":" in part.name:
            raise plugins.names_code(where, part.name)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no types
    """A YAML dumper that writes lists of plain values in one line."""

    def represent_list(self, values: list[Any]) -> yaml.Node:
        plain = not any(isinstance(value, (list, dict)) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


_Dumper.add_representer(list, _Dumper.represent_list)


def dump(config: Config, *, named: bool = True) -> str:
    """Return the resolved configuration as YAML. `load` reads it back to an equal `Config`.

    Args:
        named: write the name. Without it, the stem of the file is the name.
    """
    tree = config.model_dump(mode="json", exclude_none=True, exclude=None if named else {"name"})
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys whose values differ, such as train.batch, each with both values. None: the key is not there."""
    old, new = (dict(_flat(each.model_dump(mode="json", exclude_none=True), "")) for each in (before, after))
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _flat(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def read_yaml(path: Path, *, texts: Collection[str] = ()) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        texts: keys whose values are names, see `documents.parse_yaml`.

    Raises:
        ConfigError: the file is missing, unreadable, no YAML, too large, or no mapping.
    """
    tree = documents.read_yaml(path, texts=texts)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} should hold a mapping of keys to values, not {type(tree).__name__}.")
    return tree


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `top` merged over `base`. Mappings are merged key by key, everything else is replaced.

    A mapping with another `name` replaces the one below, because components do not share options.
    """
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and _is_same_part(below, value):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _is_same_part(below: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    return "name" not in top or bool(top["name"] == below.get("name"))


def backbone_of(name: str) -> str | None:
    """Return the name of the file in backbones/ that a shipped preset extends, or None."""
    if name not in preset_names():
        return None
    path = preset_path(name)
    bases = _bases(path, read_yaml(path))
    return next((base.removeprefix("backbones/") for base in bases[::-1] if base.startswith("backbones/")), None)


def _resolve(path: Path, above: tuple[Path, ...], done: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Return the tree of a file, merged over the files that it extends.

    Args:
        above: the files that extend this one, by their real paths.
        done: the trees that are resolved already. A file that several others extend is read once.
    """
    if path in done:
        return done[path]
    if len(above) + len(done) >= MOST_FILES:
        raise ConfigError(f"{above[0]}: extends more than {MOST_FILES} files.")
    tree = read_yaml(path)
    below: dict[str, Any] = {}
    here = (*above, path.resolve())
    for name in _bases(path, tree):
        base = _find_base(path, name)
        if base.resolve() in here:
            raise ConfigError(f"{path}: extends {name!r}, which extends this file again.")
        inherited = {key: value for key, value in _resolve(base, here, done).items() if key not in _NOT_INHERITED}
        if base.parent.name == "backbones":
            below = _without_backbone(below)
        below = _layered(below, inherited)
    tree.pop("extends", None)
    done[path] = _layered(below, tree)
    _refuse_two_lengths(_train_keys(tree), done[path], str(path))
    return done[path]


def _layered(below: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `top` merged over `below`. Iterations in `top` replace epochs in `below`."""
    merged, said = merge(below, top), _train_keys(top)
    if "iterations" in said and "epochs" not in said:
        merged["train"].pop("epochs", None)
    return merged


def _train_keys(tree: Mapping[str, Any]) -> set[str]:
    """Return the keys that a tree sets in its train section, and "schedule.steps" if it sets those."""
    train = tree.get("train")
    if not isinstance(train, Mapping):
        return set()
    schedule = train.get("schedule")
    has_steps = isinstance(schedule, Mapping) and bool(schedule.get("steps"))
    return {*train, *(["schedule.steps"] if has_steps else [])}


def _refuse_two_lengths(said: Collection[str], merged: Mapping[str, Any], where: str) -> None:
    """Refuse what contradicts train.epochs in one file or on one command line.

    Args:
        said: keys of the train section that are set there.
        merged: the tree after that.

    Raises:
        ConfigError: both lengths are set, or steps of the schedule for an unknown number of iterations.
    """
    train = merged.get("train")
    if not isinstance(train, Mapping) or train.get("epochs") is None:
        return
    epochs = train["epochs"]
    if "iterations" in said and "epochs" in said:
        raise ConfigError(
            f"{where}: train.epochs = {epochs} and train.iterations = {train['iterations']} are both set.",
            hint="Set one of them: epochs are computed into iterations.",
        )
    if "schedule.steps" in said:
        raise ConfigError(
            f"{where}: train.schedule.steps counts iterations, whose number train.epochs = {epochs} leaves open.",
            hint="Set train.iterations in place of train.epochs.",
        )


def _without_backbone(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree without its backbone, and without weights, which would not fit another one."""
    kept = {key: value for key, value in tree.items() if key != "weights"}
    if isinstance(kept.get("model"), dict):
        kept["model"] = {key: value for key, value in kept["model"].items() if key != "backbone"}
    return kept


def _bases(path: Path, tree: Mapping[str, Any]) -> list[str]:
    extends = tree.get("extends")
    names = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: extends takes names of recipes, backbones, presets or files, not {extends!r}.")
    return names


def _find_base(path: Path, name: str) -> Path:
    shipped = presets_dir()
    for candidate in (path.parent / f"{name}.yaml", path.parent / name, shipped / f"{name}.yaml"):
        if os.path.isfile(candidate):  # False for names too long for the file system, where Path.is_file raises
            return candidate
    parts = [f"{kind}/{file.stem}" for kind in ("recipes", "backbones") for file in (shipped / kind).glob("*.yaml")]
    raise unknown_name(f"recipe, backbone or preset (that {path.name} extends)", name, [*parts, *preset_names()])


def _override(tree: dict[str, Any], pairs: Sequence[str]) -> None:
    exchanged: list[dict[str, Any]] = []  # components whose options come from the overrides alone
    for pair in pairs:
        _override_one(tree, pair, exchanged)
    said = {pair.partition("=")[0].removeprefix("train.") for pair in pairs if pair.startswith("train.")}
    if "iterations" in said and "epochs" not in said:
        tree["train"].pop("epochs", None)
    _refuse_two_lengths(said, tree, "--set")


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
