"""Reproduction of a published row: its released weights are evaluated on its data and compared with its figures.

    OUT/<row>/single-scale/, OUT/<row>/ms-flip/    the evaluations, as `m2f eval` writes them; stopped ones are resumed
    OUT/<row>/row.json                             {"schema_version": 1, "model": {"name", "source"}, "device",
                                                    "verdict", "rule", "images_per_second", "checks": […], …}

The rule: released weights must give the published figure to within 0.1, both rounded to the published digits. The rule
is for evaluation alone. It allows for kernels that round differently, but not for the spread between trainings (about
0.2 PQ or AP, docs/methods/published-behaviour.md#1-4).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import presets as config
from ..config.published import MEMORY, MULTI_SCALE, SPEED, decimals, label
from ..config.schema import Config, Published
from ..errors import ConfigError, M2FError, WeightsError
from ..evaluation import setup as eval_setup
from ..evaluation.choose_metrics import task_of
from ..evaluation.dataset import TASKS, folder_of, open_for
from ..evaluation.evaluate import EvalProgress
from ..evaluation.report import SINGLE_SCALE, PublishedComparison
from ..evaluation.setup import DataOptions, EvalOutcome, Evaluation, MetricOptions, RunOptions
from ..inference.load import ModelOptions
from ..results.writers import write_json
from ..structures.categories import load_categories
from ..weights import Progress as DownloadProgress
from ..weights.download import download
from ..weights.hub import fetch_repo

SPREAD = 0.1
RULE = f"within {SPREAD} of the published figure, both rounded to its digits"
ROW = "row.json"
SINGLE, MULTI = "single-scale", "ms-flip"
WARM_UP, TIMED = 3, 20  # images

PASS, FAIL, PARTIAL, UNVERIFIED, UNMEASURED = "pass", "FAIL", "partial", "unverified", "not measured"
UNPUBLISHED = "nothing published"
_METRICS = {"pq": "pq", "sq": "pq", "rq": "pq", "ap": "ap", "ap50": "ap", "miou": "miou", "boundary_ap": "boundary-ap"}


@dataclass(frozen=True)
class Check:
    """Comparison of a published figure with the measured one.

    Attributes:
        metric: name of the figure, such as pq.
        setting: "single scale" or "multi-scale + flip".
        published: published figure. None: nothing was published.
        measured: measured figure. None: it was not measured.
        verdict: "pass", "FAIL", "partial" (other images than those of the published split: no judgement), "unverified"
            (outside the spread of a figure that nobody could verify: no judgement), "not measured", or "nothing
            published".
        source: table of the published figure.
    """

    metric: str
    setting: str
    published: float | None
    measured: float | None
    verdict: str
    source: str

    @property
    def label(self) -> str:
        return label(self.metric, self.setting)


@dataclass(frozen=True)
class Reproduced:
    """Result of a row.

    Attributes:
        preset: name of the preset.
        source: source of the weights.
        checks: a check of each published figure.
        images_per_second: speed of network and post-processing, one whole image at a time, without reading it.
        device: name of the device.
        failed: number of images that could not be scored.
        notes: remarks of the evaluations.
    """

    preset: str
    source: str
    checks: tuple[Check, ...]
    images_per_second: float | None
    device: str
    failed: int
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Verdict: "FAIL" if anything failed, "pass" if a figure passed and none is "partial", else "partial"."""
        verdicts = {check.verdict for check in self.checks}
        if FAIL in verdicts or self.failed:
            return FAIL
        return PASS if PASS in verdicts and PARTIAL not in verdicts else PARTIAL

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": {"name": self.preset, "source": self.source},
            "device": self.device,
            "verdict": self.verdict,
            "rule": RULE,
            "images_per_second": self.images_per_second,
            "checks": [asdict(check) for check in self.checks],
            "failed": self.failed,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ReproduceOptions:
    """Options of a reproduction.

    Attributes:
        data: folder of the data. None: that of the preset.
        device: name of the device, or "auto".
        precision: number format.
        limit: evaluate only the first images. None: all.
        workers: processes that read images.
        tta: evaluate with test-time augmentation, too. None: if the row has such a figure.
    """

    data: Path | str | None = None
    device: str = "auto"
    precision: str = "fp32"
    limit: int | None = None
    workers: int = 2
    tta: bool | None = None


# --- what is needed ---------------------------------------------------------------------------------------------------


