"""Images through Ray: the files are those of one process, also after processes of the cluster were killed."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest
from helpers.fake_segmenter import FakeSegmenter, scene
from helpers.folders import tree_without_times
from helpers.process_segmenters import DEADLY, FullDisk, deadly_on, dying_once_on, fake_on, refused_on
from PIL import Image

from m2f_cli.cluster import ray_cluster
from m2f_cli.cluster.ray_stream import RayStream, plan_for
from m2f_cli.cluster.stages import Clock, bottleneck
from m2f_cli.errors import ConfigError, M2FError, MissingDependency
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import RUN_MARK, expand

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
TESTS = Path(__file__).parents[1]
FORMATS = ["coco-panoptic", "overlay"]
COUNT = 40


@pytest.fixture(scope="module")
def ray():
    """A cluster of two cores, whose processes find the helpers of these tests."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
        with ray_cluster.connected() as connected:
            yield connected
        ray.shutdown()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(COUNT):
        Image.fromarray(scene(40 + number % 4)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"no image")
    return folder


def run(images, out, streamer=None, **options):
    more = {} if streamer is None else {"streamer": streamer}
    return predict(FakeSegmenter(), list(expand([images])), None, out, FORMATS, **more, **options)


@pytest.mark.slow
def test_a_cluster_writes_the_files_of_one_process(ray, images, tmp_path):
    seen, options = [], {"batch": 3, "thumbnails": 32}
    run(images, tmp_path / "one", **options)
    streamer = RayStream(ray, fake_on)
    summary = run(images, tmp_path / "ray", streamer, on_progress=lambda step: seen.append(step.file.name), **options)
    assert tree_without_times(tmp_path / "ray") == tree_without_times(tmp_path / "one")
    assert seen == [f"{number:02}.png" for number in range(COUNT)]
    assert summary.done == COUNT - 1 and [each.file.name for each in summary.failed] == ["07.png"]
    assert [stage.name for stage in streamer.stages] == ["read", "prepare", "network", "post_process", "write"]
    assert all(0 <= stage.busy <= 1 for stage in streamer.stages)


@pytest.mark.slow
@pytest.mark.parametrize("wave", [10, COUNT])
def test_a_run_goes_on_after_another_and_skips_what_is_done(ray, images, tmp_path, wave):
    run(images, tmp_path / "one")
    run(images, tmp_path / "ray")
    journal = tmp_path / "ray" / ".predict.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:15]))
    summary = run(images, tmp_path / "ray", RayStream(ray, fake_on, wave=wave), skip_existing=True)
    assert (summary.skipped, summary.done) == (13, COUNT - 14)
    found, expected = tree_without_times(tmp_path / "ray"), tree_without_times(tmp_path / "one")
    assert found.pop(RUN_MARK).count(b"not an image") == 2 and expected.pop(RUN_MARK).count(b"not an image") == 1
    assert found == expected


@pytest.mark.slow
def test_a_process_that_is_killed_changes_nothing(ray, images, tmp_path):
    run(images, tmp_path / "one")
    mark = tmp_path / "mark"
    summary = run(images, tmp_path / "ray", RayStream(ray, functools.partial(dying_once_on, mark)))
    assert mark.exists() and summary.done == COUNT - 1
    assert tree_without_times(tmp_path / "ray") == tree_without_times(tmp_path / "one")


@pytest.mark.slow
def test_an_image_that_kills_every_process_fails_alone(ray, images, tmp_path):
    Image.fromarray(scene(DEADLY)).save(images / "20.png")
    summary = run(images, tmp_path / "ray", RayStream(ray, deadly_on))
    assert [each.file.name for each in summary.failed] == ["07.png", "20.png"]
    assert "3 processes of the Ray cluster were lost at this image. The memory" in summary.failed[1].message
    assert summary.done == COUNT - 2


@pytest.mark.slow
def test_a_model_that_the_cluster_cannot_open(ray, images, tmp_path):
    with pytest.raises(ConfigError, match=r"The device 'cuda:7' cannot be used."):
        run(images, tmp_path / "ray", RayStream(ray, refused_on))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_its_own_error(ray):
    with pytest.raises(M2FError, match=r"^The disk is full.$"):
        list(RayStream(ray, fake_on)(FakeSegmenter(), range(COUNT), FullDisk()))


