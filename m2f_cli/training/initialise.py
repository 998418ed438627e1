"""Initial weights of training: those of another model (`--init REF`), or ImageNet weights of the backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import weights
from ..config.schema import Config
from ..errors import WeightsError
from ..inference.load_network import fold_name
from ..model import MaskClassifier
from ..structures.categories import Categories, load_categories
from ..weights import Checkpoint, Progress
from ..weights.key_mapping import OurView, Shape
from ..weights.key_tables import TABLES
from ..weights.low_rank import without_changes
from ..weights.pretrained import load_alone, load_backbone, without_counters
from .store import Origin

POSITIONS, LABELS = "decoder.query_embed.weight", "decoder.label_embed.weight"
QUERIES = ("decoder.query_feat.weight", POSITIONS)
CLASS_HEAD = ("decoder.class_embed.weight", "decoder.class_embed.bias")
PIXEL_HEAD = ("decoder.classifier.weight", "decoder.classifier.bias")  # per-pixel baselines: without "no object"
# Mask2Former alone has the first, MP-Former the second (docs/methods/published-behaviour.md#10, trap 1). Each has two
# notes: for a network that wants them, and for a file that has them.
_ONE_SIDED = {
    POSITIONS: (
        "The file has no positions of queries, as MP-Former has none: they start fresh, and until they are trained "
        "the network is worse than the file's.",
        "The file's positions of queries are left behind, as MP-Former has none: until it is trained the network is "
        "worse than the file's.",
    ),
    LABELS: (
        "The file has no embeddings of classes for pilot queries, which only MP-Former has: they start fresh.",
        "The file's embeddings of classes for pilot queries are left behind: only MP-Former has them.",
    ),
}
Rows = list[tuple[int, int]]  # (row of the network, row of the file)


@dataclass
class InitReport:
    """Report about the initial weights of a network.

    Attributes:
        source: origin of the weights, or "" for none.
        notes: differences between file and network and their consequences, a sentence each, for people.
        loaded: number of tensors that took at least one row from the file.
        fresh: names of tensors of which at least one row keeps its random numbers.
        origin: where the others come from. None: there are none.
    """

    source: str
    notes: list[str]
    loaded: int
    fresh: list[str]
    origin: Origin | None = None


def initialise(
    model: MaskClassifier,
    config: Config,
    categories: Categories,
    *,
    init: str | Path | None = None,
    progress: Progress | None = None,
    strict_classes: bool = False,
    resize_windows: bool = False,
    partial: bool = False,
) -> InitReport:
    """Fill a new network with its initial weights. On an error it stays unchanged.

    With `init`, all tensors of the file are used. Only these may differ, and start fresh if the file lacks them:

    * classes: rows of equal names are taken (in any case, with spaces, "-" or "_"), and the row of "no object";
    * the number of queries: the first ones are taken;
    * tensors that MP-Former has and Mask2Former does not, or the reverse.

    Without `init`, the backbone gets the weights that the configuration names as its `pretrained`.

    Args:
        model: network with memory of its own, as `model.build` returns it for `config`.
        categories: the classes that it is trained on.
        init: a reference as for `weights.load`, or weights of a backbone alone (a file or a name of
            `weights.pretrained.SOURCES`).
        strict_classes: refuse a file of other classes.
        resize_windows: option for weights of a backbone alone, see `weights.pretrained.load_backbone`.
        partial: allow a file of a backbone alone to lack tensors, which start fresh.

    Raises:
        WeightsError: the weights are missing, damaged, or do not fit. The message lists the tensors that do not fit.
        ConfigError: the backbone's `pretrained` is an unknown name.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in without_changes(model.state_dict()).items()}
    backbone = config.model.backbone
    if init is not None:
        alone = load_alone(init, shapes, resize_windows=resize_windows, partial=partial, progress=progress)
        if alone is None:
            # Trusted, because no code of the checkpoint is run: its tensors go into a network that exists already.
            checkpoint = weights.load(init, progress=progress, trust_code=True)
            report = _from_checkpoint(model, shapes, config, categories, checkpoint, strict_classes)
            return _with_origin(report, model, "init", _reference(checkpoint, init))
        return _from_backbone(model, alone, "init", str(init))
    if backbone.options.get("pretrained") is None:
        return InitReport("", ["No weights are named: the whole network starts fresh."], 0, list(shapes))
    state = load_backbone(backbone, shapes, resize_windows=resize_windows, progress=progress)
    return _from_backbone(model, state, "pretrained", str(backbone.options["pretrained"]))


