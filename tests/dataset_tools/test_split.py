"""Images are shared out whole and once, groups together, classes alike, and the same every time."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from helpers.folders import (
    annotation,
    coco_instances,
    label_maps,
    labelme,
    plane,
    rectangle,
    roboflow,
    write_text,
    yolo_seg,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.dataset_tools.split import SplitItem, divide, grouping, labels_of, split
from m2f_cli.errors import ConfigError, DataError

ITEMS = (
    st.integers(20, 120)
    .flatmap(
        lambda count: st.lists(
            st.tuples(st.integers(0, 9), st.sets(st.integers(0, 4), max_size=3)), min_size=count, max_size=count
        )
    )
    .map(
        lambda rows: [SplitItem(f"p{n}", f"g{group}", tuple(sorted(labels))) for n, (group, labels) in enumerate(rows)]
    )
)


def alone(items):
    return [SplitItem(item.name, item.name, item.labels) for item in items]


def parts(division):
    found = {}
    for name, where in division.split_of.items():
        found.setdefault(where, set()).add(name)
    return found


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.booleans(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_nothing_is_lost_and_the_order_does_not_matter(items, stratify, seed, random):
    shares = {"val": 0.2, "test": 0.1}
    division = divide(alone(items), shares, seed=seed, stratify=stratify)
    assert division.split_of.keys() == {item.name for item in items}
    assert set(division.split_of.values()) == {"train", "val", "test"}
    assert division.images == Counter(division.groups)
    shuffled = alone(items)
    random.shuffle(shuffled)
    assert divide(shuffled, shares, seed=seed, stratify=stratify).split_of == division.split_of


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.integers(0, 3))
def test_shares_are_met_to_the_image(count, val, test, seed):
    division = divide([SplitItem(str(n), str(n)) for n in range(count)], {"val": val, "test": test}, seed=seed)
    for name, share in (("val", val), ("test", test)):
        assert abs(division.images[name] - share * count) <= 1


@settings(max_examples=60, deadline=None)
@given(ITEMS, st.booleans(), st.integers(0, 3))
def test_groups_stay_whole(items, stratify, seed):
    try:
        division = divide(items, {"val": 0.3}, seed=seed, stratify=stratify)
    except ConfigError as error:  # a few large groups need not have one for val
        assert "would be empty" in str(error)
        return
    where = {}
    for item in items:
        assert where.setdefault(item.group, division.split_of[item.name]) == division.split_of[item.name]
    assert sum(division.groups.values()) == len(where)


@pytest.mark.parametrize("count", [40, 80, 200])
def test_classes_are_shared_out_alike(count):
    """Eight classes of all frequencies, that appear together, and images of nothing."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        shown = (random.random((count, 8)) < random.random(8) ** 2) & (random.random((count, 1)) < 0.5)
        items = [SplitItem(str(n), str(n), tuple(np.flatnonzero(row).tolist())) for n, row in enumerate(shown)]
        division = divide(items, {"val": 0.25}, seed=seed, stratify=True)
        is_val = np.array([division.split_of[str(n)] == "val" for n in range(count)])
        assert np.abs(shown[is_val].sum(0) - shown.sum(0) / 4).max() <= 2
        assert abs(is_val.sum() - count / 4) <= 1


def test_rare_classes_come_out_better_than_by_chance():
    """4 of 400 images show the class 1: two of them belong into half of the images, for any seed."""
    items = [SplitItem(str(n), str(n), (0, 1) if n < 4 else (0,)) for n in range(400)]

    def rare(seed, stratify):
        division = divide(items, {"val": 0.5}, seed=seed, stratify=stratify)
        return sum(division.split_of[str(n)] == "val" for n in range(4))

    assert {rare(seed, True) for seed in range(20)} == {2}
    assert {rare(seed, False) for seed in range(20)} > {2}


def test_groups_of_a_rare_class():
    """Both splits get one of the two sequences with trams, though each is a group."""
    items = [SplitItem(f"{g}/{n}", str(g), (0, 1) if g in (3, 8) else (0,)) for g in range(10) for n in range(10)]
    for seed in range(10):
        division = divide(items, {"val": 0.5}, seed=seed, stratify=True)
        assert division.images == {"train": 50, "val": 50}
        assert division.split_of["3/0"] != division.split_of["8/0"]


