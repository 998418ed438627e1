"""Shards of a prediction: exact contents, and the same bytes however often the run was interrupted."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, FakeSegmenter, instances, panoptic, scene, scene_labels, semantic
from helpers.small_segmenter import small_segmenter
from PIL import Image

from m2f_cli import plugins
from m2f_cli.errors import ConfigError, DataError, M2FError, MissingDependency
from m2f_cli.inference.predict import predict as predict_all
from m2f_cli.inference.sources import RUN_MARK, expand
from m2f_cli.results.rows import checked, result_of
from m2f_cli.results.shards.parquet import read as read_results
from m2f_cli.version import __version__

pandas = pytest.importorskip("pandas", reason="reads tables")
parquet = pytest.importorskip("pyarrow.parquet", reason="writes tables")

COUNT, BROKEN = 7, (2, 6)
MAKE = {"panoptic": panoptic, "instance": instances, "semantic": semantic}
FORMATS = {
    "panoptic": ("parquet", "webdataset", "coco-panoptic-shards"),
    "instance": ("parquet", "webdataset"),
    "semantic": ("parquet", "webdataset"),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(COUNT):
        Image.fromarray(scene(24 + i, 32)).save(tmp_path / "in" / f"{i}.png")
    return tmp_path


def spoil(folder, *numbers):
    for number in numbers:
        (folder / "in" / f"{number}.png").write_bytes(b"no image")


def repair(folder, *numbers):
    for number in numbers:
        Image.fromarray(scene(24 + number, 32)).save(folder / "in" / f"{number}.png")


def predict(folder, segmenter=None, task="panoptic", formats=("parquet",), out="out", shard_size=3, **options):
    segmenter, sources = segmenter or FakeSegmenter(), list(expand([folder / "in"]))
    return predict_all(segmenter, sources, task, folder / out, formats, shard_size=shard_size, **options)


def shards(folder, out="out"):
    """Name → bytes of all files but those that have the times of the run."""
    own = (RUN_MARK, "predictions.json")
    return {
        path.relative_to(folder / out).as_posix(): path.read_bytes()
        for path in sorted((folder / out).rglob("*"))
        if path.is_file() and path.name not in own
    }


class Stopping(FakeSegmenter):
    """Is interrupted, or killed, before an image."""

    def __init__(self, at, how):
        super().__init__()
        self.at, self.how = at, how

    def infer(self, prepared):
        if sum(self.batches) == self.at:
            raise self.how
        return super().infer(prepared)


class Killed(BaseException):
    """Ends a run without its usual end."""


# --- contents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MAKE)
def test_pandas_and_pyarrow_read_the_results_of_each_image(folder, task):
    predict(folder, task=task)
    table = pandas.read_parquet(folder / "out" / "parquet")
    assert table["id"].tolist() == [str(i) for i in range(COUNT)] and table["task"].eq(task).all()
    assert table["uri"].tolist() == [str(folder / "in" / f"{i}.png") for i in range(COUNT)]
    assert table["label"][0].tolist() == [CATEGORIES[i].name for i in found(task)]
    rows = parquet.read_table(folder / "out" / "parquet").to_pylist()
    read = [pair for path in sorted((folder / "out" / "parquet").iterdir()) for pair in read_results(path)]
    assert rows == [row for row, _ in read]
    for number, (row, result) in enumerate(read):
        assert result.categories == CATEGORIES
        assert_same(result, MAKE[task](scene_labels(24 + number, 32)))
        assert_same(result_of(checked(row), CATEGORIES), result)


def found(task):
    return [2] if task == "instance" else [0, 1, 2]


def assert_same(one, other):
    assert type(one) is type(other) and one.size == other.size
    for name in ("ids_HW", "labels_HW", "labels_N", "scores_N"):
        if hasattr(other, name):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert np.array_equal(getattr(one, name), getattr(other, name))
    for name in ("segments", "rles"):
        assert getattr(one, name, None) == getattr(other, name, None)


def test_shards_have_their_number_of_images_and_the_origin_of_the_results(folder):
    spoil(folder, *BROKEN)
    predict(folder, thresholds={"object_threshold": 0.3}, model="mine")
    counts = [len(pandas.read_parquet(path)) for path in sorted((folder / "out" / "parquet").iterdir())]
    assert counts == [2, 3, 0]  # images 2 and 6 failed, and keep their places
    about = parquet.read_schema(folder / "out" / "parquet" / "00000.parquet").metadata
    assert about[b"m2f.model"] == b"mine" and about[b"m2f.version"] == __version__.encode()
    assert about[b"m2f.task"] == b"panoptic" and json.loads(about[b"m2f.thresholds"]) == {"object_threshold": 0.3}
    assert [each["name"] for each in json.loads(about[b"m2f.categories"])] == ["sky", "grass", "person"]


def test_the_metadata_has_the_hashes_of_weights_and_configuration(folder):
    predict(folder, small_segmenter(), out="real")
    about = parquet.read_schema(folder / "real" / "parquet" / "00000.parquet").metadata
    assert len(about[b"m2f.weights"]) == len(about[b"m2f.configuration"]) == 16
    document = json.loads((folder / "real" / "predictions.json").read_text())
    assert about[b"m2f.weights"].decode() == document["weights"] and document["shard_size"] == 3


def test_errors_are_a_table_of_their_own(folder):
    spoil(folder, *BROKEN)
    assert predict(folder).done == COUNT - 2
    table = pandas.read_parquet(folder / "out" / "errors.parquet")
    assert table.columns.tolist() == ["id", "uri", "reason"]
    assert table["id"].tolist() == ["2", "6"] and table["reason"].str.contains("is text").all()
    assert table["uri"].tolist() == [str(folder / "in" / f"{i}.png") for i in BROKEN]


@pytest.mark.parametrize("formats", [("parquet",), ("webdataset",), ("coco-panoptic-shards", "overlay")])
def test_without_failures_the_table_of_errors_is_empty(folder, formats):
    predict(folder, formats=formats)
    assert pandas.read_parquet(folder / "out" / "errors.parquet").shape == (0, 3)


@pytest.mark.parametrize("task", MAKE)
def test_a_tar_has_the_row_and_the_map_of_each_image(folder, task):
    predict(folder, task=task, formats=["webdataset"])
    number = 0
    for path in sorted((folder / "out" / "webdataset").iterdir()):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            assert {(each.mtime, each.uid, each.gid, each.uname) for each in members} == {(0, 0, 0, "")}
            for record, png in zip(members[::2], members[1::2], strict=True):
                assert (record.name, png.name) == (f"{number}.json", f"{number}.png")
                row = checked(json.load(archive.extractfile(record)))
                result = MAKE[task](scene_labels(24 + number, 32))
                assert_same(result_of(row, CATEGORIES), result)
                rgb_HW3 = np.asarray(Image.open(archive.extractfile(png))).astype(int)
                expected = scene_labels(24 + number, 32) + 1
                assert np.array_equal(
                    rgb_HW3 @ [1, 256, 65536], (expected == 3) * 1 if task == "instance" else expected
                )
                number += 1
    assert number == COUNT


def test_coco_shards_hold_what_coco_panoptic_writes(folder):
    predict(folder, formats=["coco-panoptic", "coco-panoptic-shards"])
    whole = json.loads((folder / "out" / "panoptic.json").read_text())
    lists = {"images": [], "annotations": []}
    for path in sorted((folder / "out" / "coco-panoptic-shards").glob("*.json")):
        document = json.loads(path.read_text())
        assert document["categories"] == whole["categories"] and document["info"]["model"] == "fake"
        for key, entries in lists.items():
            entries += document[key]
        with tarfile.open(path.with_suffix(".tar")) as archive:
            assert archive.getnames() == [each["file_name"] for each in document["annotations"]]
            for name in archive.getnames():
                assert archive.extractfile(name).read() == (folder / "out" / "panoptic" / name).read_bytes()
    assert lists == {key: whole[key] for key in lists}


def test_names_with_dots_keep_one_key_for_each_image(tmp_path):
    (tmp_path / "in" / "v1.0").mkdir(parents=True)
    for name in ("a.b.png", "a_b.png", "v1.0/c.png"):
        Image.fromarray(scene(8, 8)).save(tmp_path / "in" / name)
    predict(tmp_path, formats=["webdataset"])
    with tarfile.open(tmp_path / "out" / "webdataset" / "00000.tar") as archive:
        names = archive.getnames()
        ids = [json.load(archive.extractfile(name))["id"] for name in names[::2]]
    assert ids == ["a.b", "a_b", "v1.0/c"] and len(set(names)) == 6
    assert all(name.rpartition("/")[2].count(".") == 1 for name in names)  # the key ends at the first dot


def test_names_that_are_not_utf8_are_escaped_in_tables(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(scene(8, 8)).save(bytes(tmp_path / "in") + b"/a\xff.png", format="PNG")
    spoiled = bytes(tmp_path / "in") + b"/b\xff.png"
    with open(spoiled, "wb") as file:
        file.write(b"no image")
    predict(tmp_path, formats=["parquet", "webdataset", "coco-panoptic-shards"])
    assert pandas.read_parquet(tmp_path / "out" / "parquet")["id"].tolist() == ["a\\udcff"]
    assert pandas.read_parquet(tmp_path / "out" / "errors.parquet")["id"].tolist() == ["b\\udcff"]


def test_nothing_to_do_gives_an_empty_shard(tmp_path):
    predict_all(FakeSegmenter(), [], "panoptic", tmp_path / "out", FORMATS["panoptic"])
    assert pandas.read_parquet(tmp_path / "out" / "parquet").empty
    with tarfile.open(tmp_path / "out" / "webdataset" / "00000.tar") as archive:
        assert archive.getnames() == []


def test_a_file_that_holds_no_results_is_named(folder):
    predict(folder)
    path = folder / "out" / "parquet" / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    pandas.DataFrame({"id": ["a"]}).to_parquet(folder / "other.parquet")
    for each, reason in ((path, "cannot be read as parquet"), (folder / "other.parquet", "has no results of m2f")):
        with pytest.raises(DataError, match=rf"{each.name} {reason}"):
            list(read_results(each))


# --- runs that were interrupted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [KeyboardInterrupt, Killed])
@pytest.mark.parametrize("task", MAKE)
def test_interrupted_and_resumed_runs_give_the_same_bytes(folder, task, how):
    spoil(folder, *BROKEN)
    predict(folder, task=task, formats=FORMATS[task], out="whole")
    whole = shards(folder, "whole")
    assert len(whole) == 1 + 3 * (len(FORMATS[task]) + ("coco-panoptic-shards" in FORMATS[task]))
    for at in range(COUNT - len(BROKEN)):
        with pytest.raises(how):
            predict(folder, Stopping(at, how), task, FORMATS[task], f"out{at}", workers=1)
        predict(folder, task=task, formats=FORMATS[task], out=f"out{at}", skip_existing=True)
        assert shards(folder, f"out{at}") == whole
    again = predict(folder, task=task, formats=FORMATS[task], out="out0", skip_existing=True)
    assert (again.done, again.skipped) == (0, COUNT - len(BROKEN)) and shards(folder, "out0") == whole


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shards_are_written_as_soon_as_they_are_full(folder, device):
    seen = []

    class Watching(FakeSegmenter):
        def infer(self, prepared):
            seen.append(len(list((folder / "out").glob("parquet/*.parquet"))))
            return super().infer(prepared)

    segmenter = Watching()
    segmenter.device = type("Device", (), {"type": device})
    predict(folder, segmenter, shard_size=1, workers=1)
    assert seen == sorted(seen) and seen[-1] >= COUNT - 5  # the stream and the writer's thread are a few images ahead
    if device == "cpu":
        assert seen == list(range(COUNT))


@pytest.mark.parametrize("task", MAKE)
def test_an_image_that_is_done_later_takes_its_own_place(folder, task):
    predict(folder, task=task, formats=FORMATS[task], out="whole")
    spoil(folder, *BROKEN)
    predict(folder, task=task, formats=FORMATS[task])
    repair(folder, *BROKEN)
    assert predict(folder, task=task, formats=FORMATS[task], skip_existing=True).done == len(BROKEN)
    assert shards(folder) == shards(folder, "whole")


def test_a_kill_between_the_new_row_and_its_shard_leaves_no_old_shard(folder):
    predict(folder, out="whole")
    spoil(folder, 0)
    predict(folder)
    repair(folder, 0)
    with pytest.raises(Killed):
        predict(folder, skip_existing=True, on_progress=lambda step: (_ for _ in ()).throw(Killed))
    assert not (folder / "out" / "parquet" / "00000.parquet").exists()
    predict(folder, skip_existing=True)
    assert shards(folder) == shards(folder, "whole")


def test_more_images_continue_the_last_shard(folder):
    extra = [(folder / "in" / f"{i}.png") for i in (1, 6)]
    content = [path.read_bytes() for path in extra]
    for path in extra:
        path.unlink()
    predict(folder)
    before = shards(folder)
    for path, data in zip(extra, content, strict=True):
        path.write_bytes(data)
    assert predict(folder, skip_existing=True).done == 2
    after = shards(folder)
    assert after["parquet/00000.parquet"] == before["parquet/00000.parquet"]
    table = pandas.read_parquet(folder / "out" / "parquet")
    assert table["id"].tolist() == ["0", "2", "3", "4", "5", "1", "6"]  # in the order in which they came


def test_a_shard_that_was_lost_is_written_again(folder):
    predict(folder, formats=FORMATS["panoptic"])
    before = shards(folder)
    for name in ("parquet/00001.parquet", "webdataset/00000.tar", "coco-panoptic-shards/panoptic-00002.tar"):
        (folder / "out" / name).unlink()
    assert predict(folder, formats=FORMATS["panoptic"], skip_existing=True).done == 0
    assert shards(folder) == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_shard_that_cannot_be_written_ends_the_run_and_it_goes_on_later(folder, device):
    predict(folder, out="whole")
    (folder / "out").mkdir()
    (folder / "out" / "parquet").write_text("in the way")
    (folder / "out" / RUN_MARK).touch()
    segmenter = FakeSegmenter()
    segmenter.device = type("Device", (), {"type": device})
    with pytest.raises(M2FError, match="Cannot write"):
        predict(folder, segmenter, skip_existing=True)
    (folder / "out" / "parquet").unlink()
    predict(folder, skip_existing=True)
    assert shards(folder) == shards(folder, "whole")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"), [({"shard_size": 4}, "shard_size"), ({"formats": ["webdataset"]}, "formats")]
)
def test_going_on_with_other_shards_is_refused(folder, change, named):
    predict(folder)
    with pytest.raises(ConfigError, match=f"with {named} "):
        predict(folder, skip_existing=True, **change)


def test_going_on_with_other_weights_is_refused(folder):
    segmenter = FakeSegmenter()
    segmenter.model, segmenter.source = None, str(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(b"a")
    predict(folder, segmenter)
    (folder / "model.onnx").write_bytes(b"b")
    with pytest.raises(ConfigError, match="with weights "):
        predict(folder, segmenter, skip_existing=True)


def test_overwriting_removes_the_shards_of_the_earlier_run_alone(folder):
    predict(folder, formats=FORMATS["panoptic"], shard_size=1)
    mine = folder / "out" / "parquet" / "mine.parquet"
    mine.write_bytes(b"precious")
    predict(folder, formats=["parquet"], shard_size=4, overwrite=True)
    assert sorted(shards(folder)) == [
        "errors.parquet",
        "parquet/00000.parquet",
        "parquet/00001.parquet",
        "parquet/mine.parquet",
    ]
    predict(folder, formats=["label-png"], overwrite=True)
    assert mine.read_bytes() == b"precious" and not (folder / "out" / "errors.parquet").exists()


def test_wrong_requests_are_refused_before_the_first_image(folder, monkeypatch):
    with pytest.raises(ConfigError, match="is for panoptic results, not for semantic ones"):
        predict(folder, task="semantic", formats=["coco-panoptic-shards"])
    with pytest.raises(ConfigError, match="shard_size are at least 1, not 1, 2 and 0"):
        predict(folder, shard_size=0)
    (folder / "out" / "parquet").mkdir(parents=True)
    (folder / "out" / "parquet" / "mine.parquet").touch()
    with pytest.raises(ConfigError, match="lies where results go"):
        predict(folder, overwrite=True)
    (folder / "out" / "parquet" / "mine.parquet").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="'webdataset' needs the package pyarrow"):
        predict(folder, formats=["webdataset"])


def test_every_format_of_shards_is_tested():
    assert set(plugins.names("shards")) == {name for names in FORMATS.values() for name in names}