def _from_backbone(model: MaskClassifier, state: Mapping[str, Tensor], kind: str, source: str) -> InitReport:
    notes = [f"The backbone takes the weights of {source}; everything else starts fresh."]
    norms = [name for name in without_changes(model.state_dict()) if name.startswith("backbone.") and name not in state]
    if norms:
        notes.append(f"{len(norms)} tensors of the backbone are not in that file and start fresh: {_some(norms)}.")
    return _with_origin(_fill(model, state, {}, source, notes), model, kind, source)


def _with_origin(report: InitReport, model: MaskClassifier, kind: str, reference: str) -> InitReport:
    names = tuple(name for name in without_changes(model.state_dict()) if name not in {*report.fresh})
    return dataclasses.replace(report, origin=Origin.of(kind, reference, names))


def _reference(checkpoint: Checkpoint, init: str | Path) -> str:
    """Return the file of a run or a folder that was read, or the reference itself if it is a name."""
    return checkpoint.source if Path(checkpoint.source).is_file() else str(init)


# --- a whole checkpoint -----------------------------------------------------------------------------------------------


def _from_checkpoint(
    model: MaskClassifier,
    shapes: Mapping[str, Shape],
    config: Config,
    categories: Categories,
    checkpoint: Checkpoint,
    strict_classes: bool,
) -> InitReport:
    _refuse_other_heads(checkpoint, config)
    if checkpoint.format == "m2f":
        checkpoint = dataclasses.replace(checkpoint, tensors=without_counters(checkpoint.tensors, shapes))
    view = OurView(TABLES[checkpoint.format], checkpoint.tensors)
    try:
        state = checkpoint.state_for(_expected(view, shapes))
    except WeightsError as error:
        differences = "Only classes, the number of queries and Mask2Former against MP-Former may differ"
        error.hint = f"{differences} between {checkpoint.source} and the network of {config.name}. {error.hint or ''}"
        raise
    notes: list[str] = []
    rows = _class_rows(checkpoint, categories, strict_classes, notes)
    head_rows = [*rows, (len(categories), checkpoint.num_classes)]
    kept = {**dict.fromkeys(CLASS_HEAD, head_rows), **dict.fromkeys((LABELS, *PIXEL_HEAD), rows)}
    queries_are_classes = POSITIONS in shapes and CLASS_HEAD[0] not in shapes
    kept |= {POSITIONS: rows} if queries_are_classes else _query_rows(shapes, view, notes)
    for name, (wanted, given) in _ONE_SIDED.items():
        if (name in shapes) != (name in state):
            notes.append(wanted if name in shapes else given)
    return _fill(model, state, kept, checkpoint.source, notes)


