"""Class tables: the shipped ones against their sources, users' own ones against the rules."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from helpers import facts

from m2f_cli.errors import ConfigError
from m2f_cli.structures import categories
from m2f_cli.structures.categories import Category, default_color, from_names, load_categories, load_class_table

# name: (classes, things, ignore index)
TABLES = {
    "ade20k": (150, 100, 255),
    "ade20k-full": (847, 0, 65535),
    "ade20k-instance": (100, 100, 255),
    "cityscapes": (19, 8, 255),
    "cityscapes-instance": (8, 8, 255),
    "coco-instance": (80, 80, 255),
    "coco-panoptic": (133, 80, 255),
    "coco-stuff-10k": (171, 80, 255),
    "mapillary-vistas": (65, 37, 65),
    "mass13k": (7, 0, 255),
    "nuinsseg": (1, 1, 255),
    "synthetic": (9, 4, 255),
}


def test_the_shipped_tables():
    found = {}
    for name in categories.class_tables():
        table = load_class_table(name)
        things = sum(category.isthing for category in table.categories)
        found[name] = (len(table.categories), things, table.ignore_index)
        assert table.dataset and table.source
    assert found == TABLES


@pytest.mark.parametrize(
    ("table", "position", "category"),
    [
        ("coco-panoptic", 11, Category(13, "stop sign", True, (220, 220, 0))),
        ("coco-panoptic", 80, Category(92, "banner", False, (255, 255, 128))),
        ("coco-instance", 79, Category(90, "toothbrush", True, (191, 162, 208))),
        ("ade20k", 6, Category(6, "road", False, (140, 140, 140))),
        ("ade20k", 8, Category(8, "window", True, (230, 230, 230))),
        ("ade20k-instance", 99, Category(149, "flag", True, (92, 0, 255))),
        ("cityscapes", 16, Category(31, "train", True, (0, 80, 100))),
        ("cityscapes-instance", 5, Category(31, "train", True, (0, 80, 100))),
        ("mapillary-vistas", 0, Category(1, "Bird", True, (165, 42, 42))),
        ("mapillary-vistas", 49, Category(50, "Traffic Sign (Back)", True, (192, 192, 192))),
    ],
)
def test_single_classes_are_the_published_ones(table, position, category):
    assert load_categories(table)[position] == category


@pytest.mark.parametrize(
    ("instance", "panoptic"),
    [("coco-instance", "coco-panoptic"), ("ade20k-instance", "ade20k"), ("cityscapes-instance", "cityscapes")],
)
def test_instance_tables_are_the_things_of_the_panoptic_ones(instance, panoptic):
    assert load_categories(instance) == tuple(c for c in load_categories(panoptic) if c.isthing)


def listed_after(number: str, heading: str) -> list[str]:
    """The items of the list below a bold heading of a section."""
    text = facts.section(number).partition(f"**{heading}**")[2]
    return re.split(r",\s+", text.split("\n\n")[1].strip().removesuffix(".").replace("\\", ""))


def test_names_and_things_are_those_of_the_facts():
    """docs/methods/published-behaviour.md lists ADE20K, Cityscapes, Mapillary and COCO in prose, independently of the
    tables' source."""
    starred = re.compile(r"(\d+)(\*?) (.*)")
    for table, number, heading in (("ade20k", "8.2", "Labels"), ("mapillary-vistas", "8.5", "Order and thing flags")):
        listed = [starred.fullmatch(item).groups() for item in listed_after(number, heading)]
        assert [(str(i), "*" * c.isthing, c.name) for i, c in enumerate(load_categories(table))] == listed
    city = re.findall(r"\| (\d+) \| (\d+) \| ([a-z ]+)(?:\\(\*))? (?=\|)", facts.section("8.4"))
    ours = [(str(i), str(c.id), c.name, "*" * c.isthing) for i, c in enumerate(load_categories("cityscapes"))]
    assert ours == sorted(city, key=lambda row: int(row[0]))
    listed = [(*item.split(" ", 1), True) for item in listed_after("8.1", "Things, by category id")]
    listed += [(*item.split(" ", 1), False) for item in listed_after("8.1", "Stuff, by category id")]
    assert [(str(c.id), c.name, c.isthing) for c in load_categories("coco-panoptic")] == listed


