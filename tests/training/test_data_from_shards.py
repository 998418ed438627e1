"""A training from shards, on disk and in a store, is that from a folder, to the last bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from storage.s3_server import s3_server, settings
from training import tiny

from m2f_cli.data.synthetic.dataset import synthetic_dataset
from m2f_cli.dataset_tools.convert.run import convert, write_out
from m2f_cli.dataset_tools.convert.source import ConvertSource
from m2f_cli.training import resume, run

TIMES = ("seconds", "data_share", "images_per_second", "crc32")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same images as a folder and as shards, in the order of the folder."""
    root = tmp_path_factory.mktemp("data")
    splits = [
        synthetic_dataset(name, count, size=(64, 96), objects=(3, 8)) for name, count in (("train", 9), ("val", 2))
    ]
    parts = {data.split: data.records for data in splits}
    write_out(ConvertSource(Path("x"), tuple(splits), "panoptic"), parts, root / "folder", "coco-panoptic")
    convert(root / "folder", root / "shards", "webdataset", shard_size=4)
    return root


def trained(out: Path, data: Path | str, *, workers: int = 0, stops: bool = False) -> tuple[list, dict]:
    """The lines of steps and evaluations without their times, and the state at the end."""
    config = tiny.settings("train.eval_every=3", "train.batch=2")
    chosen = {"data": data, "init": "random", "device": "cpu", "workers": workers}
    if stops:
        calls = itertools.count()
        options = run.TrainOptions(**chosen, time_budget=1)
        outcome = run.start(config, out, options, clock=lambda: 0 if next(calls) < 4 else 1e9)
        assert 0 < outcome.iteration < 6
    run.start(config, out, run.TrainOptions(**chosen, resume=stops))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] in ("train", "val")]
    steps = [{key: line[key] for key in line if key not in TIMES} for line in lines]
    return steps, resume.read(out / "checkpoints" / "resume.pt")


@pytest.fixture(scope="module")
def from_folder(places):
    return trained(places / "from folder", places / "folder")


def assert_same(found: tuple[list, dict], expected: tuple[list, dict]) -> None:
    assert len(expected[0]) >= 6 and found[0] == expected[0]
    assert found[1]["iteration"] == expected[1]["iteration"] == 6
    for kind in ("model", "optimizer", "random"):
        torch.testing.assert_close(found[1][kind], expected[1][kind], rtol=0, atol=0)


@pytest.mark.parametrize(("workers", "stops"), [(0, False), (2, True)])
def test_shards_give_the_losses_of_the_folder(places, from_folder, tmp_path, workers, stops):
    assert_same(trained(tmp_path, places / "shards", workers=workers, stops=stops), from_folder)


def test_a_store_gives_the_losses_of_the_folder(places, from_folder, tmp_path, monkeypatch):
    """Workers are forked from a process that has asked the store already."""
    with s3_server() as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("M2F_STORAGE_RETRY", "10")
        import fsspec

        store = fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address})
        store.mkdir("bucket")
        store.put(f"{places / 'shards'}/", "bucket/data", recursive=True)
        assert_same(trained(tmp_path, "s3://bucket/data", workers=2, stops=True), from_folder)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
    written = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert "s3://bucket/data" in written and "verysecretkey" not in written and "AKIDTEST" not in written
