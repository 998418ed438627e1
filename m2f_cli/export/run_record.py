"""Facts that a training run wrote about the weights in its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.run_folder import BEST, CHECKPOINTS, ENVIRONMENT, LAST, METRICS, RESULTS
from ..errors import DataError
from ..runtime import documents
from ..runtime.metrics_log import read_entries

LARGEST = 1e15  # of a figure; NaN and infinity are none either
_HINT = "Copy the run again, or export the checkpoint from outside of its run."


@dataclass(frozen=True)
class RunRecord:
    """Facts of a run about some of its weights.

    Attributes:
        init: weights that the training started from, "random", or None for those of the backbone.
        images: number of images that it trained on; None if unknown.
        val_limit: most images that it evaluated on; None: all.
        figures: figures of the weights on the val split, in percent; empty where they were not evaluated.
        iteration: optimiser steps at that evaluation.
    """

    init: str | None = None
    images: int | None = None
    val_limit: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    iteration: int = 0


def read_run(checkpoint: Path) -> RunRecord | None:
    """Read the facts about a checkpoint; None if it lies in no run.

    Raises:
        DataError: a file of the run is damaged.
    """
    folder = checkpoint.parent.parent
    path = folder / ENVIRONMENT
    if checkpoint.parent.name != CHECKPOINTS or not path.is_file():
        return None
    tree = _mapping(documents.read_json(path), path)
    options, data = (tree.get(key, {}) for key in ("options", "data"))
    figures, iteration = _figures(folder, checkpoint.name)
    return RunRecord(
        _typed(options, "init", str, path),
        _typed(data, "images", int, path),
        _typed(options, "val_pictures", int, path),
        figures,
        iteration,
    )


def _figures(folder: Path, name: str) -> tuple[dict[str, float], int]:
    """Return the figures of results.json, with the others of that evaluation, and its iteration.

    results.json is about the best weights. It is written at the end of a start: after a killed one it may be older than
    the weights, and then says nothing about them.
    """
    path = folder / RESULTS
    if not path.is_file():
        return {}, 0
    tree = _mapping(documents.read_json(path), path)
    best = _mapping(tree.get("best") or {}, path)
    metric, value = _typed(best, "metric", str, path), _typed(best, "value", float, path)
    iteration = _typed(best, "iteration", int, path)
    if metric is None or iteration is None or not _is_figure(value):
        return {}, 0  # no evaluation
    if name != BEST and not (name == LAST and tree.get("iteration") == iteration):
        return {}, 0
    evaluations = _evaluations(folder / METRICS)
    if any(row["iteration"] > iteration and row.get(metric, value) > value for row in evaluations):
        return {}, 0
    same = next((row for row in reversed(evaluations) if row["iteration"] == iteration), {})
    others = {key: number for key, number in same.items() if key not in ("iteration", metric)}
    return {metric: float(value), **others}, iteration


def _evaluations(path: Path) -> list[dict[str, float]]:
    """Return the numbers of each evaluation in metrics.jsonl."""
    entries = read_entries(path) if path.is_file() else []
    evaluations = (entry for entry in entries if entry.get("kind") == "val" and _is_figure(entry.get("iteration")))
    return [{key: number for key, number in entry.items() if _is_figure(number)} for entry in evaluations]


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _mapping(tree: Any, path: Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise DataError(f"{path} is damaged: it should hold a mapping, not {type(tree).__name__}.", hint=_HINT)
    return tree


def _typed(tree: Any, key: str, kind: type, path: Path) -> Any:
    """Return a value of a type, or None where it is missing or null."""
    value = _mapping(tree, path).get(key)
    if value is None or type(value) is kind or (kind is float and type(value) is int):
        return value
    raise DataError(f"{path} is damaged: {key} should be of type {kind.__name__}, not {value!r}."[:300], hint=_HINT)