def make_ready(rows: Sequence[str], options: ReproduceOptions, progress: DownloadProgress | None = None) -> None:
    """Check the data of all rows and fetch their weights, before the first evaluation takes hours.

    Raises:
        ConfigError: a row is unknown or has no figures.
        WeightsError: a row has no released weights.
        M2FError: data or weights are missing. The message lists all of them, and the class is that of the first.
    """
    presets = [_row(name) for name in rows]
    missing: list[M2FError] = []
    for preset in presets:
        missing += _problems(lambda preset=preset: _check_data(preset, options))
        missing += _problems(lambda preset=preset: _fetch(preset, progress))
    distinct = list({str(error): error for error in missing}.values())
    if len(distinct) == 1:
        raise distinct[0]
    if distinct:
        listed = " ".join(f"({number}) {error}" for number, error in enumerate(distinct, 1))
        raise type(distinct[0])(f"Nothing was evaluated, because {len(distinct)} things are missing. {listed}")


def _row(name: str) -> Config:
    config.preset_path(name)
    preset = config.load(name)
    if not preset.weights:
        raise WeightsError(
            f"Nobody has released weights of {name!r}, so its figures cannot be reproduced by evaluating.",
            hint=f"Train it (m2f train --preset {name}), then: m2f eval --preset {name} --model RUN",
        )
    if not any(metric_of(preset, each.metric) for each in preset.published):
        raise ConfigError(f"{name!r} has no published figure that m2f measures.")
    return preset


def _problems(attempt: Callable[[], None]) -> list[M2FError]:
    try:
        attempt()
    except M2FError as error:
        return [error]
    return []


def _check_data(preset: Config, options: ReproduceOptions) -> None:
    """Check that there are annotations for all metrics of the row."""
    tasks = [task for task in TASKS if task in {task_of(name) for name in metrics_of(preset)}]
    open_for(preset, load_categories(preset.data.classes), folder_of(preset, None, options.data), "val", tasks)


def _fetch(preset: Config, progress: DownloadProgress | None) -> None:
    first = preset.weights[0]
    if first.hub:
        fetch_repo(first.hub, progress=progress)
    else:
        download(str(first.url), hash_prefix=first.sha256 or first.hash_prefix, progress=progress)


# --- evaluating -------------------------------------------------------------------------------------------------------


def reproduce(
    name: str,
    options: ReproduceOptions,
    folder: Path,
    *,
    command: Sequence[str] = (),
    on_start: Callable[[str, int], None] | None = None,
    on_progress: Callable[[EvalProgress], None] | None = None,
) -> Reproduced:
    """Evaluate a row as it was published, and compare the figures. Call `make_ready` first.

    Args:
        folder: folder of this row. Stopped evaluations in it are resumed.
        command: command line of the user, for the results.
        on_start: called with the name of an evaluation, such as "cityscapes-swin-l ms-flip", and its number of images.
        on_progress: called after each image.

    Raises:
        M2FError: weights or data cannot be used, or the folder holds other files.
    """
    preset = _row(name)
    settings = _settings(preset, options)
    if not settings:
        raise ConfigError(f"{name!r} has figures with test-time augmentation only.", hint="Leave out --no-tta.")
    outcomes: dict[str, EvalOutcome] = {}
    speed: float | None = None
    for setting in settings:
        evaluation = eval_setup.prepare(
            folder / setting,
            ModelOptions(preset=name, device=options.device, precision=options.precision, tta=setting == MULTI),
            DataOptions(options.data, limit=options.limit),
            MetricOptions(metrics_of(preset, multi=setting == MULTI)),
            RunOptions(options.workers),
        )
        if setting == SINGLE:
            speed = images_per_second(evaluation)
        outcomes[setting] = eval_setup.execute(
            evaluation,
            resume=True,
            command=command,
            on_progress=on_progress,
            on_start=lambda count, what=f"{name} {setting}": on_start(what, count) if on_start else None,
        )
    row = _reproduced(preset, outcomes, speed, evaluation)
    write_json(folder / ROW, {"schema_version": 1, **row.to_dict()})
    return row


def _settings(preset: Config, options: ReproduceOptions) -> list[str]:
    figures = [each for each in preset.published if metric_of(preset, each.metric)]
    has_multi = any(each.setting != SINGLE_SCALE for each in figures)
    with_tta = has_multi if options.tta is None else options.tta
    single = [SINGLE] if any(each.setting == SINGLE_SCALE for each in figures) else []
    return single + ([MULTI] if with_tta else [])