def test_the_same_seed_is_the_same_division_on_every_machine():
    items = [SplitItem(str(n), str(n)) for n in range(20)]
    first = parts(divide(items, {"val": 0.2}, seed=0))["val"]
    assert parts(divide(items, {"val": 0.2}, seed=0))["val"] == first
    others = {frozenset(parts(divide(items, {"val": 0.2}, seed=seed))["val"]) for seed in range(10)}
    assert len(others) == 10
    assert first == {"5", "16", "18", "19"}


def test_groups_by_name():
    items = [SplitItem(f"{g}_{n}", g) for g in ("0001TP", "0006R0", "0016E5") for n in range(10)]
    division = divide(items, {}, pinned={"val": ["0006R0"]})
    assert parts(division)["val"] == {f"0006R0_{n}" for n in range(10)}
    assert division.groups == {"train": 2, "val": 1}
    division = divide(items, {"test": 1 / 3}, pinned={"val": ["0006R0"]})
    assert division.images == {"train": 10, "val": 10, "test": 10}
    assert division.to_dict()["val"] == {"pictures": 10, "groups": 1, "share": 1 / 3}


@pytest.mark.parametrize(
    ("shares", "pinned", "words"),
    [
        ({}, {}, "There is no share and no group"),
        ({"val": 1.0}, {}, "less than 1"),
        ({"val": 0.0}, {}, "more than 0"),
        ({"val": 0.6, "test": 0.4}, {}, "val 0.6, test 0.4"),
        ({"val": float("nan")}, {}, "more than 0"),
        ({"val": 0.1}, {"val": ["a"]}, "a share and groups"),
        ({}, {"val": ["c"]}, "no group named 'c'"),
        ({}, {"val": ["a"], "test": ["a"]}, "claimed by val and by test"),
        ({}, {"val": ["a", "b"]}, "'train' would be empty"),
        ({"val": 0.01}, {}, "'val' would be empty"),
    ],
)
def test_what_makes_no_sense(shares, pinned, words):
    items = [SplitItem(f"{n}", "ab"[n % 2]) for n in range(10)]
    with pytest.raises(ConfigError, match=words):
        divide(items, shares, pinned=pinned)


def test_nothing_to_split_is_refused():
    with pytest.raises(ConfigError, match="no images"):
        divide([], {"val": 0.5})


@pytest.mark.parametrize(
    ("group_by", "name", "group"),
    [
        (None, "a/b_1", "a/b_1"),
        ("folder", "north/b_1", "north"),
        ("folder", "b_1", "."),
        ("^([^_]+)_", "0006R0_f00930", "0006R0"),
        ("seq[0-9]+", "x-seq12-3", "seq12"),
    ],
)
def test_images_are_grouped_by_what_is_asked(group_by, name, group):
    assert grouping(group_by)(name) == group


def test_groupings_that_do_not_fit():
    with pytest.raises(ConfigError, match="no regular expression"):
        grouping("(")
    with pytest.raises(ConfigError, match="not found in the name 'b'"):
        grouping("^([^_]+)_")("b")
    with pytest.raises(ConfigError, match="not found"):
        grouping("(x)?b")("b")


# --- folders ----------------------------------------------------------------------------------------------------------


def test_label_maps_are_split_by_their_classes(tmp_path):
    masks = [plane((1, 0, 0, 5, 5)) if n % 5 == 0 else plane() for n in range(20)]
    source = label_maps(tmp_path / "a", masks)
    assert [labels_of(record) for record in open_data(source, "train").records[:2]] == [(0, 1), (0,)]
    division, done = split(source, tmp_path / "b", {"val": 0.25}, stratify=True)
    assert (detect(tmp_path / "b"), done.to, done.losses) == ("label-maps", "label-maps", ())
    found = {name: open_data(tmp_path / "b", name).records for name in ("train", "val")}
    assert {name: len(records) for name, records in found.items()} == {"train": 15, "val": 5}
    assert sum(labels_of(record) == (0, 1) for record in found["val"]) == 1
    old = {record.name: record for record in open_data(source, "train").records}
    for record in (*found["train"], *found["val"]):
        assert record.read_image().tobytes() == old[record.name].read_image().tobytes()
        assert np.array_equal(record.read_annotation().labels_HW, old[record.name].read_annotation().labels_HW)
    assert {record.name for record in found["val"]} == parts(division)["val"]