@pytest.mark.parametrize(
    ("table", "file"),
    [
        ("ade20k", "ade20k_150"),
        ("cityscapes", "cityscapes_19"),
        ("coco-panoptic", "coco_panoptic_133"),
        ("mapillary-vistas", "mapillary_v12_65"),
    ],
)
def test_colours_are_those_of_the_class_lists(table, file):
    listed = [tuple(map(int, row[-1].split(","))) for row in facts.class_list(file)]
    assert [c.color for c in load_categories(table)] == listed


def test_large_tables_are_those_of_the_class_lists():
    """Names are as listed, or the first synonym alone where no other class has it."""
    for table, file in (("ade20k-full", "ade20k_full_847"), ("coco-stuff-10k", "coco_stuff10k_171")):
        listed, ours = facts.class_list(file), load_categories(table)
        assert len(ours) == len(listed)
        for i, (found, row) in enumerate(zip(ours, listed, strict=True)):
            number, name = (i, row[2]) if table == "ade20k-full" else (int(row[1]), row[2])
            assert found.id == number and int(row[0]) == i
            assert found.name in (name, name.split(",")[0])
    assert [c.id for c in load_categories("coco-stuff-10k")[:80]] == [c.id for c in load_categories("coco-instance")]


# --- users' own -------------------------------------------------------------------------------------------------------


def table_file(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_a_users_table_needs_names_only(tmp_path):
    path = table_file(tmp_path, "classes: [road, {name: car, id: 7, color: [1, 2, 3]}, {name: sky, isthing: false}]")
    assert load_categories(path) == (
        Category(0, "road", True, default_color(0)),
        Category(7, "car", True, (1, 2, 3)),
        Category(2, "sky", False, default_color(2)),
    )
    assert load_categories(str(path)) is load_categories(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("classes: []", "list of classes"),
        ("names: [a]", "list of classes"),
        ("classes: [a, a]", "two classes have the name 'a'"),
        ("classes: [{name: a, id: 1}, {name: b}]", "two classes have the id 1"),
        ("classes: [{id: 3}]", "no 'name'"),
        ("classes: [{name: a, id: -1}]", "id -1"),
        ("classes: [{name: a, isthing: 2}]", "isthing 2"),
        ("classes: [{name: a, color: [0, 0, 256]}]", "color .*256"),
        ("classes: [{name: a, color: red}]", "color 'red'"),
        ("classes: [{name: a, colour: [0, 0, 0]}]", "unknown key 'colour'"),
        ("classes: [[3]]", "should be an object, not .3"),
        ("classes: [no, 'no']", "two classes have the name 'no'"),
        ("classes: ['']", "name ''"),
        ("{classes: [a], ignore_index: -1}", "ignore_index = -1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_categories(table_file(tmp_path, text))


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(ConfigError, match="cityscapes"):
        load_categories("cityscape")


def test_names_become_categories_with_colours():
    assert from_names(["a", "b"], things={"b"}) == (
        Category(0, "a", False, default_color(0)),
        Category(1, "b", True, default_color(1)),
    )
    assert all(category.isthing for category in from_names(["a", "b"]))
    assert not any(category.isthing for category in from_names(["a", "b"], things=[]))
    with pytest.raises(ConfigError, match="two classes"):
        from_names(["a", "a"])
    with pytest.raises(ConfigError, match="'car'"):
        from_names(["cat"], things=["car"])


def test_default_colours_are_far_from_each_other_and_from_black():
    colors = [default_color(index) for index in range(40)]
    assert min(math.dist(*pair) for pair in itertools.combinations(colors, 2)) > 25
    assert min(map(max, colors)) > 150
    assert all(0 <= value <= 255 for color in colors for value in color)
    assert default_color(0) == (166, 58, 58)  # stable: images of yesterday keep their colours


def test_a_category_comes_back_out_of_a_file():
    category = Category(3, "no", False, (1, 2, 3))
    assert Category.from_dict(category.to_dict()) == category
    assert not Category.from_dict({**category.to_dict(), "isthing": "0"}).isthing


@pytest.mark.parametrize(
    "change",
    [
        {"id": 1.5},
        {"id": "x"},
        {"name": None},
        {"name": "\ud800"},
        {"isthing": "maybe"},
        {"isthing": None},
        {"color": [1, 2]},
        {"color": [999, -5, 0]},
        {"color": None},
    ],
)
def test_a_damaged_category_in_a_file(change):
    with pytest.raises(ConfigError, match=f"a class has the {next(iter(change))}"):
        Category.from_dict({**Category(3, "no", False, (1, 2, 3)).to_dict(), **change})
    with pytest.raises(ConfigError, match="a class should be an object"):
        Category.from_dict([])
