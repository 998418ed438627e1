"""Display of the dry runs of m2f train and m2f eval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .. import console
from ..runtime.durations import spoken_duration

if TYPE_CHECKING:
    from ..config.schema import Config
    from ..dataset_tools.check.glimpse import Glimpse
    from ..evaluation.dry_run import EvalDryRun
    from ..training.dry_run import DryRun

SHOWN_PROBLEMS = 5
NOTHING_WRITTEN = "Nothing was written. To do it: the same command without --dry-run."


def show_train(dry: DryRun, preset: Config, notes: list[str], as_json: bool) -> None:
    """Show the dry run of a training, with the settings that differ from its preset."""
    from ..config import presets as config

    train, changed = dry.settings.train, config.differences(preset, dry.settings)
    trainable, total = (sum(row[i] for row in dry.parameters) for i in (1, 2))
    if as_json:
        return console.emit_json(
            {
                "changed": {key: {"preset": old, "run": new} for key, (old, new) in changed.items()},
                **_common(dry, notes),
                "data": {"train": asdict(dry.train), "val": dry.val and asdict(dry.val)},
                "parameters": {"trainable": trainable, "total": total},
                "iterations": train.iterations,
                "evaluations": dry.evaluations,
                "seconds": {
                    "step": dry.step_seconds,
                    "evaluation": dry.evaluation_seconds,
                    "whole": dry.seconds,
                },
            }
        )
    if changed:
        rows = [[key, _shown(old), _shown(new)] for key, (old, new) in changed.items()]
        console.show_table(f"Settings that are not those of {preset.name}", ["key", "preset", "run"], rows)
    _show_split("Train", dry.train)
    if dry.val is not None:
        _show_split("Val", dry.val)
    _show_problems(dry.problems)
    console.show_table(
        "Parameters",
        ["part", "trainable", "all"],
        [[part, f"{own:,}", f"{every:,}"] for part, own, every in [*dry.parameters, ("all", trainable, total)]],
    )
    steps = f"steps: {train.iterations} x {spoken_duration(dry.step_seconds)}"
    evaluations = f"evaluations: {dry.evaluations} x {spoken_duration(dry.evaluation_seconds)}"
    _show_estimate(dry.seconds, f"{steps}; {evaluations}", dry.memory)


def show_eval(dry: EvalDryRun, notes: list[str], as_json: bool) -> None:
    """Show the dry run of an evaluation."""
    if as_json:
        return console.emit_json(
            {
                "changed": dry.changes,
                **_common(dry, notes),
                "metrics": list(dry.metrics),
                "data": asdict(dry.images),
                "evaluated": dry.evaluated,
                "parameters": {"total": dry.parameters},
                "seconds": {"image": dry.image_seconds, "whole": dry.seconds},
            }
        )
    for key, value in dry.changes.items():
        console.out(f"Changed: {key} = {value}")
    _show_split("Images", dry.images)
    _show_problems(dry.problems)
    size = "" if dry.parameters is None else f", of a network with {dry.parameters:,} parameters"
    console.out(f"Metrics: {', '.join(dry.metrics)}{size}")
    _show_estimate(dry.seconds, f"images: {dry.evaluated} x {spoken_duration(dry.image_seconds)}", dry.memory)


def _common(dry: DryRun | EvalDryRun, notes: list[str]) -> dict[str, Any]:
    tree = dry.settings.model_dump(mode="json", exclude_none=True)
    return {"config": tree, "problems": list(dry.problems), "notes": notes, "memory": dict(dry.memory)}


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _show_split(name: str, seen: Glimpse) -> None:
    which = "" if seen.looked_at == seen.images else f" in {seen.looked_at} of them"
    classes = "1 class" if seen.classes == 1 else f"{seen.classes} classes"
    console.out(f"{name}: {seen.images} images, {classes}, {seen.objects} objects{which}")


def _show_problems(problems: tuple[str, ...]) -> None:
    for text in problems[:SHOWN_PROBLEMS]:
        console.out(f"problem: {text}")
    if len(problems) > SHOWN_PROBLEMS:
        console.out(f"… and {len(problems) - SHOWN_PROBLEMS} more: m2f data check DIR shows all.")


def _show_estimate(seconds: float, parts: str, memory: Mapping[str, float | None]) -> None:
    peak, where = memory["resident_peak_mib"], "memory"
    if memory["device_reserved_mib"] is not None:
        peak, where = memory["device_reserved_mib"], "memory of the device"
    taken = "" if peak is None else f"; {peak / 1024:.1f} GiB of {where}"
    console.out(f"Estimate: {spoken_duration(seconds)} ({parts}){taken}")
    console.out(NOTHING_WRITTEN)