def test_a_json_of_objects_keeps_ids_and_annotations(tmp_path):
    annotations = [annotation(n, n, 3 if n % 2 else 17, [rectangle(1, 2, 11, 7)], area=float(n)) for n in range(1, 11)]
    source = coco_instances(tmp_path / "a", annotations, name="train", images="train", count=10)
    split(source, tmp_path / "b", {"val": 0.2, "test": 0.2}, stratify=True, link=True)
    seen = {}
    for name in ("train", "val", "test"):
        tree = json.loads((tmp_path / "b" / "annotations" / f"instances_{name}.json").read_text())
        ids = {image["id"] for image in tree["images"]}
        assert {row["image_id"] for row in tree["annotations"]} == ids
        assert all(row["area"] == row["image_id"] for row in tree["annotations"])
        assert {row["category_id"] for row in tree["annotations"]} == {3, 17}
        seen[name] = ids
    assert {name: len(ids) for name, ids in seen.items()} == {"train": 6, "val": 2, "test": 2}
    assert set().union(*seen.values()) == set(range(1, 11))
    assert all(path.is_symlink() for path in (tmp_path / "b" / "val").iterdir())


def test_other_splits_stay_as_they_are(tmp_path):
    source = label_maps(tmp_path / "a", [plane()] * 10)
    label_maps(source, [plane()] * 3, split="test")
    with pytest.raises(ConfigError, match="--split train"):
        split(source, tmp_path / "b", {"val": 0.2})
    split(source, tmp_path / "b", {"val": 0.2}, splits=["train"])
    assert {name: len(open_data(tmp_path / "b", name)) for name in ("train", "val", "test")} == {
        "train": 8,
        "val": 2,
        "test": 3,
    }
    with pytest.raises(ConfigError, match="a split 'test' already"):
        split(source, tmp_path / "c", {"test": 0.2}, splits=["train"])
    with pytest.raises(DataError, match="no split named 'vall'"):
        split(source, tmp_path / "c", {"val": 0.2}, splits=["vall"])


def test_splits_shared_out_together(tmp_path):
    """Their images have the same names: 0 to 4."""
    source = label_maps(tmp_path / "a", [plane()] * 5)
    label_maps(source, [plane()] * 5, split="val")
    division, _ = split(source, tmp_path / "b", {"val": 0.3}, splits=["train", "val"])
    assert division.split_of.keys() == {f"{name}/{n}" for name in ("train", "val") for n in range(5)}
    assert {name: len(open_data(tmp_path / "b", name)) for name in ("train", "val")} == {"train": 7, "val": 3}


def test_groups_in_the_names_of_files(tmp_path):
    source = tmp_path / "a"
    for sequence in ("0001TP", "0006R0"):
        for n in range(3):
            labelme(source / "train" / f"{sequence}_{n}")  # each in a folder of its own
    split(source, tmp_path / "b", {}, group_by="^([^_]+)_", pinned={"val": ["0006R0"]})
    assert [record.name for record in open_data(tmp_path / "b", "val").records] == [f"0006R0_{n}/a" for n in range(3)]
    assert detect(tmp_path / "b") == "labelme"


@pytest.mark.parametrize(("make", "to"), [(roboflow, "coco-instance"), (yolo_seg, "yolo-seg")])
def test_formats_that_are_only_read_have_a_substitute(tmp_path, make, to):
    _, done = split(make(tmp_path / "a"), tmp_path / "b", {"val": 0.5}, splits=["train", "val"])
    assert (done.to, detect(tmp_path / "b")) == (to, to)


def test_damaged_images_are_reported_and_not_written(tmp_path):
    source = label_maps(tmp_path / "a", [plane()] * 10)
    write_text(source / "images/train/3.jpg", "no image")
    division, done = split(source, tmp_path / "b", {"val": 0.2}, stratify=True)
    assert [name for _, name, _ in done.failures] == ["3"]
    assert sum(each.images for each in done.splits) == 9
    assert len(division.split_of) == 10
