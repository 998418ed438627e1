"""Choice of the metrics of an evaluation: those that were named, those of a task, or all that apply."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from .. import plugins
from ..errors import ConfigError, MissingDependency, unknown_name
from ..metrics import Metric
from ..structures import Task
from ..structures.categories import Categories, Category
from .evaluate import METRIC_OF

ALL = "all"
_ANY = (Category(0, "thing", True, (0, 0, 0)), Category(1, "stuff", False, (0, 0, 0)))
TASK_OF = {name: task for task, name in METRIC_OF.items()}


def known_names(asked: Sequence[str]) -> list[str]:
    """Return the names as they are in the table, or as "module:object"; [] is [], and ["all"] stays.

    Raises:
        ConfigError: a name is unknown; the nearest names are in the message.
    """
    for name in asked:
        if name != ALL and ":" not in name and name not in plugins.table("metrics"):
            raise unknown_name("metric", name, [ALL, *plugins.names("metrics")])
    return [ALL] if ALL in asked else list(dict.fromkeys(asked))


def task_for(names: Sequence[str], *, trust_code: bool = False) -> Task:
    """Return the task whose default model all of these metrics can measure."""
    tasks = {task_of(name, trust_code=trust_code) for name in names if name != ALL}
    return tasks.pop() if len(tasks) == 1 else "panoptic"


def task_of(name: str, *, trust_code: bool = False) -> Task:
    """Return the task whose results a metric takes."""
    if name in TASK_OF:
        return TASK_OF[name]
    factory = plugins.get("metrics", name, trust_code=trust_code)
    task = getattr(factory, "task", None)
    with plugins.using(name):
        return task if isinstance(task, str) else factory(_ANY).task


def choose(
    names: Sequence[str],
    categories: Categories,
    tasks: Sequence[Task],
    default: Task,
    *,
    max_dets: int | None = None,
    model: str = "the model",
    trust_code: bool = False,
) -> tuple[dict[str, Metric], list[str]]:
    """Return the metrics of an evaluation, fresh, and notes about those of "all" that do not apply.

    Args:
        names: names from `known_names`; [] is the metric that the task `default` is judged by.
        categories: the classes.
        tasks: the tasks of the model, or those of them that are wanted.
        default: the task that no names stand for.
        max_dets: the most objects of an image that count, for metrics that have such a limit.
        model: the name of the model in messages.
        trust_code: True if the names may be "module:object".

    Raises:
        ConfigError: a metric that was named does not apply (the message says which do), or is code without
            `trust_code`.
        MissingDependency: a metric that was named needs a package.
    """
    notes: list[str] = []
    if list(names) == [ALL]:
        metrics = _all(categories, tasks, max_dets, notes)
    else:
        metrics = {}
        for name in names or [METRIC_OF[default]]:
            task = task_of(name, trust_code=trust_code)
            if task not in tasks:
                raise _does_not_apply(name, task, tasks, model)
            with plugins.using(name):
                metrics[name] = _make(plugins.get("metrics", name, trust_code=trust_code), categories, max_dets)
    if max_dets is not None and not any(
        _takes_max_dets(plugins.get("metrics", name, trust_code=trust_code)) for name in metrics
    ):
        raise ConfigError(f"--max-dets is for average precision, which is none of: {', '.join(metrics)}.")
    return metrics, notes


def _all(categories: Categories, tasks: Sequence[Task], max_dets: int | None, notes: list[str]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    for name in plugins.table("metrics"):
        try:
            if task_of(name) in tasks:
                metrics[name] = _make(plugins.get("metrics", name), categories, max_dets)
        except (ConfigError, MissingDependency) as error:
            notes.append(f"Without the metric {name}: {error}")
    if not metrics:
        raise ConfigError(f"No metric applies to {', '.join(tasks)} results of these classes.", hint=" ".join(notes))
    return metrics


def _make(factory: Any, categories: Categories, max_dets: int | None) -> Metric:
    options: dict[str, Any] = {}
    if max_dets is not None and _takes_max_dets(factory):
        options["max_dets"] = limits(max_dets)
    return factory(categories, **options)


def limits(max_dets: int) -> list[int]:
    """Return COCO's limits on the number of objects, with another highest limit."""
    return sorted({each for each in (1, 10) if each < max_dets} | {max_dets})


def _takes_max_dets(factory: Any) -> bool:
    return "max_dets" in inspect.signature(factory).parameters


def _does_not_apply(name: str, task: Task, tasks: Sequence[Task], model: str) -> ConfigError:
    fitting = [known for known in plugins.names("metrics") if task_of(known) in tasks]
    return ConfigError(
        f"The metric {name!r} is about {task} results, and {model} does {', '.join(tasks)} segmentation.",
        hint=f"It can be measured by: {', '.join(fitting)}.",
    )
