"""m2f data convert and m2f data split on the command line: what is printed, as json, and the exit codes."""

from __future__ import annotations

import json

import pytest
import typer
from helpers.folders import annotation, coco_instances, label_maps, plane, rectangle, write_text
from typer.testing import CliRunner

from m2f_cli.commands.data.convert import convert
from m2f_cli.commands.data.reading import parse_label_map
from m2f_cli.commands.data.split import split
from m2f_cli.data.open_dataset import open_data
from m2f_cli.errors import ConfigError

app = typer.Typer()
app.command("convert")(convert)
app.command("split")(split)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_convert_prints_what_is_lost(tmp_path):
    source = coco_instances(
        tmp_path / "a",
        [
            annotation(1, 1, 3, [rectangle(1, 2, 11, 7)]),
            annotation(2, 1, 17, [rectangle(1, 2, 11, 7)], iscrowd=1),
        ],
    )
    done = run("convert", source, tmp_path / "b", "--to", "yolo-seg")
    assert done.exit_code == 0, done.output
    assert "coco-instance → yolo-seg, 2 classes" not in done.stdout  # a pipe has no titles
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert ["val", "1", ""] in rows
    assert [row[1] for row in rows if row[0] == "crowds"] == ["1"]
    assert rows[-1] == [f"Written: {tmp_path / 'b'}"]


def test_convert_as_json_with_failures(tmp_path):
    source = label_maps(tmp_path / "a", [plane()] * 3)
    write_text(source / "images/train/1.jpg", "no image")
    done = run("convert", source, tmp_path / "b", "--to", "coco-panoptic", "--json", "--link", "--workers", 1)
    assert done.exit_code == 3
    tree = json.loads(done.stdout)
    assert tree["schema_version"] == 1
    assert (tree["format"], tree["to"], tree["classes"]) == ("label-maps", "coco-panoptic", 3)
    (row,) = tree["splits"]
    assert (row["split"], row["pictures"], [each["picture"] for each in row["failures"]]) == ("train", 2, ["1"])
    assert "1.jpg" in row["failures"][0]["reason"]
    assert (tmp_path / "b/train/0.jpg").is_symlink()


def test_convert_warns_of_failures(tmp_path):
    source = label_maps(tmp_path / "a", [plane()] * 9)
    for n in range(7):
        write_text(source / f"images/train/{n}.jpg", "no image")
    done = run("convert", source, tmp_path / "b", "--to", "label-maps")
    assert done.exit_code == 3
    assert done.stderr.count("warning: train: ") == 5
    assert "and 2 more" in done.stderr


def test_convert_with_a_label_map_and_objects(tmp_path):
    source = label_maps(tmp_path / "a", [plane((255, 2, 2, 6, 6), (255, 10, 10, 12, 12))], classes="rest\ncell\n")
    done = run(
        "convert",
        source,
        tmp_path / "b",
        "--to",
        "coco-instance",
        "--label-map",
        "0=rest,255=cell",
        "--separate",
        "cell",
    )
    assert done.exit_code == 0, done.output
    assert len(open_data(tmp_path / "b", "train").records[0].read_annotation().objects) == 2


@pytest.mark.parametrize("arguments", [["--to", "coco"], ["--to", "yolo-seg", "--separate", "q"], ["--to", "yolo-seg"]])
def test_convert_refuses_wrong_options_and_writes_nothing(tmp_path, arguments):
    done = run("convert", label_maps(tmp_path / "a", [plane()]), tmp_path / "b", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "b").exists()


def test_label_maps_in_words():
    assert parse_label_map(None) is None
    assert parse_label_map(["0=road,255=", "7=3", " 8 = traffic light "]) == {
        0: "road",
        255: None,
        7: 3,
        8: "traffic light",
    }
    for wrong in ("road", "x=road", "-1=road", "", "²=a", "9" * 5000 + "=a", "1=" + "9" * 5000):
        with pytest.raises(ConfigError, match="VALUE=CLASS"):
            parse_label_map([wrong])


def test_split_prints_the_shares(tmp_path):
    source = label_maps(tmp_path / "a", [plane()] * 10)
    done = run("split", source, tmp_path / "b", "--val", 0.2, "--test", 0.1, "--seed", 4, "--stratify")
    assert done.exit_code == 0, done.output
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert ["val", "2", "2", "20.0%"] in rows
    assert ["test", "1", "1", "10.0%"] in rows


def test_split_by_groups_as_json(tmp_path):
    source = tmp_path / "a"
    label_maps(source, [plane()] * 4)
    for path in [*source.glob("*/train/*")]:
        path.rename(path.with_name(f"{'ab'[int(path.stem) % 2]}_{path.name}"))
    done = run("split", source, tmp_path / "b", "--group-by", "^([^_]+)_", "--val-groups", "b", "--json")
    assert done.exit_code == 0, done.output
    tree = json.loads(done.stdout)
    assert tree["division"]["val"] == {"pictures": 2, "groups": 1, "share": 0.5}
    assert [record.name for record in open_data(tmp_path / "b", "val").records] == ["b_1", "b_3"]


def test_split_needs_to_know_what_to_hold_back(tmp_path):
    done = run("split", label_maps(tmp_path / "a", [plane()]), tmp_path / "b")
    assert isinstance(done.exception, ConfigError)
    assert "--val" in str(done.exception)
