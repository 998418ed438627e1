"""A Ray cluster that was started before, by `ray start` on loopback: predictions on it, and who is not let in."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.folders import tree_without_times
from helpers.parts import tiny_config
from helpers.ray_clusters import end_session, free_port
from helpers.small_segmenter import NAMES, random_image, write_model
from PIL import Image

from m2f_cli.config import presets
from m2f_cli.structures.categories import from_names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
PREDICT = ["predict", "in", "--model", "model.safetensors", "--save", "overlay,coco-panoptic", "--device", "cpu"]
START = ["start", "--head", "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", "--block"]
OTHER = "import sys, ray; ray.__version__ = '2.0.0'; from m2f_cli import cli; sys.exit(cli.run(sys.argv[1:]))"
COUNT = 6


@pytest.fixture(scope="module")
def cluster():
    """Address of a cluster, and the variables of the environment for who may use it.

    Its folder is near the root: the path of a socket has at most 107 bytes.
    """
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
    program = Path(sys.executable).with_name("ray")
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        own |= {"HOME": name, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        with (Path(name) / "log").open("wb") as log:
            command = [str(program), *START, f"--port={free_port()}", f"--temp-dir={name}/ray"]
            environment = {**os.environ, **own}
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield address_in(Path(name) / "log", head), own
        finally:
            end_session(head)


def address_in(log, head):
    for _ in range(600):
        text = log.read_text()
        if "--block" in text and (found := re.search(r"--port=(\d+)", " ".join(map(str, head.args)))):
            return f"127.0.0.1:{found[1]}"
        if head.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError(f"the cluster does not start: {log.read_text()}")


@pytest.fixture
def folder(tmp_path):
    config = presets.load("coco-panoptic-r50", ["test.resize.short_edge=64", "test.resize.max_edge=100"])
    config = config.model_copy(update={"model": tiny_config()})
    write_model(tmp_path / "model.safetensors", config, from_names(NAMES, things=NAMES[:3]))
    (tmp_path / "in").mkdir()
    for number in range(COUNT):
        Image.fromarray(random_image(50 + 8 * (number % 3), 70, number)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "x.png").write_bytes(b"no image")
    return tmp_path


def run(folder, arguments, own, program=("-m", "m2f_cli")):
    command = [sys.executable, *program, *PREDICT, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | own
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_an_existing_cluster_writes_the_files_of_one_process(folder, cluster):
    address, own = cluster
    for _ in range(2):  # the cluster outlives the command
        done = run(folder, ["--out", "ray", "--overwrite", "--on", "ray", "--ray-address", address], own)
        assert done.returncode == 3 and f"{COUNT} done" in done.stdout, done.stderr[-3000:]
    run(folder, ["--out", "one"], own)
    assert tree_without_times(folder / "ray") == tree_without_times(folder / "one")


def test_who_has_no_token_is_told_in_one_sentence(folder, cluster):
    address, own = cluster
    stranger = {name: value for name, value in own.items() if not name.startswith("RAY_")}
    done = run(folder, ["--out", "out", "--on", "ray", "--ray-address", address], stranger)
    says = f"error: The Ray cluster at {address} wants a token, and this process has none or another. Set RAY_AUTH_MODE"
    assert done.returncode == 2 and done.stderr.startswith(says) and done.stderr.count("\n") == 1, done.stderr


def test_another_version_of_ray_is_told_in_one_sentence(folder, cluster):
    address, own = cluster
    done = run(folder, ["--out", "out", "--on", "ray", "--ray-address", address], own, ("-c", OTHER))
    assert done.returncode == 2 and done.stderr.startswith("error: The Ray cluster has other versions: "), done.stderr
    assert "2.0.0" in done.stderr and done.stderr.count("\n") == 1 and not list(folder.glob("out/*.json"))
