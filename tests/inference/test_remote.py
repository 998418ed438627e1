"""Results in a store: moto's server on loopback, behind a door that a test can shut for a while."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
from helpers.fake_segmenter import FakeSegmenter, scene
from PIL import Image
from storage.door import Door, without_writing
from storage.s3_server import s3_server, settings

from m2f_cli import cli
from m2f_cli.cluster.processes import Processes
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.inference import load
from m2f_cli.inference.predict import predict as predict_all
from m2f_cli.inference.remote import RemoteFolder, upload
from m2f_cli.inference.sources import RUN_MARK, expand
from m2f_cli.storage import files

pytest.importorskip("pyarrow", reason="writes tables (extra test)")
fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra test)")

COUNT = 7
FORMATS = ["parquet", "webdataset", "coco-panoptic-shards", "coco-panoptic", "label-png"]


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def door(server, monkeypatch, tmp_path_factory):
    door = Door(server)
    for name, value in settings(door.address).items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("M2F_STORAGE_RETRY", "30")
    monkeypatch.setenv("M2F_HOME", str(tmp_path_factory.mktemp("home")))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield door
    door.listener.close()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def uri(door, tmp_path):
    bucket = f"results-{abs(hash(str(tmp_path)))}"
    fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": door.address}).mkdir(bucket)
    return f"s3://{bucket}/out"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(COUNT):
        Image.fromarray(scene(24 + i, 32)).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "2.png").write_bytes(b"no image")
    return tmp_path


def predict(
    folder, uri, segmenter=None, formats=FORMATS, staging=None, skip_existing=False, overwrite=False, **options
):
    sources = list(expand([folder / "in"]))
    remote = RemoteFolder(uri, staging, skip_existing=skip_existing, overwrite=overwrite)
    options = {"shard_size": 3, "remote": remote, **options}
    return predict_all(segmenter or FakeSegmenter(), sources, "panoptic", remote.folder, formats, **options)


def stored(uri):
    """Name → bytes of all objects but the journal and the times of the run."""
    names = [found[len(uri) + 1 :] for found in files.find(uri)]
    return {
        name: files.read(f"{uri}/{name}")
        for name in names
        if not name.startswith(".predict/") and name != "predictions.json"
    }


def journal(uri):
    segments = [found for found in files.find(uri) if "/.predict/" in found]
    return b"".join(map(files.read, segments)).splitlines()


@pytest.fixture
def whole(folder):
    """Name → bytes of the same run into a folder of this machine."""
    predict_all(FakeSegmenter(), list(expand([folder / "in"])), "panoptic", folder / "whole", FORMATS, shard_size=3)
    own = (RUN_MARK, "predictions.json")
    paths = [path for path in (folder / "whole").rglob("*") if path.is_file() and path.name not in own]
    return {path.relative_to(folder / "whole").as_posix(): path.read_bytes() for path in paths}


class Killed(BaseException):
    """Ends a run without its usual end."""


class At(FakeSegmenter):
    """Does something before an image."""

    def __init__(self, number, action):
        super().__init__()
        self.number, self.action = number, action

    def infer(self, prepared):
        if sum(self.batches) == self.number:
            self.action()
        return super().infer(prepared)


def killed():
    raise Killed


def interrupted():
    raise KeyboardInterrupt


def test_a_store_gets_what_a_folder_gets(folder, uri, whole, tmp_path):
    staging = tmp_path / "staging"
    summary = predict(folder, uri, staging=staging)
    assert (summary.done, len(summary.failed)) == (COUNT - 1, 1)
    assert stored(uri) == whole
    document = json.loads(files.read(f"{uri}/predictions.json"))
    assert [record["name"] for record in document["predictions"]] == [str(i) for i in range(COUNT)]
    assert len(journal(uri)) == 1 + COUNT
    assert not [path for path in staging.rglob("*") if path.is_file()]


@pytest.mark.parametrize("how", [killed, interrupted])
def test_another_machine_goes_on_and_the_results_are_the_same(folder, uri, whole, how):
    for at in (0, 2, 4, 5):
        place = f"{uri}/{at}"
        with pytest.raises((Killed, KeyboardInterrupt)):
            predict(folder, place, At(at, how), staging=folder / "one", workers=1)
        summary = predict(folder, place, staging=folder / "other", skip_existing=True)
        assert summary.done + summary.skipped == COUNT - 1
        assert stored(place) == whole
        names = [json.loads(line)["record"]["name"] for line in journal(place)[1:]]
        assert list(dict.fromkeys(names)) == [str(i) for i in range(COUNT)]


def test_the_journal_goes_up_while_the_run_goes_on(folder, uri, monkeypatch):
    for i in range(100, 230):
        shutil.copy(folder / "in" / "0.png", folder / "in" / f"{i}.png")
    with pytest.raises(Killed):
        predict(folder, uri, At(132, killed), formats=["parquet"], shard_size=1000, workers=1)
    assert len(journal(uri)) >= 128
    summary = predict(folder, uri, formats=["parquet"], shard_size=1000, skip_existing=True)
    assert summary.skipped >= 126 and summary.done + summary.skipped == COUNT - 1 + 130


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_store_that_is_away_for_a_while_is_waited_for(folder, uri, door, whole, at):
    def away():
        door.shut()
        threading.Timer(1.5, lambda: setattr(door, "is_shut", False)).start()

    assert predict(folder, uri, At(at, away)).done == COUNT - 1
    assert stored(uri) == whole


def test_a_store_that_stays_away_ends_the_run_and_it_goes_on_later(folder, uri, door, whole, monkeypatch):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.5")
    with pytest.raises(DataError, match=r"s3://\S+ cannot be (read|written): the connection was cut"):
        predict(folder, uri, At(3, door.shut))
    door.is_shut = False
    assert predict(folder, uri, skip_existing=True).done > 0
    assert stored(uri) == whole


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "ExpiredToken", "its credentials have expired or are not accepted. Renew them"),
        (403, "AccessDenied", "permission is denied. Ask its owner"),
        (403, "QuotaExceeded", "permission is denied. Ask its owner"),
        (507, "InsufficientStorage", r"the server says 507( InsufficientStorage)? \(\d times\). Try again later"),
    ],
)
def test_a_store_that_takes_nothing_is_one_sentence(folder, uri, door, whole, monkeypatch, status, code, says):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.5")
    with without_writing(door.address, status, code) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(DataError, match=rf"^s3://\S+/out/\S+ cannot be written: {says}") as caught:
            predict(folder, uri)
        assert "verysecretkey" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.address)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    predict(folder, uri, skip_existing=True)
    assert stored(uri) == whole


def test_a_store_that_takes_nothing_from_another_process_is_one_sentence(folder, uri, door, monkeypatch):
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0.5")
    with without_writing(door.address, 507, "InsufficientStorage") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(DataError, match=r"^s3://\S+/out/\S+ cannot be written: the server says 507"):
            predict(folder, uri, formats=["label-png"], streamer=Processes([("cpu", FakeSegmenter)]))
    assert list(files.find(uri)) == []


def test_what_is_finished_is_skipped(folder, uri, whole):
    predict(folder, uri)
    segmenter = FakeSegmenter()
    summary = predict(folder, uri, segmenter, skip_existing=True)
    assert (summary.done, summary.skipped) == (0, COUNT - 1) and segmenter.batches == []
    files.remove(f"{uri}/labels/4.png")
    files.remove(f"{uri}/parquet/00001.parquet")
    assert predict(folder, uri, skip_existing=True).done == 1
    assert stored(uri) == whole


def test_an_image_that_is_done_later_takes_its_own_place(folder, uri):
    predict(folder, uri, formats=["parquet"])
    Image.fromarray(scene(26, 32)).save(folder / "in" / "2.png")
    assert predict(folder, uri, formats=["parquet"], skip_existing=True).done == 1
    sources = list(expand([folder / "in"]))
    predict_all(FakeSegmenter(), sources, "panoptic", folder / "whole", ["parquet"], shard_size=3)
    for name in ("errors.parquet", *(f"parquet/0000{i}.parquet" for i in range(3))):
        assert files.read(f"{uri}/{name}") == (folder / "whole" / name).read_bytes()


def test_overwriting_removes_the_results_of_the_earlier_run_alone(folder, uri, whole):
    predict(folder, uri, shard_size=1)
    files.write(f"{uri}/parquet/mine.parquet", b"precious")
    predict(folder, uri, overwrite=True)
    assert stored(uri) == {**whole, "parquet/mine.parquet": b"precious"}
    assert len(journal(uri)) == 1 + COUNT


def test_a_folder_in_use_is_not_written_over(folder, uri):
    files.write(f"{uri}/mine.txt", b"precious")
    with pytest.raises(ConfigError, match=r"folder s3://results-\d+/out is not empty"):
        predict(folder, uri)
    files.write(f"{uri}/labels/0.png", b"an annotation")
    with pytest.raises(ConfigError, match="/out/labels/0.png lies where results go"):
        predict(folder, uri, overwrite=True)
    assert files.read(f"{uri}/labels/0.png") == b"an annotation"
    with pytest.raises(ConfigError, match="exclude each other"):
        predict(folder, uri, overwrite=True, skip_existing=True)


def test_going_on_with_other_settings_is_refused_with_the_name_of_the_store(folder, uri):
    predict(folder, uri, formats=["parquet"])
    with pytest.raises(ConfigError, match=r"s3://\S+/out holds predictions with shard_size 3, not 4"):
        predict(folder, uri, formats=["parquet"], shard_size=4, skip_existing=True)


def test_a_missing_or_damaged_segment_is_named(folder, uri):
    predict(folder, uri, formats=["parquet"])
    content = files.read(f"{uri}/.predict/000002.jsonl")
    files.write(f"{uri}/.predict/000002.jsonl", content[:-5])
    with pytest.raises(DataError, match="000002.jsonl is damaged"):
        predict(folder, uri, formats=["parquet"], skip_existing=True)
    files.remove(f"{uri}/.predict/000001.jsonl")
    with pytest.raises(DataError, match="000001.jsonl is missing"):
        predict(folder, uri, formats=["parquet"], skip_existing=True)
    assert predict(folder, uri, formats=["parquet"], overwrite=True).done == COUNT - 1
    assert len(journal(uri)) == 1 + COUNT


def test_a_file_that_another_process_has_uploaded_is_done(folder, uri):
    """Two processes of a cluster may do the same image, after one of them seemed to be lost."""
    (folder / "a.png").write_bytes(b"content")
    upload(folder, uri, ["a.png"])
    upload(folder, uri, ["a.png"])
    assert files.read(f"{uri}/a.png") == b"content" and not (folder / "a.png").exists()
    with pytest.raises(DataError, match="b.png"):
        upload(folder, uri, ["b.png"])


def test_a_second_process_that_writes_there_is_noticed(folder, uri):
    def other():
        files.write(f"{uri}/.predict/000002.jsonl", b"{}\n")

    with pytest.raises(DataError, match="000002.jsonl exists already: another process writes there"):
        predict(folder, uri, At(0, other))


@pytest.mark.parametrize(
    ("place", "kind", "reason"),
    [
        ("https://example.org/out", ConfigError, "is no folder that results are written to"),
        ("hf://owner/name", ConfigError, "is no folder that results are written to"),
        ("s3://no-such-bucket-here/out", DataError, "there is no such bucket"),
        ("ftp://example.org/out", DataError, "has a scheme that is not read"),
        ("s3://user:secret@bucket/out", DataError, r"s3://bucket/out has credentials in it"),
    ],
)
def test_places_that_cannot_be_written_are_refused(door, place, kind, reason):
    with pytest.raises(kind, match=reason) as caught:
        RemoteFolder(place)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"formats": ["coco-panoptic-zip"]}, "packs a folder of this machine"), ({"thumbnails": 64}, "--report")],
)
def test_what_needs_a_folder_of_this_machine_is_refused(folder, uri, change, reason):
    with pytest.raises(ConfigError, match=reason):
        predict(folder, uri, **change)


def test_the_command_line_writes_to_a_store(folder, uri, monkeypatch, capsys):
    monkeypatch.setattr(load, "load", lambda ref=None, **options: FakeSegmenter())
    monkeypatch.chdir(folder)
    command = ["predict", "in", "--task", "panoptic", "--save", "parquet", "--out", uri]
    assert cli.run([*command, "--json"]) == 3  # an image failed
    document = json.loads(capsys.readouterr().out)
    assert document["out"] == uri and document["done"] == COUNT - 1
    assert files.exists(f"{uri}/parquet/00000.parquet")
    assert cli.run(command) == 2 and "is not empty" in capsys.readouterr().err
    assert cli.run([*command, "--skip-existing", "--staging", "here"]) == 3
    assert cli.run(["predict", "in", "--staging", "here"]) == 2
    assert "--staging is for an --out in a store" in capsys.readouterr().err