def metrics_of(preset: Config, *, multi: bool = False) -> list[str]:
    """Return the metrics of a row's published figures, by their names in plugins.py.

    Args:
        multi: return only metrics with figures of test-time augmentation, or the row's first if there are none.
    """
    every = [each for each in preset.published if metric_of(preset, each.metric)]
    chosen = [each for each in every if each.setting != SINGLE_SCALE] if multi else every
    return list(dict.fromkeys(str(metric_of(preset, each.metric)) for each in chosen or every[:1]))


def metric_of(preset: Config, figure: str) -> str | None:
    """Return the metric of a figure, or None if m2f does not measure it.

    Objects of Cityscapes are scored by its own rule, not by COCO's (docs/methods/published-behaviour.md#9).
    """
    if figure.startswith((MEMORY, SPEED)):
        return None
    metric = _METRICS.get(figure.removesuffix("_things").removesuffix("_stuff"))
    return "cityscapes-ap" if metric == "ap" and preset.data.dataset == "cityscapes" else metric


def images_per_second(evaluation: Evaluation) -> float | None:
    """Return the speed for whole images, one at a time, after a warm-up and synchronised.

    It is measured from pixels in memory at the test size to the result of the row's own task. None: there are not more
    images than the warm-up needs.
    """
    model, device = evaluation.run.segmenter, torch.device(evaluation.run.segmenter.device)
    seconds: list[float] = []
    for prepared in _prepared(evaluation):
        _synchronise(device)
        started = time.perf_counter()
        [raw] = model.infer([prepared])
        model.finish(raw)
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    timed = seconds[WARM_UP:]
    return round(len(timed) / sum(timed), 3) if timed else None


def _prepared(evaluation: Evaluation) -> Iterator[Any]:
    """Yield the first images that can be read, prepared for the network."""
    readable = (image for record in evaluation.run.records[: evaluation.run.count] for image in _pixels(record))
    for image_HW3 in itertools.islice(readable, WARM_UP + TIMED):
        yield evaluation.run.segmenter.prepare(image_HW3)


def _pixels(record: Any) -> list[Any]:
    try:
        return [record.read_image()]
    except M2FError:  # the evaluation reports it
        return []


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- judging ----------------------------------------------------------------------------------------------------------


def _reproduced(
    preset: Config, outcomes: dict[str, EvalOutcome], speed: float | None, evaluation: Evaluation
) -> Reproduced:
    device = torch.device(evaluation.run.segmenter.device)
    trees = [outcome.tree for outcome in outcomes.values()]
    return Reproduced(
        preset.name,
        trees[0]["model"]["source"],
        checks(preset, outcomes),
        speed,
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        sum(tree["failed"] for tree in trees),
        tuple(dict.fromkeys(note for tree in trees for note in tree["notes"])),
    )


def checks(preset: Config, outcomes: dict[str, EvalOutcome]) -> tuple[Check, ...]:
    """Return a check of every published figure of quality, and of test-time augmentation even if it has none."""
    comparisons = {
        (each.metric, each.setting): each
        for setting, outcome in outcomes.items()
        for each in outcome.published
        if (each.setting != SINGLE_SCALE) == (setting == MULTI)
    }
    quality = [each for each in preset.published if not each.metric.startswith((MEMORY, SPEED))]
    result = [_check(each, comparisons.get((each.metric, each.setting))) for each in quality]
    if MULTI in outcomes and all(each.setting == SINGLE_SCALE for each in quality):
        main = quality[0].metric
        measured = outcomes[MULTI].result.figures.get(main)
        result.append(Check(main, MULTI_SCALE, None, measured, UNPUBLISHED, quality[0].source))
    return tuple(result)


def _check(figure: Published, match: PublishedComparison | None) -> Check:
    measured, verdict = (None, UNMEASURED) if match is None else (match.measured, judge(match))
    return Check(figure.metric, figure.setting, figure.value, measured, verdict, figure.source)


def judge(comparison: PublishedComparison) -> str:
    """Return the verdict on a measured figure, by the rule at the top."""
    if not comparison.comparable:
        return PARTIAL
    measured = round(comparison.measured, decimals(comparison.value))
    if round(abs(measured - comparison.value), 6) <= SPREAD:
        return PASS
    return FAIL if comparison.verified else UNVERIFIED