# --- the versions, the plan and the summary ---------------------------------------------------------------------------


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r"--on ray needs the package ray\[data\], which is not installed. Run: pip install 'm2f-cli\[ray\]'"
    with pytest.raises(MissingDependency, match=message), ray_cluster.connected():
        pass


def test_an_address_where_no_cluster_is_fails_at_once(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have a cluster
    says = "The Ray cluster at 127.0.0.1:9 cannot be reached"
    with pytest.raises(ConfigError, match=says), ray_cluster.connected("127.0.0.1:9"):
        pass


def test_a_cluster_of_this_machine_that_does_not_start_in_time(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")

    def late(*_, **options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have a cluster
    monkeypatch.setattr(ray, "init", late)
    says = r"^Ray does not start on this machine: The current node timed out"
    with pytest.raises(ConfigError, match=says), ray_cluster.connected("local"):
        pass


def test_what_ray_tells_while_it_starts_is_not_lost(monkeypatch, capfd):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2f-cli[ray]'")

    def crash(*_, **options):
        os.write(2, b"[I 1] logging.cc:303: Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\n")
        os.write(2, b"[E 1] no space in /dev/shm\n")
        raise RuntimeError("a node died")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test may have a cluster
    monkeypatch.setattr(ray, "init", crash)
    with pytest.raises(ConfigError, match="a node died"), ray_cluster.connected("local"):
        pass
    assert capfd.readouterr().err == "[E 1] no space in /dev/shm\n"


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            {"m2f_cli.version": "0.1", "ray": "2"},
            "This process has m2f 0.2, and the node a of the Ray cluster has 0.1.",
        ),
        ({"m2f_cli.version": "none (No module named 'm2f_cli')", "ray": "2"}, "has none"),
        ({"m2f_cli.version": "0.2", "ray": "3"}, "has ray 2, and the node a of the Ray cluster has 3"),
    ],
)
def test_other_versions_on_the_cluster_are_refused(found, says):
    with pytest.raises(ConfigError) as caught:
        ray_cluster.refuse_other_versions("the node a", {"m2f_cli.version": "0.2", "ray": "2"}, found)
    assert says in str(caught.value) and "Install the same versions" in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "device", "actors", "readers", "threads", "on"),
    [
        ([{"CPU": 2.0}], "auto", 2, 2, 1, "cpu"),
        ([{"CPU": 16.0}, {"CPU": 8.0}], "auto", 6, 6, 4, "cpu"),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], "auto", 2, 18, 1, "cuda"),
        ([{"CPU": 1.0, "GPU": 1.0}], "cuda", 1, 1, 1, "cuda"),
        ([{"CPU": 4.0, "GPU": 1.0}], "cpu", 4, 4, 1, "cpu"),
    ],
)
def test_a_gpu_or_a_group_of_cores_gets_an_actor(nodes, device, actors, readers, threads, on):
    plan = plan_for(nodes, device)
    assert (plan.actors, plan.readers, plan.threads, plan.device) == (actors, readers, threads, on)
    used = plan.actors * plan.actor["num_cpus"] + plan.reader["num_cpus"]
    assert used <= sum(node["CPU"] for node in nodes), "a reader must find room beside all actors"


def test_a_cluster_without_gpus_is_no_place_for_cuda():
    with pytest.raises(M2FError, match="has 2 CPUs and 0 GPUs"):
        plan_for([{"CPU": 2.0}], "cuda")


def test_the_busiest_stage_is_the_bottleneck():
    clock = Clock()
    for _ in range(10):
        clock.add({"read": 0.1, "network": 0.3, "write": 0.05})
    stages = clock.stages(2.0, {"read": 1, "network": 2, "write": 2})
    assert [(stage.name, round(stage.images_per_second, 6), round(stage.busy, 6)) for stage in stages] == [
        ("read", 10.0, 0.5),
        ("network", pytest.approx(20 / 3, abs=1e-6), 0.75),
        ("write", 40.0, 0.125),
    ]
    assert bottleneck(stages) == "network"
    assert max(stage.busy for stage in clock.stages(0.1, {"read": 1, "network": 2, "write": 2})) == 1
