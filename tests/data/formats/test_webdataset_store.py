"""Shards in an object store: moto's server, and what fails there."""

from __future__ import annotations

import pickle

import pytest
from helpers import folders
from storage.s3_server import s3_server, settings

from m2f_cli import cli
from m2f_cli.data.formats.webdataset import part_of_shard
from m2f_cli.data.open_dataset import detect, open_data
from m2f_cli.dataset_tools.convert.run import convert
from m2f_cli.errors import DataError
from m2f_cli.runtime import network
from m2f_cli.storage import files, object_stores


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with a data set of three images in two shards at "data", and its folder of shards."""
    folder = tmp_path_factory.mktemp("shards")
    masks = [folders.plane((number, 0, 0, 10, 30)) for number in (0, 1, 2)]
    convert(folders.label_maps(folder / "a", masks), folder / "b", "webdataset", shard_size=2)
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        for name, value in settings(address).items():
            patch.setenv(name, value)
        patch.setenv("M2F_STORAGE_RETRY", "1")
        import fsspec

        store = fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address})
        store.mkdir("bucket")
        for name in ("data", "changing", "plain"):
            store.put(f"{folder / 'b'}/", f"bucket/{name}", recursive=True)
        store.rm("bucket/plain/train/index.json")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield folder / "b"
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(autouse=True)
def nothing_kept():
    part_of_shard.cache_clear()


def same(found, expected):
    assert (found.categories, found.task) == (expected.categories, expected.task)
    for mine, own in zip(found.records, expected.records, strict=True):
        assert (mine.name, mine.labels, mine.height) == (own.name, own.labels, own.height)
        assert (mine.read_image() == own.read_image()).all()
        assert (mine.read_annotation().labels_HW == own.read_annotation().labels_HW).all()


@pytest.mark.parametrize("address", ["s3://bucket/data", "s3://bucket/data/", "s3://bucket/plain"])
def test_a_store_gives_what_the_folder_gives(bucket, address):
    assert detect(address) == "webdataset"
    data = open_data(address, "train")
    same(data, open_data(bucket, "train"))
    same(pickle.loads(pickle.dumps(data)), data)
    assert data.name == address.rstrip("/").rpartition("/")[2]


def test_a_sample_is_one_read_of_its_own_bytes(bucket, monkeypatch):
    data, asked = open_data("s3://bucket/data", "train"), []
    whole = object_stores.read
    monkeypatch.setattr(object_stores, "read", lambda *given: asked.append(given) or whole(*given))
    record = data.records[1]
    record.read_image(), record.read_annotation()
    [(uri, _, start, stop)] = asked
    assert uri == "s3://bucket/data/train/00000.tar" and 0 < start < stop < (bucket / "train/00000.tar").stat().st_size


def test_commands_take_the_address(bucket, tmp_path, capsys):
    assert cli.run(["data", "check", "s3://bucket/data", "--split", "train"]) == 0
    assert cli.run(["data", "convert", "s3://bucket/data", str(tmp_path / "c"), "--to", "label-maps"]) == 0
    assert len(list((tmp_path / "c/images/train").iterdir())) == 3


def test_an_object_that_changed_or_went_is_one_sentence(bucket):
    first, _, last = open_data("s3://bucket/changing", "train").records
    content = (bucket / "train/00000.tar").read_bytes()
    files.write("s3://bucket/changing/train/00000.tar", content[:-1] + b"\1")
    with pytest.raises(DataError, match="s3://bucket/changing/train/00000.tar changed: its version was"):
        first.read_image()
    files.remove("s3://bucket/changing/train/00001.tar")
    with pytest.raises(DataError, match="s3://bucket/changing/train/00001.tar cannot be read: there is no such object"):
        last.read_image()
    with pytest.raises(DataError, match="index.json is not of these shards: 00001.tar had .* and has none now"):
        open_data("s3://bucket/changing", "train")


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("s3://bucket/nothing", {}, "s3://bucket/nothing holds no data set that is read from a store"),
        (
            "s3://bucket/nothing",
            {"format": "webdataset"},
            "/classes.json cannot be read: there is no such object",
        ),
        (
            "s3://nobody/data",
            {},
            r"no data set that is read from a store: classes\.json and .*Check the names of bucket",
        ),
        ("s3://bucket/data?x=secret", {}, r"s3://bucket/data \(with the '\?' and what follows it.* holds no data set"),
        ("s3://bucket/data", {"format": "coco-panoptic"}, "coco-panoptic is not read from a store"),
        ("s3://user:secret@bucket/data", {}, "has credentials in it, which are not used"),
        ("file:///etc", {}, "address of a local file"),
        ("ftp://host/data", {}, "a scheme that is not read"),
        ("https://127.0.0.1:9/data", {"format": "webdataset"}, "an address of the web, where shards cannot be listed"),
    ],
)
def test_an_address_that_cannot_be_used(bucket, address, options, message):
    with pytest.raises(DataError, match=message) as caught:
        open_data(address, "train", **options)
    assert "secret" not in str(caught.value)


def test_a_split_that_is_not_there(bucket):
    with pytest.raises(DataError, match=r"s3://bucket/data has no split 'val'") as caught:
        open_data("s3://bucket/data", "val")
    assert "train" in caught.value.hint


def test_a_store_that_is_away_or_forbids(bucket, monkeypatch):
    import fsspec

    record = open_data("s3://bucket/data", "train").records[0]
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for action in (lambda: open_data("s3://bucket/data", "train"), record.read_image):
        with pytest.raises(DataError, match=r"s3://bucket/data/.* cannot be read: the connection is refused"):
            action()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_permission_that_is_denied(bucket, monkeypatch):
    def forbidden(*_):
        raise PermissionError("Access Denied verysecretkey")

    record = open_data("s3://bucket/data", "train").records[1]
    monkeypatch.setattr(object_stores, "read", forbidden)
    for action in (lambda: open_data("s3://bucket/data", "train"), record.read_image):
        with pytest.raises(DataError, match=r"s3://bucket/data/.* cannot be read: permission is denied") as caught:
            action()
        assert "verysecretkey" not in str(caught.value)


def test_no_network_is_one_sentence(bucket, monkeypatch):
    monkeypatch.setattr(network, "is_offline", lambda: True)
    with pytest.raises(DataError, match="s3://bucket/data/classes.json is not on this machine"):
        open_data("s3://bucket/data", "train")
