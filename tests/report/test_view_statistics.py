"""Counts over the images of an evaluation, and the bars and matrices that they become."""

from __future__ import annotations

import pytest
from helpers.fake_segmenter import CATEGORIES, GRASS, PERSON, SKY

from m2f_cli.evaluation.stored_views import TaskView
from m2f_cli.report.bars import bar_chart, column_chart
from m2f_cli.report.tables import class_table
from m2f_cli.report.view_statistics import (
    TaskCounts,
    confusion_matrix,
    errors_by_class,
    score_histogram,
    size_histogram,
    threshold_chart,
)


def segment(label: int, kind: str, partner: int | None = None, **more) -> dict:
    return {"label": label, "area": 100, "kind": kind, "partner": partner, "iou": 0.8, "counts": "", **more}


@pytest.fixture
def counts() -> TaskCounts:
    """A hit, a grass that was taken for sky, a missed and a spurious person, a crowd, and one that is excused."""
    image = TaskView.model_validate(
        {
            "true": [
                *(segment(SKY, "hit", 0, area=5000), segment(GRASS, "class", 1), segment(PERSON, "missed")),
                segment(PERSON, "crowd"),
            ],
            "found": [
                *(segment(SKY, "hit", 0, score=0.9), segment(SKY, "class", 1, score=0.6)),
                *(segment(PERSON, "spurious", score=0.3), segment(PERSON, "excused", score=1.0)),
            ],
        }
    )
    counted = TaskCounts()
    counted.add(image)
    return counted


def test_errors_count_once_and_crowds_do_not(counts):
    chart = errors_by_class(counts, CATEGORIES)
    assert [(bar.name, bar.total, [part.kind for part in bar.parts]) for bar in chart.bars] == [
        ("person", "2", ["missed", "spurious"]),
        ("grass", "1", ["class"]),
    ]
    assert [bar.label for bar in chart.bars] == [PERSON, GRASS]


def test_the_matrix_has_the_most_confused_classes_first_and_nothing_last(counts):
    matrix = confusion_matrix(counts, CATEGORIES, "panoptic")
    names = matrix.columns
    assert sorted(names[:3]) == ["grass", "person", "sky"] and names[0] == "person" and names[3] == "nothing"
    cell = {(row, column): each.count for row, cells in matrix.rows for column, each in zip(names, cells, strict=True)}
    assert cell["sky", "sky"] == cell["grass", "sky"] == cell["person", "nothing"] == cell["nothing", "person"] == 1
    assert sum(cell.values()) == 4 and matrix.unit == "segments"


def test_scores_and_sizes_are_counted_in_steps(counts):
    scores, sizes = score_histogram(counts), size_histogram(counts)
    shown = [part.text for _, _, parts in scores.columns for part in parts]
    assert shown == [*("wrong: 1 of score 0.3 to 0.35", "wrong: 1 of score 0.6 to 0.65", "hit: 1 of score 0.9 to 0.95")]
    texts = [part.text for _, _, parts in sizes.columns for part in parts]
    assert texts == [
        "missed: 2 of square root of the area in pixels 8 to 16",
        "hit: 1 of square root of the area in pixels 64 to 128",
    ]


def test_precision_and_recall_follow_the_threshold(counts):
    lines = {line.name: [text for _, _, text in line.marks] for line in threshold_chart(counts).lines}
    assert lines["precision"][0] == "precision: 33.33 at least score 0"
    assert lines["precision"][45] == "precision: 50 at least score 0.45"
    assert lines["recall"][80] == "recall: 33.33 at least score 0.8" and lines["recall"][95].startswith("recall: 0 ")
    assert lines["F1"][80] == "F1: 50 at least score 0.8"


def test_bars_are_sorted_limited_and_without_what_is_not_positive():
    chart = bar_chart("", "", [("a", {"x": 1.0, "y": -2.0}), ("b", {"x": 3.0, "y": 1.0}), ("c", {"x": 0.0})], most=1)
    [bar] = chart.bars
    assert (bar.name, bar.total, chart.more) == ("b", "4", 1)
    assert [(part.at, part.length) for part in bar.parts] == [(0.0, 750.0), (750.0, 250.0)]
    assert not bar_chart("", "", []).bars and not column_chart("", "", ["0", "1"], [{}]).columns


def test_a_table_of_classes_joins_metrics_and_tolerates_odd_ones():
    results = {
        "per_class": {
            "pq": {"sky": {"pq": 50.0, "tp": 2}, "person": {"pq": None, "tp": 0}},
            "mine": {"sky": {"pq": 40.0}},
            "odd": [1],
            "pq-errors": {"sky": {"pq": 1.0}},
        }
    }
    table = class_table(results, CATEGORIES, {"images": {"sky": 3}})
    assert [(column.name, column.is_percent) for column in table.columns] == [
        *(("PQ", True), ("hits", False), ("PQ (mine)", True), ("images", False))
    ]
    assert [(row.name, row.kind, row.values) for row in table.rows] == [
        ("sky", "stuff", [50.0, 2.0, 40.0, 3.0]),
        ("person", "thing", [None, 0.0, None, 0.0]),
    ]
