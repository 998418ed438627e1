"""Comparison of two evaluations image by image, with bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import plugins
from ..errors import ConfigError, DataError, M2FError
from ..metrics import Metric
from ..runtime import documents
from ..structures.categories import Categories, Category
from . import journal
from .bootstrap import RunStates, State, images_of
from .evaluate import METRIC_OF
from .tables import Table, number

LEVEL = 0.95  # share of the draws that an interval holds
MOST_CHANGED = 20
MOST_CLASSES = 20


@dataclass(frozen=True)
class Difference:
    """Figure of both runs over the images that both scored, in percent. NaN: nothing to measure.

    Attributes:
        name: the name of the figure or the class.
        a: the figure of run A.
        b: the figure of run B.
        difference: b - a.
        low: the start of the interval of the difference.
        high: the end of the interval of the difference.
    """

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Evidence of a difference: the interval does not contain 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Changed:
    """Figure of one image in both runs.

    Attributes:
        name: the name of the image.
        a: the figure in run A, in percent.
        b: the figure in run B, in percent.
    """

    name: str
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs over the images that both scored.

    Attributes:
        run_a: the folder of run A.
        run_b: the folder of run B.
        metric: the name of the metric.
        images: number of images that both scored.
        only_a: number of images that only A scored.
        only_b: number of images that only B scored.
        resamples: number of draws.
        seed: seed of the draws.
        figures: differences of the whole; the first is the headline.
        per_class: differences of the headline of each class.
        changed: the images whose own figure changed most, the largest change first.
    """

    run_a: str
    run_b: str
    metric: str
    images: int
    only_a: int
    only_b: int
    resamples: int
    seed: int
    figures: list[Difference]
    per_class: list[Difference]
    changed: list[Changed]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in which NaN is None."""
        named = {"pictures" if key == "images" else key: value for key, value in asdict(self).items()}
        return _plain({"schema_version": 1, "level": LEVEL, **named})

    def summary(self) -> str:
        """Return one line about the headline."""
        first = self.figures[0]
        verdict = "clear" if first.is_clear else "not clear"
        others = f" ({self.only_a} only in A, {self.only_b} only in B)" if self.only_a or self.only_b else ""
        return (
            f"{first.name}: B - A = {first.difference:+.2f} [{first.low:+.2f}, {first.high:+.2f}], {verdict} over "
            f"{self.images} images{others}"
        )

    def rows(self) -> list[Table]:
        """Return tables for a terminal: the figures, then the classes and images that changed most."""
        head = ["A", "B", "difference", "from", "to", "clear"]
        classes = sorted(
            (each for each in self.per_class if not math.isnan(each.difference)), key=lambda each: -abs(each.difference)
        )[:MOST_CLASSES]
        changed = [[each.name, number(each.a), number(each.b), f"{each.b - each.a:+.2f}"] for each in self.changed]
        return [
            (f"A: {self.run_a}, B: {self.run_b}", ["figure", *head], [_row(each) for each in self.figures]),
            ("Classes that changed most", ["class", *head], [_row(each) for each in classes]),
            ("Images that changed most", ["image", "A", "B", "difference"], changed),
        ]


def compare(
    run_a: Path,
    run_b: Path,
    *,
    metric: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    trust_code: bool = False,
) -> Comparison:
    """Compare two folders of `m2f eval` over the images that both scored, paired by name.

    The intervals are those of the paired bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13). Images are drawn with replacement, the same for both runs, and the middle 95 % of the differences are
    given. They say how much of a difference is the choice of images, not what another training would give. They are too
    narrow for a small number of images: below about 30 take them as a hint.

    Args:
        run_a: the folder of run A.
        run_b: the folder of run B.
        metric: its name in the journals; by default the headline of a task that both have.
        resamples: number of draws. Metrics without a fast way take at most 100.
        seed: seed of the draws.
        trust_code: True if the metric may be code ("module:object") that the journals name.

    Raises:
        ConfigError: `resamples` is below 1, both runs do not have the metric, or it is code without `trust_code`.
        DataError: a folder holds no evaluation, or a damaged journal.
        DataError: the runs have other classes, no image in common, or annotations that differ.
    """
    if resamples < 1:
        raise ConfigError(f"resamples = {resamples} should be at least 1.")
    a, b = _open(run_a), _open(run_b)
    _check_classes(a, b)
    name = _metric_name(a, b, metric)
    states_a, states_b = a.states(name), b.states(name)
    common = [each for each in states_a if each in states_b]
    if not common:
        raise DataError(f"{run_a} and {run_b} have no scored image in common.", hint="Evaluate on the same images.")
    own = _metric(name, a, states_a[common[0]], trust_code)
    pair = [images_of(own, [states[each] for each in common]) for states in (states_a, states_b)]
    _check_annotation(pair[0], pair[1], common)
    resamples = min(resamples, pair[0].most_resamples)
    figures, per_class = differences(pair[0], pair[1], resamples, seed)
    return Comparison(
        str(run_a),
        str(run_b),
        name,
        len(common),
        len(states_a) - len(common),
        len(states_b) - len(common),
        resamples,
        seed,
        figures,
        per_class,
        _changed(own, common, states_a, states_b, pair[0].figures[0]),
    )


def differences(a: RunStates, b: RunStates, resamples: int, seed: int) -> tuple[list[Difference], list[Difference]]:
    """Compute the differences of the figures and of the classes, with their intervals."""
    ones = np.ones(len(a), np.int64)
    values_a, values_b = a(ones), b(ones)
    random = np.random.default_rng(seed)
    drawn_RF = np.empty((resamples, len(values_a)))
    for r in range(resamples):
        weights_N = np.bincount(random.integers(0, len(a), len(a)), minlength=len(a))
        drawn_RF[r] = b(weights_N) - a(weights_N)
    low_F, high_F = _interval(drawn_RF) if len(a) > 1 else np.full((2, len(values_a)), np.nan)
    names = [*a.figures, *a.classes]
    rows = [
        Difference(*each)
        for each in zip(
            names,
            *(values.tolist() for values in (values_a, values_b, values_b - values_a, low_F, high_F)),
            strict=True,
        )
    ]
    return rows[: len(a.figures)], rows[len(a.figures) :]


def _interval(drawn_RF: np.ndarray) -> np.ndarray:
    """Return the middle of the draws of each figure, without those where there was nothing to measure."""
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    columns = (drawn[~np.isnan(drawn)] for drawn in drawn_RF.T)
    return np.array([np.quantile(each, tails) if each.size else [np.nan] * 2 for each in columns]).T


def _changed(
    metric: Metric, names: list[str], states_a: dict[str, State], states_b: dict[str, State], figure: str
) -> list[Changed]:
    def own(state: State) -> float:
        part = metric.fresh()
        part.restore(state)
        return float(part.compute()[figure])

    differing = (name for name in names if states_a[name] != states_b[name])
    rows = [Changed(name, own(states_a[name]), own(states_b[name])) for name in differing]
    rows = [row for row in rows if abs(row.b - row.a) > 0]  # neither NaN nor unchanged
    return sorted(rows, key=lambda row: -abs(row.b - row.a))[:MOST_CHANGED]


# --- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    folder: Path
    categories: Categories
    lines: dict[str, dict[str, State]]  # image → metric → state

    @property
    def metrics(self) -> list[str]:
        return list(next(iter(self.lines.values())))

    def states(self, metric: str) -> dict[str, State]:
        try:
            return {name: states[metric] for name, states in self.lines.items()}
        except KeyError as error:
            raise _damaged(self.folder) from error


def _open(folder: Path) -> _Run:
    path = journal.journal_of(Path(folder))
    if not path.is_file():
        raise DataError(f"{folder} holds no evaluation: there is no {path.name}.", hint="Pass folders of `m2f eval`.")
    header, lines = journal.read_header(path), {}
    numbers: dict[str, int] = {}
    for line in journal.read(path):
        if "error" in line:
            continue
        if numbers.setdefault(line["name"], line["number"]) != line["number"]:
            raise DataError(f"{path} has two images named {line['name']!r}, which cannot be paired.")
        if not isinstance(line.get("metrics"), dict):
            raise _damaged(folder)
        lines[line["name"]] = line["metrics"]
    if not lines:
        raise DataError(f"{folder} has no scored image.", hint="Let the evaluation finish: m2f eval --resume.")
    return _Run(Path(folder), _categories(Path(folder), header), lines)


def _categories(folder: Path, header: dict[str, Any]) -> Categories:
    tree = header
    results = folder / "results.json"
    try:
        if "categories" not in tree and results.is_file():
            tree = documents.read_json(results)
        return tuple(Category.from_dict(each) for each in tree["categories"])
    except (M2FError, KeyError, TypeError) as error:
        raise DataError(f"{folder} does not say what its classes are.", hint="Evaluate again.") from error


def _check_classes(a: _Run, b: _Run) -> None:
    classes_a, classes_b = ([(each.name, each.isthing) for each in run.categories] for run in (a, b))
    if classes_a != classes_b:
        at = next((i for i, pair in enumerate(zip(classes_a, classes_b, strict=False)) if pair[0] != pair[1]), None)
        where = f"class {at} is {classes_a[at][0]!r} and {classes_b[at][0]!r}" if at is not None else "one has more"
        raise DataError(f"{a.folder} and {b.folder} are evaluations of other classes: {where}.")


def _metric_name(a: _Run, b: _Run, wanted: str | None) -> str:
    both = [name for name in a.metrics if name in b.metrics]
    if not both:
        raise ConfigError(
            f"{a.folder} has {', '.join(a.metrics)} and {b.folder} has {', '.join(b.metrics)}: no metric in common.",
            hint="Evaluate with the same --metric.",
        )
    if wanted is None:
        return next((name for name in METRIC_OF.values() if name in both), both[0])
    if wanted not in both:
        raise ConfigError(f"There is no metric {wanted!r} in both evaluations.", hint=f"In both: {', '.join(both)}.")
    return wanted


def _metric(name: str, run: _Run, state: State, trust_code: bool) -> Metric:
    if ":" in name and not trust_code:
        raise plugins.names_code(str(journal.journal_of(run.folder)), name)
    make: Callable[..., Metric] = plugins.get("metrics", name, trust_code=trust_code)
    settings = {"max_dets": state["max_dets"]} if isinstance(state, dict) and "max_dets" in state else {}
    try:
        return make(run.categories, **settings)
    except (TypeError, ValueError) as error:  # the limits are no numbers, or the metric has none
        raise _damaged(run.folder) from error


def _check_annotation(a: RunStates, b: RunStates, names: list[str]) -> None:
    if a.annotation is None or b.annotation is None:
        return
    unequal = np.flatnonzero((a.annotation != b.annotation).any(1))
    if len(unequal):
        raise DataError(
            f"The annotations of {len(unequal)} of {len(names)} images differ between the runs, such as those of "
            f"{names[unequal[0]]}.",
            hint="Evaluate both on the same data, with the same --metric.",
        )


def _damaged(folder: Path) -> DataError:
    return DataError(f"The journal of {folder} is damaged.", hint="Evaluate again into another folder.")


def _row(each: Difference) -> list[str]:
    signed = [f"{value:+.2f}" if not math.isnan(value) else "–" for value in (each.difference, each.low, each.high)]
    return [each.name, number(each.a), number(each.b), *signed, "yes" if each.is_clear else "no"]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
