"""Names from data become paths below the output folder, whoever writes; images that were given stay as they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from helpers.fake_segmenter import CATEGORIES, FakeSegmenter, scene, scene_labels
from helpers.folders import annotation, coco_instances, image_entry, rectangle, write_json, write_random_image
from PIL import Image
from training.tiny import settings

from m2f_cli import cli, plugins
from m2f_cli.data.records import DataSet, Record
from m2f_cli.data.synthetic.scenes import CATEGORIES as SCENES
from m2f_cli.dataset_tools import preview as data_images
from m2f_cli.dataset_tools.convert.run import write_out
from m2f_cli.dataset_tools.convert.source import ConvertSource as Opened
from m2f_cli.errors import ConfigError, DataError
from m2f_cli.evaluation import run as eval_run
from m2f_cli.evaluation.evaluate import default_metrics
from m2f_cli.inference.journal import erase
from m2f_cli.inference.predict import predict
from m2f_cli.inference.sources import RUN_MARK, ImageSource, expand
from m2f_cli.report import data as data_page
from m2f_cli.results import server_formats
from m2f_cli.results import writers as output
from m2f_cli.runtime.archives import tar_files
from m2f_cli.runtime.files import safe_name
from m2f_cli.structures.annotations import (
    AnnotatedObject,
    AnnotatedSegment,
    InstanceAnnotation,
    PanopticAnnotation,
    SemanticAnnotation,
)
from m2f_cli.structures.categories import Category
from m2f_cli.training.visualise import draw_batch, draw_results

FRAME = "aachen_000000_000019"  # so that the formats of Cityscapes take the names, too
NAMES = [
    "{out}/../{frame}",
    "/{frame}",
    "../../{frame}",
    "a/../../../{frame}",
    "..\\..\\{frame}",
    "C:\\data\\{frame}",
    "C:{frame}",
    "a\0b/{frame}",
    "line\nbreak/{frame}",
    "x" * 300 + "/{frame}",
    "{frame}_" + "y" * 300,
    "./a//{frame}",
    "~/{frame}",
    "con/{frame}",
    "bytes\udcff\udcfe/{frame}",
    "../",
    "",
    " ",
]
CITY = (
    Category(23, "sky", False, (70, 130, 180)),
    Category(21, "vegetation", False, (107, 142, 35)),
    Category(24, "person", True, (220, 20, 60)),
)
FRAMED = ("cityscapes-semantic", "cityscapes-instance")


class CitySegmenter(FakeSegmenter):
    """In the classes of Cityscapes, which its formats ask for."""

    def __init__(self):
        super().__init__()
        self.categories = CITY

    def finish(self, raw, task=None, **thresholds):
        return dataclasses.replace(super().finish(raw, task), categories=CITY)


def task_for(writer: str) -> str:
    return getattr(plugins.get("writers", writer), "tasks", ("panoptic",))[0]


def named(name: str, out: Path) -> str:
    return name.format(out=out, frame=FRAME)


def fits(writer: str, name: str) -> bool:
    return writer not in FRAMED or FRAME in name


def panoptic_annotation() -> PanopticAnnotation:
    labels_HW = scene_labels()
    return PanopticAnnotation(labels_HW.astype(np.int32) + 1, [AnnotatedSegment(i + 1, i) for i in range(3)])


def record(name: str, image: Path | None = None) -> Record:
    return Record(name, image, panoptic_annotation, 48, 64, read_image=scene)


@pytest.fixture
def out(tmp_path) -> Path:
    """Where results go. What lies beside it must be the same afterwards."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.fromarray(scene()).save(tmp_path / "given.png")
    return tmp_path / "deep" / "er" / "out"


@pytest.fixture(autouse=True)
def nothing_else_changes(tmp_path, out):
    before = tree_of(tmp_path, out)
    roots = set(os.listdir("/"))
    yield
    assert tree_of(tmp_path, out) == before
    assert set(os.listdir("/")) == roots


def tree_of(folder: Path, without: Path) -> dict[str, str]:
    """All files below a folder by their hashes, but for those below another."""
    files = (path for path in folder.rglob("*") if path.is_file() and without not in path.parents)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- every writer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "name"),
    [(writer, name) for writer in plugins.names("writers") for name in NAMES if writer not in FRAMED or "{" in name],
    ids=lambda text: ascii(text[:20]),
)
def test_names_of_one_result_stay_in_its_folder(writer, name, out):
    name = named(name, out)
    result = CitySegmenter().finish(scene_labels(), task_for(writer))
    result.image = scene()
    written = output.save(result, out, [writer], name=name)
    assert written and all(path.is_file() and ".." not in path.parts for path in written)


