"""Line charts: numbers at the axes, lines in the box, and values that are no numbers."""

from __future__ import annotations

import json
import math

import pytest

from m2f_cli.errors import DataError
from m2f_cli.report.charts import MOST_POINTS, line_chart, training_charts


@pytest.mark.parametrize("scale", [1e-12, 0.037, 1.0, 99.5, 4e25])
def test_axes_have_round_numbers_that_enclose_the_values(scale):
    chart = line_chart("", {"a": [(0, 0.0), (375, scale / 3), (750, scale)]})
    values = [float(tick.text) for tick in chart.y_ticks]
    assert values[0] == 0 and values[-1] >= scale * (1 - 1e-5) and 2 <= len(values) <= 7
    assert [float(tick.text) for tick in chart.x_ticks] == [0, 200, 400, 600]
    left, top, right, bottom = chart.box
    [line] = chart.lines
    assert all(left <= x <= right and top <= y <= bottom for x, y, _ in line.marks)
    assert [tick.at for tick in chart.y_ticks] == sorted((tick.at for tick in chart.y_ticks), reverse=True)
    assert line.marks[0][:2] == (left, bottom) and line.marks[-1][0] == right


def test_percent_reaches_to_100_whatever_was_measured():
    chart = line_chart("", {"pq": [(100, 12.5)]}, highest=100)
    assert [tick.text for tick in chart.y_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_negative_values_lie_inside():
    chart = line_chart("", {"a": [(0, -3.0), (10, 2.0)]})
    assert all(chart.box[1] <= y <= chart.box[3] for _, y, _ in chart.lines[0].marks)


def test_a_single_point_and_constant_values_are_drawn():
    for points in ([(0, 0.0)], [(5, 2.0), (6, 2.0)]):
        [line] = line_chart("", {"a": points}).lines
        assert len(line.marks) == len(points) and all(map(math.isfinite, line.marks[0][:2]))


def test_long_lines_are_averaged_and_end_where_they_ended():
    points = [(i, float(i % 2)) for i in range(10_000)]
    [line] = line_chart("", {"a": points}).lines
    assert len(line.marks) <= MOST_POINTS and "after 9999" in line.marks[-1][2]
    assert len({y for _, y, _ in line.marks[:-1]}) <= 2  # an even number of zeros and ones in each


def test_values_that_are_no_numbers_are_left_out():
    chart = line_chart("", {"a": [(0, math.nan), (1, math.inf), (2, 1.0)], "b": [(0, math.nan)]})
    assert [line.name for line in chart.lines] == ["a"] and len(chart.lines[0].marks) == 1
    assert not line_chart("", {"a": []}).lines


def entries(*lines) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_charts_of_a_run_show_losses_and_every_evaluation(tmp_path):
    log = tmp_path / "metrics.jsonl"
    steps = [{"kind": "train", "iteration": i, "loss": 9.0 - i, "loss_ce": 4.0, "lr": 0.1} for i in range(4)]
    evaluations = [{"kind": "val", "iteration": i, "pq": 10.0 * i, "pq_things": 5.0 * i, "sq": 1.0} for i in (2, 4)]
    log.write_text(entries(*steps, *evaluations))
    loss, quality = training_charts(log)
    assert [line.name for line in loss.lines] == ["total", "class"] and len(loss.lines[0].marks) == 4
    assert [line.name for line in quality.lines] == ["all classes", "things"]
    assert [text for _, _, text in quality.lines[0].marks] == ["all classes: 20 after 2", "all classes: 40 after 4"]


def test_a_run_without_evaluation_and_with_odd_values_has_charts(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"kind": "train", "iteration": 0, "loss": NaN}\n{"kind": "train", "iteration": "x", "loss": []}\n7\n'
    )
    assert [chart.lines for chart in training_charts(log)] == [[], []]


def test_a_damaged_log_is_named_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}\nno json\n")
    with pytest.raises(DataError, match="metrics.jsonl is damaged in line 2"):
        training_charts(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("scale", [1e-9, 1.5e-4, 0.01, 1.0, 250.0, 3e5, 1e12])
def test_numbers_of_axes_are_short_enough_to_be_seen_whole(scale):
    chart = line_chart("any", {"line": [(0.0, 0.0), (scale, scale)]})
    texts = [tick.text for tick in chart.x_ticks + chart.y_ticks]
    assert max(map(len, texts)) <= 6 and max(map(float, texts)) >= scale