def _expected(view: OurView, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes that the file must have: those of the network, with the file's rows where they may differ."""
    expected = dict(shapes)
    for name in (*QUERIES, *CLASS_HEAD, *PIXEL_HEAD, LABELS):
        if name in view and name in shapes:
            expected[name] = (view[name][0], *shapes[name][1:])
        elif name in view and name in _ONE_SIDED:
            expected[name] = view[name]
        elif name in _ONE_SIDED:
            expected.pop(name, None)
    return expected


def _refuse_other_heads(checkpoint: Checkpoint, config: Config) -> None:
    """Refuse other numbers of attention heads, which shapes do not show. detectron2 and OpenMMLab files lack them."""
    if checkpoint.config is None and checkpoint.format != "huggingface":
        return
    for part in ("pixel_decoder", "decoder"):
        heads_in_file, heads = (getattr(c, part).options.get("num_heads") for c in (checkpoint.model, config.model))
        if None not in (heads_in_file, heads) and heads_in_file != heads:
            raise WeightsError(
                f"The {part} of {checkpoint.source} has {heads_in_file} attention heads, "
                f"that of {config.name} has {heads}.",
                hint=f"Set model.{part}.num_heads={heads_in_file}",
            )


def _query_rows(shapes: Mapping[str, Shape], view: OurView, notes: list[str]) -> dict[str, Rows]:
    name = next((query for query in QUERIES if query in shapes and query in view), None)
    if name is None:
        return {}
    num_queries, num_in_file = shapes[name][0], view[name][0]
    if num_queries != num_in_file:
        others = (
            f"the other {num_queries - num_in_file} start fresh"
            if num_queries > num_in_file
            else "the others are left behind"
        )
        notes.append(
            f"The file has {num_in_file} queries, the network {num_queries}: "
            f"the first {min(num_queries, num_in_file)} are taken, {others}."
        )
    return {query: [(i, i) for i in range(min(num_queries, num_in_file))] for query in QUERIES}


# --- classes ----------------------------------------------------------------------------------------------------------


def _class_rows(checkpoint: Checkpoint, categories: Categories, strict_classes: bool, notes: list[str]) -> Rows:
    """Return (row of the network, row of the file) for each class that both have."""
    file_classes, count = _class_names(checkpoint), checkpoint.num_classes
    if file_classes is None and count == len(categories):
        rows = [(i, i) for i in range(count)]
        note = f"The file does not name its {count} classes; the network has as many, and takes them in their order."
    elif file_classes is None:
        rows = []
        note = f"The file has {count} classes without names, the network {len(categories)}: all of them start fresh."
    else:
        row_of = {fold_name(name): i for i, name in reversed(list(enumerate(file_classes)))}
        rows = [(i, row_of[fold_name(c.name)]) for i, c in enumerate(categories) if fold_name(c.name) in row_of]
        if len(categories) == count and rows == [(i, i) for i in range(count)]:
            return rows
        note = _difference(categories, rows, count)
    if strict_classes:
        hint = "Without strict classes, those that differ would start fresh."
        raise WeightsError(f"{checkpoint.source} may be of other classes. {note}", hint=hint)
    notes.append(note)
    return rows


def _class_names(checkpoint: Checkpoint) -> list[str] | None:
    """Return the file's class names, or None if they are unknown or do not match its number of classes."""
    if checkpoint.categories is not None:
        names = [category.name for category in checkpoint.categories]
    elif checkpoint.config is not None:
        names = [category.name for category in load_categories(checkpoint.config.data.classes)]
    else:
        names = checkpoint.class_names or []
    return names if len(names) == checkpoint.num_classes else None


def _difference(categories: Categories, rows: Rows, count: int) -> str:
    taken = {ours for ours, _ in rows}
    fresh = [category.name for i, category in enumerate(categories) if i not in taken]
    start = f"; fresh: {_some(fresh)}" if fresh else ""
    return f"Of the network's {len(categories)} classes, {len(rows)} are among the {count} of the file{start}."


# --- filling ----------------------------------------------------------------------------------------------------------


def _fill(
    model: MaskClassifier, state: Mapping[str, Tensor], kept: Mapping[str, Rows], source: str, notes: list[str]
) -> InitReport:
    """Copy tensors of `state` into the network: the rows in `kept`, or all rows of tensors that are not in it."""
    own = without_changes(model.state_dict())
    loaded, fresh = 0, []
    with torch.no_grad():
        for name, tensor in own.items():
            rows = kept.get(name)
            if name not in state or rows == []:
                fresh.append(name)
                continue
            loaded += 1
            if rows is None:
                tensor.copy_(state[name])
                continue
            network_rows, file_rows = zip(*rows, strict=True)
            tensor[list(network_rows)] = state[name][list(file_rows)].to(tensor)
            if len(rows) < len(tensor):
                fresh.append(name)
    return InitReport(source, notes, loaded, fresh)


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
