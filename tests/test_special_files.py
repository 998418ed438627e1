"""Named pipes are not waited for: each place that a command reads from is tried with one in place of its file."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from helpers.fake_segmenter import FakeSegmenter
from helpers.folders import (
    annotation,
    cityscapes,
    coco_instances,
    coco_panoptic,
    label_maps,
    labelme,
    mapillary,
    plane,
    rectangle,
    roboflow,
    write_json,
    write_random_image,
    write_text,
    yolo_seg,
)
from helpers.small_segmenter import small_segmenter
from training.tiny import settings

from m2f_cli import cli
from m2f_cli.config import presets as config
from m2f_cli.errors import ConfigError
from m2f_cli.export import destination
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import RUN_MARK, ImageSource
from m2f_cli.runtime.files import open_to_read
from m2f_cli.runtime.jsonl import JsonLines
from m2f_cli.training.loggers import JsonLinesLogger

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such pipes")
LIMIT = 60  # seconds after which a reader counts as waiting for ever


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("M2F_OFFLINE", "1")
    return tmp_path


def ends(path: Path, work) -> object:
    """Return what work returns or raises. It may not wait for somebody to write to the pipe."""
    found: list[object] = []

    def run():
        try:
            found.append(work())
        except Exception as error:  # what it is, is asserted by the caller
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    if thread.is_alive():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # the reader finds the end
        pytest.fail(f"{path} is waited for")
    return found[0]


def as_pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


CPU = ["--device", "cpu"]
MASK = plane((1, 2, 2, 9, 9))


def checked(make, *name: str):
    """A data set with a pipe in place of one of its files, to be checked."""

    def prepared() -> tuple[Path, list[str]]:
        make(Path("data"))
        [path] = [found for pattern in name for found in sorted(Path("data").glob(pattern))][:1]
        return as_pipe(path), ["data", "check", "data"]

    return prepared


def coco(folder: Path) -> None:
    coco_instances(folder, [annotation(1, 1, 3, [rectangle(1, 1, 9, 9)])])


def masks(folder: Path) -> None:
    label_maps(folder, [MASK, MASK])


def given(name: str, *arguments: str):
    """A pipe that is named on the command line."""

    def prepared() -> tuple[Path, list[str]]:
        write_random_image(Path("a.png"))
        return as_pipe(Path(name)), [*arguments]

    return prepared


def run_with(name: str):
    def prepared() -> tuple[Path, list[str]]:
        write_text(Path("run/config.yaml"), config.dump(settings()))
        write_json(Path("run/env.json"), {"options": {"init": "random"}})
        return as_pipe(Path("run") / name), ["train", "--resume", "--out", "run", *CPU]

    return prepared


def evaluations() -> tuple[Path, list[str]]:
    write_text(Path("b/pictures.jsonl"), '{"header": {}}\n')
    return as_pipe(Path("a/pictures.jsonl")), ["eval", "--compare", "a", "b"]


def resumed_prediction() -> tuple[Path, list[str]]:
    small = small_segmenter()
    write_random_image(Path("a.png"))
    from m2f_cli import weights

    weights.save(Path("m.safetensors"), small.model.state_dict(), small.config, small.categories)
    arguments = ["predict", "a.png", "--model", "m.safetensors", "--out", "o", "--skip-existing", *CPU]
    return as_pipe(Path("o") / RUN_MARK), arguments


PLACES = {
    "image": given("x.png", "predict", "x.png", "--model", "tiny", *CPU),
    "checkpoint": given("x.pth", "predict", "a.png", "--model", "x.pth", *CPU),
    "safetensors": given("x.safetensors", "predict", "a.png", "--model", "x.safetensors", *CPU),
    "hugging face": given("x/config.json", "predict", "a.png", "--model", "x", *CPU),
    "exported": given("x.onnx", "predict", "a.png", "--model", "x.onnx", *CPU),
    "export record": given("x/export.json", "predict", "a.png", "--model", "x", *CPU),
    "preset": given("x.yaml", "train", "--preset", "./x.yaml", "--out", "o", *CPU),
    "initial weights": given("x.pth", "train", "--preset", "tiny", "--init", "x.pth", "--out", "o", *CPU),
    "step to repeat": given("x.pt", "train", "--replay", "x.pt", *CPU),
    "class table": given("x.yaml", "data", "check", "data", "--classes", "x.yaml"),
    "archive": given("x.zip", "data", "prepare", "cityscapes", "--root", "x.zip"),
    "predictions": given("x.json", "eval", "--predictions", "x.json", "--ground-truth", "x.json"),
    "coco json": checked(coco, "annotations/*.json"),
    "coco image": checked(coco, "train2017/*.jpg", "val2017/*.jpg", "**/*.jpg"),
    "panoptic png": checked(coco_panoptic, "annotations/*/*.png", "**/*.png"),
    "label map": checked(masks, "labels/train/0.png"),
    "classes.txt": checked(masks, "classes.txt"),
    "yolo data.yaml": checked(yolo_seg, "data.yaml"),
    "labelme": checked(labelme, "**/*.json"),
    "roboflow": checked(roboflow, "**/*.json"),
    "cityscapes": checked(cityscapes, "gtFine/**/*.png"),
    "mapillary": checked(mapillary, "**/*.png"),
    "config.yaml": run_with("config.yaml"),
    "env.json": run_with("env.json"),
    "resume.pt": run_with("checkpoints/resume.pt"),
    "journal of an evaluation": evaluations,
    "journal of a prediction": resumed_prediction,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_in_place_of_a_file_is_not_waited_for(place, capsys):
    path, arguments = PLACES[place]()
    code = ends(path, lambda: cli.run(arguments))
    text = "".join(capsys.readouterr())
    assert code in (1, 2, 3, 4), text
    assert "bug in m2f" not in text and "Traceback" not in text


def test_what_is_no_file_is_not_opened(here):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(here / "s")[-100:])
        os.mkfifo(here / "p")
        for path, kind in ((here / "p", "named pipe"), (here / "s", "socket"), (Path("/dev/zero"), "device")):
            with pytest.raises(OSError, match=f"it is a {kind} and no file"):
                open_to_read(path)
    (here / "link").symlink_to(here / "p")
    with pytest.raises(OSError, match="named pipe"):
        open_to_read(here / "link")


def test_nothing_is_appended_to_a_pipe(here):
    os.mkfifo(here / "log")
    for opened in (JsonLines, JsonLinesLogger):
        assert "is a pipe or a device" in str(ends(here / "log", lambda opened=opened: opened(here / "log")))


# --- links ------------------------------------------------------------------------------------------------------------


def test_exports_follow_no_link_out_of_their_folder(here):
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "file").write_text("mine")
    (here / "x").mkdir()
    (here / "x" / "sub").symlink_to(here / "elsewhere")
    with (
        pytest.raises(ConfigError, match="A link leads .*file out of the folder"),
        destination.staged_file(here / "x", overwrite=True) as part,
    ):
        (part / "sub").mkdir(parents=True)
        (part / "sub" / "file").write_text("new")
    assert (here / "elsewhere" / "file").read_text() == "mine"


@pytest.mark.parametrize("link", ["overlay", "overlay/sub"])
def test_predictions_follow_no_link_in_place_of_a_folder_of_results(link, here):
    photos = here / "photos"
    image = write_random_image(photos / "sub" / "a.jpg", (48, 64))
    before = image.read_bytes()
    out = here / "out"
    (out / link).parent.mkdir(parents=True)
    (out / link).symlink_to(photos if link == "overlay" else photos / "sub")
    (out / RUN_MARK).write_text("")
    given = [ImageSource(image, "sub/a")]
    with pytest.raises(ConfigError, match="A link leads .* out of the folder of results"):
        predict(FakeSegmenter(), given, "panoptic", out, ["overlay"], overwrite=True)
    assert image.read_bytes() == before and list((photos / "sub").iterdir()) == [image]
