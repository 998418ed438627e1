"""DETR's crop: how often, how large, and of what."""

from __future__ import annotations

import numpy as np
import pytest

from m2f_cli.data.transforms import Sample
from m2f_cli.data.transforms.crop import DetrCrop
from m2f_cli.errors import ConfigError
from m2f_cli.structures.annotations import SemanticAnnotation


def sample_of(height: int, width: int) -> Sample:
    """Row numbers in the first channel and in the labels."""
    rows = np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None], (height, width))
    return Sample(np.repeat(rows[..., None], 3, axis=2).copy(), SemanticAnnotation(rows.copy(), ignore=255))


def test_it_crops_as_often_and_as_large_as_it_says():
    step = DetrCrop(p=0.5, short_edges=[40, 50, 60], min_size=38, max_size=60)
    sample, rng = sample_of(100, 150), np.random.default_rng(0)
    results = [step(sample, rng) for _ in range(400)]
    cropped = [result for result in results if result is not sample]
    assert 160 < len(cropped) < 240
    heights, widths = ({result.size[i] for result in cropped} for i in (0, 1))
    assert (min(heights), max(heights)) == (38, 60) and (min(widths), max(widths)) == (38, 60)
    assert len({result.size[0] - result.size[1] for result in cropped}) > 20  # drawn apart
    assert all(result.annotation.size == result.size for result in results)


def test_the_annotation_moves_with_the_image():
    result = DetrCrop(1.0, [100], 30, 50)(sample_of(100, 150), np.random.default_rng(3))
    assert np.array_equal(result.image_HW3[..., 0], result.annotation.labels_HW)


def test_an_edge_that_is_too_short_is_kept():
    """detectron2: the range is that of min(edge, size)."""
    sizes = {DetrCrop(1.0, [20], 38, 60)(sample_of(40, 100), np.random.default_rng(i)).size for i in range(50)}
    assert {height for height, _ in sizes} == {20} and {width for _, width in sizes} <= set(range(38, 51))


@pytest.mark.parametrize("change", [{"p": 2}, {"short_edges": []}, {"min_size": 70}, {"min_size": 0}])
def test_what_makes_no_sense_is_refused(change):
    with pytest.raises(ConfigError, match="makes no sense"):
        DetrCrop(**{"p": 0.5, "short_edges": [40], "min_size": 38, "max_size": 60, **change})
