"""Edges against a slow oracle, boundary IoU class by class with binary masks, and figures by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from m2f_cli.metrics.boundary import BoundaryIoU, MaSS13KBoundaryIoU, edge_of_rle, edge_width, interior
from m2f_cli.results.types import SemanticMap
from m2f_cli.structures.annotations import SemanticAnnotation
from m2f_cli.structures.categories import Category

CATEGORIES = tuple(Category(i, name, False, (i, i, i)) for i, name in enumerate(["sky", "grass", "water"]))
SKY, GRASS, WATER = range(3)


def published_edge(mask_HW: np.ndarray, width: int) -> np.ndarray:
    """The paper's code: the mask without its erosion, `width` times by 3 x 3, zeros around the image."""
    framed = cv2.copyMakeBorder(mask_HW.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return (mask_HW.astype(np.uint8) - eroded).astype(bool)


def slow_interior(values_HW: np.ndarray, width: int, outside: int) -> np.ndarray:
    framed = np.pad(values_HW, width, constant_values=outside)
    height, columns = values_HW.shape
    return np.array(
        [
            [
                len(set(framed[y : y + 2 * width + 1, x : x + 2 * width + 1].ravel().tolist())) == 1
                for x in range(columns)
            ]
            for y in range(height)
        ]
    )


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)),
    st.integers(1, 4),
    st.sampled_from([0, 1, 7]),
)
def test_interior_against_looking_around(values_HW, width, outside):
    values_HW[1:7, 1:8] = values_HW[0, 0]
    assert (interior(values_HW, width, outside) == slow_interior(values_HW, width, outside)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.02, 0.1]))
def test_edges_of_masks_are_those_of_the_paper(seed, ratio):
    rng = np.random.default_rng(seed)
    mask_HW = np.zeros((40, 50), np.uint8)
    for _ in range(3):
        top, left = rng.integers(0, 30, 2)
        mask_HW[top : top + rng.integers(1, 30), left : left + rng.integers(1, 30)] = rng.random() < 0.7
    edge = edge_of_rle(coco_mask.encode(np.asfortranarray(mask_HW)), ratio)
    assert (coco_mask.decode(edge).astype(bool) == published_edge(mask_HW, edge_width((40, 50), ratio))).all()


def test_the_edge_of_nothing_is_nothing():
    assert coco_mask.area(edge_of_rle(coco_mask.encode(np.zeros((5, 6), np.uint8, order="F")))) == 0


@pytest.mark.parametrize(
    ("size", "ratio", "width"),
    [
        ((3, 4), 0.02, 1),
        ((300, 400), 0.02, 10),
        ((300, 400), 0.001, 1),
        ((3072, 4096), 0.001, 5),
        ((30, 40), 0.05, 2),
    ],
)
def test_the_edge_grows_with_the_diagonal(size, ratio, width):
    assert edge_width(size, ratio) == width


# --- boundary IoU -----------------------------------------------------------------------------------------------------


def random_images(seed: int, ignore: int = 255, count: int = 3):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        true = np.kron(rng.integers(0, 3, (3, 4)), np.ones((9, 9), int)).astype(np.uint8)
        found = np.roll(true, rng.integers(-2, 3, 2), (0, 1))
        found[rng.random(true.shape) < 0.01] = rng.choice([SKY, GRASS, WATER, 255])
        true[: rng.integers(0, 6), : rng.integers(0, 20)] = ignore
        yield found, true


def of(images, kind=BoundaryIoU, ignore=255, **options):
    metric = kind(CATEGORIES, **options)
    for found_HW, true_HW in images:
        metric.update(SemanticMap(found_HW.shape, CATEGORIES, found_HW), SemanticAnnotation(true_HW, ignore))
    return metric


def oracle(images, ratio: float, counts_ignored: bool, ignore: int) -> list[float]:
    """Class by class with binary masks."""
    both, union = np.zeros(3), np.zeros(3)
    for found_HW, true_HW in images:
        width = edge_width(true_HW.shape, ratio)
        for label in range(3):
            true, found = published_edge(true_HW == label, width), published_edge(found_HW == label, width)
            found &= counts_ignored | (true_HW != ignore)
            both[label] += (true & found).sum()
            union[label] += (true | found).sum()
    return (100 * both / union).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.05, 0.1]), st.sampled_from([255, 3]))
def test_equal_to_binary_masks(seed, ratio, ignore):
    images = list(random_images(seed, ignore))
    for kind, counts_ignored in ((BoundaryIoU, False), (MaSS13KBoundaryIoU, True)):
        figures = of(images, kind, ignore, ratio=ratio).compute()
        expected = oracle(images, ratio, counts_ignored, ignore)
        assert [row[kind.figure] for row in figures["per_class"].values()] == pytest.approx(expected, nan_ok=True)
        assert figures[kind.figure] == pytest.approx(np.nanmean(expected))


def test_the_two_conventions_differ_where_the_annotation_is_ignored():
    images = list(random_images(5))
    ours, theirs = (of(images, kind, ratio=0.05).compute() for kind in (BoundaryIoU, MaSS13KBoundaryIoU))
    assert ours["boundary_iou"] > theirs["boundary_iou_mass13k"]
    assert BoundaryIoU(CATEGORIES).ratio == 0.02 and MaSS13KBoundaryIoU(CATEGORIES).ratio == 0.001


def test_boundary_figures_equal_those_by_hand():
    # 5 x 5: the whole border of sky is its edge, 16 pixels; a hole of grass in the middle makes all of it edge.
    true = np.full((5, 5), SKY, np.uint8)
    found = true.copy()
    found[2, 2] = GRASS
    figures = of([(found, true)]).compute()
    assert figures["boundary_iou"] == pytest.approx(100 * 16 / 24)
    assert math.isnan(figures["per_class"]["grass"]["boundary_iou"])


def test_annotation_against_itself_is_100(annotated):
    from m2f_cli.metrics.comparable import semantic_annotation

    metrics = [BoundaryIoU(annotated.categories), MaSS13KBoundaryIoU(annotated.categories)]
    for annotation in annotated.annotations:
        labels_HW = semantic_annotation(annotation, annotated.categories).labels_HW
        for metric in metrics:
            metric.update(SemanticMap(annotation.size, annotated.categories, labels_HW), annotation)
    assert [metric.compute()[metric.figure] for metric in metrics] == [100.0, 100.0]
