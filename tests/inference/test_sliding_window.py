"""MMSegmentation's slide mode against a plain restatement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.presets import shipped
from helpers.small_segmenter import random_image, small_segmenter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from m2f_cli.config import presets as configuration
from m2f_cli.config.schema import SlideConfig
from m2f_cli.errors import ConfigError
from m2f_cli.inference import load
from m2f_cli.inference import segmenter as front
from m2f_cli.inference.base import Prepared
from m2f_cli.inference.sliding_window import Sliding, sliding, window_starts

SLIDE = "test.slide={crop: [48, 64], stride: [32, 43]}"


def restated(segmenter, image, crop, stride):
    """Scores over the resized image: windows every stride, the last moved back to the edge, summed, divided by how
    many see a pixel; then resized to the image."""
    prepared = segmenter.prepare(image)
    _, height, width = prepared.pixels_CHW.shape
    total, counts = torch.zeros(6, height, width), torch.zeros(height, width)
    for i in range(-(-max(height - crop[0], 0) // stride[0]) + 1):
        for j in range(-(-max(width - crop[1], 0) // stride[1]) + 1):
            bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            part = prepared.pixels_CHW[:, top:bottom, left:right]
            [raw] = segmenter.infer([Prepared(part, (bottom - top, right - left))])
            scores = segmenter.semantic_scores(raw)(0, bottom - top)
            total += F.pad(scores, (left, width - right, top, height - bottom))
            counts[top:bottom, left:right] += 1
    assert counts.min() >= 1
    return F.interpolate((total / counts)[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (30, 90), (48, 48)])
def test_scores_are_those_of_the_restatement(size):
    segmenter = small_segmenter("ade20k-r50", SLIDE)
    image = random_image(*size)
    outer = sliding(segmenter)
    [raw] = outer.infer([outer.prepare(image)])
    with torch.inference_mode():
        expected = restated(segmenter, image, (48, 64), (32, 43))
    torch.testing.assert_close(outer.semantic_scores(raw)(0, size[0]), expected, atol=1e-5, rtol=1e-5)
    labels = outer(image).labels_HW
    best = expected.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.9 and np.array_equal(labels[clear], expected.argmax(0).numpy()[clear])
    assert len(raw.windows) > 1


def test_a_image_inside_one_window_is_done_whole():
    segmenter = small_segmenter("ade20k-r50", "test.slide={crop: [512, 512], stride: [341, 341]}")
    image = random_image(50, 70)
    assert np.array_equal(sliding(segmenter)(image).labels_HW, segmenter(image, "semantic").labels_HW)


@given(st.integers(1, 2000), st.integers(1, 600), st.floats(0.01, 1))
def test_windows_cover_the_axis(length, crop, share):
    stride = max(1, int(crop * share))
    starts = window_starts(length, crop, stride)
    seen = np.zeros(length, int)
    for start in starts:
        assert start == 0 or 0 < start <= length - crop
        seen[start : start + crop] += 1
    assert seen.min() >= 1 and starts == sorted(set(starts))


def test_sliding_is_for_semantic_segmentation_only():
    outer = sliding(small_segmenter("coco-panoptic-r50", SLIDE))
    assert outer.tasks == ("semantic",) and outer.default_task == "semantic"
    with pytest.raises(ConfigError, match="semantic segmentation here, not 'panoptic'"):
        outer(random_image(), "panoptic")
    assert outer(random_image()).size == (50, 70)


def test_without_a_setting():
    with pytest.raises(ConfigError, match=r"no test\.slide"):
        sliding(small_segmenter("ade20k-r50"))


@pytest.mark.parametrize("stride", [(0, 10), (10, 65), (-1, 5)])
def test_strides_that_leave_pixels_out_are_refused(stride):
    with pytest.raises(ValidationError, match="pixels are left out"):
        SlideConfig(crop=(64, 64), stride=stride)


def test_a_loaded_model_slides_where_its_configuration_says_so(monkeypatch):
    class Loaded:
        def __init__(self, made):
            self.model, self.config, self.categories = made.model, made.config, made.categories
            self.source, self.notes = "a model", []

    for overrides, kind in (((SLIDE,), Sliding), ((), front.Segmenter)):
        made = small_segmenter("ade20k-r50", *overrides)
        monkeypatch.setattr(load, "load_model", lambda ref, made=made, **options: Loaded(made))
        loaded = load.load("anything", device="cpu")
        assert type(loaded) is kind and loaded.source == "a model"


def test_presets_of_mask2former_see_whole_images():
    """MMSegmentation tests all its Mask2Former models on whole images (docs/methods/published-behaviour.md#2-6)."""
    names = [name for name in configuration.preset_names() if not name.startswith(("eomt-", "pmt-"))]
    assert all(shipped(name).test.slide is None for name in names)
