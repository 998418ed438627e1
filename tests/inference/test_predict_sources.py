"""Predictions of images from archives, manifests and stores: failures, going on later, no secrets in results."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from helpers.fake_segmenter import FakeSegmenter, scene
from PIL import Image
from storage.web_server import served

from m2f_cli.errors import ConfigError, DataError
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import expand, local_files


def png(height=24):
    encoded = io.BytesIO()
    Image.fromarray(scene(height, 32)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_STORAGE_RETRY", "0")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(sources, out, **options):
    return predict(FakeSegmenter(), list(expand(sources)), "panoptic", out, ["coco-panoptic"], **options)


def records(out):
    return {each["name"]: each for each in json.loads((out / "predictions.json").read_text())["predictions"]}


def test_members_of_a_zip_are_predicted_as_files_are(here):
    (here / "in").mkdir()
    with zipfile.ZipFile("in.zip", "w") as archive:
        for number in range(3):
            (here / "in" / f"{number}.png").write_bytes(png(24 + number))
            archive.writestr(f"{number}.png", png(24 + number))
    assert run(["in.zip"], here / "zip").done == run(["in"], here / "files").done == 3
    assert (here / "zip" / "panoptic.json").read_bytes() == (here / "files" / "panoptic.json").read_bytes()
    assert records(here / "zip")["1"]["file"] == "in.zip/1.png"
    with pytest.raises(DataError, match="--images takes local files"):
        list(local_files(["in.zip"], "--images"))


def test_a_list_of_addresses_goes_on_after_failures_and_keeps_no_secret(here):
    with served({"/a.png?sig=secret": png(), "/b.png": b"<html>", "/c.png": png()}) as web:
        user = web.address.replace("http://", "http://anna:password@")
        lines = [f"{web.address}/a.png?sig=secret\tone", f"{web.address}/b.png\ttwo", f"{user}/gone.png\tthree"]
        lines += [f"{web.address}/c.png\t../four"]
        (here / "list.txt").write_text("\n".join(lines))
        summary = run(["list.txt"], here / "out")
        assert summary.done == 2 and [failure.file.rpartition("/")[2] for failure in summary.failed] == [
            "b.png",
            "gone.png",
        ]
        found = records(here / "out")
        assert found["one"]["file"] == f"{web.address}/a.png" and "web page" in found["two"]["error"]
        assert (here / "out" / "panoptic" / "four.png").is_file() and not (here / "panoptic").exists()
        count = len(web.requests)
        web.files["/gone.png"] = png()
        again = run(["list.txt"], here / "out", skip_existing=True)
        assert (again.done, again.skipped, len(again.failed)) == (1, 2, 1)
        assert len(web.requests) == count + 2
    written = b"".join(path.read_bytes() for path in (here / "out").rglob("*") if path.is_file())
    for secret in (b"secret", b"password", b"anna"):
        assert secret not in written


def test_results_are_not_written_over_the_archive_that_is_read(here):
    (here / "out" / "panoptic").mkdir(parents=True)
    with zipfile.ZipFile(here / "out" / "panoptic" / "a.zip", "w") as archive:
        archive.writestr("a.png", png())
    with pytest.raises(ConfigError):
        run(["out/panoptic/a.zip"], here / "out", overwrite=True)