@pytest.mark.parametrize("writer", plugins.names("writers"))
def test_names_of_predictions_stay_in_their_folder(writer, out, tmp_path):
    names = [name for each in NAMES if fits(writer, name := named(each, out))]
    names = list(
        {
            server_formats.frame_of(output.stem_for(out, writer, name)) if writer in FRAMED else safe_name(name): name
            for name in names
        }.values()
    )
    sources = [ImageSource(tmp_path / "given.png", name) for name in names]
    summary = predict(CitySegmenter(), sources, task_for(writer), out, [writer])
    assert (summary.done, summary.failed) == (len(names), [])
    tree = json.loads((out / "predictions.json").read_text())
    assert [each["name"] for each in tree["predictions"]] == names
    for each in tree["predictions"]:
        assert all((out / file).is_file() and file == PurePosixPath(file).as_posix() for file in each["files"])
        assert not any(".." in PurePosixPath(file).parts or file.startswith("/") for file in each["files"])
    check_shared(out, writer, len(names))


@pytest.mark.parametrize("writer", plugins.names("writers"))
def test_names_of_saved_evaluations_stay_in_their_folder(writer, out):
    names = [name for each in NAMES if fits(writer, name := named(each, out))]
    names = list(
        {
            server_formats.frame_of(output.stem_for(out, writer, name)) if writer in FRAMED else safe_name(name): name
            for name in names
        }.values()
    )
    result = evaluate([record(name) for name in names], out, writer)
    assert (result.images, result.failures) == (len(names), [])
    check_shared(out / "predictions", writer, len(names))


def evaluate(records: list[Record], out: Path, writer: str):
    metrics = default_metrics(task_for(writer), CITY)
    if task_for(writer) == "instance":
        records = [
            dataclasses.replace(each, read_annotation=lambda: InstanceAnnotation((48, 64), [])) for each in records
        ]
    run = eval_run.EvalRun(out, CitySegmenter(), records, metrics, {"weights": "w", "split": "../val"}, save=[writer])
    return eval_run.run(run)


def check_shared(folder: Path, writer: str, count: int) -> None:
    """A document names the files that were written, and an archive holds nothing that leads out of it."""
    if writer.startswith("coco-panoptic"):
        files = [each["file_name"] for each in json.loads((folder / "panoptic.json").read_text())["annotations"]]
        assert len(files) == count and all((folder / "panoptic" / file).is_file() for file in files)
        assert all(file == safe_name(file.removesuffix(".png")) + ".png" for file in files)
    for path in folder.glob("*.zip"):
        members = zipfile.ZipFile(path).namelist()
        assert len(members) == 1 + count
        assert not any(member.startswith("/") or ".." in member or "\\" in member for member in members)


@pytest.mark.parametrize("target", plugins.names("converters"))
def test_names_of_converted_data_stay_in_their_folder(target, out):
    names = list({safe_name(name): name for each in NAMES if FRAME in (name := named(each, out))}.values())
    task = plugins.get("converters", target).task or "instance"
    read = {
        "panoptic": panoptic_annotation,
        "semantic": lambda: SemanticAnnotation(scene_labels()),
        "instance": lambda: InstanceAnnotation((48, 64), [AnnotatedObject(2, [np.array([[1, 1], [9, 1], [9, 9.0]])])]),
    }
    records = [dataclasses.replace(record(name), read_annotation=read[task]) for name in names]
    data = DataSet("x", "coco-panoptic", "../train", task, CATEGORIES, records)
    done = write_out(Opened(Path("x"), (data,), task), {"../train": records}, out, target)
    assert [(each.split, each.images, each.failures) for each in done.splits] == [("train", len(names), ())]
    files = [path.relative_to(out).as_posix() for path in out.rglob("*.png")]
    images = [file for file in files if not file.startswith(("labels/", "panoptic_", "gtFine/"))]
    for path in out.rglob("*.tar"):
        images += [name for name, _, _ in tar_files(path) if name.endswith(".png")]
    assert len(images) == len(names)


