"""What stays the same to the last bit, and what changes by rounding: runs, batches, their order, and threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers.small_segmenter import random_image, small_segmenter

IMAGES = [random_image(50, 70, seed) for seed in range(4)]
# Logits of magnitude 30 after some 60 layers, each of which rounds once more in another order of its sums.
ROUNDING = 2e-3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def raw(images, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Class logits and mask logits of each image."""
    segmenter = small_segmenter()
    prepared = [segmenter.prepare(image) for image in images]
    answers = []
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            answers += segmenter.infer(prepared[i : i + batch])
    every = torch.arange(answers[0].class_logits_QK.shape[0])
    return [(answer.class_logits_QK, answer.masks.coarse(every).logits_QHW) for answer in answers]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_a_second_run_gives_the_same_bits():
    assert same(raw(IMAGES, 2), raw(IMAGES, 2))


def test_the_place_in_a_batch_changes_rounding_alone():
    forward, backward = raw(IMAGES, 4), raw(IMAGES[::-1], 4)[::-1]
    for x, y in zip(forward, backward, strict=True):
        for a, b in zip(x, y, strict=True):
            torch.testing.assert_close(a, b, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_the_size_of_a_batch_changes_rounding_alone(batch):
    for x, y in zip(raw(IMAGES, 1), raw(IMAGES, batch), strict=True):
        for a, b in zip(x, y, strict=True):
            torch.testing.assert_close(a, b, atol=ROUNDING, rtol=0)


def test_the_number_of_threads_changes_rounding_alone():
    torch.set_num_threads(1)
    one = raw(IMAGES, 2)
    again = raw(IMAGES, 2)
    torch.set_num_threads(2)
    for x, y in zip(one, raw(IMAGES, 2), strict=True):
        for a, b in zip(x, y, strict=True):
            torch.testing.assert_close(a, b, atol=ROUNDING, rtol=0)
    assert same(one, again)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_results_do_not_depend_on_the_batch(task):
    segmenter = small_segmenter()
    alone, together = [segmenter(image, task=task) for image in IMAGES], segmenter(IMAGES, task=task)
    for a, b in zip(alone, together, strict=True):
        first, second = (x.ids_HW if task == "panoptic" else x.labels_HW for x in (a, b))
        assert np.mean(first != second) < 0.001  # a pixel at which two masks are equal to rounding
