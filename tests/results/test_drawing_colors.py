"""Colours of drawings: text that contrasts, classes that colour-blind people tell apart, objects of one class."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from m2f_cli.results.colors import COLOR_BLIND, color_blind, colors_of, ink_for
from m2f_cli.structures.categories import Category, load_categories

LACKING = {  # Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB
    "nothing": np.eye(3),
    "red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(rgb):
    values = np.asarray(rgb) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colors_N3):
    """CIE 1976 coordinates of linear colours, for the white of sRGB."""
    xyz = colors_N3.clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("lacking", LACKING)
def test_the_colours_for_the_colour_blind_stay_apart(lacking):
    seen_N3 = lab(linear(COLOR_BLIND) @ np.array(LACKING[lacking]).T)
    assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen_N3, 2)) >= 16


def test_no_two_classes_of_an_image_share_a_colour_for_the_colour_blind():
    labels = [0, 16, 32, 5, 131, 5]
    colors = color_blind(labels)
    assert colors[0] == COLOR_BLIND[0] and colors[5] == COLOR_BLIND[5]
    assert len(set(colors.values())) == 5
    assert len(set(color_blind(range(40)).values())) == 16


def test_objects_of_one_class_have_different_colours_in_both_palettes():
    categories = load_categories("coco-panoptic")
    for palette in ("default", "color-blind"):
        labels = [0] * 12
        colors = colors_of(labels, categories, palette, plain=False)
        assert len(set(colors)) == 12
        assert all(np.abs(np.subtract(a, b)).max() > 20 for a, b in itertools.pairwise(colors))
        assert len(set(colors_of(labels, categories, palette, plain=True))) == 1
    assert colors_of([0], categories, "color-blind", plain=False) == [COLOR_BLIND[0]]


@pytest.mark.parametrize("color", list(itertools.product((0, 60, 128, 190, 255), repeat=3)))
def test_text_contrasts_with_its_box(color):
    light, dark = sorted([linear(rgb) @ TO_XYZ[1] for rgb in (color, ink_for(color))], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_class_without_a_colour_of_its_own_stays_grey():
    red, green, blue = colors_of([0, 0], (Category(1, "grey", True, (128, 128, 128)),), "default", plain=False)[1]
    assert max(red, green, blue) - min(red, green, blue) < 30