def test_images_of_a_training(out):
    names = [named(name, out) for name in NAMES]
    records = [
        dataclasses.replace(
            record(name),
            read_image=lambda: np.zeros((64, 96, 3), np.uint8),
            read_annotation=lambda: PanopticAnnotation(np.ones((64, 96), np.int32), [AnnotatedSegment(1, 0)]),
        )
        for name in names
    ]
    for start in range(0, len(names), 4):
        data = DataSet("x", "x", "train", "panoptic", CATEGORIES, records[start : start + 4])
        paths = draw_batch(data, settings(), out / f"samples{start}")
        assert len(set(paths)) == len(data.records) and all(path.parent == out / f"samples{start}" for path in paths)
        paths = draw_results(FakeCallable(), data.records, "panoptic", out / f"val{start}")
        assert len(set(paths)) == len({safe_name(each.name) for each in data.records})


class FakeCallable(FakeSegmenter):
    def __call__(self, image, task):
        return self.finish((image[..., 0] // 86).clip(0, 2).astype(np.uint8), task)


def test_pages_and_sheets(out):
    records = [record(named(name, out)) for name in NAMES]
    data = DataSet("../x", "coco", "../val", "panoptic", CATEGORIES, records)
    shown = list(data_images.views(data, count=len(records)))
    data_page.write_view_page(data, shown, out / "page.html")
    data_images.write_sheet(shown, out / "sheet.jpg")
    assert sorted(path.name for path in out.iterdir()) == ["page.html", "sheet.jpg"]


# --- two names, one path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "writer"),
    [
        (("/a/x", "a/x"), "overlay"),
        (("../x", "x"), "color-png"),
        (("a\\x", "a/x"), "coco-panoptic"),
        ((f"a/{FRAME}_one", f"a/{FRAME}_two"), "cityscapes-semantic"),
        (("x", "x.png/in"), "overlay-png"),
        (("a/x.json/b/in", "a/x"), "polygons"),
    ],
)
def test_images_that_would_be_written_to_one_place(names, writer, out, tmp_path):
    with pytest.raises(DataError) as caught:
        evaluate([record(name) for name in names], out, writer)
    assert all(repr(name) in str(caught.value) for name in names) and not out.exists()
    with pytest.raises(DataError) as caught:
        predict(
            CitySegmenter(), [ImageSource(tmp_path / "given.png", name) for name in names], "panoptic", out, [writer]
        )
    assert all(repr(name) in str(caught.value) for name in names) and not out.exists()


@pytest.mark.parametrize("names", [("/a/x", "a/x"), ("../x", "x"), ("out/x", "x")])
def test_converted_images_that_would_be_written_to_one_place(names, out):
    records = [record(name) for name in names]
    data = DataSet("x", "coco-panoptic", "train", "panoptic", CATEGORIES, records)
    with pytest.raises(DataError) as caught:  # of a city of the data set's own name, "out", are images without one
        write_out(Opened(Path("x"), (data,), "panoptic"), {"train": records}, out, "cityscapes")
    assert all(repr(name) in str(caught.value) for name in names) and not out.exists()


@pytest.mark.parametrize(("target", "name"), [("label-maps", "x.png/in"), ("coco-panoptic", "x.tif/in")])
def test_converted_images_of_which_one_is_a_file_where_the_other_needs_a_folder(target, name, out):
    records = [dataclasses.replace(record("x"), image=Path("x.tif")), record(name)]
    data = DataSet("x", "coco-panoptic", "train", "panoptic", CATEGORIES, records)
    with pytest.raises(DataError, match="a file where the other needs a folder") as caught:
        write_out(Opened(Path("x"), (data,), "panoptic"), {"train": records}, out, target)
    assert repr(name) in str(caught.value) and not out.exists()


def test_converted_images_whose_names_differ_in_case_alone(out, monkeypatch):
    def exists(path):  # as a file system says that ignores case
        return path.parent.is_dir() and path.name.lower() in (name.lower() for name in os.listdir(path.parent))

    monkeypatch.setattr(os.path, "lexists", exists)
    records = [record("a"), record("A"), record("b")]
    data = DataSet("x", "coco-panoptic", "train", "panoptic", CATEGORIES, records)
    done = write_out(Opened(Path("x"), (data,), "panoptic"), {"train": records}, out, "coco-panoptic")
    [(name, why)] = done.splits[0].failures
    assert name == "A" and "differs in case alone" in why and done.splits[0].images == 2


def test_files_whose_results_would_meet_get_other_names(out):
    out.mkdir()
    for name in ("a:b.png", "a_b.png", "c\\d.png", "c/d.png"):
        (out / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scene()).save(out / name)
    names = [source.name for source in expand([out])]
    assert len({safe_name(name) for name in names}) == len(names) == 4


# --- images that were given -------------------------------------------------------------------------------------------


def absolute_coco(folder: Path, writer_suffix: str = ".jpg") -> Path:
    """A COCO json with absolute names, as FiftyOne and Label Studio write them."""
    files = [folder / "media" / f"{number}{writer_suffix}" for number in range(2)]
    for number, path in enumerate(files):
        write_random_image(path, (64, 96), seed=number)
    tree = {
        "images": [image_entry(number, str(path), (64, 96)) for number, path in enumerate(files)],
        "annotations": [annotation(n, n, 1, [rectangle(10, 10, 60, 60)]) for n in range(2)],
        "categories": [{"id": each.id, "name": each.name} for each in SCENES if each.isthing],
    }
    write_json(folder / "annotations" / "instances_val.json", tree)
    return folder


@pytest.fixture
def tiny_run(out) -> Path:
    """Weights of a tiny model of generated scenes."""
    import torch

    from m2f_cli import weights
    from m2f_cli.model import build

    model = build(settings().model, len(SCENES))
    with torch.no_grad():
        model.decoder.class_embed.bias.zero_()[-1] = -9
    return weights.save(out / "tiny.safetensors", model.state_dict(), settings(), SCENES)


@pytest.mark.parametrize(("writer", "suffix"), [("overlay", ".jpg"), ("color-png", ".png"), ("coco-instance", ".jpg")])
def test_absolute_names_of_a_coco_json(writer, suffix, out, tiny_run, capsys):
    data = absolute_coco(out / "data", suffix)
    before = tree_of(data, out / "ev")
    arguments = ["eval", "--model", str(tiny_run), "--data", str(data), "--metric", "ap", "--device", "cpu"]
    assert cli.run([*arguments, "--save", writer, "--out", str(out / "ev")]) == 0, capsys.readouterr().err
    assert tree_of(data, out / "ev") == before
    tree = json.loads((out / "ev" / "predictions" / "predictions.json").read_text())
    assert [each["file"] for each in tree["predictions"]] == [f"{data}/media/{n}{suffix}" for n in range(2)]
    if writer == "coco-instance":
        scored = ["eval", "--predictions", str(out / "ev" / "predictions"), "--ground-truth", str(data)]
        assert cli.run(scored) == 0, capsys.readouterr().err


def test_results_do_not_replace_the_images_that_they_are_of(out):
    folder = out / "overlay"
    write_random_image(folder / "a.jpg")
    before = tree_of(out, out / "nothing")
    (out / RUN_MARK).write_text("{}\n")
    with pytest.raises(ConfigError, match=r"a.jpg lies in .*overlay, where results would be written over it"):
        predict(FakeSegmenter(), list(expand([folder])), None, out, ["overlay"], overwrite=True)
    with pytest.raises(ConfigError, match=r"a.jpg lies in .*overlay"):  # one by one, as from a list on stdin
        predict(FakeSegmenter(), expand([folder]), None, out, ["overlay"], overwrite=True)
    assert {path: found for path, found in tree_of(out, out / "nothing").items() if path in before} == before
    records = [record("x", image=folder / "a.jpg")]
    (out / "pictures.jsonl").write_text("")
    (out / "predictions").symlink_to(out)
    with pytest.raises(ConfigError, match="lies in .*overlay"):
        evaluate_into(out, records)


def evaluate_into(out: Path, records: list[Record]):
    metrics = default_metrics("panoptic", CITY)
    run = eval_run.EvalRun(out, CitySegmenter(), records, metrics, {}, save=["overlay"])
    return eval_run.run(run, resume=True)


def test_an_earlier_result_that_is_given_is_not_removed(out):
    predict(FakeSegmenter(), [ImageSource(out.parents[2] / "given.png", "x")], None, out, ["overlay"])
    given = list(expand([out / "overlay" / "x.jpg"]))
    before = (out / "overlay" / "x.jpg").read_bytes()
    with pytest.raises(ConfigError, match="result of an earlier run, which --overwrite would remove"):
        predict(FakeSegmenter(), given, None, out, ["color-png"], overwrite=True)
    assert (out / "overlay" / "x.jpg").read_bytes() == before


@pytest.mark.parametrize("depth", ["folder", "below"])
@pytest.mark.parametrize("writer", ["overlay-png", "crops", "cityscapes-semantic"])
def test_results_follow_no_link_out_of_their_folder(writer, depth, out):
    photos = out / "photos"
    image = write_random_image(photos / "a_000000_000000.png", (20, 30))
    before = image.read_bytes()
    place = output.folder_of(out, writer) / "sub"
    place = place.parent if depth == "folder" else place
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(photos)
    (out / RUN_MARK).write_text("{}\n")
    given = [ImageSource(image, "sub/a_000000_000000")]
    with pytest.raises(ConfigError, match="A link leads .* out of the folder of results"):
        predict(FakeSegmenter(), given, None, out, [writer], overwrite=True)
    assert image.read_bytes() == before and list(photos.iterdir()) == [image]


def test_a_sheet_is_not_written_over_an_image(out, capsys):
    coco_instances(out, [annotation(1, 1, 3, [rectangle(1, 1, 9, 9)])])
    image = out / "val2017" / "1.jpg"
    before = image.read_bytes()
    assert cli.run(["data", "view", str(out), "--split", "val", "--out", str(image)]) == 2
    assert "exists already in the folder of the data set" in capsys.readouterr().err and image.read_bytes() == before


@pytest.mark.parametrize("options", [{"skip_existing": True}, {"overwrite": True}], ids=str)
def test_predictions_do_not_replace_annotations(options, out):
    mask = write_random_image(out / "labels" / "train" / "a.png", (20, 30))
    write_random_image(out / "images" / "train" / "a.png", (20, 30))
    before = mask.read_bytes()
    with pytest.raises(ConfigError, match=r"a.png lies where results go, and is of no earlier prediction"):
        predict(FakeSegmenter(), list(expand([out / "images"])), None, out, ["label-png"], **options)
    assert mask.read_bytes() == before
    shared = write_json(out / "panoptic.json", {})
    with pytest.raises(ConfigError, match=r"panoptic.json lies where results go"):
        predict(FakeSegmenter(), list(expand([out / "images"])), None, out, ["overlay"], **options)
    assert shared.read_text() == "{}"


def test_a_sheet_is_not_written_over_a_mask(out, capsys):
    mask = write_random_image(out / "labels" / "val" / "a.png", (20, 30))
    before = mask.read_bytes()
    for split in ("train", "val"):
        write_random_image(out / "images" / split / "a.png", (20, 30))
    (out / "labels" / "train").mkdir()
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(out / "labels" / "train" / "a.png")
    (out / "classes.yaml").write_text("classes: [a, b]\n")
    assert cli.run(["data", "view", str(out), "--out", str(mask)]) == 2
    assert "exists already in the folder of the data set" in capsys.readouterr().err and mask.read_bytes() == before


# --- journals of others -----------------------------------------------------------------------------------------------


def test_what_a_journal_lists_is_removed_only_in_its_folder(out, tmp_path):
    out.mkdir()
    (out / "link").symlink_to(tmp_path)
    (out / "own.txt").write_text("")
    (out / "folder").mkdir()
    given = str(tmp_path / "given.png")
    names = ["own.txt", "../../../given.png", given, "link/given.png", "folder", "", ".", "a\0b", 7]
    lines = [{"head": 1}, {"record": {"name": "x", "file": "y", "files": names}}, {"record": {"files": "given.png"}}, 3]
    (out / RUN_MARK).write_text("".join(json.dumps(line) + "\n" for line in lines))
    erase(out)
    assert sorted(path.name for path in out.iterdir()) == ["folder", "link"]
    assert (tmp_path / "given.png").is_file()


@pytest.mark.parametrize(
    "entry",
    [
        {"record": {"name": "x", "file": "y", "files": "abc"}},
        {"record": {"name": 7, "file": "y", "files": []}},
        {"record": {"name": "x"}},
        {"record": []},
        [],
        {"record": {"name": "x", "file": "y", "files": []}, "shared": []},
        {"record": {"name": "x", "file": "y", "files": []}, "shared": {"coco-panoptic": {}}},
    ],
)
def test_a_damaged_journal_is_one_sentence(entry, out, tmp_path):
    sources = [ImageSource(tmp_path / "given.png", "x")]
    predict(FakeSegmenter(), sources, None, out, ["coco-panoptic"])
    with (out / RUN_MARK).open("a") as file:
        file.write(json.dumps(entry) + "\n")
    with pytest.raises(DataError, match="is damaged"):
        predict(FakeSegmenter(), sources, None, out, ["coco-panoptic"], skip_existing=True)


@pytest.mark.parametrize("name", ["../../../given.png", "/etc/passwd", "a/../../x.png", 7, None])
def test_an_archive_holds_nothing_from_elsewhere(name, out):
    out.mkdir()
    write_json(out / "panoptic.json", {"annotations": [{"file_name": name}]})
    with pytest.raises(DataError, match="lists a PNG that no folder of predictions holds"):
        server_formats.pack_panoptic(out)
    assert not list(out.glob("*.zip"))
