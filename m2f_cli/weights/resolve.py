"""Resolution of a reference (REF of the command line) to weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import presets as config
from ..config.run_folder import BEST, CHECKPOINTS, LAST
from ..config.schema import Config, WeightsSource
from ..errors import M2FError, WeightsError, about, nearest, unknown_name
from . import hub, huggingface
from . import readers as containers
from .base_encoder import completed
from .checkpoint import Checkpoint, from_container, is_ours
from .download import Progress, download, file_hashes, refuse_other_content
from .infer_config import infer, same_network
from .key_mapping import OurView, Table, unwrapped
from .key_tables import MARKS, TABLES

_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin", ".ckpt", ".json", ".yaml", ".yml", ".onnx")
_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def load(ref: str | Path, *, progress: Progress | None = None, trust_code: bool = False) -> Checkpoint:
    """Find, fetch and read weights, without the tensors that a file does not store (`Checkpoint.base`).

    Args:
        ref: a preset's name (its released weights), a run's folder, a file or folder of weights (m2f, transformers,
            detectron2, OpenMMLab), or a Hugging Face repository "organisation/name". A preset's name wins over a file
            of that name; write ./name for the file.
        progress: called repeatedly during downloads.
        trust_code: True if a configuration inside a checkpoint may name code of its own.

    Raises:
        WeightsError: nothing has that name, there is no network, a file is damaged or unsafe, or m2f does not have the
            network.
        ConfigError: the checkpoint names code and `trust_code` is false.
    """
    check_reference(ref)
    text = str(ref)
    if isinstance(ref, str) and text in config.preset_names():
        return _load_preset(text, progress, trust_code)
    path = containers.path_of(text)
    if path.is_dir():
        return _load_folder(path, trust_code)
    return _load_file(path, trust_code, progress) if path.exists() else _load_repo(text, progress)


def check_reference(ref: str | Path) -> None:
    """Refuse a reference that `load` cannot find. Nothing is read or fetched, so a repository may still not exist.

    Raises:
        WeightsError: nothing has that name.
    """
    text, is_name, path = str(ref), isinstance(ref, str), containers.path_of(ref)
    is_repo = is_name and _REPO.fullmatch(text) is not None and not _means_a_path(text)
    if not (is_name and text in config.preset_names()) and not path.exists() and not is_repo:
        raise _nothing_there(text)


def _means_a_path(text: str) -> bool:
    parent = Path(text).parent
    return text.lower().endswith(_SUFFIXES) or text.startswith(".") or parent.name == "runs" or parent.is_dir()


def _nothing_there(text: str) -> M2FError:
    if "://" in text:
        return WeightsError(f"m2f does not fetch addresses: {text!r}.", hint="Download the file and give its path.")
    if "/" not in text and "\\" not in text and not text.lower().endswith(_SUFFIXES):
        error = unknown_name("model", text, config.preset_names(), error=WeightsError)
        error.hint = f"{error.hint} A file, a folder or a Hugging Face repository (organisation/name) will do, too."
        return error
    path = containers.path_of(text)
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = nearest(path.name, beside)
    if close:
        hint = f"Did you mean {' or '.join(str(path.parent / name) for name in close)}?"
    elif not path.parent.is_dir():
        hint = f"The folder {path.parent} does not exist either."
    else:
        hint = "Check the path; `m2f presets list` shows the names of released weights."
    return WeightsError(f"There is no file or folder {text!r}.", hint=hint)


# --- presets and repositories -----------------------------------------------------------------------------------------


def _load_preset(name: str, progress: Progress | None, trust_code: bool) -> Checkpoint:
    preset = config.load(name)
    if not preset.weights:
        hint = "Train it, or choose another: m2f presets list"
        raise WeightsError(f"Nobody has released weights of the preset {name!r}.", hint=hint)
    first, *others = preset.weights
    try:
        checkpoint = _load_source(first, progress, trust_code)
    except WeightsError as error:
        if others:
            addresses = " or ".join(str(source.hub or source.url) for source in others)
            error.hint = f"{error.hint or ''} The same weights are also released as {addresses}.".strip()
        raise
    checkpoint.source = f"{name} ({first.hub or first.url})"
    return _as_preset(checkpoint, preset)


def _load_source(source: WeightsSource, progress: Progress | None, trust_code: bool) -> Checkpoint:
    if source.hub:
        return _of_repo(source.hub, source, progress)
    published = source.sha256 or source.hash_prefix
    return _load_file(download(str(source.url), hash_prefix=published, progress=progress), trust_code)


def _of_repo(repo: str, stated: WeightsSource | None, progress: Progress | None) -> Checkpoint:
    """Read a repository, whose weights must be those that a preset states, wherever the copy comes from."""
    is_file_alone = stated is not None and stated.file is not None
    options = {"needs_config": False} if is_file_alone else {}
    folder = hub.fetch_repo(repo, progress=progress, **options)
    weights = next((folder / name for name in hub.WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is not None:
        refuse_other_content(weights, stated and stated.sha256)
    if is_file_alone and weights is not None:
        return _load_file(weights, trust_code=False, progress=progress, base=stated and stated.base)
    return huggingface.read_folder(folder, repo)


def _load_repo(repo: str, progress: Progress | None) -> Checkpoint:
    named = ((preset, source) for preset in shipped_presets().values() for source in preset.weights)
    preset, stated = next(((preset, source) for preset, source in named if source.hub == repo), (None, None))
    checkpoint = _of_repo(repo, stated, progress)
    return (
        checkpoint
        if preset is None or not same_network(checkpoint.model, preset.model)
        else _as_preset(checkpoint, preset)
    )


def _as_preset(checkpoint: Checkpoint, preset: Config) -> Checkpoint:
    """Give a checkpoint the configuration of the preset whose weights it holds, which says more than the file."""
    checkpoint.config, checkpoint.model, checkpoint.notes = preset, preset.model, []
    return checkpoint


@functools.cache
def shipped_presets() -> Mapping[str, Config]:
    return {name: config.load(name) for name in config.preset_names()}


# --- files and folders ------------------------------------------------------------------------------------------------


def _load_folder(folder: Path, trust_code: bool) -> Checkpoint:
    if (folder / "config.json").is_file():
        return huggingface.read_folder(folder, str(folder))
    for name in (BEST, LAST):
        for path in (folder / CHECKPOINTS / name, folder / name):
            if path.is_file():
                return _load_file(path, trust_code)
    if (folder / CHECKPOINTS).is_dir():
        raise WeightsError(f"The run {folder} has no {BEST} and no {LAST} in its {CHECKPOINTS}/ yet.")
    raise WeightsError(
        f"The folder {folder} holds no weights that m2f knows.",
        hint="It looks for config.json (transformers) or checkpoints/best.safetensors (a run). Or give the file.",
    )


def _load_file(path: Path, trust_code: bool, progress: Progress | None = None, base: str | None = None) -> Checkpoint:
    container = containers.read(path)
    if is_ours(container):
        return from_container(container, str(path), trust_code=trust_code)
    with about(path):
        tensors, notes = unwrapped(container.tensors, MARKS)
        tensors = completed(tensors, path, progress, base)
        table = _table_of(tensors, path)
        model, assumed = infer(OurView(table, tensors))
    checkpoint = Checkpoint(str(path), table.format, tensors, model, notes=[*container.notes, *notes, *assumed])
    checkpoint.class_names = _class_names(container.extra)
    preset = _released_as(path, checkpoint)
    return checkpoint if preset is None else _as_preset(checkpoint, preset)


def _table_of(tensors: Mapping[str, Tensor], path: Path) -> Table:
    for table in TABLES.values():
        if table.recognises(tensors):
            return table
    present = [name.removeprefix("module.") for name in tensors]
    if any(name.startswith(("patch_embed.", "layers.0.blocks.", "layer1.0.", "stem.conv1")) for name in present):
        raise WeightsError(f"{path} holds a backbone alone, such as ImageNet weights, and no whole model.")
    raise WeightsError(
        f"The names in {path} are of no format that m2f knows: {', '.join(present[:3])}, …",
        hint=f'It knows {", ".join(TABLES)}, also behind a common prefix such as "model.".',
    )


def _class_names(extra: Mapping[str, Any]) -> list[str] | None:
    """Return the class names in an OpenMMLab file: meta.dataset_meta.classes, or meta.CLASSES before mmengine."""
    meta = extra.get("meta")
    if not isinstance(meta, Mapping):
        return None
    described = meta.get("dataset_meta")
    described = described if isinstance(described, Mapping) else meta
    names = described.get("classes", described.get("CLASSES"))
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if is_list and names else None


def _released_as(path: Path, checkpoint: Checkpoint) -> Config | None:
    """Return the preset whose released weights a file holds, by its name or else by its hash.

    A name is conclusive only if it contains a hash, because every detectron2 training ends with a `model_final.pth`.
    """
    released = [
        (p, s)
        for p in shipped_presets().values()
        for s in p.weights
        if s.url and same_network(p.model, checkpoint.model)
    ]
    by_name = next((p for p, s in released if s.hash_prefix and str(s.url).rsplit("/", 1)[-1] == path.name), None)
    if by_name is not None or not released:
        return by_name
    hashes = file_hashes(path)
    return next((p for p, s in released if s.hash_prefix and any(h.startswith(s.hash_prefix) for h in hashes)), None)
