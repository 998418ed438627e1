"""m2f predict in several processes from the command line: the files are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.folders import tree_without_times
from helpers.parts import tiny_config
from helpers.small_segmenter import NAMES, random_image, write_model
from PIL import Image
from storage.s3_server import s3_server, settings

from m2f_cli import cli
from m2f_cli.config import presets
from m2f_cli.structures.categories import from_names

PREDICT = ["predict", "in", "--model", "model.safetensors", "--save", "overlay,coco-panoptic", "--device", "cpu"]
COUNT = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = presets.load("coco-panoptic-r50", ["test.resize.short_edge=64", "test.resize.max_edge=100"])
    config = config.model_copy(update={"model": tiny_config()})
    write_model(tmp_path / "model.safetensors", config, from_names(NAMES, things=NAMES[:3]))
    (tmp_path / "in").mkdir()
    for number in range(COUNT):
        Image.fromarray(random_image(50 + 8 * (number % 3), 70, number)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "x.png").write_bytes(b"no image")
    return tmp_path


def test_devices_write_the_files_of_one_process(folder, capsys):
    assert cli.run([*PREDICT, "--out", "one"]) == 3
    assert cli.run([*PREDICT, "--out", "two", "--devices", "cpu:2"]) == 3
    assert f"{COUNT} done" in capsys.readouterr().out
    assert tree_without_times(folder / "two") == tree_without_times(folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--skip-existing"]], ids=["new", "resumed"])
def test_torchrun_writes_the_files_of_one_process(folder, more):
    assert cli.run([*PREDICT, "--out", "one"]) == 3
    if more:
        lines = (folder / "one" / ".predict.jsonl").read_bytes().splitlines(keepends=True)
        (folder / "two").mkdir()
        (folder / "two" / ".predict.jsonl").write_bytes(b"".join(lines[:3]))
        for name in ("overlay", "panoptic"):
            (folder / "one" / name).rename(folder / "two" / name)
        assert cli.run([*PREDICT, "--out", "one", "--overwrite"]) == 3
    done = torchrun(folder, [*PREDICT, "--out", "two", "--json", *more])
    assert done.returncode == 0, done.stderr[-3000:]
    tree = json.loads(done.stdout)  # one process alone prints
    assert (tree["done"], tree["skipped"], len(tree["failed"])) == ((4, 2, 1) if more else (6, 0, 1))
    assert tree_without_times(folder / "two") == tree_without_times(folder / "one")


@pytest.mark.slow
def test_an_error_of_the_first_process_is_the_only_one(folder):
    done = torchrun(folder, [*PREDICT, "--out", "two", "--draw", "labels", "--classes", "nobody"])
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and "no class named 'nobody'" in told[0], done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_goes_on_after_its_driver_was_killed(folder):
    """Ray ends with the driver, and what was finished is not done again; versions and options are those of a user."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
    for number in range(COUNT, 60):
        Image.fromarray(random_image(50 + 8 * (number % 3), 70, number)).save(folder / "in" / f"{number}.png")
    assert cli.run([*PREDICT, "--out", "one"]) == 3
    command = [sys.executable, "-m", "m2f_cli", *PREDICT, "--out", "ray", "--on", "ray", "--ray-address", "local"]
    journal = folder / "ray" / ".predict.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
            time.sleep(0.05)
        driver.kill()
    done = len(journal.read_bytes().splitlines()) - 1
    again = subprocess.run([*command, "--skip-existing", "--json"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 3, again.stderr[-3000:]
    tree = json.loads(again.stdout)
    assert tree["skipped"] + tree["done"] == 60 and tree["skipped"] >= done - 1
    assert {stage["name"] for stage in tree["stages"]} >= {"read", "network", "write"} or tree["done"] == 0
    found, expected = tree_without_times(folder / "ray"), tree_without_times(folder / "one")
    assert found.pop(".predict.jsonl") and expected.pop(".predict.jsonl")
    assert found == expected


@pytest.fixture
def store(folder, monkeypatch):
    """A store with the images of the folder at s3://store/in."""
    with s3_server() as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("M2F_HOME", str(folder / "home"))
        fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra test)")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        store = fsspec.filesystem("s3", use_listings_cache=False, client_kwargs={"endpoint_url": address})
        store.mkdir("store")
        store.put(str(folder / "in"), "store/in", recursive=True)
        yield store
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["devices", "torchrun", "ray"])
def test_shards_in_a_store_are_those_of_one_process(folder, store, engine):
    """Images come from the store, and each format writes there: files of images, shared files and shards."""
    formats = "label-png,parquet,webdataset,coco-panoptic-shards"  # beside those of PREDICT
    command = [*PREDICT, "--save", formats, "--shard-size", "3", "--json"]
    command[1] = "s3://store/in/"
    assert cli.run([*command, "--out", "s3://store/one"]) == 3
    command += ["--out", "s3://store/many"]
    if engine == "torchrun":
        done = torchrun(folder, command)
    else:
        if engine == "ray":
            pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
        command += {"devices": ["--devices", "cpu:2"], "ray": ["--on", "ray", "--ray-address", "local"]}[engine]
        command = [sys.executable, "-m", "m2f_cli", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == (0 if engine == "torchrun" else 3), done.stderr[-3000:]
    assert not [line for line in done.stderr.splitlines() if "logging.cc" in line]
    found = {}
    for name in ("one", "many"):
        store.get(f"store/{name}", str(folder / name), recursive=True)
        own = tree_without_times(folder / name)
        found[name] = {path: content for path, content in own.items() if not path.startswith(".predict/")}
    assert len(found["one"]) == 3 * COUNT + 3 * 4 + 3  # of each image, of each shard, and of all
    assert found["many"] == found["one"]
    assert not [path for path in (folder / "home").rglob("*.*") if "staging" in path.parts]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--on", "rya"], "no engine of --on named 'rya'. Did you mean ray"),
        (["--ray-address", "auto"], "--ray-address is for --on ray"),
        (["--on", "ray", "--devices", "cpu:2"], "--on ray excludes --devices"),
    ],
)
def test_options_that_do_not_fit_together(folder, capsys, more, says):
    assert cli.run([*PREDICT, "--out", "x", *more]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def torchrun(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "m2f_cli"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
